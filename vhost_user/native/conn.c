// SPDX-License-Identifier: Apache-2.0
/*
 * conn.c - connections: the table, dialling, events, and how they end
 *
 * Theory of operation
 * ===================
 *
 * A connection lives in a slot of a slab and never moves. Its id is the slot's
 * index and generation: Python and epoll may hold an id for longer than the
 * connection lives, and then find that the generation has gone on. A guest's
 * connection is also in a hash table by device and port pair; the hash is
 * seeded, because the guest chooses one of the ports.
 *
 *	HELD -> DIALING -> OPEN -> LINGER -> FREE	(near end asked for it)
 *	REQUESTED -------> OPEN				(vu_conn_open)
 *	any -> DEAD -> FREE				(a RST is owed)
 *
 * Python learns of the steps by events. There are at most a few for each
 * connection; a source that wants events gets no new connection while Python
 * is far behind (events_crowded), so the queue is bounded.
 *
 * Timeouts are all equal within a list, so a list in order of arrival is in
 * order of expiry, and arming one costs nothing.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/virtio_vsock.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/un.h>

#include <linux/vm_sockets.h>

#include "engine.h"

#define SLAB	       1024 /* connections */
#define EVENT_DELAY_US 5000
#define REAP_TURN      64 /* connections */

/**
 * now_us() - Monotonic time, us
 *
 * Returns: the time
 */
uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- events ---- */

/**
 * events_init() - Make the queue towards Python
 * @e:		Engine
 *
 * Returns: 0, or -1 with errno
 */
int events_init(struct vu_engine *e)
{
	pthread_mutex_init(&e->event_lock, NULL);
	e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return e->event_fd < 0 ? -1 : 0;
}

/**
 * grow_events() - Make room for one more event
 * @e:		Engine, event_lock held
 *
 * Returns: true if there is room
 */
static bool grow_events(struct vu_engine *e)
{
	unsigned cap = e->event_cap ? 2 * e->event_cap : 64;
	struct vu_event *events;

	if (e->event_count < e->event_cap)
		return true;
	events = calloc(cap, sizeof(*events));
	if (!events)
		return false;
	for (unsigned i = 0; i < e->event_count; i++)
		events[i] = e->events[(e->event_first + i) % e->event_cap];
	free(e->events);
	e->events = events;
	e->event_cap = cap;
	e->event_first = 0;
	return true;
}

/**
 * set_event_count() - Note how many events are queued
 * @e:		Engine, event_lock held; the engine thread also reads it without
 * @count:	How many
 */
static void set_event_count(struct vu_engine *e, unsigned count)
{
	__atomic_store_n(&e->event_count, count, __ATOMIC_RELAXED);
}

/**
 * events_push() - Queue an event for Python
 * @e:		Engine
 * @event:	Event, copied
 * @urgent:	Something waits for what Python does about it
 */
void events_push(struct vu_engine *e, const struct vu_event *event, bool urgent)
{
	pthread_mutex_lock(&e->event_lock);
	if (grow_events(e)) {
		unsigned at = (e->event_first + e->event_count) % e->event_cap;

		e->events[at] = *event;
		if (!e->event_count)
			e->event_since_us = now_us();
		set_event_count(e, e->event_count + 1);
		e->event_urgent |= urgent;
	} else {
		e->stats.events_lost++;
	}
	pthread_mutex_unlock(&e->event_lock);
}

/**
 * events_signal() - Wake Python if it is time to
 * @e:		Engine, after the rings were flushed
 *
 * Python's wake-up costs more than a connection, and often the CPU that the
 * guest's interrupt needs next. So it comes after the rings are flushed, and
 * events that only tell of something wait for company.
 *
 * Returns: true if events are queued that Python hasn't been woken for
 */
