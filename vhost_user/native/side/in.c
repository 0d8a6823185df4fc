// SPDX-License-Identifier: Apache-2.0
/*
 * in.c - a tunnel's bytes from its peer
 *
 * Theory of operation
 * ===================
 *
 * Frame by frame: its header, then its payload. A stream's is copied from where
 * it was decrypted into buffers that the sink lends (stream_pull()). Where it
 * lends none, payload of frames that follow each other is given from there, and
 * together: a record or a frame a system call would wake the receiver as often.
 * Nothing else of the peer is acted upon before. All else is nghttp2's.
 *
 * A turn reads a bounded number of bytes and of pieces: tunnels take turns, and
 * devices come in between. A peer that doesn't read is not heard either.
 */

#include <errno.h>

#include "base/clock.h"
#include "side/hbone.h"

#define READ_MOST  (7 * TLS_RECORD) /* bytes, in one turn: one receive's */
#define READ_CALLS 512 /* calls of TLS, of which each may be small */
#define GATHER	   64  /* pieces of payload that are given together */

/**
 * struct gathered - Payload that has yet to be given to its sink
 * @s:		Its stream; NULL: there is none
 * @len:	Bytes of it
 * @n:		Its pieces
 * @iov:	They, in the session's buffer
 */
struct gathered {
	struct stream *s;
	size_t len;
	unsigned n;
	struct iovec iov[GATHER];
};

/* ---- what the session tells ---- */

/**
 * on_request() - A CONNECT of the peer
 * @owner:	Tunnel
 * @id:		Stream's number
 * @f:		What it says
 *
 * Returns: the stream; NULL: refuse it
 */
static struct h2_stream *on_request(void *owner, int32_t id,
				    struct h2_fields *f)
{
	struct tunnel *t = owner;

	t->group->stats.requests++;
	return t->group->ops->request(t, id, f);
}

/**
 * on_unsent() - A request of ours was never sent
 * @owner:	Tunnel
 * @id:		Stream's number
 */
static void on_unsent(void *owner, int32_t id)
{
	struct tunnel *t = owner;
	const struct list *head = &t->streams;

	for (const struct list *at = head->next; at != head; at = at->next) {
		struct stream *s = container_of(at, struct stream, link);

		if (s->h2.id == id) {
			s->h2.id = 0;
			stream_closed(s, NGHTTP2_REFUSED_STREAM);
			return;
		}
	}
}

/**
 * stream_of() - Which stream is it?
 * @h:		As HTTP/2 has it
 *
 * Returns: the stream
 */
static struct stream *stream_of(struct h2_stream *h)
{
	return container_of(h, struct stream, h2);
}

/**
 * on_status() - A CONNECT of ours was answered
 * @owner:	Tunnel
 * @h:		Stream
 * @f:		What it says
 */
static void on_status(void *owner, struct h2_stream *h,
		      const struct h2_fields *f)
{
	(void)owner;
	stream_status(stream_of(h), f);
}

/**
 * on_data() - Bytes of a stream
 * @owner:	Tunnel
 * @h:		Stream
 * @data:	Bytes
 * @len:	How many
 */
static void on_data(void *owner, struct h2_stream *h, const uint8_t *data,
		    size_t len)
{
	(void)owner;
	stream_keep(stream_of(h), data, len);
}

/**
 * on_ended() - A stream's END_STREAM
 * @owner:	Tunnel
 * @h:		Stream
 */
static void on_ended(void *owner, struct h2_stream *h)
{
	(void)owner;
	stream_ended(stream_of(h));
}

/**
 * on_closed() - A stream is no more
 * @owner:	Tunnel
 * @h:		Stream
 * @error:	enum nghttp2_error_code
 */
static void on_closed(void *owner, struct h2_stream *h, uint32_t error)
{
	(void)owner;
	stream_closed(stream_of(h), error);
}

/**
 * on_room() - The peer takes more
 * @owner:	Tunnel
 * @h:		Stream; NULL: all of them
 */
static void on_room(void *owner, struct h2_stream *h)
{
	struct stream *s = h ? stream_of(h) : NULL;
	struct tunnel *t = owner;

	if (!s) {
		tunnel_unblock(&t->blocked);
	} else if (!list_empty(&s->blocked)) {
		list_del(&s->blocked);
		if (s->c)
			conn_wake(s->c);
	}
}

/**
 * on_settled() - The peer's first SETTINGS
 * @owner:	Tunnel
 */
static void on_settled(void *owner)
{
	struct tunnel *t = owner;

	tunnel_busy(t); /* it is there: Python hears of it */
	t->group->ops->spare(t->group, t);
}

/**
 * on_pong() - A PING was answered
 * @owner:	Tunnel
 */
static void on_pong(void *owner)
{
	struct tunnel *t = owner;

	t->asked_us = 0;
	if (t->state == TUNNEL_DRAINS && !t->h2->quits)
		h2_goaway(t->h2, NGHTTP2_NO_ERROR);
	tunnel_later(t);
}

/**
 * on_goaway() - The peer takes no new streams
 * @owner:	Tunnel
 */
static void on_goaway(void *owner)
{
	struct tunnel *t = owner;

	if (t->state == TUNNEL_OPEN)
		t->state = TUNNEL_DRAINS;
	tunnel_busy(t);
}

const struct h2_ops tunnel_hears = {
    .request = on_request,
    .unsent = on_unsent,
    .status = on_status,
    .data = on_data,
    .ended = on_ended,
    .closed = on_closed,
    .seal = tunnel_seal,
    .lost = tunnel_lost,
    .room = on_room,
    .settled = on_settled,
    .pong = on_pong,
    .goaway = on_goaway,
};

