// SPDX-License-Identifier: Apache-2.0
/*
 * source.c - a stream, and its bytes from the peer
 *
 * Theory of operation
 * ===================
 *
 * What comes by the tunnel is pushed, straight into the other side's buffers
 * where that lends some. The peer may send as many bytes as the other side
 * took. So a slow one makes its own stream wait, and its tunnel only when all
 * of them together have KEPT_MOST bytes to take, or when its VM has much of all
 * tunnels. One whose VM has as much as it may is reset.
 */

#include <errno.h>
#include <stdlib.h>

#include "side/hbone.h"

/**
 * stream_new() - Make a stream, or wait for one
 * @g:		Pool's or gate's group
 * @t:		Tunnel; NULL: none yet
 * @c:		Connection; NULL: nobody's
 *
 * Returns: it; NULL if out of memory
 */
struct stream *stream_new(struct group *g, struct tunnel *t, struct vu_conn *c)
{
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->group = g;
	s->tunnel = t;
	s->c = c;
	list_init(&s->link);
	list_init(&s->blocked);
	group_ref(g);
	return s;
}

/**
 * stream_free() - Free a stream that HTTP/2 has no more
 * @s:		Stream, of no connection
 */
void stream_free(struct stream *s)
{
	struct tunnel *t = s->tunnel;

	if (t) {
		t->kept -= s->kept;
		t->parted -= s->parted_us != 0;
	}
	list_del(&s->link);
	list_del(&s->blocked);
	if (s->headers)
		headers_unref(s->headers);
	fields_clear(&s->request);
	group_unref(s->group);
	free(s);
}

/**
 * stream_side() - Which side of its connection is a stream?
 * @s:		Stream with a connection
 *
 * Returns: the side
 */
struct side *stream_side(const struct stream *s)
{
	return s->c->near.stream == s ? &s->c->near : &s->c->far;
}

/**
 * stream_part() - A connection lets go of its stream
 * @s:		Stream
 *
 * Returns: the connection; NULL if it had none
 */
struct vu_conn *stream_part(struct stream *s)
{
	struct vu_conn *c = s->c;

	if (c)
		stream_side(s)->stream = NULL;
	s->c = NULL;
	list_del(&s->blocked);
	return c;
}

/* ---- bytes ---- */

/**
 * stream_settle() - Tell the peer of bytes that the session's window has again
 * @t:		Tunnel
 */
void stream_settle(struct tunnel *t)
{
	if (t->kept > KEPT_MOST || (t->kept && t->crowded) || !t->owed)
		return;
	h2_taken_all(t->h2, t->owed);
	t->owed = 0;
	tunnel_later(t);
}

/**
 * is_crowded() - Is much kept for the VM of a connection?
 * @c:		Connection
 *
 * Returns: true if it is
 */
static bool is_crowded(struct vu_conn *c)
{
	return c->near.ops->crowded && c->near.ops->crowded(c);
}

/**
 * bound() - Reset a connection if more is kept for its VM than may be
 * @s:		Stream that brought bytes
 */
static void bound(struct stream *s)
{
	struct vu_conn *c = s->c;

	if (!c || !s->kept)
		return;
	s->tunnel->crowded = is_crowded(c);
	if (!c->near.ops->full || !c->near.ops->full(c))
		return;
	c->reason = VU_REASON_SHORT;
	conn_abort(c, ECONNRESET);
}

/**
 * stream_taken() - The other side took bytes
 * @c:		Connection
 * @side:	Its side
 * @n:		How many
 */
void stream_taken(struct vu_conn *c, struct side *side, size_t n)
{
	struct stream *s = side->stream;
	size_t ours;

	if (!s || !s->tunnel)
		return;
	s->tunnel->crowded = is_crowded(c);
	ours = n < s->preface ? n : s->preface;
	s->preface -= (uint32_t)ours;
	n -= ours;
	if (!n)
		return;
	s->kept -= (uint32_t)n;
	s->tunnel->kept -= n;
	h2_taken(s->tunnel->h2, &s->h2, n);
	stream_settle(s->tunnel);
	tunnel_later(s->tunnel);
}

/**
 * stream_run() - Pass on an end that came before there was a sink
 * @c:		Connection
 * @side:	Its side
 */
void stream_run(struct vu_conn *c, struct side *side)
{
	if (side->stream && side->stream->h2.over)
		pipe_end(c, pipe_from(c, side));
}

/**
 * stream_drop() - Have the peer end a stream that nobody has
 * @s:		Stream
 *
 * As TCP has it for a socket that is closed. But who was refused has to hear
 * that first: RST_STREAM would overtake it (RFC 9113, section 8.1).
 */
