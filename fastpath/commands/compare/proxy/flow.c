// SPDX-License-Identifier: Apache-2.0
/*
 * flow.c - bytes in one direction, from one end to another
 */

#include "flow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUF (256U * 1024)

static char buf[BUF];

/**
 * put() - Pass bytes on, and keep the rest
 * @f:		Flow, which keeps nothing
 * @bytes:	Where they are
 * @len:	How many, not 0
 *
 * Returns: 0 or -errno
 */
static int put(struct flow *f, const char *bytes, size_t len)
{
	ssize_t n = f->to ? end_write(f->to, bytes, len) : (ssize_t)len;

	if (n == -EAGAIN)
		n = 0;
	if (n < 0)
		return (int)n;
	if ((size_t)n == len)
		return 0;
	f->start = 0;
	f->len = len - (size_t)n;
	f->kept = malloc(f->len);
	if (!f->kept)
		return -ENOMEM;
	memcpy(f->kept, bytes + n, f->len);
	return 0;
}

/**
 * put_kept() - Pass on what was kept
 * @f:		Flow, which keeps something
 *
 * Returns: how much was; 0: nothing now; -errno
 */
static ssize_t put_kept(struct flow *f)
{
	ssize_t n = end_write(f->to, f->kept + f->start, f->len);

	if (n < 0)
		return n == -EAGAIN ? 0 : n;
	f->start += (size_t)n;
	f->len -= (size_t)n;
	if (!f->len) {
		free(f->kept);
		f->kept = NULL;
	}
	return n;
}

int flow_step(struct flow *f)
{
	ssize_t n;

	if (f->ended)
		return 0;
	if (f->kept) {
		n = put_kept(f);
		return n < 0 ? (int)n : n > 0;
	}
	n = f->from ? end_read(f->from, buf, BUF) : end_write(f->to, buf, BUF);
	if (n == -EAGAIN)
		return 0;
	if (n < 0)
		return (int)n;
	if (!n) {
		f->ended = true;
		if (f->to)
			end_shut(f->to);
		return 1;
	}
	if (!f->from)
		return 1;
	if (f->marked && buf[n - 1] == FLOW_END) {
		f->ended = true;
		return 1;
	}
	n = put(f, buf, (size_t)n);
	return n < 0 ? (int)n : 1;
}
