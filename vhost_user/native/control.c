// SPDX-License-Identifier: Apache-2.0
/*
 * control.c - the calls by which Python controls a running engine
 *
 * Theory of operation
 * ===================
 *
 * Each call stops the engine between two turns (control_begin(), engine.c),
 * changes one thing and lets it go on, so none of them meets a half-done
 * batch. A call finds its device, listener or connection by id and says
 * -VU_ERR_GONE when it is no more: the guest or a peer may have ended it
 * while Python was thinking.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/virtio_vsock.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

#include "engine.h"

#define MAX_BUF_ALLOC (1U << 30) /* keeps credit arithmetic in 32 bits */

/* ---- devices ---- */

/**
 * dev_get() - Find a device
 * @e:		Engine
 * @dev:	Id
 *
 * Returns: the device, or NULL
 */
static struct vu_dev *dev_get(const struct vu_engine *e, uint32_t dev)
{
	return dev < VU_MAX_DEVICES ? e->devs[dev] : NULL;
}

/**
 * vu_dev_add() - Add a virtio-vsock device
 * @e:		Engine
 * @cfg:	Configuration, copied
 *
 * Its rings come later. Connection requests meet VU_TARGET_RESET until
 * vu_dev_route() says otherwise.
 *
 * Returns: the device's id,
 *	-VU_ERR_INVAL, if the CID is reserved, the window 0 or above 1 GiB, or
 *		max_queued_bytes too small for max_conns
 *	-VU_ERR_FULL, if there are VU_MAX_DEVICES
 *	-VU_ERR_NOMEM
 */
int vu_dev_add(struct vu_engine *e, const struct vu_dev_config *cfg)
{
	struct vu_dev *d;
	uint32_t id = 0;

	if (cfg->guest_cid < 3 || cfg->guest_cid >= 0xffffffffU ||
	    !cfg->buf_alloc || cfg->buf_alloc > MAX_BUF_ALLOC ||
	    cfg->max_queued_bytes / VU_MIN_WINDOW < cfg->max_conns)
		return -VU_ERR_INVAL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -VU_ERR_NOMEM;
	*d = (struct vu_dev){.engine = e, .cfg = *cfg};
	list_init(&d->starved);
	list_init(&d->owing);
	list_init(&d->retries);
	for (unsigned q = 0; q < QUEUES; q++)
		d->kick_fds[q] = -1;
	d->next_port = 1U << 30;

	control_begin(e);
	while (id < VU_MAX_DEVICES && e->devs[id])
		id++;
	if (id < VU_MAX_DEVICES) {
		d->id = id;
		e->devs[id] = d;
		if (id >= e->n_devs)
			e->n_devs = id + 1;
	}
	control_end(e);
	if (id < VU_MAX_DEVICES)
		return (int)id;
	free(d);
	return -VU_ERR_FULL;
}

/**
 * vu_dev_limit() - Change what a device's VM may take
 * @e:		Engine
 * @dev:	Id
 * @max_conns:	As in struct vu_dev_config, like the others
 * @max_queued_bytes: At least @max_conns times VU_MIN_WINDOW
 * @accept_rate: Requests a second
 *
 * What the VM has is left alone: above a lower limit it just gets nothing more.
 *
 * Returns: 0,
 *	-VU_ERR_GONE
 *	-VU_ERR_INVAL, if @max_queued_bytes is too small
 */
int vu_dev_limit(struct vu_engine *e, uint32_t dev, uint32_t max_conns,
		 uint64_t max_queued_bytes, uint32_t accept_rate)
{
	struct vu_dev *d;

	if (max_queued_bytes / VU_MIN_WINDOW < max_conns)
		return -VU_ERR_INVAL;
	control_begin(e);
	d = dev_get(e, dev);
	if (d) {
		d->cfg.max_conns = max_conns;
		d->cfg.max_queued_bytes = max_queued_bytes;
		d->cfg.accept_rate = accept_rate;
	}
	control_end(e);
	return d ? 0 : -VU_ERR_GONE;
}

/**
 * dev_drop_conns() - End a device's connections; its guest is gone
 * @d:		Device
 */