void stream_drop(struct stream *s)
{
	bool refused = s->status > 200;

	if (refused && !s->h2.ended)
		return; /* it is reset by what comes then, or later */
	h2_reset(s->tunnel->h2, &s->h2,
		 refused ? NGHTTP2_NO_ERROR : NGHTTP2_CANCEL);
	tunnel_later(s->tunnel);
}

/**
 * stream_keep() - Keep bytes of the peer until there is a sink, or a better
 * time
 * @s:		Stream
 * @data:	Bytes
 * @len:	How many
 */
void stream_keep(struct stream *s, const uint8_t *data, size_t len)
{
	struct iovec iov = {
	    .iov_base = (uint8_t *)(uintptr_t)data,
	    .iov_len = len,
	};
	struct tunnel *t = s->tunnel;
	struct vu_conn *c = s->c;

	t->owed += len;
	if (!c) {
		stream_drop(s);
	} else if (conn_flows(c) || c->state < CONN_OPEN) {
		struct pipe *p = pipe_from(c, stream_side(s));

		s->kept += (uint32_t)len;
		t->kept += len;
		if (p->state == PIPE_FLOWS)
			pipe_keep(c, p, &iov);
		if (conn_flows(c))
			conn_wake(c);
		bound(s);
	}
	stream_settle(t);
}

/**
 * stream_put() - Pass on bytes of the peer
 * @s:		Stream
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 */
void stream_put(struct stream *s, const struct iovec *iov, unsigned n_iov,
		size_t len)
{
	struct vu_conn *c = s->c;

	if (!c || !conn_flows(c)) {
		for (unsigned i = 0; i < n_iov; i++)
			stream_keep(s, iov[i].iov_base, iov[i].iov_len);
		return;
	}
	s->tunnel->owed += len;
	s->tunnel->kept += len;
	s->kept += (uint32_t)len;
	/* the stream outlives it: what takes bytes frees no tunnel */
	pipe_put(c, pipe_from(c, stream_side(s)), iov, n_iov, len, 0);
	bound(s);
	stream_settle(s->tunnel);
}

/**
 * stream_room() - Borrow buffers of the sink for bytes of the peer
 * @s:		Stream
 * @most:	Bytes that there are
 * @ret:	Buffers, for stream_pull()
 *
 * Returns: false if it lends none: then bytes are given to it
 */
bool stream_room(const struct stream *s, size_t most, struct room *ret)
{
	struct vu_conn *c = s->c;
	const struct side *sink;
	const struct pipe *p;

	if (!c || !conn_flows(c))
		return false;
	p = pipe_from(c, stream_side(s));
	sink = pipe_sink(c, p);
	return p->state == PIPE_FLOWS && !bytes_len(&p->kept.bytes) &&
	       sink->ops->room && sink->ops->room(c, most, ret);
}

/**
 * read_into() - Decrypt into segments
 * @t:		Tunnel
 * @iov:	Segments
 * @n_iov:	How many
 *
 * Returns: bytes; as tls_read() if there were none
 */
static ssize_t read_into(struct tunnel *t, const struct iovec *iov,
			 unsigned n_iov)
{
	ssize_t total = 0;

	for (unsigned i = 0; i < n_iov; i++) {
		size_t at = 0;

		while (at < iov[i].iov_len) {
			ssize_t n =
			    tls_read(t->tls, (char *)iov[i].iov_base + at,
				     iov[i].iov_len - at);

			if (n <= 0)
				return total ? total : n;
			at += (size_t)n;
			total += n;
		}
	}
	return total;
}

/**
 * stream_pull() - Read payload of the frame that comes in, into the sink
 * @s:		Stream, the session's direct one
 * @room:	Buffers that stream_room() found
 *
 * Returns: bytes; as tls_read() if there were none; -EBADMSG: no HTTP/2
 */
ssize_t stream_pull(struct stream *s, const struct room *room)
{
	struct tunnel *t = s->tunnel;
	struct vu_conn *c = s->c;
	const struct side *sink = pipe_sink(c, pipe_from(c, stream_side(s)));
	const struct iovec *iov = t->group->hbone->core->rx_payload;
	ssize_t n = read_into(t, iov, room->n_payload);
	size_t good;

	if (n <= 0 || h2_pass(t->h2, (size_t)n) != H2_GOES) {
		sink->ops->fill(c, room, 0, 0);
		return n > 0 ? -EBADMSG : n;
	}
	good = t->h2->passed;
	t->owed += good;
	sink->ops->fill(c, room, good, 0);
	h2_taken(t->h2, &s->h2, good);
	stream_settle(t);
	tunnel_later(t);
	h2_passed(t->h2);
	return n;
}
