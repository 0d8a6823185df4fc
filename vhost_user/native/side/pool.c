// SPDX-License-Identifier: Apache-2.0
/*
 * pool.c - tunnels that we make
 *
 * Theory of operation
 * ===================
 *
 * A connection gets a stream of the first tunnel that has room for one: so few
 * are busy, and others end when they are idle. If none has, another one is
 * made, as long as those that are under way won't have room for all that wait,
 * and the connection waits for it: no longer than any dial may last. Python
 * isn't asked.
 *
 * A tunnel that a stream carries is for one connection: there, its peer is
 * whoever the stream leads to, each time another one.
 *
 * A peer that allows fewer streams than we would open gets more tunnels. What a
 * tunnel refuses is tried again on another one, a few times. A tunnel that
 * never was ends those that wait, unless another one is there or comes.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "side/hbone.h"

#define TRIES 4

/**
 * struct vu_pool - Tunnels to one address
 * @group:	What they have in common
 * @waiting:	Streams that wait for one
 * @n_waiting:	How many
 * @coming:	Tunnels that are yet to be there
 * @most:	Streams that the peer allows, as far as we know
 * @id:		Its id
 * @remote:	Where its tunnels go
 */
struct vu_pool {
	struct group group;
	struct list waiting;
	uint32_t n_waiting;
	uint32_t coming;
	uint32_t most;
	uint32_t id;
	struct remote remote;
};

/**
 * pool_of() - Which pool is it?
 * @g:		Its group
 *
 * Returns: the pool
 */
static struct vu_pool *pool_of(struct group *g)
{
	return container_of(g, struct vu_pool, group);
}

/**
 * pool_group() - What do a pool's tunnels have in common?
 * @p:		Pool
 *
 * Returns: that
 */
struct group *pool_group(struct vu_pool *p)
{
	return &p->group;
}

/* ---- tunnels ---- */

/**
 * room() - Has a tunnel room for one more stream?
 * @t:		Tunnel
 *
 * Returns: true if it has
 */
static bool room(const struct tunnel *t)
{
	return t->state == TUNNEL_OPEN && !t->carrier.used &&
	       t->h2->streams < h2_most(t->h2, t->group->max_streams);
}

/**
 * roomy() - Find a tunnel that has room
 * @p:		Pool
 *
 * Returns: it, or NULL
 */
static struct tunnel *roomy(const struct vu_pool *p)
{
	const struct list *head = &p->group.all;

	for (const struct list *at = head->next; at != head; at = at->next) {
		struct tunnel *t = container_of(at, struct tunnel, link);

		if (room(t))
			return t;
	}
	return NULL;
}

/**
 * fail() - Nobody gets a tunnel
 * @p:		Pool
 * @reason:	Why
 * @error:	errno, or 0
 */
static void fail(struct vu_pool *p, enum vu_reason reason, int error)
{
	while (!list_empty(&p->waiting)) {
		struct stream *s =
		    container_of(p->waiting.next, struct stream, link);

		stream_lost(s, reason, error);
		p->n_waiting--;
	}
}

/**
 * count() - Count anew who waits: a connection may have let go
 * @p:		Pool
 */
static void count(struct vu_pool *p)
{
	p->n_waiting = 0;
	for (const struct list *at = p->waiting.next; at != &p->waiting;
	     at = at->next)
		p->n_waiting++;
}

/**
 * carry() - Have a stream of another pool carry a tunnel
 * @p:		Pool, somebody waits
 * @t:		Its tunnel, new
 */
static void carry(const struct vu_pool *p, struct tunnel *t)
{
	const struct stream *s =
	    container_of(p->waiting.prev, struct stream, link);
	struct vu_conn *c = carrier_new(t, stream_port(s->c));

	if (c)
		pool_reach(c, &p->remote.via);
}

/**
 * dial() - Make tunnels for those that wait
 * @p:		Pool, somebody waits
 */
static void dial(struct vu_pool *p)
{
	uint32_t each = p->remote.via.kind ? 1 : p->most;

	if (p->n_waiting > (uint64_t)p->coming * each)
		count(p);
	while (p->n_waiting > (uint64_t)p->coming * each &&
	       p->group.stats.tunnels < p->group.max_tunnels) {
		struct tunnel *t = tunnel_new(&p->group);

		if (t) {
			p->coming++;
			if (p->remote.via.kind)
				carry(p, t);
			else
				tunnel_dial(t, &p->remote);
			continue;
		}
		if (!p->coming)
			fail(p, VU_REASON_SHORT, ENOMEM);
		return;
	}
}

/**
 * serve() - Give streams of a tunnel to those that wait
 * @p:		Pool
 * @t:		Tunnel
 */
static void serve(struct vu_pool *p, struct tunnel *t)
{
	while (!list_empty(&p->waiting) && room(t)) {
		struct stream *s =
		    container_of(p->waiting.next, struct stream, link);

		p->n_waiting--;
		list_del(&s->link);
		if (s->c->state != CONN_DIALING) { /* its guest is gone */
			stream_lost(s, VU_REASON_NONE, ECONNRESET);
		} else if (stream_request(t, s)) {
			stream_lost(s, VU_REASON_SHORT, ENOMEM);
		} else {
			s->tunnel = t;
			t->carrier.used = p->remote.via.kind;
			list_add(&t->streams, &s->link);
		}
		tunnel_later(t);
	}
}

/**
 * spare() - A tunnel is there, or has room
 * @g:		Group
 * @t:		Tunnel
 */
