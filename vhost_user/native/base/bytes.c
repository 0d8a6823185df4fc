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
 * bytes_len() - Count the bytes
 * @b:		Queue
 *
 * Returns: how many there are
 */
uint32_t bytes_len(const struct bytes *b)
{
	return b->buffer ? b->buffer->len : 0;
}

/**
 * reserve() - Make room
 * @b:		Queue
 * @more:	Bytes that will be put
 *
 * Returns: false if out of memory
 */
static bool reserve(struct bytes *b, size_t more)
{
	uint32_t cap = b->buffer ? b->buffer->cap : CAP_MIN;
	uint32_t len = bytes_len(b);
	struct buffer *buffer;
	struct iovec old[2];
	unsigned n;

	if (more > CAP_MAX - len)
		return false;
	if (b->buffer && cap - len >= more)
		return true;
	while (cap - len < more)
		cap *= 2;
	buffer = malloc(sizeof(*buffer) + cap);
	if (!buffer)
		return false;
	n = bytes_peek(b, 0, len, old);
	iov_copy(old, n, 0, buffer->data, len, false);
	buffer->at = 0;
	buffer->len = len;
	buffer->cap = cap;
	buffer->tail = b->buffer ? b->buffer->tail : 0;
	free(b->buffer);
	b->buffer = buffer;
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
	struct buffer *buffer;
	uint32_t to, span;

	if (!len)
		return true;
	if (!reserve(b, len))
		return false;
	buffer = b->buffer;
	to = (buffer->at + buffer->len) & (buffer->cap - 1);
	span = buffer->cap - to;
	if (span > len)
		span = (uint32_t)len;
	iov_copy(iov, n_iov, skip, buffer->data + to, span, false);
	iov_copy(iov, n_iov, skip + span, buffer->data, len - span, false);
	buffer->len += (uint32_t)len;
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
	struct buffer *buffer = b->buffer;
	uint32_t from, span;

	if (!len)
		return 0;
	from = (buffer->at + off) & (buffer->cap - 1);
	span = buffer->cap - from;
	if (span > len)
		span = len;
	ret[0] =
	    (struct iovec){.iov_base = buffer->data + from, .iov_len = span};
	ret[1] =
	    (struct iovec){.iov_base = buffer->data, .iov_len = len - span};
	return span < len ? 2 : 1;
}

/**
 * bytes_drop() - Forget the first bytes
 * @b:		Queue
 * @n:		How many, at most what there are
 */
void bytes_drop(struct bytes *b, uint32_t n)
{
	struct buffer *buffer = b->buffer;

	if (n == bytes_len(b)) {
		bytes_free(b);
		return;
	}
	buffer->len -= n;
	buffer->at = (buffer->at + n) & (buffer->cap - 1);
}

/**
 * bytes_free() - Forget all of them
 * @b:		Queue
 */
void bytes_free(struct bytes *b)
{
	free(b->buffer);
	*b = (struct bytes){0};
}
