// SPDX-License-Identifier: Apache-2.0
/*
 * turns.c - tunnels take turns
 *
 * Theory of operation
 * ===================
 *
 * A turn of the engine takes what peers said, before connections run, and sends
 * what those said to them, behind. Each lasts TURN_US, and what one tunnel has
 * begun: bulk of many doesn't make devices' turns late. Those that are left are
 * the first in the next one. A tunnel that is over is freed here, where nobody
 * is at work with it.
 */

#include <stdlib.h>

#include "base/clock.h"
#include "side/hbone.h"

#define TURN_US 60 /* for all tunnels; one alone takes about as long */

/**
 * turn() - Do what a tunnel has to do
 * @t:		Tunnel; may be gone afterwards
 */
static void turn(struct tunnel *t)
{
	stream_hear(t);
	if (t->state == TUNNEL_OPEN || t->state == TUNNEL_DRAINS) {
		tunnel_read(t);
		if (t->carrier.c)
			conn_wake(t->carrier.c); /* it takes more */
		if (t->h2->settled && !t->was_open) {
			t->was_open = true;
			t->group->stats.opened++;
			if (t->state != TUNNEL_DOOMED)
				tunnel_tell(t);
		}
	}
	if (t->state != TUNNEL_DOOMED)
		tunnel_schedule(t);
	else if (!t->shaking)
		tunnel_end(t);
}

/**
 * hbone_run() - Have tunnels that have something to do take their turns
 * @hb:		Tunnels
 */
void hbone_run(struct hbone *hb)
{
	struct list now;
	uint64_t until;

	if (list_empty(&hb->busy))
		return;
	until = clock_us() + TURN_US;
	list_init(&now);
	list_splice(&now, &hb->busy);
	do {
		struct tunnel *t = container_of(now.next, struct tunnel, busy);

		list_del(&t->busy);
		turn(t);
	} while (!list_empty(&now) && clock_us() < until);
	list_splice_first(&hb->busy, &now);
}

/**
 * flush() - Send what was said to a tunnel's peer
 * @t:		Tunnel
 */
static void flush(struct tunnel *t)
{
	if (!t->h2 || t->state == TUNNEL_DOOMED)
		return;
	if (tunnel_send(t, true)) {
		tunnel_unblock(&t->stuck);
		if (t->readable)
			tunnel_busy(t); /* it was too busy to hear */
	}
	wire_flush(t);
	if (h2_over(t->h2) && !t->tls->tx)
		tunnel_doom(t,
			    t->h2->broken ? VU_REASON_HTTP2
			    : t->cut_us	  ? VU_REASON_DRAINED
					  : VU_REASON_GOAWAY,
			    0);
}

/**
 * hbone_flush() - Send what was said in this turn
 * @hb:		Tunnels
 */
void hbone_flush(struct hbone *hb)
{
	struct list now;
	uint64_t until;

	if (list_empty(&hb->flushes))
		return;
	until = clock_us() + TURN_US;
	list_init(&now);
	list_splice(&now, &hb->flushes);
	do {
		struct tunnel *t = container_of(now.next, struct tunnel, flush);

		list_del(&t->flush);
		flush(t);
	} while (!list_empty(&now) && clock_us() < until);
	list_splice_first(&hb->flushes, &now);
}

/**
 * hbone_busy() - Is there something that no event will tell of?
 * @hb:		Tunnels
 *
 * Returns: true if there is
 */
bool hbone_busy(const struct hbone *hb)
{
	return !list_empty(&hb->busy) || !list_empty(&hb->flushes);
}

/**
 * hbone_free() - End all tunnels, and free what they share
 * @hb:		Tunnels, of no pool or listener any more
 */
void hbone_free(struct hbone *hb)
{
	uint32_t id;

	shaker_stop(&hb->shaker);
	while ((id = ids_any(&hb->tunnels))) {
		struct tunnel *t = ids_get(&hb->tunnels, id);

		tunnel_doom(t, VU_REASON_DRAINED, 0);
		tunnel_end(t);
	}
	while ((id = ids_any(&hb->tls)))
		tls_context_unref(ids_del(&hb->tls, id));
	while ((id = ids_any(&hb->headers)))
		headers_unref(ids_del(&hb->headers, id));
	answers_free(&hb->answers);
	ids_free(&hb->tunnels);
	ids_free(&hb->headers);
	ids_free(&hb->pools);
	ids_free(&hb->tls);
	shaker_free(&hb->shaker);
	buffers_free(&hb->buffers);
	hb->core->hbone = NULL;
	free(hb);
}
