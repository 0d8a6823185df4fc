// SPDX-License-Identifier: Apache-2.0
/*
 * dial.c - connect a far side's socket
 *
 * Theory of operation
 * ===================
 *
 * Who made the socket, and in which network namespace, is the caller's business
 * (target.c, netns.c). From here on all are dialled, and fail, in one way.
 */

#include <errno.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "side/dial.h"
#include "side/socket.h"

/**
 * dial_connected() - A far side's socket is connected, or has news since
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 */
void dial_connected(struct vu_conn *c)
{
	if (c->greeting)
		c->greeting->step(c);
	else
		conn_opened(c);
}

/**
 * as_tcp() - What would TCP say where a unix socket says this?
 * @error:	errno of a connect() to a path, or to an address
 *
 * Of a hand-off: its program's connect() is to an address.
 *
 * Returns: errno
 */
static int as_tcp(int error)
{
	switch (error) {
	case EAGAIN: /* full, and there is nobody who can wait */
	case ELOOP:
	case ENOENT:
	case ENOTDIR:
	case EPROTOTYPE:
		return ECONNREFUSED;
	default:
		return error;
	}
}

/**
 * dial_start() - Connect a far side's socket
 * @c:		Connection in CONN_DIALING with far.fd; may be gone afterwards
 * @addr:	Where to
 * @len:	Size of @addr
 *
 * A unix listener whose backlog is full says EAGAIN: the near side may wait.
 */
void dial_start(struct vu_conn *c, const struct sockaddr *addr, socklen_t len)
{
	int error = connect(c->far.fd, addr, len) ? errno : 0;

	if (error == EAGAIN && c->near.ops->later) {
		socket_close(c, &c->far, 0);
		if (c->near.ops->later(c))
			return;
	}
	if (!error || error == EINPROGRESS) {
		int ret = -socket_watch(c, &c->far, error);

		error = ret ? ret : error;
	}
	if (!error)
		dial_connected(c);
	else if (error != EINPROGRESS)
		conn_abort(c, c->greeting ? as_tcp(error) : error);
}

/**
 * make_socket() - Make a far side's socket in our own network namespace
 * @c:		Connection
 * @family:	AF_
 *
 * Returns: 0, or errno
 */
static int make_socket(struct vu_conn *c, sa_family_t family)
{
	const int one = 1;
	int kind = c->type == SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM;
	int fd = socket(family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int fits;

	if (fd < 0)
		return errno;
	c->far = (struct side){.ops = socket_ops(c), .fd = fd};
	if (c->type == SEQPACKET) {
		fits = message_fit(c, fd);
		if (fits < 0)
			return -fits;
		if ((uint32_t)fits < c->credit.buf_alloc)
			c->near.ops->shrink(c, (uint32_t)fits);
	}
	if (family == AF_INET || family == AF_INET6)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return 0;
}

/**
 * dial_here() - Connect the far side in our own network namespace
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 * @addr:	Where to
 * @len:	Size of @addr
 */
void dial_here(struct vu_conn *c, const struct sockaddr *addr, socklen_t len)
{
	int error = make_socket(c, addr->sa_family);

	if (error)
		conn_abort(c, error);
	else
		dial_start(c, addr, len);
}