bool events_signal(struct vu_engine *e)
{
	const uint64_t one = 1;
	bool wake = false, waiting;

	if (!__atomic_load_n(&e->event_count, __ATOMIC_RELAXED))
		return false;
	pthread_mutex_lock(&e->event_lock);
	if (e->event_count && !e->event_signalled)
		wake = e->event_urgent ||
		       now_us() - e->event_since_us >= EVENT_DELAY_US;
	e->event_signalled |= wake;
	waiting = e->event_count && !e->event_signalled;
	pthread_mutex_unlock(&e->event_lock);
	if (wake && write(e->event_fd, &one, sizeof(one)) < 0)
		return false; /* the counter is full: it is readable already */
	return waiting;
}

/**
 * events_crowded() - Is Python too far behind for new connections?
 * @e:		Engine
 *
 * Returns: true if it is
 */
bool events_crowded(const struct vu_engine *e)
{
	return __atomic_load_n(&e->event_count, __ATOMIC_RELAXED) >
	       2 * e->cfg.max_conns + 1024;
}

/**
 * vu_engine_events() - Take queued events
 * @e:		Engine
 * @ret_events:	Room for them
 * @max:	Entries of @ret_events
 *
 * When it returns fewer than @max, the queue is empty and the event fd will
 * be readable again after the next event.
 *
 * Returns: how many
 */
int vu_engine_events(struct vu_engine *e, struct vu_event *ret_events,
		     unsigned max)
{
	uint64_t drained;
	unsigned n = 0;

	pthread_mutex_lock(&e->event_lock);
	while (n < max && e->event_count) {
		ret_events[n++] = e->events[e->event_first];
		e->event_first = (e->event_first + 1) % e->event_cap;
		set_event_count(e, e->event_count - 1);
	}
	if (!e->event_count) {
		e->event_signalled = e->event_urgent = false;
		if (read(e->event_fd, &drained, sizeof(drained)) < 0)
			errno = 0; /* nothing to drain */
	}
	pthread_mutex_unlock(&e->event_lock);
	return (int)n;
}

/**
 * put_names() - Give an event a socket's two addresses
 * @event:	Event
 * @fd:		The near end's socket
 */
static void put_names(struct vu_event *event, int fd)
{
	struct sockaddr_storage name;
	socklen_t len = sizeof(name);

	if (!getpeername(fd, (struct sockaddr *)&name, &len) &&
	    len <= sizeof(event->src)) {
		memcpy(event->src, &name, len);
		event->src_len = (uint16_t)len;
	}
	len = sizeof(name);
	if (!getsockname(fd, (struct sockaddr *)&name, &len) &&
	    len <= sizeof(event->dst)) {
		memcpy(event->dst, &name, len);
		event->dst_len = (uint16_t)len;
	}
}

/**
 * conn_post() - Tell Python about a connection, if it wants to hear
 * @e:		Engine
 * @c:		Connection
 * @kind:	What happened
 * @error:	errno, or 0
 */
void conn_post(struct vu_engine *e, struct vu_conn *c, enum vu_event_kind kind,
	       int error)
{
	struct vu_event event = {
	    .conn = (uint64_t)c->generation << 32 | (c->index + 1),
	    .up_bytes = c->up_bytes,
	    .down_bytes = c->down_bytes,
	    .kind = kind,
	    .source = c->source,
	    .error = error,
	    .peer_port = c->peer_port,
	    .port = c->port,
	    .cid = c->dev ? c->cid : 0,
	};

	if (kind == VU_EV_FAILED || kind == VU_EV_CLOSED) {
		if (c->reported)
			return;
		c->reported = true;
	}
	if (kind != VU_EV_REQUEST && !(c->want & (1U << kind)))
		return;
	event.duration_us = now_us() - c->start_us;
	if (c->near.fd >= 0)
		put_names(&event, c->near.fd);
	events_push(e, &event, kind == VU_EV_REQUEST || kind == VU_EV_FAILED);
}

/* ---- the table ---- */

/**
 * conn_new() - Make a connection
 * @e:		Engine
 * @source:	Device or listener id
 *
 * Returns: the connection, not in the hash, no ends; NULL if the engine has
 * max_conns or memory is short
 */
