// SPDX-License-Identifier: Apache-2.0
/*
 * post.c - what Python is told of connections and devices
 *
 * Theory of operation
 * ===================
 *
 * Python learns of the steps in a connection's life by events. There are at
 * most a few for each connection; a source that wants events gets no new
 * connection while Python is far behind (events_crowded), so the queue is
 * bounded. It has a lock of its own: Python takes events while the engine runs.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>

#include "engine.h"

#define EVENT_DELAY_US 5000

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