void dev_drop_conns(struct vu_dev *d)
{
	struct vu_engine *e = d->engine;

	for (uint32_t b = 0; b < e->n_buckets; b++) {
		struct vu_conn *c = e->buckets[b], *next;

		for (; c; c = next) {
			next = c->hash_next;
			if (c->dev != d)
				continue;
			conn_excuse(c, ECONNRESET);
			conn_post(e, c,
				  c->state == CONN_OPEN ? VU_EV_CLOSED
							: VU_EV_FAILED,
				  ECONNRESET);
			sibling_part(c, ECONNRESET);
			event_lose(c);
			conn_forsake(e, c);
		}
	}
	conn_reap(e);
	d->rst_count = 0;
}

/**
 * stop_ring() - Stop a ring if it runs
 * @d:		Device
 * @queue:	Ring
 */
static void stop_ring(struct vu_dev *d, uint32_t queue)
{
	if (d->rings[queue])
		vsock_stop_ring(d, queue);
	if (d->kick_fds[queue] >= 0) {
		epoll_ctl(d->engine->epoll_fd, EPOLL_CTL_DEL,
			  d->kick_fds[queue], NULL);
		close(d->kick_fds[queue]);
	}
	d->kick_fds[queue] = -1;
}

/**
 * vu_dev_del() - Remove a device: its connections end, its rings stop
 * @e:		Engine
 * @dev:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_del(struct vu_engine *e, uint32_t dev)
{
	struct vu_dev *d;

	control_begin(e);
	d = dev_get(e, dev);
	if (d) {
		dev_drop_conns(d);
		for (uint32_t q = 0; q < QUEUES; q++)
			stop_ring(d, q);
		/* orphans still point to it: no guest, no more counting */
		for (struct list *n = e->orphans.next, *next; n != &e->orphans;
		     n = next) {
			struct vu_conn *c =
			    container_of(n, struct vu_conn, timer);

			next = n->next;
			if (c->dev == d)
				conn_abort(e, c, ECONNRESET);
		}
		for (unsigned i = 0; i < ROUTE_BUCKETS; i++) {
			for (struct route *r = d->routes[i], *next; r;
			     r = next) {
				next = r->next;
				free(r);
			}
		}
		event_forget(d);
		e->devs[dev] = NULL;
		for (unsigned i = 0; i < e->n_devs; i++) {
			if (e->devs[i])
				e->devs[i]->siblings &= ~(1ULL << dev);
		}
		free(d);
	}
	control_end(e);
	return d ? 0 : -VU_ERR_GONE;
}

/**
 * vu_dev_set_mem() - Give a device its guest's memory
 * @e:		Engine
 * @dev:	Id
 * @mem:	Memory map, borrowed; NULL: none
 *
 * Returns: 0,
 *	-VU_ERR_GONE
 *	-VU_ERR_STATE, if a ring runs: it points into the old map
 */
int vu_dev_set_mem(struct vu_engine *e, uint32_t dev, const struct vu_mem *mem)
{
	struct vu_dev *d;
	int err = 0;

	control_begin(e);
	d = dev_get(e, dev);
	if (!d)
		err = -VU_ERR_GONE;
	for (unsigned q = 0; q < QUEUES && !err; q++)
		err = d->rings[q] ? -VU_ERR_STATE : 0;
	if (!err) {
		d->mem = mem;
		d->faulted = false;
	}
	control_end(e);
	return err;
}

/**
 * start_ring() - vu_dev_start_ring() with the lock held
 * @d:		Device
 * @queue:	Ring
 * @cfg:	Where it is
 *
 * Returns: as vu_dev_start_ring()
 */
static int start_ring(struct vu_dev *d, uint32_t queue,
		      const struct vu_ring_config *cfg)
{
	struct epoll_event ev = {
	    .events = EPOLLIN | EPOLLET,
	    .data.u64 = TAG_KICK | (uint64_t)d->id << 40,
	};
	struct vu_ring *ring;
	int err = 0, kick = -1;

	if (d->rings[queue] || !d->mem)
		return -VU_ERR_STATE;
	stop_ring(d, queue); /* a broken one left its kick eventfd */
	ring = vu_ring_new(d->mem, cfg, &err);
	if (!ring)
		return err;
	if (cfg->kick_fd >= 0) {
		/* ours, so that Python may close its own at any time */
		kick = fcntl(cfg->kick_fd, F_DUPFD_CLOEXEC, 0);
		if (kick < 0 ||
		    epoll_ctl(d->engine->epoll_fd, EPOLL_CTL_ADD, kick, &ev)) {
			if (kick >= 0)
				close(kick);
			vu_ring_free(ring);
			return -VU_ERR_SYS;
		}
	}
	d->kick_fds[queue] = kick;
	d->rings[queue] = ring;
	d->features = cfg->features;
	event_ring_started(d, queue, cfg->base);
	vu_ring_want_kicks(ring, false);
	return 0;
}

