// SPDX-License-Identifier: Apache-2.0
/*
 * engine.c - the engine thread: turns, timers, polling
 *
 * Theory of operation
 * ===================
 *
 * One thread serves every device, listener and connection, by turns: collect
 * what epoll has, act on each ring, run each connection that has something to
 * do for a bounded amount, publish each ring once. Everything is
 * edge-triggered and registered once, so a turn costs the system calls that
 * move bytes and little else. Kick eventfds are never read: an edge is all
 * that a kick has to say.
 *
 * Control calls come from Python's thread. They take the engine's lock, which
 * the thread holds except while it blocks in epoll_wait(). A mutex is not fair,
 * so the thread yields between turns as long as anyone is waiting.
 *
 * Polling
 * -------
 * A blocking wait costs the guest an exit to kick us and us a wake-up: more
 * than the work. So before it blocks the thread may watch the rings for a
 * window, during which guests need not kick. The window adapts, like the
 * kernel's halt polling: when work came soon after we blocked, it doubles, up
 * to poll_us; when work took longer than poll_us, it halves. Where the guest
 * shares our core the window would grow for nothing, since spinning keeps the
 * guest from making work: full windows that miss although work comes as soon
 * as we block, or hits that took longer than the window (we lost the core
 * meanwhile), double a penalty, in waits that do not spin at all. Without a
 * window, too, the thread yields once before it blocks: see give_way().
 */

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "engine.h"

#define EVENTS	      256 /* one epoll_wait() */
#define WINDOW_MIN_US 4
#define PENALTY_MIN   8
#define LOST_US	      500 /* a yield that took as long cost a neighbour's slice */
#define PENALTY_MAX   1024     /* waits */
#define RETRY_US      5000     /* unix listeners that were full, paused ones */
#define RETRY_TURN    32       /* connections of one device, each time */
#define ASK_US	      200000   /* a guest that gives no credit */
#define ORPHAN_US     60000000 /* bytes of a closed guest socket */
#define SPINS	      16       /* looks at the rings between looks at epoll */
#define CACHED	      (512 << 10) /* what a core's cache holds, in bytes */

/* ---- the lock ---- */

/**
 * control_begin() - Stop the engine between two turns
 * @e:		Engine
 */
void control_begin(struct vu_engine *e)
{
	__atomic_fetch_add(&e->waiting, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&e->lock);
	__atomic_fetch_sub(&e->waiting, 1, __ATOMIC_SEQ_CST);
}

/**
 * wake() - Make a blocking wait return
 * @e:		Engine
 */
