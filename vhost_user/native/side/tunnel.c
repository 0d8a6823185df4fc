// SPDX-License-Identifier: Apache-2.0
/*
 * tunnel.c - the life of a tunnel
 *
 * Theory of operation
 * ===================
 *
 *	DIALS -> SHAKES -> OPEN -> DRAINS	(we dialled)
 *		 SHAKES -> OPEN -> DRAINS	(the peer did)
 *	any -> DOOMED, and freed with the next turn
 *
 * The handshake's steps are another thread's (tls/shake.c); a tunnel that is
 * doomed meanwhile is freed when its session comes back.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "side/hbone.h"

/* ---- the beginning ---- */

/**
 * tunnel_tell() - Tell Python that a tunnel is there, or no more
 * @t:		Tunnel
 */
void tunnel_tell(const struct tunnel *t)
{
	const struct group *g = t->group;
	struct vu_event event = {
	    .kind = VU_EV_TUNNEL,
	    .duration_us = clock_us() - t->start_us,
	    .tag = t->state == TUNNEL_DOOMED && t->was_open,
	    .reason = t->reason,
	    .error = t->error,
	};

	if (g->server)
		conn_names(&event, t->fd);
	outbox_push(&g->hbone->core->outbox, g->outbox, &event, false);
}

/**
 * push() - Have the other thread go on with the handshake
 * @t:		Tunnel
 */
static void push(struct tunnel *t)
{
	t->shaking = true;
	t->edge = false;
	t->tls->drained = false;
	shaker_push(&t->group->hbone->shaker, t->tls);
}

/**
 * tunnel_shake() - What carries it is there: begin with TLS
 * @t:		Tunnel in TUNNEL_DIALS
 */
void tunnel_shake(struct tunnel *t)
{
	struct group *g = t->group;

	t->tls = tls_new(g->tls, g->names, t->fd, g->server, t);
	if (!t->tls) {
		tunnel_doom(t, VU_REASON_SHORT, ENOMEM);
		return;
	}
	t->tls->buffers = &g->hbone->buffers;
	if (t->carrier.c)
		t->tls->wire = &t->carrier.wire;
	t->state = TUNNEL_SHAKES;
	t->tls->step = TLS_READS;
	g->stats.shakes++;
	if (!g->server)
		push(t);
}

/**
 * tunnel_new() - Make a tunnel that has no socket yet
 * @g:		Group that it is of
 *
 * Returns: the tunnel; NULL if out of memory
 */
struct tunnel *tunnel_new(struct group *g)
{
	struct tunnel *t = calloc(1, sizeof(*t));
	int id = t ? ids_add(&g->hbone->tunnels, t) : -1;

	if (id < 0) {
		free(t);
		return NULL;
	}
	*t = (struct tunnel){.group = g, .id = (uint32_t)id, .fd = -1};
	list_init(&t->link);
	list_init(&t->busy);
	list_init(&t->flush);
	list_init(&t->timer);
	list_init(&t->waiter.link);
	list_init(&t->streams);
	list_init(&t->blocked);
	list_init(&t->stuck);
	list_init(&t->closed);
	t->start_us = clock_us();
	t->state = TUNNEL_DIALS;
	list_add(&g->all, &t->link);
	group_ref(g);
	g->stats.tunnels++;
	tunnel_schedule(t);
	return t;
}

/**
 * tunnel_socket() - Give a tunnel its socket
 * @t:		Tunnel in TUNNEL_DIALS
 * @fd:		Socket, taken over; closed with the tunnel
 * @dials:	connect() is under way
 *
 * Returns: 0; -1 with errno: it can't be watched
 */
int tunnel_socket(struct tunnel *t, int fd, bool dials)
{
	t->fd = fd;
	if (tunnel_watch(t, EPOLL_CTL_ADD, dials))
		return -1;
	if (!dials)
		tunnel_shake(t);
	return 0;
}

/**
 * enter() - TLS is there: begin with HTTP/2
 * @t:		Tunnel
 */
static void enter(struct tunnel *t)
{
	struct group *g = t->group;

	t->h2 = h2_new(&tunnel_hears, t, g->server, g->max_streams);
	if (!t->h2) {
		tunnel_doom(t, VU_REASON_SHORT, ENOMEM);
		return;
	}
	t->state = TUNNEL_OPEN;
	t->readable = t->writable = true;
	t->tls->drained &= !t->edge;
	t->idle_us = clock_us();
	t->ping_us = t->idle_us + g->ping_us;
	g->stats.shakes--;
	tunnel_busy(t);
	tunnel_later(t);
	if (tls_revoked(t->tls, g->tls)) /* by lists that came meanwhile */
		tunnel_doom(t, VU_REASON_REVOKED, 0);
	else
		g->ops->spare(g, t);
}

/**
 * hbone_shaken() - Take back sessions of the other thread
 * @hb:		Tunnels
 */