struct vu_conn *conn_new(struct vu_engine *e, uint32_t source)
{
	struct vu_conn *c;

	if (e->stats.conns >= e->cfg.max_conns)
		return NULL;
	if (!e->free) {
		struct vu_conn **slabs = realloc(
		    e->slabs, (e->n_slabs + 1) * sizeof(struct vu_conn *));
		struct vu_conn *slab;

		if (!slabs)
			return NULL;
		e->slabs = slabs;
		slab = calloc(SLAB, sizeof(*slab));
		if (!slab)
			return NULL;
		for (unsigned i = SLAB; i-- > 0;) {
			slab[i].index = e->n_slabs * SLAB + i;
			slab[i].hash_next = e->free;
			e->free = &slab[i];
		}
		slabs[e->n_slabs++] = slab;
	}
	c = e->free;
	e->free = c->hash_next;
	*c = (struct vu_conn){
	    .index = c->index,
	    .generation = (c->generation + 1) & 0x7fffffff,
	    .source = source,
	    .cid = HOST_CID,
	    .start_us = now_us(),
	    .near.fd = -1,
	    .far.fd = -1,
	    .rx_chains = 1,
	};
	list_init(&c->run);
	list_init(&c->owe_link);
	list_init(&c->timer);
	e->stats.conns++;
	return c;
}

/**
 * conn_free() - Let go of everything a connection has
 * @e:		Engine
 * @c:		Connection
 */
void conn_free(struct vu_engine *e, struct vu_conn *c)
{
	conn_unhash(e, c);
	list_del(&c->run);
	list_del(&c->owe_link);
	list_del(&c->timer);
	conn_close_end(&c->near, false);
	conn_close_end(&c->far, false);
	if (c->dev)
		limit_close(c);
	way_drop(&c->up);
	way_drop(&c->down);
	c->state = CONN_FREE;
	c->hash_next = e->free;
	e->free = c;
	e->stats.conns--;
}

/**
 * conn_forsake() - Let go of a connection whose guest is gone, soon
 * @e:		Engine
 * @c:		Connection; nobody's any more
 *
 * A guest may leave with tens of thousands of connections, and to close a
 * socket takes microseconds: other guests' turns come in between.
 */
void conn_forsake(struct vu_engine *e, struct vu_conn *c)
{
	conn_unhash(e, c);
	list_del(&c->run);
	list_del(&c->owe_link);
	list_del(&c->timer);
	limit_close(c);
	c->dev = NULL;
	c->state = CONN_DEAD;
	c->generation = (c->generation + 1) & 0x7fffffff; /* ids find none */
	list_add(&e->forsaken, &c->run);
}

/**
 * conn_reap() - Close connections whose guest is gone, for one turn
 * @e:		Engine
 */
void conn_reap(struct vu_engine *e)
{
	for (unsigned i = 0; i < REAP_TURN && !list_empty(&e->forsaken); i++) {
		struct vu_conn *c =
		    container_of(e->forsaken.next, struct vu_conn, run);

		conn_close_end(&c->far, true);
		conn_free(e, c);
	}
}

/**
 * conn_by_id() - Find a connection by its id
 * @e:		Engine
 * @id:		Id, or an epoll tag's lower 56 bits
 *
 * Returns: the connection; NULL if it is gone
 */
struct vu_conn *conn_by_id(const struct vu_engine *e, uint64_t id)
{
	uint32_t index = (uint32_t)id - 1;
	struct vu_conn *c;

	if ((uint32_t)id == 0 || index / SLAB >= e->n_slabs)
		return NULL;
	c = &e->slabs[index / SLAB][index % SLAB];
	if (c->state == CONN_FREE || (id >> 32 & 0x7fffffff) != c->generation)
		return NULL;
	return c;
}

/**
 * bucket_of() - Hash a connection's two addresses
 * @e:		Engine
 * @d:		Device
 * @peer_port:	The guest's port
 * @cid:	CID on our side
 * @port:	Port on our side
 *
 * Returns: the bucket's index
 */
