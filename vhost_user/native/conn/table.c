// SPDX-License-Identifier: Apache-2.0
/*
 * table.c - where connections are: slabs, ids, the hash by addresses
 *
 * Theory of operation
 * ===================
 *
 * A connection lives in a slot of a slab and never moves. Its id is the slot's
 * index and generation: Python and epoll may hold an id for longer than the
 * connection lives, and then find that the generation has gone on. A guest's
 * connection is also in a hash table by device and port pair; the hash is
 * seeded, because the guest chooses one of the ports.
 */

#include <stdlib.h>
#include <unistd.h>

#include <sys/random.h>

#include "base/clock.h"
#include "conn/conn.h"

#define SLAB	    1024U /* connections */
#define LINE	    64	  /* bytes of a cache line */
#define GENERATIONS 0x7fffffffU
#define BUCKETS_MIN 256U

/* A side that isn't there yet, or any more */
static const struct side_ops none;

/**
 * core_init() - Make an empty table
 * @core:	All zero
 * @max_conns:	How many connections there may be
 */
void core_init(struct core *core, uint32_t max_conns)
{
	core->max_conns = max_conns;
	core->epoll_fd = core->outbox.fd = -1;
	list_init(&core->active);
	list_init(&core->run);
	list_init(&core->forsaken);
	list_init(&core->retrying);
	list_init(&core->serving);
	list_init(&core->dials);
	list_init(&core->awake);
	list_init(&core->thirsty);
	for (unsigned i = 0; i < DEADLINES; i++)
		list_init(&core->deadlines[i]);
	for (size_t i = 0; i < SCRATCH; i++) /* RFC 864: printable ASCII */
		core->chargen[i] = (char)(' ' + i % 95);
}

/**
 * core_free() - Free all connections, and what they share
 * @core:	Its thread gone
 */
void core_free(struct core *core)
{
	for (unsigned i = 0; i < core->n_slabs; i++) {
		for (unsigned j = 0; j < SLAB; j++) {
			if (core->slabs[i][j].state != CONN_FREE)
				conn_free(&core->slabs[i][j]);
		}
	}
	for (unsigned i = 0; i < core->n_slabs; i++)
		free(core->slabs[i]);
	free(core->slabs);
	free(core->buckets);
}

/**
 * grow_slabs() - Make more slots
 * @core:	Without a free slot
 *
 * Returns: false if out of memory
 */
static bool grow_slabs(struct core *core)
{
	struct vu_conn **slabs =
	    realloc(core->slabs, (core->n_slabs + 1) * sizeof(*slabs));
	struct vu_conn *slab;

	if (!slabs)
		return false;
	core->slabs = slabs;
	slab = aligned_alloc(LINE, SLAB * sizeof(*slab));
	if (!slab)
		return false;
	for (unsigned i = SLAB; i-- > 0;) {
		slab[i] = (struct vu_conn){
		    .index = core->n_slabs * SLAB + i,
		    .hash_next = core->free,
		};
		core->free = &slab[i];
	}
	slabs[core->n_slabs++] = slab;
	return true;
}

/**
 * conn_new() - Make a connection
 * @core:	Table
 * @outbox:	Where its events go
 *
 * Returns: the connection, not in the hash, no sides; NULL if there are
 * max_conns or memory is short
 */
struct vu_conn *conn_new(struct core *core, struct outbox_queue *outbox)
{
	struct vu_conn *c;

	if (core->conns >= core->max_conns ||
	    (!core->free && !grow_slabs(core)))
		return NULL;
	c = core->free;
	core->free = c->hash_next;
	*c = (struct vu_conn){
	    .core = core,
	    .index = c->index,
	    .generation = (c->generation + 1) & GENERATIONS,
	    .outbox = outbox,
	    .cid = HOST_CID,
	    .type = STREAM,
	    .start_us = clock_us(),
	    .near = {.ops = &none, .fd = -1},
	    .far = {.ops = &none, .fd = -1},
	    .rx_chains = 1,
	};
	list_init(&c->run);
	list_init(&c->owe_link);
	list_init(&c->timer);
	conn_set(c, CONN_NEW);
	outbox_ref(outbox);
	core->conns++;
	return c;
}

/**
 * close_side() - Let go of a side
 * @c:		Connection
 * @s:		Its side; none afterwards
 */
static void close_side(struct vu_conn *c, struct side *s)
{
	if (s->ops->close)
		s->ops->close(c, s, 0);
	s->ops = &none;
}

/**
 * conn_client_settled() - Nobody waits any more for a guest to take it
 * @c:		Connection
 */
void conn_client_settled(struct vu_conn *c)
{
	struct client *client = c->client;

	c->client = NULL;
	if (client)
		client->settled(client);
}

/**
 * conn_greeted() - A far side has said and heard all it has to
 * @c:		Connection
 */
void conn_greeted(struct vu_conn *c)
{
	free(c->greeting);
	c->greeting = NULL;
}

/**
 * conn_free() - Let go of everything a connection has
 * @c:		Connection
 */
void conn_free(struct vu_conn *c)
{
	struct core *core = c->core;

	conn_client_settled(c);
	conn_unhash(c);
	list_del(&c->run);
	list_del(&c->owe_link);
	if (c->near.ops->freed)
		c->near.ops->freed(c);
	close_side(c, &c->near);
	close_side(c, &c->far);
	conn_greeted(c);
	bytes_free(&c->up.kept.bytes);
	bytes_free(&c->down.kept.bytes);
	outbox_unref(&core->outbox, c->outbox);
	conn_set(c, CONN_FREE);
	c->hash_next = core->free;
	core->free = c;
	core->conns--;
}

