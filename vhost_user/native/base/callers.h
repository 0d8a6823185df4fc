/* SPDX-License-Identifier: Apache-2.0 */
/*
 * callers.h - where clients of known IPs go
 */
#ifndef CALLERS_H
#define CALLERS_H

#include <stdint.h>

#include <sys/socket.h>

#include "vu_conn.h"
#include "vu_err.h"

/**
 * struct callers - Callers of one listener, in order of their IPs
 * @all:	The callers
 * @count:	How many
 * @cap:	How many fit into @all
 */
struct callers {
	struct vu_caller *all;
	unsigned count;
	unsigned cap;
};

const struct vu_caller *callers_find(const struct callers *t,
				     const struct sockaddr_storage *addr,
				     uint16_t *ret_port);
int callers_set(struct callers *t, const struct vu_caller *caller);
void callers_forget(struct callers *t, const struct vu_caller *caller);
void callers_clear(struct callers *t);

#endif /* CALLERS_H */