static uint32_t bucket_of(const struct vu_engine *e, const struct vu_dev *d,
			  uint32_t peer_port, uint32_t cid, uint32_t port)
{
	uint64_t h = ((uint64_t)peer_port << 32 | port) ^ e->hash_seed;

	/* finalizer of MurmurHash3, keyed by the seed and the device */
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= (h >> 33) + ((uint64_t)cid << 32 | d->id);
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	return (uint32_t)h & (e->n_buckets - 1);
}

/**
 * conn_find() - Find a guest's connection by its addresses
 * @e:		Engine
 * @d:		Device
 * @peer_port:	The guest's port
 * @cid:	CID on our side: the host's, or a sibling's
 * @port:	Port on our side
 *
 * Returns: the connection, or NULL
 */
struct vu_conn *conn_find(const struct vu_engine *e, const struct vu_dev *d,
			  uint32_t peer_port, uint64_t cid, uint32_t port)
{
	struct vu_conn *c;

	if (!e->n_buckets)
		return NULL;
	c = e->buckets[bucket_of(e, d, peer_port, (uint32_t)cid, port)];
	while (c && (c->dev != d || c->peer_port != peer_port ||
		     c->port != port || c->cid != cid))
		c = c->hash_next;
	return c;
}

/**
 * grow_hash() - Double the table when it is full
 * @e:		Engine
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
static int grow_hash(struct vu_engine *e)
{
	uint32_t n = e->n_buckets ? 2 * e->n_buckets : 256;
	struct vu_conn **old = e->buckets, **buckets;
	uint32_t n_old = e->n_buckets;

	if (e->n_hashed < e->n_buckets)
		return 0;
	if (!old && getrandom(&e->hash_seed, sizeof(e->hash_seed), 0) < 0)
		e->hash_seed = (uint64_t)(uintptr_t)e ^ now_us();
	buckets = calloc(n, sizeof(struct vu_conn *));
	if (!buckets)
		return -VU_ERR_NOMEM;
	e->buckets = buckets;
	e->n_buckets = n;
	for (uint32_t i = 0; i < n_old; i++) {
		for (struct vu_conn *c = old[i], *next; c; c = next) {
			uint32_t to =
			    bucket_of(e, c->dev, c->peer_port, c->cid, c->port);

			next = c->hash_next;
			c->hash_next = buckets[to];
			buckets[to] = c;
		}
	}
	free(old);
	return 0;
}

/**
 * conn_hash() - Make a guest's connection findable by its addresses
 * @e:		Engine
 * @c:		Connection with dev, peer_port, cid and port
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
int conn_hash(struct vu_engine *e, struct vu_conn *c)
{
	uint32_t at;

	if (grow_hash(e))
		return -VU_ERR_NOMEM;
	at = bucket_of(e, c->dev, c->peer_port, c->cid, c->port);
	c->hash_next = e->buckets[at];
	e->buckets[at] = c;
	c->hashed = true;
	e->n_hashed++;
	return 0;
}

/**
 * conn_unhash() - Undo conn_hash(), if it was done
 * @e:		Engine
 * @c:		Connection
 */
void conn_unhash(struct vu_engine *e, struct vu_conn *c)
{
	struct vu_conn **link;

	if (!c->hashed)
		return;
	link = &e->buckets[bucket_of(e, c->dev, c->peer_port, c->cid, c->port)];
	while (*link != c)
		link = &(*link)->hash_next;
	*link = c->hash_next;
	c->hash_next = NULL;
	c->hashed = false;
	e->n_hashed--;
}

/**
 * conns_destroy() - Free all connections and the event queue
 * @e:		Engine, its thread gone
 */
void conns_destroy(struct vu_engine *e)
{
	for (unsigned i = 0; i < e->n_slabs; i++) {
		for (unsigned j = 0; j < SLAB; j++) {
			if (e->slabs[i][j].state != CONN_FREE)
				conn_free(e, &e->slabs[i][j]);
		}
	}
	for (unsigned i = 0; i < e->n_slabs; i++)
		free(e->slabs[i]);
	free(e->slabs);
	free(e->buckets);
	free(e->events);
	close(e->event_fd);
	pthread_mutex_destroy(&e->event_lock);
}

