/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.h - the engine thread
 *
 * timers.c	what is due
 * collect.c	what epoll reports
 * poll.c	adaptive polling
 * loop.c	turns, and the lock
 * slice.c	how long it has a CPU
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <sys/epoll.h>

#include "side/listener.h"
#include "vsock/dev.h"

#define MAX_LISTENERS 65536 /* each VM may publish hundreds of ports */
#define EVENTS	      256   /* one epoll_wait() */

/* epoll tags of what isn't a connection: the lower half, a conn's index, is 0
 */
#define TAG_WAKE     (1ULL << 32)
#define TAG_KICK     (2ULL << 32) /* + the device's slot << TAG_SLOT */
#define TAG_LISTENER (3ULL << 32) /* + the listener's slot << TAG_SLOT */
#define TAG_NETNS    (4ULL << 32) /* + the namespace's slot << TAG_SLOT */
#define TAG_TUNNEL   (5ULL << 32) /* + a part of the tunnel's id << TAG_SLOT */
#define TAG_SHAKEN   (6ULL << 32)
#define TAG_SLOT     40

/**
 * struct poller - Adaptive polling; see poll.c
 * @max_us:	Longest window
 * @window_us:	How long to spin before blocking
 * @skip:	Waits that don't spin
 * @penalty:	How many the next time
 * @yield_skip:	Waits that don't yield
 * @yield_penalty: How many the next time
 * @yields_lost: Yields in a row that cost a neighbour's slice
 */
struct poller {
	uint32_t max_us;
	uint32_t window_us;
	uint32_t skip;
	uint32_t penalty;
	uint32_t yield_skip;
	uint32_t yield_penalty;
	uint32_t yields_lost;
};

/**
 * struct vu_engine - An engine
 * @core:	What its connections share
 * @lock:	Held by its thread except while that blocks
 * @resumed:	The thread may go on
 * @waiting:	Control calls at the lock, atomic
 * @blocked:	In epoll_wait() without the lock
 * @paused:	Listeners that are out of descriptors
 * @retried_us:	When what waits for the host was last tried
 * @sent:	Bytes from guests since those who share our core could run
 * @named:	Devices and listeners so far: what makes ids unique
 */
struct vu_engine {
	struct core core;
	pthread_mutex_t lock;
	pthread_cond_t resumed;
	unsigned waiting;
	bool blocked;
	bool stopping;
	int wake_fd;
	uint32_t named;
	struct vu_engine_config cfg;
	struct poller poller;
	struct vu_engine_stats stats;
	struct list paused;
	uint64_t retried_us;
	uint64_t sent;
	struct vu_dev *devs[VU_MAX_DEVICES];
	struct vu_listener *listeners[MAX_LISTENERS];
};

/**
 * listener_by_id() - Find a listener
 * @e:		Engine
 * @id:		Its id
 *
 * Returns: the listener; NULL if it is gone
 */
static inline struct vu_listener *listener_by_id(const struct vu_engine *e,
						 uint32_t id)
{
	for (uint32_t at = id % VU_MAX_DEVICES; at < MAX_LISTENERS;
	     at += VU_MAX_DEVICES) {
		struct vu_listener *l = e->listeners[at];

		if (l && l->outbox->source == id)
			return l;
	}
	return NULL;
}

/**
 * dev_by_id() - Find a device
 * @e:		Engine
 * @id:		Its id
 *
 * Returns: the device; NULL if it is gone
 */
static inline struct vu_dev *dev_by_id(const struct vu_engine *e, uint32_t id)
{
	struct vu_dev *d = e->devs[id % VU_MAX_DEVICES];

	return d && d->id == id ? d : NULL;
}

/**
 * name_new() - Make an id for a device or listener
 * @e:		Engine, stopped
 * @slot:	Where it will be
 *
 * A guest makes listeners come and go, so that the numbers may come round.
 *
 * Returns: an id that nothing else has; its lower part is @slot's
 */
static inline uint32_t name_new(struct vu_engine *e, uint32_t slot)
{
	uint32_t id;

	do
		id = (e->named++ & 0xfffffU) * VU_MAX_DEVICES +
		     slot % VU_MAX_DEVICES;
	while (dev_by_id(e, id) || listener_by_id(e, id));
	return id;
}

/* timers.c */
int timers_run(struct vu_engine *e);

/* collect.c */
void collect(struct vu_engine *e, const struct epoll_event *events, int n);

/* poll.c */
bool poll_pending(struct vu_engine *e);
bool poll_give_way(struct vu_engine *e);
bool poll_spin(struct vu_engine *e, bool (*look)(struct vu_engine *e));
void poll_adapt(struct poller *p, bool spun, uint64_t blocked_us);

/* slice.c */
void slice_shorten(void);

/* loop.c */
void loop_enter(struct vu_engine *e);
void loop_leave(struct vu_engine *e);
void loop_release(struct vu_engine *e);
void loop_wake(struct vu_engine *e);
bool loop_look(struct vu_engine *e);
void loop_turn(struct vu_engine *e);

#endif /* ENGINE_H */
