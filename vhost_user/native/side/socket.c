// SPDX-License-Identifier: Apache-2.0
/*
 * socket.c - sides that are sockets: what all have in common; streams
 *
 * Theory of operation
 * ===================
 *
 * A socket is registered with epoll once, edge-triggered, so that no system
 * call follows a change of interest. Then:
 *
 * Reading. A short read means that the socket is empty, and saves the read that
 * would find EAGAIN; but not where something else stops a read: a FIN or error
 * behind the bytes (EPOLLRDHUP, EPOLLHUP, EPOLLERR), urgent or out-of-band data
 * (EPOLLPRI), a message with descriptors (MSG_CTRUNC: we take none).
 *
 * Writing. Most sockets are never full, and each peer's read would wake us for
 * nothing: one is watched for room from the first time that it was full.
 *
 * The end. A FIN ends the pipe from the socket. A peer that is gone for good
 * (EPOLLHUP) breaks the pipe to it, too; the guest hears of both. While the
 * pipe from it is BROKEN nobody reads, so that errors show by events alone.
 */

#include <errno.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "side/socket.h"

/* One table of what an errno means */
static const struct {
	int error;
	enum socket_error meaning;
} meanings[] = {
    {EAGAIN, SOCKET_WAITS}, {EINTR, SOCKET_AGAIN},     {EFAULT, SOCKET_FAULTS},
    {EPIPE, SOCKET_GONE},   {EMSGSIZE, SOCKET_MISFIT},
};

/**
 * socket_error() - What does an errno mean?
 * @error:	errno of a send or receive
 *
 * Returns: that
 */
enum socket_error socket_error(int error)
{
	for (size_t i = 0; i < sizeof(meanings) / sizeof(*meanings); i++) {
		if (meanings[i].error == error)
			return meanings[i].meaning;
	}
	return SOCKET_GONE;
}

/**
 * socket_ops() - Which kind of socket does a connection have?
 * @c:		Connection
 *
 * Returns: its operations
 */
const struct side_ops *socket_ops(const struct vu_conn *c)
{
	return c->type == SEQPACKET ? &socket_message : &socket_stream;
}

/* ---- epoll ---- */

/**
 * watch() - Have epoll report what happens to a socket
 * @c:		Connection
 * @s:		Its side
 * @op:		EPOLL_CTL_ADD or EPOLL_CTL_MOD
 * @room:	Report room for writing too
 *
 * Returns: 0, or -errno
 */
static int watch(struct vu_conn *c, struct side *s, int op, bool room)
{
	struct epoll_event ev = {
	    .events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET |
		      (room ? EPOLLOUT : 0U),
	    .data.u64 = conn_id(c) | (s == &c->near ? SOCKET_NEAR : 0),
	};

	if (epoll_ctl(c->core->epoll_fd, op, s->fd, &ev))
		return -errno;
	s->fills = room;
	return 0;
}

/**
 * socket_watch() - Have epoll report what a new socket has
 * @c:		Connection
 * @s:		Its side, with fd
 * @dialing:	And that it is connected
 *
 * What is there already is reported too, so nobody has to try it before.
 *
 * Returns: 0, or -errno
 */
int socket_watch(struct vu_conn *c, struct side *s, bool dialing)
{
	return watch(c, s, EPOLL_CTL_ADD, dialing);
}

/**
 * take_error() - Take a socket's pending error
 * @s:		Side
 *
 * Returns: errno, or 0
 */
static int take_error(const struct side *s)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len))
		return errno;
	return error;
}

/**
 * socket_event() - Note what epoll says of an open connection's socket
 * @c:		Connection; may be gone afterwards
 * @s:		Its side
 * @events:	EPOLL bits
 */
void socket_event(struct vu_conn *c, struct side *s, uint32_t events)
{
	const uint32_t gone = EPOLLHUP | EPOLLERR;
	const uint32_t stops = EPOLLPRI | EPOLLRDHUP | gone;
	bool unread = pipe_from(c, s)->state == PIPE_FLOWS;

	s->readable |= (events & (EPOLLIN | stops)) != 0;
	s->writable |= (events & (EPOLLOUT | gone)) != 0;
	s->more |= (events & stops) != 0;
	s->hup |= (events & EPOLLHUP) != 0;
	if (!conn_flows(c))
		return;
	if (events & EPOLLERR && !unread) {
		conn_abort(c, take_error(s));
		return;
	}
	if (events & EPOLLHUP && !unread)
		pipe_break(c, pipe_to(c, s), EPIPE);
	list_move(&c->core->run, &c->run); /* it may wait for RX buffers */
}

/**
 * full() - A socket took no more: have epoll report when it does
 * @c:		Connection
 * @s:		Its side
 *
 * One that was full once stays watched for room, and has more of it: a unix
 * socket's usual buffer is less than a window, and what it doesn't take is
 * copied once more. A TCP socket's grows by itself, unless somebody sets it.
 */
