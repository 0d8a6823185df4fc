// SPDX-License-Identifier: Apache-2.0
/*
 * stream.c - sides that are SOCK_STREAM sockets
 *
 * Theory of operation
 * ===================
 *
 * A short read means that the socket is empty, and saves the read that would
 * find EAGAIN; but not where something else stops a read: a FIN or error behind
 * the bytes (EPOLLRDHUP, EPOLLHUP, EPOLLERR), urgent or out-of-band data
 * (EPOLLPRI), a message with descriptors (MSG_CTRUNC: we take none).
 */

#include <errno.h>

#include "side/socket.h"

/**
 * give() - Write bytes
 * @c:		Connection
 * @s:		Its side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	0
 *
 * Returns: as side_ops.give
 */
static ssize_t give(struct vu_conn *c, struct side *s, const struct iovec *iov,
		    unsigned n_iov, size_t len, uint32_t flags)
{
	(void)flags;
	return socket_send(c, s, iov, n_iov, len);
}

/**
 * read_into() - Read once
 * @s:		Side; s->readable says afterwards whether to go on
 * @iov:	Where to
 * @n_iov:	Segments
 * @len:	Bytes that fit
 *
 * Returns: bytes read; 0: it has ended; -errno
 */
static ssize_t read_into(struct side *s, struct iovec *iov, unsigned n_iov,
			 size_t len)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n_iov};
	ssize_t n = recvmsg(s->fd, &msg, MSG_DONTWAIT);

	if (n < 0)
		return -errno;
	if (n && (size_t)n < len && !s->more && !(msg.msg_flags & MSG_CTRUNC))
		s->readable = false;
	return n;
}

/**
 * stopped() - A read gave no bytes
 * @c:		Connection; may be gone afterwards
 * @s:		Its side
 * @n:		0: it has ended; or -errno
 */
static void stopped(struct vu_conn *c, struct side *s, ssize_t n)
{
	if (n == 0)
		socket_ended(c, s);
	else
		socket_failed(c, s, (int)-n);
}

/**
 * pull_in_place() - Read straight into the sink's buffers
 * @c:		Connection; may be gone afterwards
 * @s:		Its side
 * @sink:	The other one, which lends them
 *
 * Stops after a turn's worth and runs again later: others wait too.
 */
static void pull_in_place(struct vu_conn *c, struct side *s, struct side *sink)
{
	size_t total = 0;

	while (s->readable && total < SCRATCH) {
		struct room room;
		ssize_t n;

		if (!sink->ops->room(c, SIZE_MAX, &room))
			return;
		n = read_into(s, c->core->rx_payload, room.n_payload, room.len);
		sink->ops->fill(c, &room, n > 0 ? (size_t)n : 0, 0);
		if (n <= 0) {
			stopped(c, s, n);
			return;
		}
		total += (size_t)n;
	}
	if (s->readable)
		conn_wake(c);
}

/**
 * pull() - Move what a socket has to the other side
 * @c:		Connection; may be gone afterwards
 * @s:		Its side
 */
static void pull(struct vu_conn *c, struct side *s)
{
	struct pipe *p = pipe_from(c, s);
	struct side *sink = pipe_sink(c, p);
	struct iovec iov = {.iov_base = c->core->scratch, .iov_len = SCRATCH};
	size_t total = 0;

	if (sink->ops->room) {
		pull_in_place(c, s, sink);
		return;
	}
	while (s->readable && p->state == PIPE_FLOWS &&
	       !bytes_len(&p->kept.bytes) && total < SCRATCH) {
		struct iovec got = iov;
		ssize_t n = read_into(s, &iov, 1, SCRATCH);

		if (n <= 0) {
			stopped(c, s, n);
			return;
		}
		got.iov_len = (size_t)n;
		total += got.iov_len;
		pipe_put(c, p, &got, 1, got.iov_len, 0);
		if (!conn_flows(c))
			return;
	}
	if (s->readable && p->state == PIPE_FLOWS && !bytes_len(&p->kept.bytes))
		conn_wake(c);
}

const struct side_ops socket_stream = {
    .give = give,
    .pull = pull,
    .shut = socket_shut,
    .close = socket_close,
    .opened = socket_opened,
    .finished = conn_free,
    .reset = conn_free,
};
