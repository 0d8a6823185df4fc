// SPDX-License-Identifier: Apache-2.0
/*
 * flood_fakes.c - a session that is frame headers and nothing else
 */

#include <stdlib.h>

#include "h2/h2.h"

struct h2 *flood_new(void)
{
	return calloc(1, sizeof(struct h2));
}

void flood_free(struct h2 *h)
{
	free(h);
}

bool flood_frame(struct h2 *h, uint8_t type, uint8_t flags, uint32_t len,
		 uint64_t now_us)
{
	h->head[H2_HEAD_TYPE] = type;
	h->head[4] = flags;
	h->left = len;
	return flood_of(h, now_us);
}

void flood_earn(struct h2 *h, uint32_t n)
{
	h->earned = n;
}

void flood_padding(struct h2 *h, uint8_t len)
{
	h->head[H2_HEAD] = len;
}

void flood_faults(struct h2 *h, uint32_t n)
{
	h->faults = n;
}
