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

#include "side/dial.h"
#include "side/socket.h"

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
		conn_opened(c);
	else if (error != EINPROGRESS)
		conn_abort(c, error);
}