/**
 * vu_dev_start_ring() - Start one of a device's rings
 * @e:		Engine
 * @dev:	Id
 * @queue:	0 RX, 1 TX, 2 event
 * @cfg:	Where it is; its eventfds stay open until it is stopped
 *
 * Returns: 0,
 *	-VU_ERR_GONE
 *	-VU_ERR_STATE, if it runs already, or there is no memory map
 *	-VU_ERR_INVAL, -VU_ERR_RANGE, -VU_ERR_RING, -VU_ERR_NOMEM,
 *	-VU_ERR_FAULT: vu_ring_new()
 *	-VU_ERR_SYS, if the kick eventfd can't be watched
 */
int vu_dev_start_ring(struct vu_engine *e, uint32_t dev, uint32_t queue,
		      const struct vu_ring_config *cfg)
{
	struct vu_dev *d;
	int err;

	if (queue >= QUEUES)
		return -VU_ERR_INVAL;
	control_begin(e);
	d = dev_get(e, dev);
	err = d ? start_ring(d, queue, cfg) : -VU_ERR_GONE;
	control_end(e);
	return err;
}

/**
 * vu_dev_stop_ring() - Stop one of a device's rings
 * @e:		Engine
 * @dev:	Id
 * @queue:	Ring; a stopped one stays so
 *
 * Connections stay: the front-end may start the ring again.
 *
 * Returns: what VHOST_USER_GET_VRING_BASE answers,
 *	-VU_ERR_GONE
 *	-VU_ERR_INVAL, if there is no such queue
 */
int64_t vu_dev_stop_ring(struct vu_engine *e, uint32_t dev, uint32_t queue)
{
	struct vu_dev *d;
	int64_t ret = -VU_ERR_GONE;

	if (queue >= QUEUES)
		return -VU_ERR_INVAL;
	control_begin(e);
	d = dev_get(e, dev);
	if (d) {
		stop_ring(d, queue);
		ret = d->bases[queue];
	}
	control_end(e);
	return ret;
}

/**
 * vu_dev_set_call() - Change what interrupts the guest for a ring
 * @e:		Engine
 * @dev:	Id
 * @queue:	Ring
 * @call_fd:	eventfd, borrowed; or -1
 *
 * Returns: 0,
 *	-VU_ERR_GONE
 *	-VU_ERR_INVAL, if there is no such queue
 *	-VU_ERR_STATE, if it doesn't run
 */
int vu_dev_set_call(struct vu_engine *e, uint32_t dev, uint32_t queue,
		    int call_fd)
{
	struct vu_dev *d;
	int err = 0;

	if (queue >= QUEUES)
		return -VU_ERR_INVAL;
	control_begin(e);
	d = dev_get(e, dev);
	if (!d)
		err = -VU_ERR_GONE;
	else if (!d->rings[queue])
		err = -VU_ERR_STATE;
	else
		vu_ring_set_call(d->rings[queue], call_fd);
	control_end(e);
	return err;
}

