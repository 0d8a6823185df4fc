// SPDX-License-Identifier: Apache-2.0
/*
 * builtin.c - sides that the engine itself plays: echo, discard, chargen
 *
 * Theory of operation
 * ===================
 *
 * RFC 862, 863 and 864, as far sides: they measure a path to the engine and
 * back, and what they do is the same behind a guest and behind a socket.
 *
 *	echo	 gives what it is given to the near side, in place
 *	discard	 takes all; ends when the near side does
 *	chargen	 takes all, and sends until the near side goes
 */

#include <errno.h>

#include <linux/virtio_vsock.h>

#include "side/builtin.h"

#define MESSAGE 65536U /* bytes of chargen's */

/**
 * echo_give() - Give bytes back
 * @c:		Connection
 * @s:		Its far side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	Of a message
 *
 * Returns: as side_ops.give
 */
static ssize_t echo_give(struct vu_conn *c, struct side *s,
			 const struct iovec *iov, unsigned n_iov, size_t len,
			 uint32_t flags)
{
	ssize_t n = c->near.ops->give(c, &c->near, iov, n_iov, len, flags);

	(void)s;
	if (n > 0 && !c->dev)
		c->down_bytes += (size_t)n;
	return n;
}

/**
 * echo_shut() - What ends on one way ends on the other
 * @c:		Connection
 * @s:		Its far side
 * @how:	SHUT_WR or SHUT_RD
 */
static void echo_shut(struct vu_conn *c, struct side *s, int how)
{
	(void)s;
	if (how == SHUT_WR)
		pipe_end(c, &c->down);
	else
		pipe_break(c, &c->up, 0);
}

/**
 * sink_give() - Take bytes and forget them
 * @c:		Connection
 * @s:		Its far side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	Of a message
 *
 * Returns: @len
 */
static ssize_t sink_give(struct vu_conn *c, struct side *s,
			 const struct iovec *iov, unsigned n_iov, size_t len,
			 uint32_t flags)
{
	(void)c;
	(void)s;
	(void)iov;
	(void)n_iov;
	(void)flags;
	return (ssize_t)len;
}

/**
 * discard_shut() - The near side sends no more: close
 * @c:		Connection
 * @s:		Its far side
 * @how:	SHUT_WR; SHUT_RD: nothing was to be sent
 */
static void discard_shut(struct vu_conn *c, struct side *s, int how)
{
	(void)s;
	if (how == SHUT_WR)
		pipe_end(c, &c->down);
}

/**
 * chargen_pull() - Send bytes, or messages, until no more are taken
 * @c:		Connection; may be gone afterwards
 * @s:		Its far side
 */
static void chargen_pull(struct vu_conn *c, struct side *s)
{
	struct iovec iov = {.iov_base = c->core->chargen, .iov_len = SCRATCH};
	uint32_t flags = 0;
	ssize_t n = 0;

	(void)s;
	if (c->type == SEQPACKET) {
		flags = VIRTIO_VSOCK_SEQ_EOM;
		if (c->credit.peer_buf_alloc < MESSAGE)
			iov.iov_len = c->credit.peer_buf_alloc;
		else
			iov.iov_len = MESSAGE;
		if (!iov.iov_len)
			iov.iov_len = 1; /* it waits for credit */
	}
	for (size_t total = 0; total < SCRATCH; total += iov.iov_len) {
		if (flags) {
			pipe_put(c, &c->down, &iov, 1, iov.iov_len, flags);
			if (!conn_flows(c) || bytes_len(&c->down.kept.bytes))
				return;
			continue;
		}
		n = c->near.ops->give(c, &c->near, &iov, 1, iov.iov_len, 0);
		if (n < 0 && n != -EAGAIN)
			pipe_break(c, &c->down, (int)-n);
		else if (n > 0 && !c->dev)
			c->down_bytes += (size_t)n;
		if (n < (ssize_t)iov.iov_len)
			return;
	}
	conn_wake(c);
}

const struct side_ops builtin_echo = {
    .give = echo_give,
    .shut = echo_shut,
};

const struct side_ops builtin_discard = {
    .give = sink_give,
    .shut = discard_shut,
};

const struct side_ops builtin_chargen = {
    .give = sink_give,
    .pull = chargen_pull,
};
