// SPDX-License-Identifier: Apache-2.0
/*
 * hbone.c - a stream as a side of a connection
 *
 * Theory of operation
 * ===================
 *
 * As a sink it takes what windows and the tunnel's buffer let; how it is a
 * source, source.c says.
 *
 * The end is TCP's: END_STREAM is a FIN, RST_STREAM a RST. A connection that
 * has sent its END_STREAM and is gone leaves its stream behind, for the peer's
 * END_STREAM to come; what else comes meets a RST_STREAM, and so does a peer
 * that says nothing for PART_US.
 */

#include <errno.h>
#include <stdio.h>

#include <sys/socket.h>

#include "base/clock.h"
#include "side/hbone.h"

#define HEADERS 2
#define DIGITS	12

/* ---- a sink ---- */

/**
 * give() - Send bytes
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
	struct stream *s = side->stream;
	struct tunnel *t = s ? s->tunnel : NULL;
	bool stuck = false;
	size_t done = 0;

	(void)c;
	(void)flags;
	if (t && (s->closed || t->state == TUNNEL_DOOMED))
		return -EAGAIN; /* it hears of that soon */
	if (!t || !s->h2.id)
		return -EPIPE;
	t->giving = true;
	do {
		done += h2_send(t->h2, &s->h2, iov, n_iov, done, len);
		if (done == len || t->h2->to < H2_OUT_FULL)
			break;
		stuck = !tunnel_send(t, false); /* a part may have gone */
	} while (!stuck);
	t->giving = false;
	tunnel_later(t);
	if (done < len &&
	    !s->closed) /* the socket takes no more, or a window */
		list_add(stuck ? &t->stuck : &t->blocked, &s->blocked);
	return done ? (ssize_t)done : -EAGAIN;
}

/**
 * shut() - A direction has ended: tell the peer
 * @c:		Connection
 * @side:	Its side
 * @how:	SHUT_WR; SHUT_RD: HTTP/2 has no word for that
 */
static void shut(struct vu_conn *c, struct side *side, int how)
{
	struct stream *s = side->stream;

	(void)c;
	if (how != SHUT_WR || !s || !s->tunnel)
		return;
	h2_end(s->tunnel->h2, &s->h2);
	tunnel_later(s->tunnel);
}

/* ---- life ---- */

/**
 * answer() - Answer a CONNECT
 * @s:		Stream of a gate
 * @status:	200, or why not
 * @error:	503: errno of what failed, or 0
 */
static void answer(struct stream *s, int status, int error)
{
	bool good = status == 200;
	nghttp2_nv nv[HEADERS];
	char text[DIGITS];
	size_t n;

	s->status = (uint16_t)status;
	snprintf(text, sizeof(text), "%d", status);
	n = fields_header(nv, 0, ":status", text);
	if (good && s->headers)
		n = fields_header(nv, n, "baggage", s->headers->baggage);
	if (status == 503)
		n = fields_header(nv, n, "proxy-status", why_text(error));
	h2_respond(s->tunnel->h2, &s->h2, nv, n, good);
	tunnel_later(s->tunnel);
}

/**
 * stream_refuse() - Answer a CONNECT that no connection is made of
 * @s:		Stream of a gate, nobody's
 * @status:	Why not
 */
void stream_refuse(struct stream *s, int status)
{
	s->parted_us = clock_us();
	s->tunnel->parted++;
	answer(s, status, 0);
}

/**
 * opened() - The connection is established
 * @c:		Connection
 * @side:	Its side
 */
static void opened(struct vu_conn *c, struct side *side)
{
	struct stream *s = side->stream;

	(void)c;
	if (s && s->tunnel && s->group->server && !s->status)
		answer(s, 200, 0);
}

/**
 * status_for() - With which status does a CONNECT fail?
 * @c:		Connection
 * @error:	errno
 *
 * Returns: it
 */
static int status_for(const struct vu_conn *c, int error)
{
	if (c->target == VU_TARGET_RESET && error == EACCES)
		return 401;
	return c->target == VU_TARGET_RESET && error == EINVAL ? 400 : 503;
}

/**
 * close_stream() - Let go of a stream
 * @c:		Connection
 * @side:	Its side
 * @error:	errno: the peer must see an error
 */
static void close_stream(struct vu_conn *c, struct side *side, int error)
{
	struct stream *s = side->stream;
	struct tunnel *t;

	if (!s)
		return;
	stream_part(s);
	t = s->tunnel;
	if (!t) {
		stream_free(s);
		return;
	}
	s->parted_us = clock_us();
	t->parted++;
	t->kept -= s->kept;
	s->kept = 0;
	if (s->group->server && !s->status)
		answer(s, status_for(c, error), error);
	else if (error)
		h2_reset(t->h2, &s->h2,
			 s->group->server ? NGHTTP2_CONNECT_ERROR
					  : NGHTTP2_CANCEL);
	else if (!s->h2.ends)
		h2_end(t->h2, &s->h2);
	stream_settle(t);
	tunnel_later(t);
}

/**
 * names_of() - Whose names are its peer's?
 * @side:	Side
 *
 * Returns: the tunnel's socket, or -1
 */
static int names_of(const struct side *side)
{
	const struct stream *s = side->stream;

	return s && s->tunnel ? s->tunnel->fd : -1;
}

const struct side_ops hbone_side = {
    .give = give,
    .pull = stream_run,
    .taken = stream_taken,
    .shut = shut,
    .close = close_stream,
    .opened = opened,
    .socket = names_of,
    .finished = conn_free,
    .reset = conn_free,
};

/**
 * stream_join() - Be a connection's far side
 * @s:		Stream
 * @c:		Connection
 */
void stream_join(struct stream *s, struct vu_conn *c)
{
	s->c = c;
	c->far = (struct side){.ops = &hbone_side, .stream = s, .fd = -1};
}