/**
 * vu_dev_reset() - The front-end is gone: end all connections
 * @e:		Engine
 * @dev:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_reset(struct vu_engine *e, uint32_t dev)
{
	struct vu_dev *d;

	control_begin(e);
	d = dev_get(e, dev);
	if (d)
		dev_drop_conns(d);
	control_end(e);
	return d ? 0 : -VU_ERR_GONE;
}

/**
 * vu_dev_transport_reset() - Tell a driver that its connections are gone
 * @e:		Engine
 * @dev:	Id
 *
 * By VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (VIRTIO 1.2 section 5.10.6.7), once its
 * rings run and it has a buffer on the event ring; never, if its RX and TX
 * rings start at 0 then: that driver never had a connection. A driver without
 * event ring gets RSTs about the connections that vu_dev_reset() ended.
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_transport_reset(struct vu_engine *e, uint32_t dev)
{
	struct vu_dev *d;

	control_begin(e);
	d = dev_get(e, dev);
	if (d)
		d->reset_due = true;
	control_end(e);
	return d ? 0 : -VU_ERR_GONE;
}

/**
 * vu_dev_stats() - Read a device's counters
 * @e:		Engine
 * @dev:	Id
 * @ret:	Counters
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_stats(struct vu_engine *e, uint32_t dev, struct vu_dev_stats *ret)
{
	struct vu_dev *d;

	control_begin(e);
	d = dev_get(e, dev);
	if (d)
		*ret = d->stats;
	control_end(e);
	return d ? 0 : -VU_ERR_GONE;
}

/**
 * knows_cid() - Does a device have a sibling of a CID?
 * @d:		Device
 * @cid:	CID
 *
 * Returns: true if it does, or if the CID is its own
 */
static bool knows_cid(const struct vu_dev *d, uint64_t cid)
{
	return d->cfg.guest_cid == cid || sibling_find(d, cid);
}

/**
 * vu_dev_sibling() - Let two devices' guests reach each other by CID
 * @e:		Engine
 * @dev:	Id
 * @other:	Id
 *
 * Until one of them is removed.
 *
 * Returns: 0,
 *	-VU_ERR_GONE
 *	-VU_ERR_STATE, if either has the other's CID, or a sibling that has
 */
int vu_dev_sibling(struct vu_engine *e, uint32_t dev, uint32_t other)
{
	struct vu_dev *a, *b;
	int err = 0;

	control_begin(e);
	a = dev_get(e, dev);
	b = dev_get(e, other);
	if (!a || !b) {
		err = -VU_ERR_GONE;
	} else if (knows_cid(a, b->cfg.guest_cid) ||
		   knows_cid(b, a->cfg.guest_cid)) {
		err = -VU_ERR_STATE;
	} else {
		a->siblings |= 1ULL << other;
		b->siblings |= 1ULL << dev;
	}
	control_end(e);
	return err;
}

/* ---- routes ---- */

/**
 * route_slot() - Find where a port's route is, or would be
 * @d:		Device
 * @port:	Port
 *
 * Returns: the link to it; *link is NULL if there is none
 */
static struct route **route_slot(struct vu_dev *d, uint32_t port)
{
	struct route **link = &d->routes[port % ROUTE_BUCKETS];

	while (*link && (*link)->port != port)
		link = &(*link)->next;
	return link;
}

/**
 * route_find() - Find a port's target
 * @d:		Device
 * @port:	Port
 *
 * Returns: the target, the fallback if the port has none of its own
 */
const struct vu_target *route_find(const struct vu_dev *d, uint32_t port)
{
	const struct route *r = d->routes[port % ROUTE_BUCKETS];

	while (r && r->port != port)
		r = r->next;
	return r ? &r->target : &d->fallback;
}

/**
 * target_ok() - Check a target
 * @target:	Target
 *
 * Returns: true if its kind and address are in range
 */
static bool target_ok(const struct vu_target *target)
{
	if (target->addr_len > sizeof(target->addr))
		return false;
	if (target->kind == VU_TARGET_DIAL)
		return target->addr_len >= sizeof(sa_family_t);
	if (target->kind == VU_TARGET_VSOCK)
		return target->addr_len == sizeof(struct sockaddr_vm);
	return target->kind <= VU_TARGET_VSOCK;
}

/**
 * vu_dev_route() - Say where connections to a port go
 * @e:		Engine
 * @dev:	Id
 * @port:	Host port; VU_PORT_ANY: any that has no route
 * @target:	Where to, copied
 *
 * Returns: 0,
 *	-VU_ERR_GONE
 *	-VU_ERR_INVAL, if the target is malformed
 *	-VU_ERR_NOMEM
 */
