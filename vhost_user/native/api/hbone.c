// SPDX-License-Identifier: Apache-2.0
/*
 * hbone.c - an engine's tunnels: pools and listeners
 */

#include <stdio.h>
#include <string.h>

#include <netinet/in.h>

#include "api/api.h"
#include "base/clock.h"
#include "side/hbone.h"

/* ---- pools ---- */

/**
 * pool_by_id() - Find a pool
 * @e:		Engine
 * @id:		Its id
 *
 * Returns: the pool; NULL if it is gone
 */
static struct vu_pool *pool_by_id(const struct vu_engine *e, uint32_t id)
{
	return id & POOL_ID ? ids_get(&e->core.hbone->pools, id & ~POOL_ID)
			    : NULL;
}

/**
 * is_address() - Is this an address?
 * @addr:	A sockaddr
 * @len:	Bytes of it
 *
 * Returns: true if it is one of IPv4 or IPv6
 */
static bool is_address(const uint8_t *addr, size_t len)
{
	sa_family_t family;

	memcpy(&family, addr, sizeof(family));
	return (family == AF_INET && len == sizeof(struct sockaddr_in)) ||
	       (family == AF_INET6 && len == sizeof(struct sockaddr_in6));
}

/**
 * has_address() - Is it said where a pool's tunnels go?
 * @cfg:	Configuration
 *
 * Returns: true if it is, in one way
 */
static bool has_address(const struct vu_pool_config *cfg)
{
	if (cfg->via.pool)
		return !cfg->addr_len && !cfg->src_len && !cfg->netns;
	return is_address(cfg->addr, cfg->addr_len) &&
	       (!cfg->src_len ||
		(!cfg->netns && is_address(cfg->src, cfg->src_len)));
}

/**
 * vu_pool_add() - see vu_hbone.h
 * @e:		Engine
 * @cfg:	Configuration
 *
 * Returns: the pool's id, or a negated enum vu_err
 */
int vu_pool_add(struct vu_engine *e, const struct vu_pool_config *cfg)
{
	int ret;

	if (!has_address(cfg) || !cfg->n_names || !cfg->max_streams ||
	    !cfg->max_tunnels || !cfg->idle_ms || !cfg->connect_ms ||
	    !cfg->ping_ms || !cfg->silence_ms)
		return -VU_ERR_INVAL;
	loop_enter(e);
	ret = pool_new(e->core.hbone, cfg);
	loop_leave(e);
	return ret;
}

/**
 * vu_pool_tls() - see vu_hbone.h
 * @e:		Engine
 * @pool:	Id
 * @tls:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_pool_tls(struct vu_engine *e, uint32_t pool, uint32_t tls)
{
	struct vu_pool *p;
	struct vu_tls *c;

	loop_enter(e);
	p = pool_by_id(e, pool);
	c = ids_get(&e->core.hbone->tls, tls);
	if (p && c)
		group_tls(pool_group(p), c);
	loop_leave(e);
	return p && c ? 0 : -VU_ERR_GONE;
}

/**
 * vu_pool_del() - see vu_hbone.h
 * @e:		Engine
 * @pool:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_pool_del(struct vu_engine *e, uint32_t pool)
{
	struct vu_pool *p;

	loop_enter(e);
	p = pool_by_id(e, pool);
	if (p)
		pool_close(p);
	loop_leave(e);
	return p ? 0 : -VU_ERR_GONE;
}

/* ---- listeners ---- */

/**
 * vu_hbone_listen() - see vu_hbone.h
 * @e:		Engine
 * @fd:		Listening socket
 * @cfg:	Configuration
 *
 * Returns: the listener's id, or a negated enum vu_err
 */
int vu_hbone_listen(struct vu_engine *e, int fd,
		    const struct vu_hbone_config *cfg)
{
	const struct vu_target ask = {.kind = VU_TARGET_ASK};
	struct vu_listener *l;
	int ret, err;

	if (!cfg->trust_domain || !*cfg->trust_domain || !cfg->max_tunnels ||
	    !cfg->max_shakes || !cfg->max_streams || !cfg->connect_ms ||
	    !cfg->ping_ms || !cfg->silence_ms)
		return -VU_ERR_INVAL;
	loop_enter(e);
	ret = listener_make(e, fd, cfg->want, &ask, &l);
	if (ret >= 0) {
		err = gate_open(l, e->core.hbone, cfg);
		if (err) {
			l->fd = -1; /* not taken over */
			listener_remove(e, (uint32_t)(l->tag >> TAG_SLOT));
			ret = err;
		}
	}
	loop_leave(e);
	return ret;
}

