// SPDX-License-Identifier: Apache-2.0
/*
 * due.c - what is due for a tunnel
 *
 * Theory of operation
 * ===================
 *
 * Each tunnel is on one list, by when it has to be looked at next: because it
 * isn't there yet, for a PING, because nobody uses it. It is looked at a little
 * early now and then, so that nothing has to be moved when that changes.
 */

#include "base/clock.h"
#include "side/hbone.h"

#define NEVER	UINT64_MAX
#define MOST_MS 1000

/**
 * sooner() - The earlier one of two times
 * @a:		Time
 * @b:		Time
 *
 * Returns: it
 */
static uint64_t sooner(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/**
 * is_young() - Is a tunnel yet to be there?
 * @t:		Tunnel
 *
 * Returns: true if TCP, TLS or HTTP/2 isn't
 */
static bool is_young(const struct tunnel *t)
{
	return t->state < TUNNEL_OPEN || !t->h2->settled;
}

/**
 * tunnel_schedule() - Have a tunnel looked at when something is due
 * @t:		Tunnel
 */
void tunnel_schedule(struct tunnel *t)
{
	struct list *head = &t->group->hbone->timers, *at;
	const struct group *g = t->group;
	uint64_t due = t->cut_us ? t->cut_us : NEVER;

	if (is_young(t))
		due = sooner(due, t->start_us + g->connect_us);
	else
		due = sooner(due, t->asked_us ? t->asked_us + g->silence_us
					      : t->ping_us);
	if (t->state == TUNNEL_OPEN && g->idle_us && list_empty(&t->streams))
		due = sooner(due, t->idle_us + g->idle_us);
	if (t->parted)
		due = sooner(due, clock_us() + PART_US);
	if (!list_empty(&t->timer) && t->due_us <= due)
		return;
	list_del(&t->timer);
	t->due_us = due;
	for (at = head->prev; at != head; at = at->prev) {
		if (container_of(at, struct tunnel, timer)->due_us <= due)
			break;
	}
	list_add(at->next, &t->timer); /* in front of that one */
}

/**
 * look() - Is something due?
 * @t:		Tunnel
 * @now_us:	What time it is
 */
static void look(struct tunnel *t, uint64_t now_us)
{
	struct group *g = t->group;

	if (t->state == TUNNEL_DOOMED)
		return;
	if (t->cut_us && now_us >= t->cut_us) {
		tunnel_doom(t, VU_REASON_DRAINED, 0);
	} else if (is_young(t)) {
		if (now_us - t->start_us >= g->connect_us)
			tunnel_doom(t, VU_REASON_TIME, 0);
	} else if (t->asked_us && now_us - t->asked_us >= g->silence_us) {
		tunnel_doom(t, VU_REASON_PING, 0);
	} else if (t->state == TUNNEL_OPEN && g->idle_us &&
		   list_empty(&t->streams) &&
		   now_us - t->idle_us >= g->idle_us) {
		tunnel_doom(t, VU_REASON_IDLE, 0);
	} else if (!t->asked_us && now_us >= t->ping_us) {
		h2_ping(t->h2);
		t->asked_us = now_us;
		t->ping_us = now_us + g->ping_us;
		tunnel_later(t);
	}
	if (t->state == TUNNEL_OPEN || t->state == TUNNEL_DRAINS)
		stream_reap(t, now_us);
}

/**
 * hbone_timers() - Act on what is due
 * @hb:		Tunnels
 *
 * Returns: how long a wait may last until the next is, ms; -1: for ever
 */
int hbone_timers(struct hbone *hb)
{
	uint64_t now_us;

	if (list_empty(&hb->timers))
		return -1;
	now_us = clock_us();
	while (!list_empty(&hb->timers)) {
		struct tunnel *t =
		    container_of(hb->timers.next, struct tunnel, timer);

		if (t->due_us > now_us) {
			uint64_t ms = (t->due_us - now_us) / 1000 + 1;

			return ms < MOST_MS ? (int)ms : MOST_MS;
		}
		list_del(&t->timer);
		look(t, now_us);
		if (t->state != TUNNEL_DOOMED)
			tunnel_schedule(t);
	}
	return -1;
}
