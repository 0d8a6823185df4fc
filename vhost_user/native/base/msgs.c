// SPDX-License-Identifier: Apache-2.0
/*
 * msgs.c - a queue of messages, the last of which may be incomplete
 *
 * Theory of operation
 * ===================
 *
 * The messages lie one behind the other, each behind its mark:
 *
 *	mark, message, mark, message, ... mark, message so far
 *
 * A mark is a word: bytes << 2 | the flags of the message's last part, 0 while
 * that hasn't come.
 */

#include <assert.h>

#include "base/iov.h"
#include "base/msgs.h"

#define FLAGS 3U

static_assert((uint64_t)MSGS_LEN_MAX << 2 <= UINT32_MAX, "fits a mark");

/**
 * mark_at() - Read a mark
 * @m:		Queue
 * @at:		Where it is
 *
 * Returns: the mark
 */
static uint32_t mark_at(const struct msgs *m, uint32_t at)
{
	uint32_t mark = 0;
	struct iovec iov[2];
	unsigned n = bytes_peek(&m->bytes, at, MSGS_MARK, iov);

	iov_copy(iov, n, 0, &mark, MSGS_MARK, false);
	return mark;
}

/**
 * mark_set() - Write a mark
 * @m:		Queue
 * @at:		Where it is
 * @mark:	Mark
 */
static void mark_set(struct msgs *m, uint32_t at, uint32_t mark)
{
	struct iovec iov[2];
	unsigned n = bytes_peek(&m->bytes, at, MSGS_MARK, iov);

	iov_copy(iov, n, 0, &mark, MSGS_MARK, true);
}

/**
 * msgs_put() - Append a message, or a part of it
 * @m:		Queue; the part goes on with its last message, if that isn't
 *		whole yet
 * @iov:	Bytes
 * @n_iov:	Segments
 * @skip:	Leading bytes to leave out
 * @flags:	Of the message's last part; 0: more is to come
 *
 * Returns: false if out of memory; the queue can only be freed then
 */
bool msgs_put(struct msgs *m, const struct iovec *iov, unsigned n_iov,
	      size_t skip, uint32_t flags)
{
	uint32_t before = bytes_len(&m->bytes);
	uint32_t mark = before ? mark_at(m, m->bytes.buffer->tail) : FLAGS;

	if (mark & FLAGS) {
		struct iovec word = {.iov_base = &mark, .iov_len = MSGS_MARK};

		mark = 0;
		if (!bytes_put(&m->bytes, &word, 1, 0))
			return false;
		m->bytes.buffer->tail = before;
		before += MSGS_MARK;
	}
	if (!bytes_put(&m->bytes, iov, n_iov, skip))
		return false;
	mark += (bytes_len(&m->bytes) - before) << 2;
	mark_set(m, m->bytes.buffer->tail, mark | flags);
	return true;
}

/**
 * msgs_head() - Look at the first message
 * @m:		Queue
 * @ret:	The message
 *
 * Returns: false if there is none
 */
bool msgs_head(const struct msgs *m, struct msg *ret)
{
	uint32_t mark;

	if (!bytes_len(&m->bytes))
		return false;
	mark = mark_at(m, 0);
	ret->len = mark >> 2;
	ret->flags = mark & FLAGS;
	ret->n_iov = bytes_peek(&m->bytes, MSGS_MARK, ret->len, ret->iov);
	return true;
}

/**
 * msgs_advance() - Forget what was delivered of the first message
 * @m:		Queue
 * @n:		Bytes of it
 * @whole:	It, or the rest of it, is delivered
 */
void msgs_advance(struct msgs *m, uint32_t n, bool whole)
{
	uint32_t mark = mark_at(m, 0), step = n;
	struct buffer *buffer;

	if (whole)
		step += MSGS_MARK;
	else if (!n)
		return;
	bytes_drop(&m->bytes, step);
	buffer = m->bytes.buffer;
	if (buffer)
		buffer->tail = buffer->tail > step ? buffer->tail - step : 0;
	if (!whole) /* over bytes of the message, which are delivered */
		mark_set(m, 0, mark - (n << 2));
}
