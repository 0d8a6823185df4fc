// SPDX-License-Identifier: Apache-2.0
/*
 * client.c - sides that are sockets of host clients, not accepted yet
 *
 * Theory of operation
 * ===================
 *
 * A client that asks for a guest by the hybrid unix socket hears "OK <port>"
 * when the guest accepts, the port being the one on the host's end, as in
 * Firecracker's documentation ("Using the Firecracker Virtio-vsock Device",
 * "Host-Initiated Connections"). One that has written its bytes and left by
 * then doesn't read the line; its bytes go on to the guest all the same.
 *
 * A socket on offer is still its client's: until the guest accepts, another
 * descriptor of it is somebody's hope, so it is left as it was found.
 *
 * Once the guest accepts, either becomes a socket as any other.
 */

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/ioctl.h>

#include "side/socket.h"

/**
 * accepted() - The guest took the client
 * @c:		Connection
 * @s:		Its far side, a plain socket afterwards
 */
static void accepted(struct vu_conn *c, struct side *s)
{
	s->ops = socket_ops(c);
	socket_opened(c, s);
}

/**
 * hybrid_accepted() - The same, and it is told
 * @c:		Connection
 * @s:		Its far side
 */
static void hybrid_accepted(struct vu_conn *c, struct side *s)
{
	char line[32];
	int n = snprintf(line, sizeof(line), "OK %u\n", c->port);

	/* its buffer is empty: it takes the line whole, or has left */
	if (send(s->fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n)
		s->readable = s->more = true;
	accepted(c, s);
}

/**
 * hybrid_close() - Tell the client why it has no connection
 * @c:		Connection
 * @s:		Its far side
 * @error:	errno
 *
 * At no cost: one that doesn't listen has left.
 */
static void hybrid_close(struct vu_conn *c, struct side *s, int error)
{
	const char *why = "the guest is gone";
	char line[40];
	int n;

	if (s->fd < 0)
		return;
	if (error == ECONNREFUSED)
		why = "the guest refused";
	else if (error == ETIMEDOUT)
		why = "the guest did not answer";
	n = snprintf(line, sizeof(line), "ERROR %s\n", why);
	send(s->fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
	socket_close(c, s, error);
}

/**
 * offered_close() - Let go of a socket that its owner goes on with
 * @c:		Connection
 * @s:		Its far side
 * @error:	Not shown to the client
 *
 * Other descriptors keep it open, so that it leaves epoll only if told to.
 */
static void offered_close(struct vu_conn *c, struct side *s, int error)
{
	(void)error;
	if (s->fd < 0)
		return;
	epoll_ctl(c->core->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	*s = (struct side){.ops = s->ops, .fd = -1};
}

/**
 * client_left() - A host client hung up before the guest answered
 * @c:		Connection in CONN_REQUESTED; may be gone afterwards
 *
 * One that has sent its bytes before, and is a unix socket, meant it.
 */
void client_left(struct vu_conn *c)
{
	int queued = 0;

	if (c->far.ops != &client_hybrid ||
	    ioctl(c->far.fd, FIONREAD, &queued) || !queued)
		conn_abort(c, ECONNABORTED);
}

const struct side_ops client_hybrid = {
    .close = hybrid_close,
    .opened = hybrid_accepted,
};

const struct side_ops client_offered = {
    .close = offered_close,
    .opened = accepted,
};
