// SPDX-License-Identifier: Apache-2.0
/*
 * out.c - a tunnel's bytes to its peer
 *
 * Theory of operation
 * ===================
 *
 * What streams give is put into the session's buffer, or sealed, and sent at
 * the end of the turn, or when the buffer is full: streams of one turn share
 * system calls, and TLS records where they have little. A socket that takes no
 * more makes the streams wait that have more (t->stuck), and so does a window
 * that is used up (t->blocked).
 *
 * A tunnel that is over is only marked (tunnel_doom()), wherever that is found
 * out: in the middle of nghttp2's work nothing may be freed. The next turn ends
 * it.
 */

#include <errno.h>

#include <sys/epoll.h>

#include "side/hbone.h"

/**
 * tunnel_busy() - A tunnel has something to do
 * @t:		Tunnel
 */
void tunnel_busy(struct tunnel *t)
{
	list_add(&t->group->hbone->busy, &t->busy);
}

/**
 * count() - Count what a peer did that ends its tunnel
 * @stats:	Counters
 * @reason:	Why it ends
 */
static void count(struct vu_hbone_stats *stats, enum vu_reason reason)
{
	stats->faults += reason == VU_REASON_HTTP2;
	stats->floods += reason == VU_REASON_FLOOD;
	stats->silent += reason == VU_REASON_PING;
}

/**
 * tunnel_doom() - A tunnel is over
 * @t:		Tunnel; the next turn ends it
 * @reason:	Why
 * @error:	errno, or 0
 */
void tunnel_doom(struct tunnel *t, enum vu_reason reason, int error)
{
	if (t->state == TUNNEL_DOOMED)
		return;
	t->state = TUNNEL_DOOMED;
	t->reason = (uint8_t)reason;
	t->error = error;
	count(&t->group->stats, reason);
	list_del(&t->waiter.link);
	tunnel_busy(t);
}

/**
 * tunnel_watch() - Have epoll report what happens to a tunnel's socket
 * @t:		Tunnel
 * @op:		EPOLL_CTL_ADD or EPOLL_CTL_MOD
 * @room:	Report room for writing too
 *
 * What carries it tells by itself, if that is no socket.
 *
 * Returns: 0, or -1 with errno
 */
int tunnel_watch(struct tunnel *t, int op, bool room)
{
	struct hbone *hb = t->group->hbone;
	struct epoll_event ev = {
	    .events = EPOLLIN | EPOLLRDHUP | EPOLLET | (room ? EPOLLOUT : 0U),
	    .data.u64 = hb->tunnel_tag | (uint64_t)(t->id & IDS_SHORT) << 40,
	};

	t->fills = room;
	if (t->fd < 0)
		return 0;
	return epoll_ctl(hb->core->epoll_fd, op, t->fd, &ev);
}

/**
 * tunnel_later() - Send what there is when the turn ends
 * @t:		Tunnel
 */
void tunnel_later(struct tunnel *t)
{
	list_add(&t->group->hbone->flushes, &t->flush);
}

/**
 * tunnel_unblock() - Have streams go on that waited to send
 * @waiting:	A tunnel's list of them
 */
void tunnel_unblock(struct list *waiting)
{
	while (!list_empty(waiting)) {
		struct stream *s =
		    container_of(waiting->next, struct stream, blocked);

		list_del(&s->blocked);
		if (s->c)
			conn_wake(s->c);
	}
}

/**
 * full() - The socket took no more: have epoll report when it does
 * @t:		Tunnel
 */
static void full(struct tunnel *t)
{
	t->writable = false;
	if (!t->fills && tunnel_watch(t, EPOLL_CTL_MOD, true))
		tunnel_doom(t, VU_REASON_SHORT, errno);
}

/**
 * tunnel_lost() - Bytes of a stream were read: are they what was sent?
 * @owner:	Tunnel
 * @h:		Stream
 *
 * Returns: true if they may be something else
 */
bool tunnel_lost(void *owner, struct h2_stream *h)
{
	struct vu_conn *c = container_of(h, struct stream, h2)->c;

	(void)owner;
	return c && c->near.ops->lost && c->near.ops->lost(c);
}

/**
 * catch_up() - Seal what waits, so that a record may come behind it
 * @t:		Tunnel
 *
 * Returns: false if not all of it could be
 */
static bool catch_up(struct tunnel *t)
{
	struct h2 *h = t->h2;

	while (h->from < h->to) {
		size_t len = h->to - h->from;
		struct tls_content c = {.head = h->out + h->from};

		c.head_len = len < TLS_RECORD ? len : TLS_RECORD;
		if (tls_put(t->tls, &c))
			return false;
		h->from += c.head_len;
		t->group->stats.sent_bytes += c.head_len;
	}
	h->from = h->to = 0;
	return true;
}

/**
 * tunnel_seal() - Make a DATA frame a record of its own
 * @owner:	Tunnel
 * @h:		Stream, whose next bytes are its payload
 * @head:	Its header
 * @len:	Bytes of payload
 *
 * Returns: false if it can't be, or if its bytes may be something else: then
 * nobody has seen it
 */
bool tunnel_seal(void *owner, struct h2_stream *h, const uint8_t *head,
		 size_t len)
{
	struct tunnel *t = owner;
	const struct tls_content c = {head, H2_HEAD, h->iov, h->off, len};

	if (!t->writable || !catch_up(t) || tls_put(t->tls, &c))
		return false;
	if (tunnel_lost(t, h)) {
		tls_take_back(t->tls, H2_HEAD + len);
		return false;
	}
	t->group->stats.sent_bytes += H2_HEAD + len;
	return true;
}

/**
 * tunnel_send() - Send what there is, as far as the socket takes it
 * @t:		Tunnel with a session
 * @all:	All of it; false: there is more to come, so whole records only
 *
 * Returns: true if that was sent
 */
bool tunnel_send(struct tunnel *t, bool all)
{
	struct h2 *h = t->h2;

	while (t->writable && t->state != TUNNEL_DOOMED) {
		size_t len;
		ssize_t n;

		if (!h2_produce(h)) {
			tunnel_doom(t, VU_REASON_SHORT, ENOMEM);
			return false;
		}
		len = h->to - h->from;
		if (!all)
			len -= len % TLS_RECORD;
		n = len ? tls_write(t->tls, h->out + h->from, len)
			: tls_flush(t->tls);
		if (!len && !n)
			return true;
		if (n == -EAGAIN) {
			full(t);
		} else if (n == -ENOMEM) {
			tunnel_doom(t, VU_REASON_SHORT, ENOMEM);
		} else if (n < 0) {
			/* what it said before, and why, is still to be read */
			t->writable = false;
			t->readable = t->mute = true;
			tunnel_busy(t);
		} else {
			h->from += (size_t)n;
			t->group->stats.sent_bytes += (uint64_t)n;
		}
	}
	return false;
}
