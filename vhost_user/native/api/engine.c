// SPDX-License-Identifier: Apache-2.0
/*
 * engine.c - an engine, from start to end
 */

#include <stdlib.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "api/api.h"
#include "side/handoff.h"
#include "side/hbone.h"
#include "side/netns.h"
#include "side/peer.h"

/**
 * vu_engine_new() - see vu_engine.h
 * @cfg:	Configuration
 *
 * Returns: the engine
 */
struct vu_engine *vu_engine_new(const struct vu_engine_config *cfg)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = TAG_WAKE};
	struct vu_engine *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->cfg = *cfg;
	e->poller.max_us = cfg->poll_us;
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->resumed, NULL);
	list_init(&e->paused);
	core_init(&e->core, cfg->max_conns);
	e->core.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (hbone_new(&e->core, TAG_SHAKEN, TAG_TUNNEL) ||
	    outbox_init(&e->core.outbox) || e->core.epoll_fd < 0 ||
	    e->wake_fd < 0 ||
	    epoll_ctl(e->core.epoll_fd, EPOLL_CTL_ADD, e->wake_fd, &ev)) {
		vu_engine_free(e);
		return NULL;
	}
	return e;
}

/**
 * vu_engine_free() - see vu_engine.h
 * @e:		Engine whose vu_engine_run() returned or never ran; or NULL
 */
void vu_engine_free(struct vu_engine *e)
{
	if (!e)
		return;
	for (uint32_t i = 0; i < VU_MAX_DEVICES; i++)
		device_remove(e, i);
	for (uint32_t i = 0; i < MAX_LISTENERS; i++)
		listener_remove(e, i);
	for (uint32_t i = 0; i < VU_MAX_NETNS; i++) {
		if (e->core.netns[i])
			netns_free(e->core.netns[i]);
	}
	for (uint32_t i = 0; i < VU_MAX_HANDOFFS; i++) {
		if (e->core.handoffs[i])
			handoff_free(e->core.handoffs[i]);
	}
	for (uint32_t i = 0; i < VU_MAX_PEERS; i++) {
		if (e->core.peers[i])
			peer_free(&e->core, e->core.peers[i]);
	}
	if (e->core.hbone) {
		struct ids *pools = &e->core.hbone->pools;

		for (uint32_t id; (id = ids_any(pools));)
			pool_close(ids_get(pools, id));
		hbone_free(e->core.hbone);
	}
	core_free(&e->core);
	outbox_free(&e->core.outbox);
	if (e->core.epoll_fd >= 0)
		close(e->core.epoll_fd);
	if (e->wake_fd >= 0)
		close(e->wake_fd);
	pthread_cond_destroy(&e->resumed);
	pthread_mutex_destroy(&e->lock);
	free(e);
}

/**
 * vu_engine_stop() - see vu_engine.h
 * @e:		Engine
 */
void vu_engine_stop(struct vu_engine *e)
{
	loop_enter(e);
	e->stopping = true;
	loop_wake(e); /* always: it may be about to block, past its check */
	loop_leave(e);
}

/**
 * vu_engine_event_fd() - see vu_engine.h
 * @e:		Engine
 *
 * Returns: an eventfd
 */
int vu_engine_event_fd(const struct vu_engine *e)
{
	return e->core.outbox.fd;
}

/**
 * vu_engine_events() - see vu_engine.h
 * @e:		Engine
 * @ret_events:	Room for them
 * @max:	Entries of @ret_events
 *
 * Returns: how many
 */
int vu_engine_events(struct vu_engine *e, struct vu_event *ret_events,
		     unsigned max)
{
	return (int)outbox_take(&e->core.outbox, ret_events, max);
}

/**
 * vu_engine_stats() - see vu_engine.h
 * @e:		Engine
 * @ret:	Counters
 */
void vu_engine_stats(struct vu_engine *e, struct vu_engine_stats *ret)
{
	loop_enter(e);
	e->stats.conns = e->core.conns;
	e->stats.events_lost = e->core.outbox.lost;
	e->stats.refused = e->core.refused;
	*ret = e->stats;
	loop_release(e);
}
