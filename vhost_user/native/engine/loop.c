// SPDX-License-Identifier: Apache-2.0
/*
 * loop.c - the engine thread: turns, and the lock
 *
 * Theory of operation
 * ===================
 *
 * One thread serves every device, listener and connection, by turns: collect
 * what epoll has, act on the rings of each active device, run each connection
 * that has something to do for a bounded amount, publish each ring once.
 * Everything is edge-triggered and registered once, so a turn costs the system
 * calls that move bytes and little else. Kick eventfds are never read: an edge
 * is all that a kick has to say.
 *
 * A device is active from its kick, or from something that we do for it, until
 * it has no work: then it is asked for kicks and left alone. So idle VMs cost a
 * turn nothing, and are as many as one likes.
 *
 * Control calls come from Python's thread. They take the engine's lock, which
 * the thread holds except while it blocks in epoll_wait(). A mutex is not fair,
 * so the thread yields between turns as long as anyone is waiting.
 */

#include <errno.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "side/hbone.h"
#include "side/netns.h"
#include "side/peer.h"

#define REAPS	   32	       /* closes, in one turn */
#define CACHED	   (512 << 10) /* what a core's cache holds, in bytes */
#define IDLE_TURNS 64	       /* until a device is asked for kicks */

/* ---- the lock ---- */

/**
 * loop_enter() - Stop the engine between two turns
 * @e:		Engine
 */
void loop_enter(struct vu_engine *e)
{
	__atomic_fetch_add(&e->waiting, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&e->lock);
	__atomic_fetch_sub(&e->waiting, 1, __ATOMIC_SEQ_CST);
}

/**
 * loop_wake() - Make a blocking wait return
 * @e:		Engine
 */
