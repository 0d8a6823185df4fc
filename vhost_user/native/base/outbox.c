// SPDX-License-Identifier: Apache-2.0
/*
 * outbox.c - what Python is told: queues of events, one a source
 *
 * Theory of operation
 * ===================
 *
 * Python learns of the steps in a connection's life by events. There are at
 * most a few for each connection; a source that wants events gets no new
 * connection while Python is far behind (outbox_crowded), so the queues are
 * bounded. They have a lock of their own: Python takes events while the engine
 * runs.
 *
 * Each device and each listener has a queue, and Python takes from those that
 * have events by turns, TURN each: a guest that causes more events than Python
 * can handle waits for itself, and delays another's by TURN of its own at most.
 *
 * A queue outlives its source as long as connections of it do, and until
 * Python has taken what is in it: no event is lost, and none is told under the
 * name of another source.
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/eventfd.h>

#include "base/clock.h"
#include "base/outbox.h"

#define DELAY_US 5000
#define TURN	 16 /* events */
#define CAP_MIN	 64 /* same */

/**
 * outbox_init() - Make the way to Python
 * @o:		Outbox
 *
 * Returns: 0, or -1 with errno
 */
int outbox_init(struct outbox *o)
{
	pthread_mutex_init(&o->lock, NULL);
	list_init(&o->busy);
	o->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return o->fd < 0 ? -1 : 0;
}

/**
 * queue_free() - Free a queue that nobody refers to
 * @q:		Queue
 */
static void queue_free(struct outbox_queue *q)
{
	list_del(&q->busy);
	free(q->events);
	free(q);
}

/**
 * outbox_free() - Drop all events
 * @o:		Outbox; nobody refers to a queue of it
 */
void outbox_free(struct outbox *o)
{
	while (!list_empty(&o->busy))
		queue_free(
		    container_of(o->busy.next, struct outbox_queue, busy));
	if (o->fd >= 0)
		close(o->fd);
	pthread_mutex_destroy(&o->lock);
}

/**
 * outbox_open() - Make a source's queue
 * @source:	Its id
 * @last_word:	Tell when nothing comes from it any more (VU_EV_GONE)
 *
 * Returns: the queue, one reference taken; NULL if out of memory
 */
struct outbox_queue *outbox_open(uint32_t source, bool last_word)
{
	struct outbox_queue *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	list_init(&q->busy);
	q->refs = 1;
	q->source = source;
	q->last_word = last_word;
	return q;
}

/**
 * outbox_ref() - Somebody else may push to a queue
 * @o:		Outbox
 * @q:		Queue
 */
void outbox_ref(struct outbox *o, struct outbox_queue *q)
{
	pthread_mutex_lock(&o->lock);
	q->refs++;
	pthread_mutex_unlock(&o->lock);
}

/**
 * grow() - Make room for one more event
 * @q:		Queue, the outbox locked
 *
 * Returns: true if there is room
 */