/* ---- reading ---- */

/**
 * pass_on() - Give what was gathered to its sink
 * @g:		Payload; none afterwards
 */
static void pass_on(struct gathered *g)
{
	struct stream *s = g->s;
	size_t len = g->len;
	unsigned n = g->n;

	g->s = NULL;
	g->len = g->n = 0;
	if (len)
		stream_put(s, g->iov, n, len);
}

/**
 * read_head() - Read a frame's header, or a part of it
 * @t:		Tunnel
 * @g:		Payload of the frames before
 *
 * Returns: bytes; as tls_read(); -EBADMSG: no HTTP/2
 */
static ssize_t read_head(struct tunnel *t, struct gathered *g)
{
	struct h2 *h = t->h2;
	ssize_t n = tls_read(t->tls, h->head + h->have, h->need - h->have);
	enum h2_in in;

	if (n <= 0)
		return n;
	h->have += (uint32_t)n;
	if (h->have < h->need)
		return n;
	if (g->s && !h2_goes_on(h, &g->s->h2))
		pass_on(g);
	in = h2_head(h, clock_us());
	if (in == H2_FLOOD) {
		pass_on(g);
		tunnel_send(t, true); /* why, if it takes that */
		tunnel_doom(t, VU_REASON_FLOOD, 0);
	}
	return in == H2_BAD ? -EBADMSG : n;
}

/**
 * peek() - Look at payload of the frame that comes in
 * @t:		Tunnel
 * @ret:	It
 *
 * Returns: bytes; as tls_peek()
 */
static ssize_t peek(struct tunnel *t, const uint8_t **ret)
{
	ssize_t n = tls_peek(t->tls, ret);

	return n > (ssize_t)t->h2->left ? (ssize_t)t->h2->left : n;
}

/**
 * gather() - Read payload of the frame that comes in
 * @t:		Tunnel, its session with a direct stream
 * @g:		Payload of the frames before, of that stream
 *
 * Returns: bytes; as tls_read(); -EBADMSG: no HTTP/2
 */
static ssize_t gather(struct tunnel *t, struct gathered *g)
{
	struct h2 *h = t->h2;
	const uint8_t *data;
	ssize_t n;

	g->s = stream_of(h->direct);
	n = peek(t, &data);
	if (n <= 0)
		return n;
	if (h2_pass(h, (size_t)n) != H2_GOES)
		return -EBADMSG;
	tls_drop(t->tls, (size_t)n);
	if (h->passed)
		g->iov[g->n++] =
		    (struct iovec){(void *)(uintptr_t)data, h->passed};
	g->len += h->passed;
	if (g->n == GATHER || h2_tells(h))
		pass_on(g);
	h2_passed(h);
	return n;
}

/**
 * read_piece() - Read once
 * @t:		Tunnel
 * @g:		Payload that was read before
 *
 * Returns: bytes; as tls_read(); -EBADMSG: no HTTP/2
 */
static ssize_t read_piece(struct tunnel *t, struct gathered *g)
{
	struct h2 *h = t->h2;
	const uint8_t *data;
	struct room room;
	ssize_t n;

	if (g->s && !tls_has(t->tls))
		pass_on(g); /* what is received takes the place of it */
	if (h->have < h->need)
		return read_head(t, g);
	if (h->direct && !g->s &&
	    stream_room(stream_of(h->direct), h->left, &room))
		return stream_pull(stream_of(h->direct), &room);
	if (h->direct)
		return gather(t, g);
	pass_on(g);
	n = peek(t, &data);
	if (n <= 0)
		return n;
	tls_drop(t->tls, (size_t)n);
	return h2_feed(h, data, (size_t)n) == H2_GOES ? n : -EBADMSG;
}

/**
 * ended() - There is nothing more to read, ever
 * @t:		Tunnel
 * @n:		As read_piece() has it: 0, or -errno
 */
static void ended(struct tunnel *t, ssize_t n)
{
	enum vu_reason reason = t->tls->reason;

	t->readable = false;
	if (n == -ENOMEM)
		reason = VU_REASON_SHORT;
	else if (n == -EBADMSG || n == -EPROTO)
		reason = reason ? reason : VU_REASON_HTTP2;
	else if (!reason)
		reason = t->h2->settled ? VU_REASON_LOST : VU_REASON_CLOSED;
	tunnel_doom(t, reason, n == -ECONNRESET ? ECONNRESET : 0);
}

/**
 * hears() - May the peer be heard now?
 * @t:		Tunnel
 * @g:		Payload that was read before
 *
 * Returns: true; false: once it was sent what waits
 */
static bool hears(struct tunnel *t, struct gathered *g)
{
	if (t->mute || !h2_busy(t->h2))
		return true;
	pass_on(g); /* what is sent may end its stream */
	return tunnel_send(t, true);
}

/**
 * tunnel_read() - Take what the peer says, for a turn
 * @t:		Tunnel with a session
 */
void tunnel_read(struct tunnel *t)
{
	struct gathered g = {0};
	size_t bytes = 0;

	for (unsigned i = 0; t->readable && t->state != TUNNEL_DOOMED; i++) {
		ssize_t n;

		if (bytes >= READ_MOST || i == READ_CALLS) {
			tunnel_busy(t);
			break;
		}
		if (!hears(t, &g))
			break;
		n = read_piece(t, &g);
		if (n > 0)
			bytes += (size_t)n;
		else if (n == -EAGAIN)
			t->readable = false;
		else if (n != -EINTR)
			ended(t, n);
	}
	pass_on(&g);
	t->group->stats.read_bytes += bytes;
	tunnel_later(t);
}