static void spare(struct group *g, struct tunnel *t)
{
	struct vu_pool *p = pool_of(g);

	if (!t->counted) {
		t->counted = true;
		p->coming--;
	}
	if (t->h2->settled)
		p->most = h2_most(t->h2, g->max_streams);
	if (!p->most)
		p->most = 1;
	if (t->carrier.used && list_empty(&t->streams))
		tunnel_drain(t, clock_us() + PART_US);
	else if (g->gone && list_empty(&t->streams))
		tunnel_doom(t, VU_REASON_DRAINED, 0);
	serve(p, t);
	if (!list_empty(&p->waiting))
		dial(p);
}

/**
 * refused() - A stream was refused: try another tunnel
 * @g:		Group
 * @s:		Stream of a connection
 *
 * Returns: false if that was tried often enough
 */
static bool refused(struct group *g, struct stream *s)
{
	struct vu_pool *p = pool_of(g);

	if (g->gone || ++s->tries > TRIES)
		return false;
	s->tunnel->kept -= s->kept;
	s->kept = 0;
	s->tunnel = NULL;
	s->h2 = (struct h2_stream){0};
	list_del(&s->blocked);
	list_move(&p->waiting, &s->link);
	p->n_waiting++;
	dial(p);
	return true;
}

/**
 * ended() - A tunnel is no more, or never was
 * @g:		Group
 * @t:		Tunnel
 */
static void ended(struct group *g, struct tunnel *t)
{
	struct vu_pool *p = pool_of(g);
	struct tunnel *other;

	if (!t->counted)
		p->coming--;
	if (list_empty(&p->waiting))
		return;
	other = roomy(p);
	if (other)
		serve(p, other);
	else if (!p->coming && !t->was_open)
		fail(p, t->reason, t->error);
	else
		dial(p);
}

/**
 * unused() - Nobody uses a pool any more
 * @g:		Group
 */
static void unused(struct group *g)
{
	group_free(g);
	free(pool_of(g));
}

static const struct group_ops pool_ops = {
    .spare = spare,
    .refused = refused,
    .ended = ended,
    .unused = unused,
};

/* ---- for the others ---- */

/**
 * pool_new() - Have tunnels to an address
 * @hb:		Tunnels
 * @cfg:	Configuration, checked
 *
 * Returns: the pool's id, or a negated enum vu_err
 */
int pool_new(struct hbone *hb, const struct vu_pool_config *cfg)
{
	struct vu_tls *tls = ids_get(&hb->tls, cfg->tls);
	struct vu_pool *p;
	int id;

	if (!tls)
		return -VU_ERR_GONE;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -VU_ERR_NOMEM;
	p->group = (struct group){
	    .ops = &pool_ops,
	    .hbone = hb,
	    .refs = 1,
	    .names = tls_names(cfg->names, cfg->n_names, false),
	    .max_streams = cfg->max_streams,
	    .max_tunnels = cfg->max_tunnels,
	    .idle_us = cfg->idle_ms * 1000ULL,
	    .connect_us = cfg->connect_ms * 1000ULL,
	    .ping_us = cfg->ping_ms * 1000ULL,
	    .silence_us = cfg->silence_ms * 1000ULL,
	};
	list_init(&p->group.all);
	list_init(&p->waiting);
	p->most = cfg->max_streams;
	remote_init(&p->remote, cfg);
	id = p->group.names ? ids_add(&hb->pools, p) : -VU_ERR_NOMEM;
	if (id > 0) {
		p->id = (uint32_t)id;
		p->group.outbox = outbox_open(p->id | POOL_ID, true);
		group_tls(&p->group, tls);
	}
	if (id < 0 || !p->group.outbox) {
		if (id > 0)
			ids_del(&hb->pools, p->id);
		group_unref(&p->group);
		return id < 0 ? id : -VU_ERR_NOMEM;
	}
	return id | (int)POOL_ID;
}

/**
 * pool_close() - Make no more tunnels
 * @p:		Pool; its streams go on
 */
void pool_close(struct vu_pool *p)
{
	struct group *g = &p->group;
	const struct list *head = &g->all;

	ids_del(&g->hbone->pools, p->id);
	g->gone = true;
	fail(p, VU_REASON_DRAINED, 0);
	for (const struct list *at = head->next; at != head; at = at->next) {
		struct tunnel *t = container_of(at, struct tunnel, link);

		if (list_empty(&t->streams))
			tunnel_doom(t, VU_REASON_DRAINED, 0);
	}
	group_unref(g);
}

/**
 * pool_reach() - Give a connection a stream as its far side
 * @c:		Connection; may be gone afterwards
 * @target:	Target of kind VU_TARGET_HBONE
 */
void pool_reach(struct vu_conn *c, const struct vu_target *target)
{
	struct hbone *hb = c->core->hbone;
	struct vu_hbone_target ids;
	struct vu_headers *headers;
	struct vu_pool *p;
	struct stream *s;
	struct tunnel *t;

	memcpy(&ids, target->addr, sizeof(ids));
	p = ids.pool & POOL_ID ? ids_get(&hb->pools, ids.pool & ~POOL_ID)
			       : NULL;
	headers = ids_get(&hb->headers, ids.headers);
	s = p && headers ? stream_new(&p->group, NULL, c) : NULL;
	if (!s) {
		conn_abort(c, p && headers ? ENOMEM : ECONNREFUSED);
		return;
	}
	conn_set(c, CONN_DIALING);
	headers->refs++;
	s->headers = headers;
	stream_join(s, c);
	t = list_empty(&p->waiting) ? roomy(p) : NULL;
	list_add(&p->waiting, &s->link);
	p->n_waiting++;
	if (t)
		serve(p, t);
	else
		dial(p);
}
