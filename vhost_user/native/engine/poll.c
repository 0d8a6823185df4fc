// SPDX-License-Identifier: Apache-2.0
/*
 * poll.c - adaptive polling
 *
 * Theory of operation
 * ===================
 *
 * A blocking wait costs the guest an exit to kick us and us a wake-up: more
 * than the work. So before it blocks the thread may watch the rings for a
 * window, during which guests need not kick. The window adapts, like the
 * kernel's halt polling: when work came soon after we blocked, it doubles, up
 * to poll_us; when work took longer than poll_us, it halves. Where the guest
 * shares our core the window would grow for nothing, since spinning keeps the
 * guest from making work: full windows that miss although work comes as soon
 * as we block, or hits that took longer than the window (we lost the core
 * meanwhile), double a penalty, in waits that do not spin at all. Without a
 * window, too, the thread yields once before it blocks: see poll_give_way().
 */

#include <sched.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "side/peer.h"

#define WINDOW_MIN_US 4
#define PENALTY_MIN   8
#define LOST_US	      1000 /* a yield as long cost a neighbour's slice */
#define LOST_MOST     4	   /* such yields, one behind the other */
#define PENALTY_MAX   1024 /* waits */
#define SPINS	      16   /* looks at the rings between looks at epoll */

/**
 * poll_pending() - Does any ring have work, a guest's or a process's?
 * @e:		Engine
 *
 * Returns: true if one of an active device does; the others' would kick us
 */
bool poll_pending(struct vu_engine *e)
{
	const struct list *head = &e->core.active;

	if (ring_look(&e->core))
		return true;
	for (const struct list *n = head->next; n != head; n = n->next) {
		if (turn_pending(container_of(n, struct vu_dev, active)))
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
 * poll_spin() - Watch rings and sockets for the length of the window
 * @e:		Engine
 * @look:	Takes what epoll has, without blocking; true: something
 *
 * Returns: true if there is work, or a control call waits
 */
bool poll_spin(struct vu_engine *e, bool (*look)(struct vu_engine *e))
{
	struct poller *p = &e->poller;
	uint64_t start = clock_us(), elapsed;
	bool hit = false;

	e->stats.spins++;
	do {
		for (unsigned i = 0; i < SPINS && !hit; i++) {
			__builtin_ia32_pause();
			hit = poll_pending(e);
		}
		hit = hit || look(e) || !list_empty(&e->core.run);
		if (!hit) {
			sched_yield(); /* the guest's VMM may share our core */
			e->sent = 0;
		}
		if (__atomic_load_n(&e->waiting, __ATOMIC_RELAXED))
			return true;
		elapsed = clock_us() - start;
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
 * poll_give_way() - Let those run whom we have just given work
 * @e:		Engine
 *
 * On a core that we share, the guest or the server that we woke makes our next
 * work in this very moment; to block and be woken costs twice a switch. But a
 * neighbour that computes keeps the core for its whole slice, each time: then
 * not again for a while. Another engine does so once, if it has much of ours to
 * take, and by the next yield has caught up.
 *
 * Returns: true if a ring has work now
 */
bool poll_give_way(struct vu_engine *e)
{
	struct poller *p = &e->poller;
	uint64_t start;

	if (p->yield_skip) {
		p->yield_skip--;
		return false;
	}
	start = clock_us();
	sched_yield();
	e->sent = 0;
	if (clock_us() - start < LOST_US) {
		p->yield_penalty = 0;
		p->yields_lost = 0;
	} else if (++p->yields_lost == LOST_MOST) {
		p->yields_lost = 0;
		p->yield_penalty = doubled(p->yield_penalty);
		p->yield_skip = p->yield_penalty;
	}
	return poll_pending(e);
}

/**
 * poll_adapt() - Learn from how long a blocking wait took
 * @p:		Poller
 * @spun:	A window was spun before, without a hit
 * @blocked_us:	Time until work came
 */
void poll_adapt(struct poller *p, bool spun, uint64_t blocked_us)
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
