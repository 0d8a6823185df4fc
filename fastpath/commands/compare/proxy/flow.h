/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow.h - bytes in one direction, from one end to another
 */
#ifndef FLOW_H
#define FLOW_H

#include "end.h"

#define FLOW_END '\xff' /* guest/probe: "put" */

/**
 * struct flow - Bytes in one direction
 * @from:	Where from; none: there are always more
 * @to:		Where to; none: they are dropped
 * @kept:	What @to has yet to take; none: nothing
 * @start:	Where in it
 * @len:	How many bytes
 * @marked:	A last byte that is FLOW_END is the end of what @from sends
 * @ended:	All were passed on, and that they ended, too
 */
struct flow {
	struct end *from;
	struct end *to;
	char *kept;
	size_t start;
	size_t len;
	bool marked;
	bool ended;
};

/**
 * flow_step() - Move some bytes of a flow, or that they ended
 * @f:		Flow
 *
 * Returns: 1; 0: there is nothing to do now; -errno
 */
int flow_step(struct flow *f);

#endif /* FLOW_H */
