// SPDX-License-Identifier: Apache-2.0
/*
 * told.c - what a tunnel tells its streams
 *
 * Theory of operation
 * ===================
 *
 * An answer, an end, a loss: here it becomes what the connection goes through.
 * All of it is told while nghttp2 is at work, so that bytes only move later.
 */

#include <errno.h>

#include "base/clock.h"
#include "side/hbone.h"

/**
 * stream_status() - A CONNECT of ours was answered
 * @s:		Stream
 * @f:		What the answer says
 *
 * 503 is any failure to reach the far side; the peer may say which.
 */
void stream_status(struct stream *s, const struct h2_fields *f)
{
	struct vu_conn *c = s->c;
	enum vu_reason reason = VU_REASON_STATUS;

	if (!c || c->state != CONN_DIALING)
		return;
	if (f->status < 300) {
		if (s->tunnel->carrier.used) /* whom it led to, nobody knew */
			c->answer =
			    answers_put(&s->group->hbone->answers,
					s->tunnel->tls->peer, f->baggage);
		conn_opened(c);
		return;
	}
	if (f->status == 503)
		reason = VU_REASON_503;
	else if (f->status == 400)
		reason = VU_REASON_400;
	else if (f->status == 401)
		reason = VU_REASON_401;
	c->reason = (uint8_t)reason;
	conn_abort(c, reason_errno(reason, f->error));
}

/**
 * stream_ended() - The peer's END_STREAM
 * @s:		Stream
 */
void stream_ended(struct stream *s)
{
	if (!s->c || !conn_flows(s->c))
		return;
	pipe_end(s->c, pipe_from(s->c, stream_side(s)));
	conn_hurry(s->c);
}

/**
 * stream_lost() - A stream is no more, and its connection neither
 * @s:		Stream that HTTP/2 has no more; freed
 * @reason:	Why
 * @error:	errno of what failed, or 0
 */
void stream_lost(struct stream *s, enum vu_reason reason, int error)
{
	struct vu_conn *c = stream_part(s);

	if (c) {
		c->reason = (uint8_t)reason;
		conn_abort(c, reason_errno(reason, error));
	}
	stream_free(s);
}

/**
 * let_go() - A stream is no more, and its peer had said all: nothing is lost
 * @s:		Stream that HTTP/2 has no more; freed
 *
 * The connection goes on by itself: bytes may be kept for its other side. A
 * peer that has ended and then resets by NO_ERROR only takes no more, which is
 * what a server does that closes first (RFC 9113, section 8.1).
 */
static void let_go(struct stream *s)
{
	struct vu_conn *c = s->c;
	const struct side *side = c ? stream_side(s) : NULL;

	stream_part(s);
	if (c && conn_flows(c))
		pipe_break(c, pipe_to(c, side), 0);
	stream_free(s);
}

/**
 * unheard() - Has a connection still to hear of a stream that is closed?
 * @s:		Stream, closed without an error
 *
 * Returns: true if it was reset before both had ended, or before its answer
 */
static bool unheard(const struct stream *s)
{
	return !s->h2.over || (!s->h2.ends && s->c && !conn_flows(s->c));
}

/**
 * stream_closed() - A stream is no more
 * @s:		Stream
 * @error:	enum nghttp2_error_code
 *
 * A connection that is just giving bytes hears of it later: it can't end in the
 * middle of that.
 */
void stream_closed(struct stream *s, uint32_t error)
{
	struct tunnel *t = s->tunnel;
	struct group *g = s->group;

	if (t->giving) {
		s->closed = true;
		s->error = error;
		list_del(&s->blocked);
		list_move(&t->closed, &s->link);
		tunnel_busy(t);
		return;
	}
	group_ref(g);
	if (error == NGHTTP2_REFUSED_STREAM && s->c && !g->server &&
	    s->c->state == CONN_DIALING) {
		if (!g->ops->refused(g, s))
			stream_lost(s, VU_REASON_REFUSED, 0);
	} else if (error || unheard(s)) {
		stream_lost(s, VU_REASON_RESET, 0);
	} else {
		let_go(s);
	}
	if (list_empty(&t->streams)) {
		t->idle_us = clock_us();
		tunnel_busy(t); /* its time as an idle one runs */
	}
	if (t->state != TUNNEL_DOOMED)
		g->ops->spare(g, t);
	group_unref(g);
}

/**
 * stream_hear() - Tell connections of streams that were closed meanwhile
 * @t:		Tunnel
 */
void stream_hear(struct tunnel *t)
{
	while (!list_empty(&t->closed)) {
		struct stream *s =
		    container_of(t->closed.next, struct stream, link);

		list_del(&s->link);
		s->closed = false;
		stream_closed(s, s->error);
	}
}

/**
 * stream_reap() - Reset streams that nobody has and that the peer doesn't end
 * @t:		Tunnel
 * @now_us:	What time it is
 */
void stream_reap(struct tunnel *t, uint64_t now_us)
{
	const struct list *head = &t->streams;

	if (!t->parted)
		return;
	for (const struct list *at = head->next; at != head; at = at->next) {
		struct stream *s = container_of(at, struct stream, link);

		if (s->parted_us && now_us - s->parted_us >= PART_US)
			stream_drop(s);
	}
	tunnel_later(t);
}
