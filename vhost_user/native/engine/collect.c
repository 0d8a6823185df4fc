// SPDX-License-Identifier: Apache-2.0
/*
 * collect.c - what epoll reports
 */

#include <errno.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "engine/engine.h"
#include "side/hbone.h"
#include "side/netns.h"
#include "side/socket.h"
#include "side/target.h"

/**
 * conn_event() - Note what happened to a connection's socket
 * @e:		Engine
 * @tag:	Which connection and side
 * @events:	EPOLL bits
 */
static void conn_event(struct vu_engine *e, uint64_t tag, uint32_t events)
{
	struct vu_conn *c = conn_by_id(&e->core, tag & ~SOCKET_NEAR);
	bool near = tag & SOCKET_NEAR;
	struct side *s;

	if (!c)
		return;
	s = near ? &c->near : &c->far;
	if (s->ops->event) {
		s->ops->event(c, s, events);
		return;
	}
	socket_event(c, s, events);
	if (c->state == CONN_DIALING && !near)
		target_event(c, events);
	else if (c->state == CONN_REQUESTED && events & (EPOLLHUP | EPOLLERR))
		client_left(c);
}

/**
 * tunnel_report() - Note what happened to a tunnel's socket
 * @e:		Engine
 * @part:	Of its id
 * @events:	EPOLL bits
 */
static void tunnel_report(struct vu_engine *e, uint64_t part, uint32_t events)
{
	struct tunnel *t = ids_short(&e->core.hbone->tunnels, (uint32_t)part);

	if (t)
		tunnel_event(t, events);
}

/**
 * collect() - Take what epoll has
 * @e:		Engine
 * @events:	From epoll_wait()
 * @n:		How many
 */
void collect(struct vu_engine *e, const struct epoll_event *events, int n)
{
	for (int i = 0; i < n; i++) {
		uint64_t tag = events[i].data.u64, drained;
		struct vu_listener *l;
		struct vu_netns *n;
		struct vu_dev *d;

		if ((uint32_t)tag) {
			conn_event(e, tag, events[i].events);
			continue;
		}
		switch (tag & 0xffffffffffULL) {
		case TAG_WAKE:
			if (read(e->wake_fd, &drained, sizeof(drained)) < 0)
				errno = 0; /* nothing to drain */
			break;
		case TAG_KICK:
			d = e->devs[tag >> TAG_SLOT];
			if (d) {
				d->stats.kicks++;
				list_add(&e->core.active, &d->active);
			}
			break;
		case TAG_TUNNEL:
			tunnel_report(e, tag >> TAG_SLOT, events[i].events);
			break;
		case TAG_SHAKEN:
			hbone_shaken(e->core.hbone);
			break;
		case TAG_NETNS:
			n = e->core.netns[tag >> TAG_SLOT];
			if (n)
				supply_event(n);
			break;
		default:
			l = e->listeners[tag >> TAG_SLOT];
			if (l)
				listener_accept(l, &e->paused);
		}
	}
}
