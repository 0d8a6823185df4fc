// SPDX-License-Identifier: Apache-2.0
/*
 * bytes.c - a queue of bytes in a ring buffer
 *
 * Theory of operation
 * ===================
 *
 * What is put costs the bytes that are put and nothing for those that wait: the
 * buffer wraps, so nothing is ever moved to make room in it. It doubles when it
 * is full, which costs each byte two copies at most, and is freed when the
 * queue is empty: most connections keep nothing most of the time.
 */

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/iov.h"

#define CAP_MIN 4096U
#define CAP_MAX (1U << 31)

/**
 * reserve() - Make room
 * @b:		Queue
 * @more:	Bytes that will be put
 *
 * Returns: false if out of memory
 */
static bool reserve(struct bytes *b, size_t more)
{
	uint32_t cap = b->cap ? b->cap : CAP_MIN;
	struct iovec old[2];
	unsigned n;
	char *data;

	if (more > CAP_MAX - b->len)
		return false;
	if (b->cap - b->len >= more && b->cap)
		return true;
	while (cap - b->len < more)
		cap *= 2;
	data = malloc(cap);
	if (!data)
		return false;
	n = bytes_peek(b, 0, b->len, old);
	iov_copy(old, n, 0, data, b->len, false);
	free(b->data);
	*b = (struct bytes){.data = data, .len = b->len, .cap = cap};
	return true;
}

/**
 * bytes_put() - Append bytes
 * @b:		Queue
 * @iov:	Bytes
 * @n_iov:	Segments
 * @skip:	Leading bytes to leave out
 *
 * Returns: false if out of memory; nothing was put then
 */
bool bytes_put(struct bytes *b, const struct iovec *iov, unsigned n_iov,
	       size_t skip)
{
	size_t len = iov_sum(iov, n_iov) - skip;
	uint32_t to, span;

	if (!len)
		return true;
	if (!reserve(b, len))
		return false;
	to = (b->at + b->len) & (b->cap - 1);
	span = b->cap - to;
	if (span > len)
		span = (uint32_t)len;
	iov_copy(iov, n_iov, skip, b->data + to, span, false);
	iov_copy(iov, n_iov, skip + span, b->data, len - span, false);
	b->len += (uint32_t)len;
	return true;
}

/**
 * bytes_peek() - Find bytes in the buffer
 * @b:		Queue
 * @off:	From this one on; 0 is the first
 * @len:	So many, all of them in the queue
 * @ret:	Their segments
 *
 * Returns: how many segments
 */
unsigned bytes_peek(const struct bytes *b, uint32_t off, uint32_t len,
		    struct iovec ret[2])
{
	uint32_t from, span;

	if (!len)
		return 0;
	from = (b->at + off) & (b->cap - 1);
	span = b->cap - from;
	if (span > len)
		span = len;
	ret[0] = (struct iovec){.iov_base = b->data + from, .iov_len = span};
	ret[1] = (struct iovec){.iov_base = b->data, .iov_len = len - span};
	return span < len ? 2 : 1;
}

/**
 * bytes_drop() - Forget the first bytes
 * @b:		Queue
 * @n:		How many, at most what there are
 */
void bytes_drop(struct bytes *b, uint32_t n)
{
	b->len -= n;
	if (!b->len)
		bytes_free(b);
	else
		b->at = (b->at + n) & (b->cap - 1);
}

/**
 * bytes_free() - Forget all of them
 * @b:		Queue
 */
void bytes_free(struct bytes *b)
{
	free(b->data);
	*b = (struct bytes){0};
}