int vu_dev_route(struct vu_engine *e, uint32_t dev, uint32_t port,
		 const struct vu_target *target)
{
	struct vu_dev *d;
	int err = 0;

	if (!target_ok(target))
		return -VU_ERR_INVAL;
	control_begin(e);
	d = dev_get(e, dev);
	if (!d) {
		err = -VU_ERR_GONE;
	} else if (port == VU_PORT_ANY) {
		d->fallback = *target;
	} else {
		struct route **link = route_slot(d, port);

		if (!*link)
			*link = calloc(1, sizeof(struct route));
		if (*link) {
			(*link)->port = port;
			(*link)->target = *target;
		} else {
			err = -VU_ERR_NOMEM;
		}
	}
	control_end(e);
	return err;
}

/**
 * vu_dev_unroute() - Forget a port's route; the fallback holds again
 * @e:		Engine
 * @dev:	Id
 * @port:	Port
 *
 * Returns: 0, or -VU_ERR_GONE, if there is no such device or route
 */
int vu_dev_unroute(struct vu_engine *e, uint32_t dev, uint32_t port)
{
	struct route *r = NULL, **link;
	struct vu_dev *d;

	control_begin(e);
	d = dev_get(e, dev);
	if (d) {
		link = route_slot(d, port);
		r = *link;
		if (r)
			*link = r->next;
	}
	control_end(e);
	free(r);
	return r ? 0 : -VU_ERR_GONE;
}

/**
 * vu_dev_unroute_from() - Forget the routes of many ports at one moment
 * @e:		Engine
 * @dev:	Id
 * @first:	The lowest port
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_unroute_from(struct vu_engine *e, uint32_t dev, uint32_t first)
{
	struct route *gone = NULL;
	struct vu_dev *d;

	control_begin(e);
	d = dev_get(e, dev);
	for (unsigned i = 0; d && i < ROUTE_BUCKETS; i++) {
		struct route **link = &d->routes[i];

		while (*link) {
			struct route *r = *link;

			if (r->port < first) {
				link = &r->next;
				continue;
			}
			*link = r->next;
			r->next = gone;
			gone = r;
		}
	}
	control_end(e);
	while (gone) {
		struct route *next = gone->next;

		free(gone);
		gone = next;
	}
	return d ? 0 : -VU_ERR_GONE;
}

/* ---- listeners ---- */

/**
 * listener_id() - Make an id that no listener had before
 * @e:		Engine
 * @slot:	Where the listener will be
 *
 * Connections outlive their listener, and their events go by its id.
 *
 * Returns: the id; that of the slot is its remainder
 */
static uint32_t listener_id(struct vu_engine *e, uint32_t slot)
{
	uint32_t round = e->listener_round++ & 0xffffff;

	return LISTENER_ID + round * MAX_LISTENERS + slot;
}

/**
 * listener_gone() - Tell Python that nothing more comes from a listener
 * @e:		Engine
 * @l:		Listener, deleted, without connections; freed
 */
static void listener_gone(struct vu_engine *e, struct vu_listener *l)
{
	const struct vu_event event = {.kind = VU_EV_GONE, .source = l->id};

	events_push(e, &event, false);
	free(l);
}

/**
 * listener_put() - A connection of a listener has ended
 * @e:		Engine
 * @id:		The listener's, which may be deleted
 */
void listener_put(struct vu_engine *e, uint32_t id)
{
	struct vu_listener **link, *l = e->listeners[id % MAX_LISTENERS];

	if (l && l->id == id) {
		l->conns--;
		return;
	}
	for (link = &e->deleted; (l = *link); link = &l->next) {
		if (l->id != id)
			continue;
		if (!--l->conns) {
			*link = l->next;
			listener_gone(e, l);
		}
		return;
	}
}

/**
 * vu_listener_add() - Accept connections from a listening socket
 * @e:		Engine
 * @fd:		Listening socket, taken over
 * @want:	VU_WANT_ bits
 * @target:	Where its connections go; not VU_TARGET_UNIX or
 *		VU_TARGET_VSOCK, which take the requested vsock port
 *
 * Returns: the listener's id; on failure @fd is still the caller's:
 *	-VU_ERR_INVAL, if the target is malformed
 *	-VU_ERR_FULL, -VU_ERR_NOMEM
 *	-VU_ERR_SYS, if the socket can't be watched
 */