/* ---- ends ---- */

/**
 * watch() - Have epoll report what happens to a socket, edge-triggered
 * @e:		Engine
 * @c:		Connection
 * @end:	Its near or far end, with fd
 * @op:		EPOLL_CTL_ADD or EPOLL_CTL_MOD
 * @room:	Report room for writing too
 *
 * Returns: 0, or -errno
 */
static int watch(struct vu_engine *e, struct vu_conn *c, struct end *end,
		 int op, bool room)
{
	uint64_t near = end == &c->near ? 1ULL << 63 : 0;
	struct epoll_event ev = {
	    .events = EPOLLIN | EPOLLRDHUP | EPOLLET | (room ? EPOLLOUT : 0U),
	    .data.u64 = near | (uint64_t)c->generation << 32 | (c->index + 1),
	};

	if (epoll_ctl(e->epoll_fd, op, end->fd, &ev))
		return -errno;
	end->fills = room;
	return 0;
}

/**
 * conn_watch() - Have epoll report what a socket has to read
 * @e:		Engine
 * @c:		Connection
 * @end:	Its near or far end, with fd
 *
 * Registered once: no system call when interest changes. What is there already
 * is reported too, so nobody has to try the socket before.
 *
 * Returns: 0, or -errno
 */
int conn_watch(struct vu_engine *e, struct vu_conn *c, struct end *end)
{
	return watch(e, c, end, EPOLL_CTL_ADD, false);
}

/**
 * enlarge() - Let a unix socket hold a window
 * @c:		Connection of a guest
 * @fd:		Its far end
 *
 * A socket's usual buffer is less, and what it doesn't take is copied once
 * more. A TCP socket's grows by itself, unless somebody sets it. Without
 * CAP_NET_ADMIN net.core.wmem_max is the bound. What a VM's sockets have more
 * than usual is not more than it may have queued here.
 */
static void enlarge(struct vu_conn *c, int fd)
{
	const int window = (int)c->dev->cfg.buf_alloc; /* the kernel doubles */
	int domain = AF_UNSPEC, size = 0;
	socklen_t len = sizeof(int);

	if (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) &&
	    domain == AF_UNIX &&
	    !getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &len) &&
	    size / 2 < window && limit_enlarge(c) &&
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &window, len))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &window, sizeof(window));
}

/**
 * conn_full() - A socket took no more: have epoll report when it does
 * @e:		Engine
 * @c:		Connection
 * @end:	Its near or far end
 *
 * Most sockets are never full, and each peer's read would wake us for nothing.
 * One that was full once stays watched for room, and has more of it.
 */
void conn_full(struct vu_engine *e, struct vu_conn *c, struct end *end)
{
	if (!end->fills && c->dev)
		enlarge(c, end->fd);
	/* else it is tried with every turn, which needs no report */
	end->writable =
	    !end->fills && watch(e, c, end, EPOLL_CTL_MOD, true) < 0;
}

/**
 * conn_close_end() - Close one end, if it is a socket
 * @end:	End
 * @abort:	The peer must see an error (TCP RST), not an orderly end
 */
void conn_close_end(struct end *end, bool abort)
{
	const struct linger hard = {.l_onoff = 1, .l_linger = 0};

	if (end->fd < 0)
		return;
	if (abort)
		setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	close(end->fd); /* leaves epoll too: we hold the only reference */
	*end = (struct end){.fd = -1};
}

/* ---- bytes on the way ---- */

/**
 * iov_copy() - Copy between an iovec and a flat buffer
 * @iov:	Segments
 * @n:		How many
 * @off:	Bytes of them to skip first
 * @buf:	The flat buffer
 * @len:	Bytes; fewer if the segments are short
 * @to_iov:	Copy from @buf to @iov, else from @iov to @buf
 */