static void wake(struct vu_engine *e)
{
	const uint64_t one = 1;

	if (write(e->wake_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: a wake-up is pending */
}

/**
 * control_end() - Let it go on
 * @e:		Engine
 */
void control_end(struct vu_engine *e)
{
	events_signal(e);
	if (e->blocked)
		wake(e);
	pthread_cond_signal(&e->resumed);
	pthread_mutex_unlock(&e->lock);
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

/* ---- what epoll reports ---- */

/**
 * conn_event() - Note what happened to a connection's socket
 * @e:		Engine
 * @tag:	Which connection and end
 * @events:	EPOLL bits
 */
static void conn_event(struct vu_engine *e, uint64_t tag, uint32_t events)
{
	struct vu_conn *c = conn_by_id(e, tag & ~(1ULL << 63));
	const uint32_t gone = EPOLLHUP | EPOLLERR;
	struct end *end;

	if (!c)
		return;
	end = tag >> 63 ? &c->near : &c->far;
	end->readable |= (events & (EPOLLIN | EPOLLRDHUP | gone)) != 0;
	end->writable |= (events & (EPOLLOUT | gone)) != 0;
	end->hup |= (events & (EPOLLRDHUP | gone)) != 0;

	if (c->state == CONN_DIALING && end == &c->far) {
		if (events & (EPOLLOUT | gone))
			conn_dial_settled(e, c);
	} else if (c->state == CONN_REQUESTED && (events & gone)) {
		conn_failed(e, c, ECONNABORTED); /* the host client gave up */
	} else if (c->state == CONN_OPEN) {
		list_del(&c->run); /* it may be starved, yet able to write */
		list_add(&e->run, &c->run);
	}
}

/**
 * collect() - Take what epoll has
 * @e:		Engine
 * @events:	From epoll_wait()
 * @n:		How many
 */
static void collect(struct vu_engine *e, const struct epoll_event *events,
		    int n)
{
	for (int i = 0; i < n; i++) {
		uint64_t tag = events[i].data.u64, drained;
		struct vu_listener *l;

		if ((uint32_t)tag) {
			conn_event(e, tag, events[i].events);
			continue;
		}
		switch (tag & 0xffffffffffULL) {
		case TAG_WAKE:
			if (read(e->wake_fd, &drained, sizeof(drained)) < 0)
				errno = 0; /* nothing to drain */
			break;
		case TAG_KICK:
			if (e->devs[tag >> 40])
				e->devs[tag >> 40]->stats.kicks++;
			break;
		default:
			l = e->listeners[tag >> 40];
			if (l && !l->paused)
				relay_accept(e, l);
		}
	}
}

/**
 * poll_epoll() - Look at epoll without blocking
 * @e:		Engine
 *
 * Returns: true if it had something
 */
static bool poll_epoll(struct vu_engine *e)
{
	struct epoll_event events[EVENTS];
	int n = epoll_wait(e->epoll_fd, events, EVENTS, 0);

	collect(e, events, n);
	return n > 0;
}

/* ---- time ---- */

/**
 * expire() - End connections whose time is up
 * @e:		Engine
 * @head:	Their list, by age
 * @timeout_us:	How old they may get
 */
static void expire(struct vu_engine *e, struct list *head, uint64_t timeout_us)
{
	uint64_t now = now_us();

	while (!list_empty(head)) {
		struct vu_conn *c =
		    container_of(head->next, struct vu_conn, timer);

		bool alone = c->orphan || c->state == CONN_LINGER;

		if (now - (alone ? c->alone_us : c->start_us) < timeout_us)
			return;
		list_del(&c->timer);
		if (c->orphan)
			conn_abort(e, c, ETIMEDOUT);
		else if (alone) /* VIRTIO 1.2 section 5.10.6.5: forcibly */
			vsock_reset(c);
		else
			conn_failed(e, c, ETIMEDOUT);
	}
}

/**
 * retry_dials() - Dial again the unix listeners that were full
 * @d:		Device
 *
 * A guest can make thousands of connections to a listener that takes none; so
 * one tick dials RETRY_TURN of them, the longest waiting first.
 *
 * Returns: true if some still wait
 */
static bool retry_dials(struct vu_dev *d)
{
	for (unsigned i = 0; i < RETRY_TURN && !list_empty(&d->retries); i++) {
		struct vu_conn *c =
		    container_of(d->retries.next, struct vu_conn, run);

		list_del(&c->run);
		conn_retry(d->engine, c);
	}
	return !list_empty(&d->retries);
}

/**
 * retry() - Try again what had to wait for the host
 * @e:		Engine
 *
 * Returns: true if there is more to retry later
 */
static bool retry(struct vu_engine *e)
{
	bool more = false;

	for (unsigned i = 0; i < e->n_devs; i++)
		more |= e->devs[i] && retry_dials(e->devs[i]);
	for (unsigned i = 0; i < MAX_LISTENERS; i++) {
		struct vu_listener *l = e->listeners[i];
		struct epoll_event ev = {
		    .events = EPOLLIN,
		    .data.u64 = TAG_LISTENER | (uint64_t)i << 40,
		};

		if (!l || !l->paused)
			continue;
		l->paused = false;
		epoll_ctl(e->epoll_fd, EPOLL_CTL_MOD, l->fd, &ev);
		relay_accept(e, l);
		more |= l->paused;
	}
	return more;
}

/**
 * timers() - Act on what is due
 * @e:		Engine
 *
 * Returns: how long a wait may last until the next is, ms; -1: for ever
 */
static int timers(struct vu_engine *e)
{
	uint64_t dial_us = (uint64_t)e->cfg.dial_timeout_ms * 1000;
	bool soon = false, held = false;

	if (!list_empty(&e->dialing))
		expire(e, &e->dialing, dial_us);
	if (!list_empty(&e->orphans))
		expire(e, &e->orphans, ORPHAN_US);
	if (!list_empty(&e->lingering))
		expire(e, &e->lingering, dial_us);
	if (!list_empty(&e->thirsty) && now_us() - e->thirsty_us >= ASK_US)
		vsock_ask_credit(e);
	for (unsigned i = 0; i < MAX_LISTENERS && !soon; i++)
		soon = e->listeners[i] && e->listeners[i]->paused;
	for (unsigned i = 0; i < e->n_devs && !soon; i++)
		soon = e->devs[i] && !list_empty(&e->devs[i]->retries);
	if (soon && now_us() - e->retried_us >= RETRY_US) {
		e->retried_us = now_us();
		soon = retry(e);
	}
	for (unsigned i = 0; i < e->n_devs; i++) {
		const struct vu_dev *d = e->devs[i];

		soon |= d && d->rings[QUEUE_TX] && d->kick_fds[QUEUE_TX] < 0;
		held |= d && vsock_holds(d);
	}
	soon |= events_signal(e);
	if (held)
		return HOLD_US / 1000;
	if (soon)
		return RETRY_US / 1000;
	if (list_empty(&e->dialing) && list_empty(&e->orphans) &&
	    list_empty(&e->lingering) && list_empty(&e->thirsty))
		return -1;
	return 50;
}

/* ---- waiting ---- */

/**
 * rings_pending() - Does any ring have work?
 * @e:		Engine
 *
 * Returns: true if one does
 */
static bool rings_pending(const struct vu_engine *e)
{
	for (unsigned i = 0; i < e->n_devs; i++) {
		if (e->devs[i] && vsock_pending(e->devs[i]))
			return true;
	}
	return false;
}

/**
 * doubled() - Make a penalty harder
 * @penalty:	Penalty, waits
 *
 * Returns: the next one
 */
static uint32_t doubled(uint32_t penalty)
{
	if (penalty >= PENALTY_MAX / 2)
		return PENALTY_MAX;
	return penalty ? 2 * penalty : PENALTY_MIN;
}

/**
 * penalize() - Spinning did harm: do without it for a while
 * @p:		Poller
 */
static void penalize(struct poller *p)
{
	p->penalty = doubled(p->penalty);
	p->skip = p->penalty;
	p->window_us = 0;
}

/**
 * spin() - Watch rings and sockets for the length of the window
 * @e:		Engine
 *
 * Returns: true if there is work, or a control call waits
 */
static bool spin(struct vu_engine *e)
{
	struct poller *p = &e->poller;
	uint64_t start = now_us(), elapsed;
	bool hit = false;

	e->stats.spins++;
	do {
		for (unsigned i = 0; i < SPINS && !hit; i++) {
			__builtin_ia32_pause();
			hit = rings_pending(e);
		}
		hit = hit || poll_epoll(e) || !list_empty(&e->run);
		if (!hit)
			sched_yield(); /* the guest's VMM may share our core */
		if (__atomic_load_n(&e->waiting, __ATOMIC_RELAXED))
			return true;
		elapsed = now_us() - start;
	} while (!hit && elapsed < p->window_us);

	if (!hit)
		return false;
	e->stats.spin_hits++;
	if (elapsed > 2 * (uint64_t)p->window_us + 20)
		penalize(p); /* we lost the core: the guest needs it */
	else
		p->penalty = 0;
	return true;
}

/**
 * give_way() - Let those run whom we have just given work, before we block
 * @e:		Engine
 *
 * On a core that we share, the guest or the server that we woke makes our next
 * work in this very moment; to block and be woken costs twice a switch. But a
 * neighbour that computes keeps the core for its whole slice: then not again
 * for a while.
 *
 * Returns: true if a ring has work now
 */
static bool give_way(struct vu_engine *e)
{
	struct poller *p = &e->poller;
	uint64_t start;

	if (p->yield_skip) {
		p->yield_skip--;
		return false;
	}
	start = now_us();
	sched_yield();
	if (now_us() - start < LOST_US) {
		p->yield_penalty = 0;
	} else {
		p->yield_penalty = doubled(p->yield_penalty);
		p->yield_skip = p->yield_penalty;
	}
	return rings_pending(e);
}

/**
 * adapt() - Learn from how long a blocking wait took
 * @p:		Poller
 * @spun:	A window was spun before, without a hit
 * @blocked_us:	Time until work came
 */
static void adapt(struct poller *p, bool spun, uint64_t blocked_us)
{
	if (p->skip) {
		p->skip--;
		return;
	}
	if (blocked_us >= p->max_us)
		p->window_us /= 2;
	else if (spun && p->window_us == p->max_us)
		penalize(p);
	else
		p->window_us = p->window_us < WINDOW_MIN_US ? WINDOW_MIN_US
							    : 2 * p->window_us;
	if (p->window_us > p->max_us)
		p->window_us = p->max_us;
}

/**
 * block() - Wait for a kick, a socket, a control call or a timer
 * @e:		Engine, lock held; not held while it waits
 * @timeout_ms:	Longest wait; -1: for ever
 */
static void block(struct vu_engine *e, int timeout_ms)
{
	struct epoll_event events[EVENTS];
	bool ready = false;
	int n;

	for (unsigned i = 0; i < e->n_devs; i++) {
		if (!e->devs[i])
			continue;
		if (!e->poller.max_us)
			vsock_show(e->devs[i]);
		ready |= vsock_want_kicks(e->devs[i]);
	}
	if (ready)
		timeout_ms = 0;
	e->blocked = true;
	pthread_mutex_unlock(&e->lock);
	n = epoll_wait(e->epoll_fd, events, EVENTS, timeout_ms);
	pthread_mutex_lock(&e->lock);
	e->blocked = false;
	e->stats.wakeups++;
	yield_lock(e); /* a control call may have freed what events name */
	collect(e, events, n);
}

/**
 * wait_for_work() - Spin, then block, until there is something to do
 * @e:		Engine
 * @more:	There is already: only look at epoll
 */
static void wait_for_work(struct vu_engine *e, bool more)
{
	struct poller *p = &e->poller;
	int timeout_ms = timers(e);
	bool spun = false;
	uint64_t start;

	if (more || !list_empty(&e->run) || rings_pending(e)) {
		poll_epoll(e);
		return;
	}
	if (p->window_us && !p->skip) {
		if (spin(e))
			return;
		spun = true;
	}
	if (give_way(e)) {
		poll_epoll(e);
		return;
	}
	if (!p->max_us) {
		block(e, timeout_ms);
		return;
	}
	start = now_us();
	block(e, timeout_ms);
	adapt(p, spun, now_us() - start);
}

/* ---- turns ---- */

/**
 * turn() - Do what there is to do, once
 * @e:		Engine
 *
 * A server on our core that reads only after many VMs have sent finds what was
 * theirs gone from the cache: it comes in between.
 *
 * Returns: true if a connection has more to do
 */
static bool turn(struct vu_engine *e)
{
	uint64_t sent = 0;
	struct list now;

	for (unsigned i = 0; i < e->n_devs; i++) {
		struct vu_dev *d = e->devs[i];

		if (!d)
			continue;
		if (sent >= CACHED) {
			give_way(e);
			sent = 0;
		}
		sent -= d->stats.tx_bytes;
		vsock_turn(d);
		sent += d->stats.tx_bytes;
	}
	list_init(&now);
	list_splice(&now, &e->run);
	while (!list_empty(&now)) {
		struct vu_conn *c = container_of(now.next, struct vu_conn, run);

		list_del(&c->run);
		conn_run(e, c);
	}
	for (unsigned i = 0; i < e->n_devs; i++) {
		if (e->devs[i])
			vsock_flush(e->devs[i]);
	}
	conn_reap(e);
	return !list_empty(&e->run) || !list_empty(&e->forsaken);
}

/**
 * vu_engine_run() - Be the engine thread
 * @e:		Engine
 *
 * Returns: 0 after vu_engine_stop()
 */
int vu_engine_run(struct vu_engine *e)
{
	pthread_mutex_lock(&e->lock);
	while (!e->stopping) {
		bool more = turn(e);

		yield_lock(e);
		wait_for_work(e, more);
	}
	pthread_mutex_unlock(&e->lock);
	return 0;
}

/**
 * vu_engine_stop() - Make vu_engine_run() return
 * @e:		Engine
 */
void vu_engine_stop(struct vu_engine *e)
{
	control_begin(e);
	e->stopping = true;
	wake(e); /* always: the engine may be about to block, past its check */
	control_end(e);
}

/**
 * vu_engine_new() - Make an engine
 * @cfg:	Configuration, copied
 *
 * Returns: the engine, to be freed with vu_engine_free(); NULL with errno
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
	list_init(&e->run);
	list_init(&e->forsaken);
	list_init(&e->dialing);
	list_init(&e->orphans);
	list_init(&e->lingering);
	list_init(&e->thirsty);
	for (size_t i = 0; i < SCRATCH; i++) /* RFC 864: printable ASCII */
		e->chargen[i] = (char)(' ' + i % 95);
	e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	e->event_fd = -1;
	if (e->epoll_fd < 0 || e->wake_fd < 0 || events_init(e) ||
	    epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, e->wake_fd, &ev)) {
		vu_engine_free(e);
		return NULL;
	}
	return e;
}

/**
 * vu_engine_free() - Free an engine and all it has
 * @e:		Engine whose vu_engine_run() returned or never ran; or NULL
 */
void vu_engine_free(struct vu_engine *e)
{
	if (!e)
		return;
	for (uint32_t i = 0; i < VU_MAX_DEVICES; i++)
		vu_dev_del(e, i);
	for (uint32_t i = 0; i < MAX_LISTENERS; i++) {
		if (e->listeners[i])
			vu_listener_del(e, e->listeners[i]->id);
	}
	conns_destroy(e);
	if (e->epoll_fd >= 0)
		close(e->epoll_fd);
	if (e->wake_fd >= 0)
		close(e->wake_fd);
	pthread_cond_destroy(&e->resumed);
	pthread_mutex_destroy(&e->lock);
	free(e);
}

/**
 * vu_engine_event_fd() - What becomes readable when events are queued
 * @e:		Engine
 *
 * Returns: an eventfd, the engine's own; vu_engine_events() resets it
 */
int vu_engine_event_fd(const struct vu_engine *e)
{
	return e->event_fd;
}

/**
 * vu_engine_stats() - Read the engine's counters
 * @e:		Engine
 * @ret:	Counters
 */
void vu_engine_stats(struct vu_engine *e, struct vu_engine_stats *ret)
{
	control_begin(e);
	*ret = e->stats;
	control_end(e);
}