void loop_wake(struct vu_engine *e)
{
	const uint64_t one = 1;

	if (write(e->wake_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: a wake-up is pending */
}

/**
 * loop_release() - Let it go on as it was: no turn has anything to do for it
 * @e:		Engine
 */
void loop_release(struct vu_engine *e)
{
	pthread_cond_signal(&e->resumed);
	pthread_mutex_unlock(&e->lock);
}

/**
 * loop_leave() - Let it go on, with a turn
 * @e:		Engine
 */
void loop_leave(struct vu_engine *e)
{
	outbox_signal(&e->core.outbox);
	if (e->blocked)
		loop_wake(e);
	loop_release(e);
}

/**
 * yield_lock() - Let waiting control calls run
 * @e:		Engine, lock held
 */
static void yield_lock(struct vu_engine *e)
{
	while (__atomic_load_n(&e->waiting, __ATOMIC_SEQ_CST))
		pthread_cond_wait(&e->resumed, &e->lock);
}

/**
 * loop_look() - Look at epoll without blocking
 * @e:		Engine
 *
 * Returns: true if it had something
 */
bool loop_look(struct vu_engine *e)
{
	struct epoll_event events[EVENTS];
	int n = epoll_wait(e->core.epoll_fd, events, EVENTS, 0);

	collect(e, events, n);
	return n > 0;
}

/* ---- waiting ---- */

/**
 * rest() - Ask a device for kicks, and leave it alone if it has no work
 * @d:		Device
 *
 * One that nothing wakes us for stays active, and one whose guest doesn't see
 * all yet.
 *
 * Returns: true if it has work
 */
static bool rest(struct vu_dev *d)
{
	if (turn_want_kicks(d))
		return true;
	if (!turn_deaf(d) && !turn_holds(d))
		list_del(&d->active);
	return false;
}

/**
 * block() - Wait for a kick, a socket, a control call or a timer
 * @e:		Engine, lock held; not held while it waits
 * @timeout_ms:	Longest wait; -1: for ever
 */
static void block(struct vu_engine *e, int timeout_ms)
{
	struct list *head = &e->core.active;
	struct epoll_event events[EVENTS];
	bool ready = false;
	int n;

	for (struct list *at = head->next, *next; at != head; at = next) {
		struct vu_dev *d = container_of(at, struct vu_dev, active);

		next = at->next;
		if (!e->poller.max_us)
			turn_show(d);
		ready |= rest(d);
	}
	ready |= ring_rest(&e->core);
	e->blocked = true;
	pthread_mutex_unlock(&e->lock);
	n = epoll_wait(e->core.epoll_fd, events, EVENTS,
		       ready ? 0 : timeout_ms);
	pthread_mutex_lock(&e->lock);
	e->blocked = false;
	e->sent = 0;
	e->stats.wakeups++;
	yield_lock(e); /* a control call may have freed what events name */
	collect(e, events, n);
}

/**
 * work_left() - Is there something that no event will tell of?
 * @core:	What all connections share
 *
 * A control call between a turn and the wait may have left it: asked anew.
 *
 * Returns: true if there is
 */
static bool work_left(const struct core *core)
{
	return !list_empty(&core->run) || !list_empty(&core->forsaken) ||
	       !list_empty(&core->serving) || hbone_busy(core->hbone);
}

/**
 * wait_for_work() - Spin, then block, until there is something to do
 * @e:		Engine
 */
static void wait_for_work(struct vu_engine *e)
{
	struct poller *p = &e->poller;
	int timeout_ms = timers_run(e);
	bool spun = false;
	uint64_t start;

	if (work_left(&e->core) || poll_pending(e)) {
		loop_look(e);
		return;
	}
	if (p->window_us && !p->skip) {
		if (poll_spin(e, loop_look))
			return;
		spun = true;
	}
	if (poll_give_way(e)) {
		loop_look(e);
		return;
	}
	if (!p->max_us) {
		block(e, timeout_ms);
		return;
	}
	start = clock_us();
	block(e, timeout_ms);
	poll_adapt(p, spun, clock_us() - start);
}

/* ---- turns ---- */

/**
 * begin() - Act on the rings of the active devices
 * @e:		Engine
 *
 * A server on our core that reads only after much was sent finds it gone from
 * the cache, and by then its socket is full and the rest was kept: it comes in
 * between, be it one VM that sends or many.
 */
static void begin(struct vu_engine *e)
{
	struct list *head = &e->core.active;

	for (struct list *at = head->next, *next; at != head; at = next) {
		struct vu_dev *d = container_of(at, struct vu_dev, active);

		next = at->next;
		if (e->sent >= CACHED) {
			poll_give_way(e);
			e->sent = 0;
		}
		if (turn_pending(d)) {
			d->idle = 0;
		} else if (++d->idle > IDLE_TURNS) {
			d->idle = 0;
			rest(d);
		}
		e->sent -= d->stats.tx_bytes;
		turn_begin(d);
		e->sent += d->stats.tx_bytes;
	}
}

/**
 * run() - Run the connections that have something to do
 * @e:		Engine
 *
 * A device's turn has so much work; what is left waits for the next.
 */
static void run(struct vu_engine *e)
{
	struct core *core = &e->core;
	struct list now;

	list_init(&now);
	list_splice(&now, &core->run);
	while (!list_empty(&now)) {
		struct vu_conn *c = container_of(now.next, struct vu_conn, run);

		list_del(&c->run);
		if (c->dev)
			list_add(&core->active, &c->dev->active);
		if (c->dev && dev_spent(c->dev, WORK_RUN)) {
			list_add(&c->dev->waiting, &c->run);
			continue;
		}
		if (c->dev)
			c->dev->work[WORK_RUN] += WORK_RUNS;
		conn_run(c);
	}
}

/**
 * loop_turn() - Do what there is to do, once
 * @e:		Engine, lock held
 */
void loop_turn(struct vu_engine *e)
{
	struct core *core = &e->core;
	struct list *head = &core->active;

	begin(e);
	supply_run(core);
	ring_turn(core);
	hbone_run(core->hbone);
	run(e);
	for (struct list *at = head->next, *next; at != head; at = next) {
		struct vu_dev *d = container_of(at, struct vu_dev, active);

		next = at->next;
		turn_feed(d);
		turn_end(d);
	}
	hbone_flush(core->hbone);
	conn_reap(core, REAPS);
}

/**
 * vu_engine_run() - Be the engine thread
 * @e:		Engine
 *
 * Returns: 0 after vu_engine_stop()
 */
int vu_engine_run(struct vu_engine *e)
{
	slice_shorten();
	pthread_mutex_lock(&e->lock);
	while (!e->stopping) {
		loop_turn(e);
		yield_lock(e);
		wait_for_work(e);
	}
	pthread_mutex_unlock(&e->lock);
	return 0;
}
