// SPDX-License-Identifier: Apache-2.0
/*
 * timers.c - what is due
 *
 * Theory of operation
 * ===================
 *
 * A list for each kind of deadline, in order of arrival, so of expiry; what
 * waits for the host is tried again on a tick. Nothing here looks at what is
 * idle: a device, listener or connection that waits for nothing is on no list.
 */

#include <errno.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "side/hbone.h"
#include "side/peer.h"

#define RETRY_US  5000	   /* unix listeners that were full, paused ones */
#define ASK_US	  200000   /* a guest that gives no credit */
#define ORPHAN_US 60000000 /* bytes of a closed guest socket */
#define EXPIRES	  32	   /* connections, in one turn */
#define TICK_MS	  50	   /* while a deadline runs */

/**
 * expire() - End connections whose time is up
 * @head:	Their list, by age
 * @timeout_us:	How old they may get
 */
static void expire(struct list *head, uint64_t timeout_us)
{
	uint64_t now;

	if (list_empty(head))
		return;
	now = clock_us();
	for (unsigned i = 0; i < EXPIRES && !list_empty(head); i++) {
		struct vu_conn *c =
		    container_of(head->next, struct vu_conn, timer);

		if (now - c->since_us < timeout_us)
			return;
		/* LINGER: VIRTIO 1.2 section 5.10.6.5: forcibly */
		conn_abort(c, ETIMEDOUT);
	}
}

/**
 * retry() - Try again what had to wait for the host
 * @e:		Engine
 */
static void retry(struct vu_engine *e)
{
	struct list now;

	list_init(&now);
	list_splice(&now, &e->core.retrying);
	while (!list_empty(&now)) {
		struct vu_dev *d =
		    container_of(now.next, struct vu_dev, retrying);

		list_del(&d->retrying);
		if (turn_retry(d))
			list_add(&e->core.retrying, &d->retrying);
	}
	offer_retry(&e->core);
	list_splice(&now, &e->paused);
	while (!list_empty(&now))
		listener_resume(
		    container_of(now.next, struct vu_listener, paused),
		    &e->paused);
}

/**
 * waits() - Does anything wait for the host?
 * @e:		Engine
 *
 * Returns: true if something is to be tried again
 */
static bool waits(const struct vu_engine *e)
{
	return !list_empty(&e->core.retrying) || !list_empty(&e->paused) ||
	       !list_empty(&e->core.dials);
}

/**
 * timers_run() - Act on what is due
 * @e:		Engine
 *
 * Returns: how long a wait may last until the next is, ms; -1: for ever
 */
int timers_run(struct vu_engine *e)
{
	struct core *core = &e->core;
	uint64_t dial_us = (uint64_t)e->cfg.dial_timeout_ms * 1000;
	int tunnels_ms = hbone_timers(core->hbone);
	bool soon, held = false, later = !list_empty(&core->thirsty);

	expire(&core->deadlines[DEADLINE_DIAL], dial_us);
	expire(&core->deadlines[DEADLINE_ORPHAN], ORPHAN_US);
	expire(&core->deadlines[DEADLINE_LINGER], dial_us);
	if (later && clock_us() - core->thirsty_us >= ASK_US)
		owe_ask(core);
	soon = waits(e);
	if (soon && clock_us() - e->retried_us >= RETRY_US) {
		e->retried_us = clock_us();
		retry(e);
		soon = waits(e);
	}
	for (struct list *n = core->active.next; n != &core->active;
	     n = n->next) {
		const struct vu_dev *d = container_of(n, struct vu_dev, active);

		soon |= turn_deaf(d);
		held |= turn_holds(d);
	}
	soon |= outbox_signal(&core->outbox);
	if (held)
		return HOLD_US / 1000;
	if (soon)
		return RETRY_US / 1000;
	for (unsigned i = 0; i < DEADLINES; i++)
		later |= !list_empty(&core->deadlines[i]);
	if (later && (tunnels_ms < 0 || tunnels_ms > TICK_MS))
		return TICK_MS;
	return tunnels_ms;
}
