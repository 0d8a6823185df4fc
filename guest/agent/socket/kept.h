/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kept.h - what kept.c has for options.c
 */
#ifndef KEPT_H
#define KEPT_H

#include <stdint.h>

#define USUAL_MSS 1460

enum option_kind { KEPT, TAKEN, FIXED, INET, ABSENT };

/**
 * struct option - An option that a vsock socket hasn't got
 * @level:	IPPROTO_*
 * @name:	Option
 * @kind:	See kept.c
 * @shift:	KEPT: where in the label
 * @bits:	KEPT: how many; 1 bit is a truth value
 * @usual:	What reads give while nothing (or 0) is stored
 * @min:	Least value that can be set, of those with more than one bit
 */
struct option {
	int level;
	int name;
	enum option_kind kind;
	unsigned shift;
	unsigned bits;
	int usual;
	int min;
};

const struct option *kept_find(int level, int name);
uint64_t kept_mask(const struct option *option);
int kept_value(uint64_t label, const struct option *option);

#endif /* KEPT_H */