void iov_copy(const struct iovec *iov, unsigned n, size_t off, void *buf,
	      size_t len, bool to_iov)
{
	char *flat = buf;

	for (unsigned i = 0; i < n && len; i++) {
		size_t span = iov[i].iov_len;
		char *seg = iov[i].iov_base;

		if (off >= span) {
			off -= span;
			continue;
		}
		span = span - off < len ? span - off : len;
		if (to_iov)
			memcpy(seg + off, flat, span);
		else
			memcpy(flat, seg + off, span);
		off = 0;
		flat += span;
		len -= span;
	}
}

/**
 * iov_move() - Copy from one iovec to another
 * @to:		Segments to fill from their start
 * @n_to:	How many
 * @from:	Segments to copy, no byte of them in @to
 * @n_from:	How many
 * @off:	Bytes of @from to skip first
 * @len:	Bytes; fewer if either is short
 */
void iov_move(const struct iovec *to, unsigned n_to, const struct iovec *from,
	      unsigned n_from, size_t off, size_t len)
{
	for (unsigned i = 0; i < n_to && len; i++) {
		size_t span = to[i].iov_len < len ? to[i].iov_len : len;

		while (n_from && off >= from->iov_len) {
			off -= from->iov_len;
			from++;
			n_from--;
		}
		iov_copy(from, n_from, off, to[i].iov_base, span, false);
		off += span;
		len -= span;
	}
}

/**
 * way_append() - Keep bytes that the sink has no room for
 * @way:	Direction
 * @iov:	Bytes
 * @n_iov:	Segments
 * @skip:	Leading bytes that are delivered already
 *
 * Returns: false if out of memory; nothing was kept
 */
bool way_append(struct way *way, const struct iovec *iov, unsigned n_iov,
		size_t skip)
{
	size_t len = 0, need;

	for (unsigned i = 0; i < n_iov; i++)
		len += iov[i].iov_len;
	len -= skip;
	if (way->off && way->off + way->len + len > way->cap) {
		memmove(way->data, way->data + way->off, way->len);
		way->off = 0;
	}
	need = way->off + way->len + len;
	if (need > way->cap) {
		size_t cap = way->cap ? way->cap : 4096;
		char *data;

		while (cap < need)
			cap *= 2;
		data = realloc(way->data, cap);
		if (!data)
			return false;
		way->data = data;
		way->cap = (uint32_t)cap;
	}
	iov_copy(iov, n_iov, skip, way->data + way->off + way->len, len, false);
	way->len += (uint32_t)len;
	return true;
}

/**
 * way_drain() - Write kept bytes
 * @e:		Engine
 * @c:		Connection
 * @way:	Direction
 * @sink:	Where they go
 *
 * Returns: bytes written, 0 if the sink is full, or -errno
 */
int64_t way_drain(struct vu_engine *e, struct vu_conn *c, struct way *way,
		  struct end *sink)
{
	ssize_t n = send(sink->fd, way->data + way->off, way->len,
			 MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0 && errno == EINTR)
		return 0;
	if (n < 0 && errno == EAGAIN) {
		conn_full(e, c, sink);
		return 0;
	}
	if (n < 0)
		return -errno;
	way->off += (uint32_t)n;
	way->len -= (uint32_t)n;
	if (way->len)
		conn_full(e, c, sink);
	else
		way_drop(way);
	return n;
}

/**
 * way_drop() - Forget kept bytes
 * @way:	Direction
 */
void way_drop(struct way *way)
{
	free(way->data);
	way->data = NULL;
	way->off = way->len = way->cap = 0;
}

/* ---- life ---- */

/**
 * conn_bury() - Close a connection's ends and let its guest know
 * @e:		Engine
 * @c:		Connection
 * @abort:	Socket peers must see an error
 */
static void conn_bury(struct vu_engine *e, struct vu_conn *c, bool abort)
{
	conn_close_end(&c->near, abort);
	conn_close_end(&c->far, abort);
	list_del(&c->run);
	list_del(&c->timer);
	if (!c->dev || c->orphan) {
		conn_free(e, c);
		return;
	}
	way_drop(&c->up);
	way_drop(&c->down);
	limit_queued(c);
	vsock_reset(c);
}

