// SPDX-License-Identifier: Apache-2.0
/*
 * wire.c - a tunnel's ciphertext, where a stream of another tunnel carries it
 *
 * Theory of operation
 * ===================
 *
 * What TLS has written goes into the connection whose near side the tunnel is
 * (carrier.c), and on from there as any other's bytes do. What that doesn't
 * take at once is kept, and then no more is moved: so TLS finds its own buffer
 * full (TLS_WIRE), and the tunnel's streams wait, as they do for a socket.
 *
 * A tunnel that ends leaves the connection its last bytes, which must not be
 * lost: they may be a program's. It goes on without a near side until they are
 * out, as an orphan.
 *
 * While the other thread has the session, its bytes are that one's.
 */

#include <errno.h>

#include "side/hbone.h"

/**
 * wire_flush() - Send what TLS has written
 * @t:		Tunnel
 */
void wire_flush(struct tunnel *t)
{
	struct bytes *out = &t->carrier.wire.out;
	struct vu_conn *c = t->carrier.c;

	if (t->shaking)
		return;
	while (c && conn_flows(c) && bytes_len(out) &&
	       !bytes_len(&c->up.kept.bytes)) {
		uint32_t len = bytes_len(out);
		struct iovec iov[2];
		unsigned n = bytes_peek(out, 0, len, iov);

		pipe_put(c, &c->up, iov, n, len, 0);
		bytes_drop(out, len);
		c = t->carrier.c; /* it may have ended */
	}
	if (c && !bytes_len(out) && !t->writable && t->h2) {
		t->writable = true;
		tunnel_later(t);
	}
}

/**
 * wire_back() - The other thread has given the session back
 * @t:		Tunnel
 */
void wire_back(struct tunnel *t)
{
	struct tls_wire *w = &t->carrier.wire;
	struct vu_conn *c = t->carrier.c;

	if (!t->tls->wire)
		return;
	w->ended = !c || c->down.state == PIPE_ENDED;
	w->broken = !c || c->up.state == PIPE_BROKEN;
	t->edge |= w->ended;
	wire_flush(t);
	if (t->carrier.c)
		conn_wake(t->carrier.c); /* it may have bytes, too */
}

/**
 * orphan() - Leave a connection to itself, until its bytes are out
 * @c:		Connection that bytes flow of
 * @out:	Bytes that it has yet to get
 */
static void orphan(struct vu_conn *c, const struct bytes *out)
{
	uint32_t len = bytes_len(out);
	struct iovec iov[2];
	unsigned n = bytes_peek(out, 0, len, iov);

	conn_set(c, CONN_ORPHAN);
	pipe_put(c, &c->up, iov, n, len, 0);
	if (!conn_flows(c))
		return;
	pipe_end(c, &c->up);
	pipe_break(c, &c->down, 0);
	conn_hurry(c);
}

/**
 * wire_leave() - A tunnel ends: leave the connection its last bytes
 * @t:		Tunnel
 */
void wire_leave(struct tunnel *t)
{
	static const struct side_ops nobody = {
	    .finished = conn_free,
	    .reset = conn_free,
	};
	struct vu_conn *c = t->carrier.c;

	t->carrier.c = NULL;
	if (c) {
		c->near = (struct side){.ops = &nobody, .fd = -1};
		if (conn_flows(c))
			orphan(c, &t->carrier.wire.out);
		else
			conn_drop(c, ECONNRESET);
	}
	bytes_free(&t->carrier.wire.in);
	bytes_free(&t->carrier.wire.out);
}