/**
 * conn_id() - Name a connection for Python and epoll
 * @c:		Connection
 *
 * Returns: its id, unique in the engine's life; the top bit is 0
 */
uint64_t conn_id(const struct vu_conn *c)
{
	return (uint64_t)c->generation << 32 | (c->index + 1);
}

/**
 * conn_rename() - Have a connection not be found by its id any more
 * @c:		Connection
 */
void conn_rename(struct vu_conn *c)
{
	c->generation = (c->generation + 1) & GENERATIONS;
}

/**
 * conn_by_id() - Find a connection by its id
 * @core:	Table
 * @id:		Id
 *
 * Returns: the connection; NULL if it is gone
 */
struct vu_conn *conn_by_id(const struct core *core, uint64_t id)
{
	uint32_t index = (uint32_t)id - 1;
	struct vu_conn *c;

	if ((uint32_t)id == 0 || index / SLAB >= core->n_slabs)
		return NULL;
	c = &core->slabs[index / SLAB][index % SLAB];
	if (c->state == CONN_FREE || (id >> 32 & GENERATIONS) != c->generation)
		return NULL;
	return c;
}

/* ---- by addresses ---- */

/**
 * bucket_of() - Hash a connection's two addresses
 * @core:	Table
 * @d:		Device
 * @peer_port:	The guest's port
 * @cid:	CID on our side
 * @port:	Port on our side
 *
 * Returns: the bucket's index
 */
static uint32_t bucket_of(const struct core *core, const struct vu_dev *d,
			  uint32_t peer_port, uint32_t cid, uint32_t port)
{
	uint64_t h = ((uint64_t)peer_port << 32 | port) ^ core->hash_seed;

	/* finalizer of MurmurHash3, keyed by the seed and the device */
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= (h >> 33) + ((uint64_t)cid << 32) + (uintptr_t)d;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	return (uint32_t)h & (core->n_buckets - 1);
}

/**
 * conn_find() - Find a guest's connection by its addresses
 * @core:	Table
 * @d:		Device
 * @peer_port:	The guest's port
 * @cid:	CID on our side: the host's, or a sibling's
 * @port:	Port on our side
 *
 * Returns: the connection, or NULL
 */
struct vu_conn *conn_find(const struct core *core, const struct vu_dev *d,
			  uint32_t peer_port, uint64_t cid, uint32_t port)
{
	struct vu_conn *c;

	if (!core->n_buckets)
		return NULL;
	c = core->buckets[bucket_of(core, d, peer_port, (uint32_t)cid, port)];
	while (c && (c->dev != d || c->peer_port != peer_port ||
		     c->port != port || c->cid != cid))
		c = c->hash_next;
	return c;
}

/**
 * home() - Find the bucket of a connection
 * @core:	Table
 * @c:		Connection with dev, peer_port, cid and port
 *
 * Returns: the bucket
 */
static struct vu_conn **home(const struct core *core, const struct vu_conn *c)
{
	return &core->buckets[bucket_of(core, c->dev, c->peer_port, c->cid,
					c->port)];
}

/**
 * grow_hash() - Double the buckets when there is a connection for each
 * @core:	Table
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
static int grow_hash(struct core *core)
{
	uint32_t n = core->n_buckets ? 2 * core->n_buckets : BUCKETS_MIN;
	struct vu_conn **old = core->buckets, **buckets;
	uint32_t n_old = core->n_buckets;

	if (core->n_hashed < core->n_buckets)
		return 0;
	if (!old && getrandom(&core->hash_seed, sizeof(core->hash_seed), 0) < 0)
		core->hash_seed = (uint64_t)(uintptr_t)core ^ clock_us();
	buckets = calloc(n, sizeof(struct vu_conn *));
	if (!buckets)
		return -VU_ERR_NOMEM;
	core->buckets = buckets;
	core->n_buckets = n;
	for (uint32_t i = 0; i < n_old; i++) {
		for (struct vu_conn *c = old[i], *next; c; c = next) {
			struct vu_conn **to = home(core, c);

			next = c->hash_next;
			c->hash_next = *to;
			*to = c;
		}
	}
	free(old);
	return 0;
}

/**
 * conn_hash() - Make a guest's connection findable by its addresses
 * @c:		Connection with dev, peer_port, cid and port
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
int conn_hash(struct vu_conn *c)
{
	struct vu_conn **to;

	if (grow_hash(c->core))
		return -VU_ERR_NOMEM;
	to = home(c->core, c);
	c->hash_next = *to;
	*to = c;
	c->hashed = true;
	c->core->n_hashed++;
	return 0;
}

/**
 * conn_unhash() - Undo conn_hash(), if it was done
 * @c:		Connection
 */
void conn_unhash(struct vu_conn *c)
{
	struct vu_conn **link;

	if (!c->hashed)
		return;
	link = home(c->core, c);
	while (*link != c)
		link = &(*link)->hash_next;
	*link = c->hash_next;
	c->hash_next = NULL;
	c->hashed = false;
	c->core->n_hashed--;
}
