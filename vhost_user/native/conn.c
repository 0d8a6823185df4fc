// SPDX-License-Identifier: Apache-2.0
/*
 * conn.c - connections: the table, dialling, and how they end
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
#include <sys/random.h>
#include <sys/un.h>

#include <linux/vm_sockets.h>

#include "engine.h"

#define SLAB	  1024 /* connections */
#define REAP_TURN 64   /* connections */

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
 * conn_close_far() - Close the far end, if it is a socket
 * @e:		Engine
 * @c:		Connection
 * @abort:	Its peer must see an error; not if the socket was on offer only
 */
void conn_close_far(struct vu_engine *e, struct vu_conn *c, bool abort)
{
	if (c->offered)
		conn_return_end(e, &c->far);
	else
		conn_close_end(&c->far, abort);
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
	conn_close_far(e, c, false);
	if (c->dev)
		limit_close(c);
	if (c->source >= LISTENER_ID)
		listener_put(e, c->source);
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

		conn_close_far(e, c, true);
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
	events_free(e);
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
	conn_close_far(e, c, abort);
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
	c->offered = false;
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
		int ret = end_watch(e, c, &c->far, EPOLL_CTL_ADD, err);

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
