// SPDX-License-Identifier: Apache-2.0
/*
 * inflight_split.c - chains of a split ring that outlive this process
 *
 * Theory of operation
 * ===================
 *
 * See inflight.c. A batch becomes visible by one store, of the used index.
 * When that is ahead of the area's used_idx, our predecessor was killed
 * between the two: the list from last_batch_head says which chains the batch
 * has.
 */

#include <string.h>

#include "ring/inflight.h"

/**
 * settle() - Cross out what the last batch made visible
 * @ring:	Ring
 * @area:	Its part
 *
 * Returns: false if the area isn't about this ring: it is ahead by more than
 * the ring could be
 */
static bool settle(const struct vu_ring *ring, struct split_area *area)
{
	uint16_t batch = (uint16_t)(ring->used_idx - LOAD(area->used_idx));
	uint16_t at = LOAD(area->last_batch_head);

	if (batch > ring->num)
		return false;
	for (; batch && at < ring->num; batch--) {
		STORE(area->desc[at].inflight, 0);
		at = LOAD(area->desc[at].next);
	}
	STORE(area->used_idx, ring->used_idx);
	return true;
}

/**
 * recover() - Find what a split ring's last back-end left undone
 * @ring:	Ring
 * @found:	Room for what is in flight
 *
 * Returns: chains in flight
 */
static unsigned recover(struct vu_ring *ring, struct found *found)
{
	struct split_area *area = ring->inflight;
	unsigned n = 0;

	if (LOAD(area->version) != INFLIGHT_VERSION || !settle(ring, area)) {
		memset(area, 0, inflight_area_size(ring->num, false));
		area->desc_num = (uint16_t)ring->num;
		area->used_idx = ring->used_idx;
		STORE(area->version, INFLIGHT_VERSION);
		return 0;
	}
	for (uint16_t i = 0; i < ring->num; i++) {
		if (LOAD(area->desc[i].inflight))
			found[n++] = (struct found){
			    .counter = LOAD(area->desc[i].counter),
			    .taken = {.entry = i, .slots = 1},
			};
	}
	/* whatever the front-end believes: it can't know after a crash */
	if (n)
		ring->last_avail = ring->used_idx;
	return n;
}

/**
 * inflight_split_start() - Go on where the last back-end was
 * @ring:	Split ring, started
 * @cfg:	Its part of the area
 *
 * Returns: as inflight_start()
 */
int inflight_split_start(struct vu_ring *ring, const struct vu_ring_config *cfg)
{
	return inflight_start(ring, cfg, recover);
}

/**
 * inflight_split_take() - Note that a chain was popped
 * @ring:	Ring
 * @head:	Its head
 *
 * Returns: 0, or -VU_ERR_RING, if the driver made a chain available that we
 * have
 */
int inflight_split_take(struct vu_ring *ring, uint16_t head)
{
	struct split_area *area = ring->inflight;
	struct desc_state *state = &area->desc[head];

	if (!ring->resubmit) {
		if (LOAD(state->inflight))
			return -VU_ERR_RING;
		STORE(state->counter, ring->counter++);
		STORE(state->inflight, 1);
	}
	ring_took(ring, head, 1);
	return 0;
}

/**
 * inflight_split_give() - Note that a chain was pushed
 * @ring:	Ring
 * @head:	Its head
 */
void inflight_split_give(struct vu_ring *ring, uint16_t head)
{
	struct split_area *area = ring->inflight;

	STORE(area->desc[head].next, LOAD(area->last_batch_head));
	STORE(area->last_batch_head, head);
}

/**
 * inflight_split_commit() - Cross out a batch that was made visible
 * @ring:	Ring
 * @count:	Chains in the batch
 */
void inflight_split_commit(struct vu_ring *ring, uint16_t count)
{
	struct split_area *area = ring->inflight;
	uint16_t at = LOAD(area->last_batch_head);

	for (; count && at < ring->num; count--) {
		STORE(area->desc[at].inflight, 0);
		at = LOAD(area->desc[at].next);
	}
	STORE(area->used_idx, ring->used_idx);
}