/**
 * group_by_id() - Find what tunnels of a pool or listener have in common
 * @e:		Engine, stopped
 * @source:	Its id
 * @ret:	That
 *
 * Returns: 0, -VU_ERR_GONE or -VU_ERR_STATE
 */
static int group_by_id(const struct vu_engine *e, uint32_t source,
		       struct group **ret)
{
	struct vu_pool *p = pool_by_id(e, source);
	struct vu_listener *l;

	if (p) {
		*ret = pool_group(p);
		return 0;
	}
	l = source & POOL_ID ? NULL : listener_by_id(e, source);
	if (!l)
		return -VU_ERR_GONE;
	*ret = gate_group(l);
	return *ret ? 0 : -VU_ERR_STATE;
}

/**
 * vu_hbone_tls() - see vu_hbone.h
 * @e:		Engine
 * @listener:	Id
 * @tls:	Id
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_tls(struct vu_engine *e, uint32_t listener, uint32_t tls)
{
	struct vu_tls *c;
	struct group *g;
	int ret;

	loop_enter(e);
	ret = group_by_id(e, listener, &g);
	c = ids_get(&e->core.hbone->tls, tls);
	if (!ret && !c)
		ret = -VU_ERR_GONE;
	if (!ret)
		group_tls(g, c);
	loop_leave(e);
	return ret;
}

/**
 * vu_hbone_drain() - see vu_hbone.h
 * @e:		Engine
 * @source:	Id
 * @deadline_ms: When the rest is cut
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_drain(struct vu_engine *e, uint32_t source, uint32_t deadline_ms)
{
	struct group *g;
	int ret;

	loop_enter(e);
	ret = group_by_id(e, source, &g);
	if (!ret) {
		uint64_t deadline_us = clock_us() + deadline_ms * 1000ULL;
		struct list *head = &g->all;

		if (g->server)
			listener_close(listener_by_id(e, source),
				       LISTENER_PAUSED, true);
		for (struct list *at = head->next; at != head; at = at->next)
			tunnel_drain(container_of(at, struct tunnel, link),
				     deadline_us);
	}
	loop_leave(e);
	return ret;
}

/* ---- counters ---- */

/**
 * vu_hbone_stats() - see vu_hbone.h
 * @e:		Engine
 * @source:	Id
 * @ret:	Counters
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_stats(struct vu_engine *e, uint32_t source,
		   struct vu_hbone_stats *ret)
{
	struct group *g;
	int err;

	loop_enter(e);
	err = group_by_id(e, source, &g);
	if (!err) {
		const struct list *head = &g->all;

		*ret = g->stats;
		ret->streams = 0;
		for (const struct list *at = head->next; at != head;
		     at = at->next) {
			const struct tunnel *t =
			    container_of(at, struct tunnel, link);

			ret->streams += t->h2 ? t->h2->streams : 0;
		}
	}
	loop_release(e);
	return err;
}

/**
 * vu_hbone_answer() - see vu_request.h
 * @e:		Engine
 * @answer:	Its number
 * @ret:	It
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_answer(struct vu_engine *e, uint32_t answer,
		    struct vu_hbone_answer *ret)
{
	const struct answer *it;

	loop_enter(e);
	it = answers_get(&e->core.hbone->answers, answer);
	if (it) {
		snprintf(ret->peer, sizeof(ret->peer), "%s", it->peer);
		snprintf(ret->baggage, sizeof(ret->baggage), "%s", it->baggage);
	}
	loop_release(e);
	return it ? 0 : -VU_ERR_GONE;
}

/**
 * vu_hbone_peer() - see vu_hbone.h
 * @e:		Engine
 * @source:	Id
 * @ret:	Identity
 * @size:	Of @ret, bytes
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_peer(struct vu_engine *e, uint32_t source, char *ret, size_t size)
{
	struct group *g;
	int err;

	loop_enter(e);
	err = group_by_id(e, source, &g);
	if (!err)
		snprintf(ret, size, "%s", g->peer ? g->peer : "");
	loop_release(e);
	return err;
}