static void full(struct vu_conn *c, struct side *s)
{
	int domain = AF_UNSPEC, size = 0, window = 0;
	socklen_t len = sizeof(int);

	if (!s->fills && c->near.ops->window &&
	    !getsockopt(s->fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) &&
	    domain == AF_UNIX)
		window = (int)c->near.ops->window(c); /* the kernel doubles */
	if (window && !getsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &size, &len) &&
	    size / 2 < window &&
	    setsockopt(s->fd, SOL_SOCKET, SO_SNDBUFFORCE, &window, len))
		setsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &window, len);
	/* if it can't be watched it is tried with every turn */
	s->writable = !s->fills && watch(c, s, EPOLL_CTL_MOD, true) < 0;
}

/* ---- writing ---- */

/**
 * socket_send() - Write to a socket
 * @c:		Connection
 * @s:		Its side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 *
 * Returns: as side_ops.give
 */
ssize_t socket_send(struct vu_conn *c, struct side *s, const struct iovec *iov,
		    unsigned n_iov, size_t len)
{
	struct msghdr msg = {
	    .msg_iov = (struct iovec *)(uintptr_t)iov,
	    .msg_iovlen = n_iov,
	};
	ssize_t n;

	if (!s->writable)
		return -EAGAIN;
	n = sendmsg(s->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n >= 0) {
		if ((size_t)n < len)
			full(c, s);
		return n;
	}
	switch (socket_error(errno)) {
	case SOCKET_WAITS:
		full(c, s);
		return -EAGAIN;
	case SOCKET_AGAIN:
		conn_wake(c);
		return -EAGAIN;
	case SOCKET_FAULTS:
		c->near.ops->fault(c);
		return -EAGAIN;
	case SOCKET_MISFIT:
		return -EMSGSIZE;
	default:
		s->readable = s->more = true; /* what it sent before, and why */
		return -errno;
	}
}

/**
 * stream_give() - Write bytes
 * @c:		Connection
 * @s:		Its side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	0
 *
 * Returns: as side_ops.give
 */
static ssize_t stream_give(struct vu_conn *c, struct side *s,
			   const struct iovec *iov, unsigned n_iov, size_t len,
			   uint32_t flags)
{
	(void)flags;
	return socket_send(c, s, iov, n_iov, len);
}

/* ---- reading ---- */

/**
 * socket_ended() - A socket has no more to read, ever
 * @c:		Connection
 * @s:		Its side
 */
void socket_ended(struct vu_conn *c, struct side *s)
{
	s->readable = false;
	pipe_end(c, pipe_from(c, s));
	if (s->hup)
		pipe_break(c, pipe_to(c, s), 0);
}

/**
 * socket_failed() - A read failed
 * @c:		Connection; may be gone afterwards
 * @s:		Its side
 * @error:	errno
 */
void socket_failed(struct vu_conn *c, struct side *s, int error)
{
	s->readable = false;
	switch (socket_error(error)) {
	case SOCKET_WAITS:
		break;
	case SOCKET_AGAIN:
		s->readable = true;
		conn_wake(c);
		break;
	case SOCKET_FAULTS:
		c->near.ops->fault(c);
		break;
	default:
		conn_abort(c, error);
	}
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
 * stream_pull() - Move what a socket has to the other side
 * @c:		Connection; may be gone afterwards
 * @s:		Its side
 */
static void stream_pull(struct vu_conn *c, struct side *s)
{
	struct pipe *p = pipe_from(c, s);
	struct side *sink = pipe_sink(c, p);
	struct iovec iov = {.iov_base = c->core->scratch, .iov_len = SCRATCH};
	size_t total = 0;

	if (sink->ops->room) {
		pull_in_place(c, s, sink);
		return;
	}
	while (s->readable && p->state == PIPE_FLOWS && !p->kept.bytes.len &&
	       total < SCRATCH) {
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
	if (s->readable && p->state == PIPE_FLOWS && !p->kept.bytes.len)
		conn_wake(c);
}

/* ---- life ---- */

/**
 * socket_opened() - A connection is established
 * @c:		Connection
 * @s:		Its side
 */
void socket_opened(struct vu_conn *c, struct side *s)
{
	(void)c;
	s->writable = s->fd >= 0;
}

/**
 * socket_shut() - A direction has ended: tell the peer
 * @c:		Connection
 * @s:		Its side
 * @how:	SHUT_WR or SHUT_RD
 */
void socket_shut(struct vu_conn *c, struct side *s, int how)
{
	shutdown(s->fd, how);
	if (how == SHUT_RD && s->hup)
		pipe_break(c, pipe_to(c, s), EPIPE);
}

/**
 * socket_close() - Close a socket
 * @c:		Connection
 * @s:		Its side
 * @error:	errno: the peer must see an error (TCP RST); 0: an orderly end
 */
void socket_close(struct vu_conn *c, struct side *s, int error)
{
	const struct linger hard = {.l_onoff = 1, .l_linger = 0};

	(void)c;
	if (s->fd < 0)
		return;
	if (error)
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	close(s->fd); /* leaves epoll too: we hold the only reference */
	*s = (struct side){.ops = s->ops, .fd = -1};
}

const struct side_ops socket_stream = {
    .give = stream_give,
    .pull = stream_pull,
    .shut = socket_shut,
    .close = socket_close,
    .opened = socket_opened,
    .finished = conn_free,
    .reset = conn_free,
};