/**
 * conn_excuse() - Tell a host client why it has no connection
 * @c:		Connection that is about to end
 * @error:	errno
 *
 * Only where an "OK" would have come, and at no cost: one that doesn't listen
 * has left.
 */
void conn_excuse(const struct vu_conn *c, int error)
{
	const char *why = "the guest is gone";
	char line[40];
	int n;

	if (!c->hybrid || c->state != CONN_REQUESTED || c->far.fd < 0)
		return;
	if (error == ECONNREFUSED)
		why = "the guest refused";
	else if (error == ETIMEDOUT)
		why = "the guest did not answer";
	n = snprintf(line, sizeof(line), "ERROR %s\n", why);
	send(c->far.fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/**
 * conn_failed() - A connection never came to be
 * @e:		Engine
 * @c:		Connection, not OPEN yet; gone afterwards
 * @error:	Why, an errno
 */
void conn_failed(struct vu_engine *e, struct vu_conn *c, int error)
{
	if (c->dev)
		c->dev->stats.failed++;
	limit_shortage(c->dev, error);
	conn_excuse(c, error);
	conn_post(e, c, VU_EV_FAILED, error);
	sibling_part(c, error);
	conn_bury(e, c, true);
}

/**
 * conn_abort() - End an established connection
 * @e:		Engine
 * @c:		Connection; gone afterwards
 * @error:	errno; 0: it ended in good order, both directions
 */
void conn_abort(struct vu_engine *e, struct vu_conn *c, int error)
{
	limit_shortage(c->dev, error);
	conn_post(e, c, VU_EV_CLOSED, error);
	sibling_part(c, error);
	conn_bury(e, c, error != 0);
}

/**
 * conn_opened() - The far end is there: bytes may flow
 * @e:		Engine
 * @c:		Connection
 */
void conn_opened(struct vu_engine *e, struct vu_conn *c)
{
	bool guest_asked = c->dev && c->state != CONN_REQUESTED;

	c->state = CONN_OPEN;
	list_del(&c->timer);
	if (c->dev)
		c->dev->stats.opened++;
	conn_post(e, c, VU_EV_OPENED, 0);
	c->far.writable = c->far.fd >= 0;
	if (guest_asked)
		vsock_owe(c, OWE_RESPONSE);
	list_add(&e->run, &c->run);
}

/**
 * conn_dial_settled() - A far end's connect() succeeded or failed
 * @e:		Engine
 * @c:		Connection in CONN_DIALING
 */
void conn_dial_settled(struct vu_engine *e, struct vu_conn *c)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(c->far.fd, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	if (error)
		conn_failed(e, c, error);
	else
		conn_opened(e, c);
}

/**
 * dial() - Connect the far end
 * @e:		Engine
 * @c:		Connection
 * @addr:	Where to
 * @len:	Size of @addr
 */
static void dial(struct vu_engine *e, struct vu_conn *c,
		 const struct sockaddr *addr, socklen_t len)
{
	bool seqpacket = c->type == VIRTIO_VSOCK_TYPE_SEQPACKET;
	const int one = 1;
	int err;

	c->state = CONN_DIALING;
	if (list_empty(&c->timer))
		list_add(&e->dialing, &c->timer);
	c->far.fd = socket(addr->sa_family,
			   (seqpacket ? SOCK_SEQPACKET : SOCK_STREAM) |
			       SOCK_NONBLOCK | SOCK_CLOEXEC,
			   0);
	if (c->far.fd < 0 || (seqpacket && seq_socket(c))) {
		conn_failed(e, c, errno);
		return;
	}
	if (addr->sa_family == AF_INET || addr->sa_family == AF_INET6)
		setsockopt(c->far.fd, IPPROTO_TCP, TCP_NODELAY, &one,
			   sizeof(one));
	err = connect(c->far.fd, addr, len) ? errno : 0;
	if (err == EAGAIN) { /* a unix listener's backlog is full: try later */
		conn_close_end(&c->far, false);
		if (!c->dev) {
			conn_failed(e, c, err);
			return;
		}
		limit_hit(c->dev, VU_LIMIT_BACKLOG);
		list_add(&c->dev->retries, &c->run);
		return;
	}
	if (!err || err == EINPROGRESS) {
		int ret = watch(e, c, &c->far, EPOLL_CTL_ADD, err);

		err = ret ? -ret : err;
	}
	if (!err)
		conn_opened(e, c);
	else if (err != EINPROGRESS)
		conn_failed(e, c, err);
}

/**
 * dial_unix() - Connect the far end to "<path>_<port>"
 * @e:		Engine
 * @c:		Connection
 * @target:	Target of kind VU_TARGET_UNIX
 */
static void dial_unix(struct vu_engine *e, struct vu_conn *c,
		      const struct vu_target *target)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%.*s_%u",
			 (int)target->addr_len, (const char *)target->addr,
			 c->port);

	if (n < 0 || (size_t)n >= sizeof(addr.sun_path))
		conn_failed(e, c, ENAMETOOLONG);
	else
		dial(e, c, (struct sockaddr *)&addr, sizeof(addr));
}