int vu_listener_add(struct vu_engine *e, int fd, uint32_t want,
		    const struct vu_target *target)
{
	struct epoll_event ev = {.events = EPOLLIN};
	struct vu_listener *l;
	uint32_t i = 0;
	int ret = -VU_ERR_FULL;

	if (!target_ok(target) || target->kind == VU_TARGET_UNIX ||
	    target->kind == VU_TARGET_VSOCK)
		return -VU_ERR_INVAL;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -VU_ERR_NOMEM;
	control_begin(e);
	while (i < MAX_LISTENERS && e->listeners[i])
		i++;
	if (i < MAX_LISTENERS) {
		*l = (struct vu_listener){.target = *target,
					  .want = want,
					  .id = listener_id(e, i),
					  .fd = fd};
		ev.data.u64 = TAG_LISTENER | (uint64_t)i << 40;
		ret = epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, fd, &ev)
			  ? -VU_ERR_SYS
			  : (int)l->id;
	}
	if (ret >= 0)
		e->listeners[i] = l;
	control_end(e);
	if (ret < 0)
		free(l);
	return ret;
}

/**
 * vu_listener_del() - Close a listening socket; its connections stay
 * @e:		Engine
 * @listener:	Id; VU_EV_GONE comes once the last connection has ended
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_listener_del(struct vu_engine *e, uint32_t listener)
{
	struct vu_listener **slot = &e->listeners[listener % MAX_LISTENERS];
	struct vu_listener *l;
	int fd = -1;

	control_begin(e);
	l = *slot;
	if (l && l->id == listener) {
		*slot = NULL;
		fd = l->fd;
		if (l->conns) {
			l->next = e->deleted;
			e->deleted = l;
		} else {
			listener_gone(e, l);
		}
	}
	control_end(e);
	if (fd < 0)
		return -VU_ERR_GONE;
	close(fd);
	return 0;
}

/* ---- connections ---- */

/**
 * vu_conn_answer() - Give a held connection its far end
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @target:	The far end; not VU_TARGET_ASK
 *
 * Returns: 0,
 *	-VU_ERR_GONE, if the connection has ended meanwhile
 *	-VU_ERR_STATE, if it was answered before
 *	-VU_ERR_INVAL, if the target is malformed
 */
int vu_conn_answer(struct vu_engine *e, uint64_t conn,
		   const struct vu_target *target)
{
	struct vu_conn *c;
	int err = 0;

	if (!target_ok(target) || target->kind == VU_TARGET_ASK)
		return -VU_ERR_INVAL;
	control_begin(e);
	c = conn_by_id(e, conn);
	if (!c)
		err = -VU_ERR_GONE;
	else if (c->state != CONN_HELD)
		err = -VU_ERR_STATE;
	else
		conn_target(e, c, target);
	control_end(e);
	return err;
}

/**
 * vu_conn_answer_fd() - Give a held connection a socket as its far end
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @fd:		Connected stream socket, taken over on success
 *
 * Returns: 0,
 *	-VU_ERR_GONE, -VU_ERR_STATE: as vu_conn_answer()
 *	-VU_ERR_SYS, if the socket can't be watched
 */
int vu_conn_answer_fd(struct vu_engine *e, uint64_t conn, int fd)
{
	struct vu_conn *c;
	int err = 0;

	control_begin(e);
	c = conn_by_id(e, conn);
	if (!c) {
		err = -VU_ERR_GONE;
	} else if (c->state != CONN_HELD) {
		err = -VU_ERR_STATE;
	} else {
		c->far.fd = fd;
		if (conn_watch(e, c, &c->far)) {
			c->far.fd = -1;
			err = -VU_ERR_SYS;
		} else {
			conn_opened(e, c);
		}
	}
	control_end(e);
	return err;
}

/**
 * open_conn() - vu_conn_open() with the lock held
 * @d:		Device
 * @guest_port:	Port to ask for
 * @port:	Port on our side, 0: any
 * @fd:		Host client's socket
 * @hybrid:	Announce success on it
 *
 * Returns: as vu_conn_open() and vu_conn_offer()
 */