void hbone_shaken(struct hbone *hb)
{
	uint64_t count;
	struct tls *tls;

	if (read(hb->shaker.fd, &count, sizeof(count)) < 0)
		errno = 0; /* nothing new */
	while ((tls = shaker_take(&hb->shaker))) {
		struct tunnel *t = tls->owner;

		t->shaking = false;
		wire_back(t);
		if (t->state == TUNNEL_DOOMED)
			tunnel_busy(t);
		else if (tls->step == TLS_DONE)
			enter(t);
		else if (tls->step == TLS_FAILED)
			tunnel_doom(t, tls->reason, 0);
		else if (t->edge || (tls->step == TLS_READS && !tls->drained))
			push(t);
		else if (tls->step == TLS_WRITES &&
			 tunnel_watch(t, EPOLL_CTL_MOD, true))
			tunnel_doom(t, VU_REASON_SHORT, errno);
	}
}

/**
 * connected() - connect() succeeded or failed
 * @t:		Tunnel
 */
static void connected(struct tunnel *t)
{
	int error = 0;
	socklen_t len = sizeof(error);

	list_del(&t->waiter.link);
	if (getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	if (error)
		tunnel_doom(t, VU_REASON_DIAL, error);
	else
		tunnel_shake(t);
}

/**
 * tunnel_event() - Note what epoll says of a tunnel's socket
 * @t:		Tunnel
 * @events:	EPOLL bits
 */
void tunnel_event(struct tunnel *t, uint32_t events)
{
	switch ((enum tunnel_state)t->state) {
	case TUNNEL_DIALS:
		if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
			connected(t);
		break;
	case TUNNEL_SHAKES:
		if (t->shaking)
			t->edge = true;
		else
			push(t);
		break;
	case TUNNEL_OPEN:
	case TUNNEL_DRAINS:
		if (events & ~(uint32_t)EPOLLOUT) {
			t->readable = true;
			t->tls->drained = false;
			t->tls->ends = events & (EPOLLRDHUP | EPOLLHUP);
		}
		if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
			t->writable = true;
			tunnel_later(t);
		}
		tunnel_busy(t);
		break;
	case TUNNEL_DOOMED:
		break;
	}
}

/* ---- the end ---- */

/**
 * tunnel_drain() - Take no more streams, and end with the last one
 * @t:		Tunnel
 * @deadline_us: Or then
 */
void tunnel_drain(struct tunnel *t, uint64_t deadline_us)
{
	if (t->state == TUNNEL_DOOMED)
		return;
	if (t->state < TUNNEL_OPEN) {
		tunnel_doom(t, VU_REASON_DRAINED, 0);
		return;
	}
	t->cut_us = deadline_us;
	t->state = TUNNEL_DRAINS;
	t->asked_us = t->asked_us ? t->asked_us : clock_us();
	if (t->group->server)
		h2_notice(t->h2);
	else
		h2_goaway(t->h2, NGHTTP2_NO_ERROR);
	tunnel_schedule(t);
	tunnel_later(t);
}

/**
 * say_goodbye() - Tell the peer, as far as the socket takes it
 * @t:		Tunnel, doomed
 *
 * Its streams are there yet: what is sent may end them.
 */
static void say_goodbye(struct tunnel *t)
{
	if (!t->h2 || t->reason == VU_REASON_LOST)
		return;
	if (!t->h2->broken && t->reason != VU_REASON_FLOOD)
		h2_goaway(t->h2, t->reason == VU_REASON_HTTP2
				     ? NGHTTP2_PROTOCOL_ERROR
				     : NGHTTP2_NO_ERROR);
	t->state = TUNNEL_DRAINS; /* so that it is sent */
	tunnel_send(t, true);
	tls_bye(t->tls);
	t->state = TUNNEL_DOOMED;
}

/**
 * leave() - Free what a tunnel has
 * @t:		Tunnel without streams
 */
static void leave(struct tunnel *t)
{
	if (t->h2)
		h2_free(t->h2);
	wire_leave(t);
	if (t->tls)
		tls_free(t->tls);
	if (t->fd >= 0)
		close(t->fd);
}

/**
 * count() - Count how a tunnel ended
 * @t:		Tunnel
 */
static void count(const struct tunnel *t)
{
	struct group *g = t->group;

	g->stats.tunnels--;
	if (t->was_open)
		return;
	g->stats.failed++;
	free(g->peer);
	g->peer = t->tls && t->tls->peer ? strdup(t->tls->peer) : NULL;
}

/**
 * tunnel_end() - Free a tunnel that is over; its streams are lost
 * @t:		Tunnel, doomed, its session ours
 */
void tunnel_end(struct tunnel *t)
{
	struct group *g = t->group;

	if (t->tls && !t->h2)
		g->stats.shakes--;
	say_goodbye(t);
	stream_hear(t);
	while (!list_empty(&t->streams)) {
		struct stream *s =
		    container_of(t->streams.next, struct stream, link);

		s->h2.id = 0;
		stream_lost(s, t->reason, t->error);
	}
	count(t);
	tunnel_tell(t);
	list_del(&t->link);
	ids_del(&g->hbone->tunnels, t->id);
	g->ops->ended(g, t);
	leave(t);
	list_del(&t->busy);
	list_del(&t->flush);
	list_del(&t->timer);
	free(t);
	group_unref(g);
}