static bool grow(struct outbox_queue *q)
{
	unsigned cap = q->cap ? 2 * q->cap : CAP_MIN;
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
 * @o:		Outbox, locked; the engine thread also reads both counts without
 * @q:		Its queue
 * @more:	1 or -1
 */
static void set_counts(struct outbox *o, struct outbox_queue *q, int more)
{
	unsigned count = q->count + (unsigned)more;

	__atomic_store_n(&q->count, count, __ATOMIC_RELAXED);
	count = o->count + (unsigned)more;
	__atomic_store_n(&o->count, count, __ATOMIC_RELAXED);
}

/**
 * push() - Queue an event
 * @o:		Outbox, locked
 * @q:		Queue of the event's source
 * @event:	Event, copied; its source is set
 * @urgent:	Something waits for what Python does about it
 */
static void push(struct outbox *o, struct outbox_queue *q,
		 struct vu_event *event, bool urgent)
{
	event->source = q->source;
	if (grow(q)) {
		q->events[(q->first + q->count) % q->cap] = *event;
		if (!o->count)
			o->since_us = clock_us();
		set_counts(o, q, 1);
		list_add(&o->busy, &q->busy);
		o->urgent |= urgent;
	} else {
		o->lost++;
	}
}

/**
 * outbox_push() - Queue an event for Python
 * @o:		Outbox
 * @q:		Queue of the event's source
 * @event:	Event, copied; its source is set
 * @urgent:	Something waits for what Python does about it
 */
void outbox_push(struct outbox *o, struct outbox_queue *q,
		 struct vu_event *event, bool urgent)
{
	pthread_mutex_lock(&o->lock);
	push(o, q, event, urgent);
	pthread_mutex_unlock(&o->lock);
}

/**
 * outbox_unref() - Somebody will push no more to a queue
 * @o:		Outbox
 * @q:		Queue; gone with its last reference and event
 */
void outbox_unref(struct outbox *o, struct outbox_queue *q)
{
	struct vu_event gone = {.kind = VU_EV_GONE};

	pthread_mutex_lock(&o->lock);
	if (!--q->refs) {
		if (q->last_word)
			push(o, q, &gone, false);
		if (!q->count)
			queue_free(q);
	}
	pthread_mutex_unlock(&o->lock);
}

/**
 * outbox_signal() - Wake Python if it is time to
 * @o:		Outbox, after the rings were flushed
 *
 * Python's wake-up costs more than a connection, and often the CPU that the
 * guest's interrupt needs next. So it comes after the rings are flushed, and
 * events that only tell of something wait for company.
 *
 * Returns: true if events are queued that Python hasn't been woken for
 */
bool outbox_signal(struct outbox *o)
{
	const uint64_t one = 1;
	bool wake = false, waiting;

	if (!__atomic_load_n(&o->count, __ATOMIC_RELAXED))
		return false;
	pthread_mutex_lock(&o->lock);
	if (o->count && !o->signalled)
		wake = o->urgent || clock_us() - o->since_us >= DELAY_US;
	o->signalled |= wake;
	waiting = o->count && !o->signalled;
	pthread_mutex_unlock(&o->lock);
	if (wake && write(o->fd, &one, sizeof(one)) < 0)
		return false; /* the counter is full: it is readable already */
	return waiting;
}

/**
 * outbox_crowded() - Is Python too far behind for new connections?
 * @q:		Queue of the source that they are of
 * @conns:	How many it may have at a time
 *
 * Returns: true if it is
 */
bool outbox_crowded(const struct outbox_queue *q, uint32_t conns)
{
	return __atomic_load_n(&q->count, __ATOMIC_RELAXED) >
	       2 * (uint64_t)conns + 1024;
}

/**
 * take_turn() - Take some events of the next queue
 * @o:		Outbox, locked, with events
 * @ret_events:	Room for them
 * @max:	Entries of @ret_events
 *
 * Returns: how many
 */
static unsigned take_turn(struct outbox *o, struct vu_event *ret_events,
			  unsigned max)
{
	struct outbox_queue *q =
	    container_of(o->busy.next, struct outbox_queue, busy);
	unsigned n = 0;

	list_del(&q->busy);
	while (n < max && n < TURN && q->count) {
		ret_events[n++] = q->events[q->first];
		q->first = (q->first + 1) % q->cap;
		set_counts(o, q, -1);
	}
	if (q->count)
		list_add(&o->busy, &q->busy);
	else if (!q->refs)
		queue_free(q);
	return n;
}

/**
 * outbox_take() - Take queued events
 * @o:		Outbox
 * @ret_events:	Room for them
 * @max:	Entries of @ret_events
 *
 * Returns: how many; fewer than @max: there are no more, and @fd becomes
 * readable after the next
 */
unsigned outbox_take(struct outbox *o, struct vu_event *ret_events,
		     unsigned max)
{
	uint64_t drained;
	unsigned n = 0;

	pthread_mutex_lock(&o->lock);
	while (n < max && o->count)
		n += take_turn(o, ret_events + n, max - n);
	if (!o->count) {
		o->signalled = o->urgent = false;
		if (read(o->fd, &drained, sizeof(drained)) < 0)
			errno = 0; /* nothing to drain */
	}
	pthread_mutex_unlock(&o->lock);
	return n;
}