static int64_t open_conn(struct vu_dev *d, uint32_t guest_port, uint32_t port,
			 int fd, bool hybrid)
{
	struct vu_engine *e = d->engine;
	uint16_t type = VIRTIO_VSOCK_TYPE_STREAM;
	struct vu_conn *c;
	int kind = 0;
	socklen_t len = sizeof(kind);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &len))
		return -VU_ERR_SYS;
	if (kind == SOCK_SEQPACKET)
		type = VIRTIO_VSOCK_TYPE_SEQPACKET;
	if (!vsock_has_type(d, type) ||
	    (port && conn_find(e, d, guest_port, HOST_CID, port)))
		return -VU_ERR_STATE;
	c = limit_conn(d, type, true);
	if (!c)
		return -VU_ERR_FULL;
	c->peer_port = guest_port;
	c->port = port;
	while (!c->port || conn_find(e, d, guest_port, c->cid, c->port))
		/* ports above 2^30, as the guest's own are below */
		c->port = d->next_port++ | 1U << 30;
	c->state = CONN_REQUESTED;
	c->hybrid = hybrid;
	c->offered = port != 0;
	c->far.fd = fd;
	if ((type == VIRTIO_VSOCK_TYPE_SEQPACKET && seq_socket(c)) ||
	    conn_hash(e, c) || conn_watch(e, c, &c->far)) {
		c->far.fd = -1;
		conn_free(e, c);
		return -VU_ERR_SYS;
	}
	list_add(&e->dialing, &c->timer);
	vsock_owe(c, OWE_REQUEST);
	return (int64_t)((uint64_t)c->generation << 32 | (c->index + 1));
}

/**
 * vu_conn_open() - Ask the guest for a connection
 * @e:		Engine
 * @dev:	Device
 * @guest_port:	Port that a program in the guest listens on
 * @fd:		Host client's connected socket, taken over on success; that of
 *		a SOCK_SEQPACKET socket becomes a SEQPACKET connection
 * @hybrid:	Write "OK <port>\n" to it when the guest accepts (the hybrid
 *		unix socket protocol of Firecracker and vhost-device-vsock)
 *
 * Returns: the connection's id,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_STATE, if the guest's driver knows no SEQPACKET
 *	-VU_ERR_FULL, if it or the engine has max_conns, or accept_rate is
 *		exceeded
 *	-VU_ERR_SYS, if the socket can't be watched
 */
int64_t vu_conn_open(struct vu_engine *e, uint32_t dev, uint32_t guest_port,
		     int fd, bool hybrid)
{
	struct vu_dev *d;
	int64_t ret;

	control_begin(e);
	d = dev_get(e, dev);
	ret = d ? open_conn(d, guest_port, 0, fd, hybrid) : -VU_ERR_GONE;
	control_end(e);
	return ret;
}

/**
 * vu_conn_offer() - Ask the guest for a connection from a port, on trial
 * @e:		Engine
 * @dev:	Device
 * @guest_port:	Port that a program in the guest listens on
 * @port:	Port on our side, not 0
 * @fd:		Host client's connected stream socket, of which the caller has
 *		another descriptor; this one is taken over on success
 *
 * Should the connection fail, the client isn't told: the caller, who hears of
 * it by VU_EV_FAILED, can offer the socket once more. With VU_EV_OPENED the
 * caller's descriptor has served its purpose.
 *
 * Returns: the connection's id,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_INVAL, if @port is 0
 *	-VU_ERR_STATE, if the two ports have a connection
 *	-VU_ERR_FULL, if it or the engine has max_conns, or accept_rate is
 *		exceeded
 *	-VU_ERR_SYS, if the socket can't be watched
 */
int64_t vu_conn_offer(struct vu_engine *e, uint32_t dev, uint32_t guest_port,
		      uint32_t port, int fd)
{
	struct vu_dev *d;
	int64_t ret;

	if (!port)
		return -VU_ERR_INVAL;
	control_begin(e);
	d = dev_get(e, dev);
	ret = d ? open_conn(d, guest_port, port, fd, false) : -VU_ERR_GONE;
	control_end(e);
	return ret;
}

/**
 * vu_conn_reset() - End a connection
 * @e:		Engine
 * @conn:	Id
 * @error:	errno for its last event; both ends see a reset
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_conn_reset(struct vu_engine *e, uint64_t conn, int error)
{
	struct vu_conn *c;

	control_begin(e);
	c = conn_by_id(e, conn);
	if (c && c->state == CONN_OPEN)
		conn_abort(e, c, error);
	else if (c && c->state < CONN_OPEN)
		conn_failed(e, c, error);
	control_end(e);
	return c ? 0 : -VU_ERR_GONE;
}
