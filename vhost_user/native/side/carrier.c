// SPDX-License-Identifier: Apache-2.0
/*
 * carrier.c - a tunnel as the near side of a connection that carries it
 *
 * Theory of operation
 * ===================
 *
 *	connection <-> stream, inner tunnel <-> carrier <-> stream, tunnel
 *		       HTTP/2, TLS			    HTTP/2, TLS, TCP
 *
 * HBONE within HBONE: the way to another network is a stream of a tunnel to its
 * gateway, and in that stream there is TLS once more, to whoever the gateway
 * leads it to. The carrier is a connection as any other. Its far side is the
 * outer stream, with all that one does about windows, loss and time; its near
 * side is the inner tunnel, which takes its bytes as ciphertext and gives its
 * own. Nothing but memory is between the two: a byte is copied once more each
 * way, and no system call is made for it.
 *
 * Why the carrier failed is why the tunnel did, and so its connection.
 */

#include <errno.h>

#include <sys/epoll.h>

#include "side/hbone.h"

/**
 * give() - Take ciphertext of the peer
 * @c:		Connection
 * @side:	Its side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	0
 *
 * Returns: as side_ops.give
 */
static ssize_t give(struct vu_conn *c, struct side *side,
		    const struct iovec *iov, unsigned n_iov, size_t len,
		    uint32_t flags)
{
	struct tunnel *t = side->tunnel;
	struct bytes *in;

	(void)c;
	(void)flags;
	if (!t || t->state == TUNNEL_DOOMED)
		return -EPIPE;
	in = &t->carrier.wire.in;
	if (t->shaking || bytes_len(in) >= TLS_WIRE)
		return -EAGAIN; /* the tunnel runs it when it can */
	if (!bytes_put(in, iov, n_iov, 0))
		return -ENOMEM;
	tunnel_event(t, EPOLLIN);
	return (ssize_t)len;
}

/**
 * pull() - Send what the tunnel has to say
 * @c:		Connection; may be gone afterwards
 * @side:	Its side
 */
static void pull(struct vu_conn *c, struct side *side)
{
	struct tunnel *t = side->tunnel;

	(void)c;
	if (!t)
		return;
	wire_flush(t);
	if (t->state == TUNNEL_SHAKES && !t->shaking &&
	    t->tls->step == TLS_WRITES)
		tunnel_event(t, EPOLLOUT);
}

/**
 * opened() - The gateway has answered: begin with TLS
 * @c:		Connection
 * @side:	Its side
 */
static void opened(struct vu_conn *c, struct side *side)
{
	(void)c;
	if (side->tunnel->state == TUNNEL_DIALS)
		tunnel_shake(side->tunnel);
}

/**
 * shut() - A direction has ended
 * @c:		Connection
 * @side:	Its side
 * @how:	SHUT_WR: nothing more comes; SHUT_RD: nothing more goes
 */
static void shut(struct vu_conn *c, struct side *side, int how)
{
	struct tunnel *t = side->tunnel;

	(void)c;
	if (!t || t->shaking)
		return; /* wire_back() finds it */
	if (how == SHUT_WR)
		t->carrier.wire.ended = true;
	else
		t->carrier.wire.broken = true;
	tunnel_event(t, EPOLLIN | EPOLLOUT);
}

/**
 * close_tunnel() - The connection is over: so is the tunnel
 * @c:		Connection
 * @side:	Its side
 * @error:	errno, or 0
 */
static void close_tunnel(struct vu_conn *c, struct side *side, int error)
{
	enum vu_reason reason = c->reason ? c->reason : VU_REASON_DIAL;
	struct tunnel *t = side->tunnel;

	if (!t)
		return;
	side->tunnel = NULL;
	t->carrier.c = NULL;
	if (!c->reason && t->state > TUNNEL_DIALS)
		reason =
		    t->h2 && t->h2->settled ? VU_REASON_LOST : VU_REASON_CLOSED;
	tunnel_doom(t, reason, error);
}

static const struct side_ops carrier_side = {
    .give = give,
    .pull = pull,
    .opened = opened,
    .shut = shut,
    .close = close_tunnel,
    .finished = conn_free,
    .reset = conn_free,
};

/**
 * carrier_new() - Make the connection that carries a tunnel
 * @t:		Tunnel, new; doomed if there can't be one
 * @port:	Of the client that it is made for
 *
 * Returns: it, without a far side; NULL if there is none
 */
struct vu_conn *carrier_new(struct tunnel *t, unsigned port)
{
	struct vu_conn *c = conn_new(t->group->hbone->core, t->group->outbox);

	if (!c) {
		tunnel_doom(t, VU_REASON_SHORT, ENOMEM);
		return NULL;
	}
	c->peer_port = port;
	c->near = (struct side){.ops = &carrier_side, .tunnel = t, .fd = -1};
	t->carrier.c = c;
	return c;
}
