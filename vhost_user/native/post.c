// SPDX-License-Identifier: Apache-2.0
/*
 * post.c - what Python is told of connections and devices
 *
 * Theory of operation
 * ===================
 *
 * Python learns of the steps in a connection's life by events. There are at
 * most a few for each connection; a source that wants events gets no new
 * connection while Python is far behind (events_crowded), so the queues are
 * bounded. They have a lock of their own: Python takes events while the engine
 * runs.
 *
 * Each device and each listener has a queue, and Python takes from them by
 * turns, TURN events each: a guest that causes more events than Python can
 * handle waits for itself, and delays another's by TURN of its own at most.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>

#include "engine.h"

#define EVENT_DELAY_US 5000
#define TURN	       16 /* events */

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
 * events_free() - Drop all events
 * @e:		Engine
 */
void events_free(struct vu_engine *e)
{
	for (unsigned i = 0; i < SOURCES; i++)
		free(e->queues[i].events);
	close(e->event_fd);
	pthread_mutex_destroy(&e->event_lock);
}

/**
 * queue_of() - Find a source's queue
 * @source:	Device or listener id
 *
 * Returns: its index
 */
static unsigned queue_of(uint32_t source)
{
	return source < LISTENER_ID ? source
				    : VU_MAX_DEVICES + source % MAX_LISTENERS;
}

/**
 * grow() - Make room for one more event
 * @q:		Queue, event_lock held
 *
 * Returns: true if there is room
 */
static bool grow(struct event_queue *q)
{
	unsigned cap = q->cap ? 2 * q->cap : 64;
	struct vu_event *events;

	if (q->count < q->cap)
		return true;
	events = calloc(cap, sizeof(*events));
	if (!events)
		return false;
	for (unsigned i = 0; i < q->count; i++)
		events[i] = q->events[(q->first + i) % q->cap];
	free(q->events);
	q->events = events;
	q->cap = cap;
	q->first = 0;
	return true;
}

/**
 * set_counts() - Note that there is an event more, or less
 * @e:		Engine, event_lock held; the engine thread also reads both
 *		counts without
 * @q:		Its queue
 * @more:	1 or -1
 */
static void set_counts(struct vu_engine *e, struct event_queue *q, int more)
{
	unsigned count = q->count + (unsigned)more;

	__atomic_store_n(&q->count, count, __ATOMIC_RELAXED);
	count = e->event_count + (unsigned)more;
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
	struct event_queue *q = &e->queues[queue_of(event->source)];

	pthread_mutex_lock(&e->event_lock);
	if (grow(q)) {
		q->events[(q->first + q->count) % q->cap] = *event;
		if (!e->event_count)
			e->event_since_us = now_us();
		set_counts(e, q, 1);
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
 * @source:	Device or listener that they are of
 * @conns:	How many it may have at a time
 *
 * Returns: true if it is
 */
bool events_crowded(const struct vu_engine *e, uint32_t source, uint32_t conns)
{
	const struct event_queue *q = &e->queues[queue_of(source)];

	return __atomic_load_n(&q->count, __ATOMIC_RELAXED) >
	       2 * (uint64_t)conns + 1024;
}

/**
 * take() - Take some events of one queue
 * @e:		Engine, event_lock held
 * @q:		Queue
 * @ret_events:	Room for them
 * @max:	Entries of @ret_events
 *
 * Returns: how many
 */
static unsigned take(struct vu_engine *e, struct event_queue *q,
		     struct vu_event *ret_events, unsigned max)
{
	unsigned n = 0;

	while (n < max && q->count) {
		ret_events[n++] = q->events[q->first];
		q->first = (q->first + 1) % q->cap;
		set_counts(e, q, -1);
	}
	return n;
}

/**
 * vu_engine_events() - Take queued events
 * @e:		Engine
 * @ret_events:	Room for them
 * @max:	Entries of @ret_events
 *
 * Those of one source come in their order. When it returns fewer than @max, the
 * queue is empty and the event fd will be readable again after the next event.
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
		n += take(e, &e->queues[e->event_turn], ret_events + n,
			  max - n < TURN ? max - n : TURN);
		e->event_turn = (e->event_turn + 1) % SOURCES;
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