/**
 * dial_vsock() - Connect the far end to the same port of another CID
 * @e:		Engine
 * @c:		Connection
 * @target:	Target of kind VU_TARGET_VSOCK
 */
static void dial_vsock(struct vu_engine *e, struct vu_conn *c,
		       const struct vu_target *target)
{
	struct sockaddr_vm addr;

	memcpy(&addr, target->addr, sizeof(addr));
	addr.svm_port = c->port;
	dial(e, c, (struct sockaddr *)&addr, sizeof(addr));
}

/**
 * conn_retry() - Dial once more a unix listener that was full
 * @e:		Engine
 * @c:		Connection
 */
void conn_retry(struct vu_engine *e, struct vu_conn *c)
{
	const struct vu_target *target = route_find(c->dev, c->port);

	if (target->kind == VU_TARGET_UNIX)
		dial_unix(e, c, target);
	else
		conn_failed(e, c, ECONNREFUSED);
}

/**
 * conn_target() - Give a requested connection its far end
 * @e:		Engine
 * @c:		Connection, new or HELD
 * @target:	The far end
 */
void conn_target(struct vu_engine *e, struct vu_conn *c,
		 const struct vu_target *target)
{
	struct sockaddr_storage addr;

	c->target = (uint8_t)target->kind;
	if (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET &&
	    (target->kind == VU_TARGET_ASK || target->kind == VU_TARGET_DIAL ||
	     target->kind == VU_TARGET_VSOCK)) {
		conn_failed(e, c, EPROTOTYPE);
		return;
	}
	switch (target->kind) {
	case VU_TARGET_ASK:
		c->state = CONN_HELD;
		list_add(&e->dialing, &c->timer);
		conn_post(e, c, VU_EV_REQUEST, 0);
		break;
	case VU_TARGET_UNIX:
		dial_unix(e, c, target);
		break;
	case VU_TARGET_DIAL:
		memcpy(&addr, target->addr, target->addr_len);
		dial(e, c, (struct sockaddr *)&addr, target->addr_len);
		break;
	case VU_TARGET_VSOCK:
		dial_vsock(e, c, target);
		break;
	case VU_TARGET_ECHO:
	case VU_TARGET_DISCARD:
	case VU_TARGET_CHARGEN:
		conn_opened(e, c);
		break;
	default:
		conn_failed(e, c, target->error ? target->error : ECONNREFUSED);
	}
}

/**
 * conn_run() - Move a connection's bytes for one turn
 * @e:		Engine
 * @c:		Connection from the run list
 */
void conn_run(struct vu_engine *e, struct vu_conn *c)
{
	if (c->state != CONN_OPEN)
		return;
	if (c->dev)
		vsock_run(c);
	else
		relay_run(e, c);
}
