// SPDX-License-Identifier: Apache-2.0
/*
 * packed_event.c - who wakes whom over a packed ring
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 2.8.10 "Driver and Device Event Suppression": each side
 * has a structure in which it says what it wants to hear of: everything,
 * nothing, or with EVENT_IDX that one descriptor was reached.
 */

#include <assert.h>

#include "ring/ring.h"

static_assert(sizeof(struct vring_packed_desc_event) == 4,
	      "VIRTIO 1.2 section 2.8.14");

/**
 * packed_wants_call() - Does the driver want an interrupt for a batch?
 * @ring:	Ring
 * @slots:	The batch's descriptors, which end where the next goes
 *
 * Spec: VIRTIO 1.2 section 2.8.10 "Driver and Device Event Suppression".
 *
 * Returns: true if it does
 */
bool packed_wants_call(const struct vu_ring *ring, unsigned slots)
{
	uint16_t flags =
	    __atomic_load_n(&ring->driver->flags, __ATOMIC_ACQUIRE);
	uint16_t new = ring->used_next.index;
	uint16_t off_wrap, event;

	if (flags != VRING_PACKED_EVENT_FLAG_DESC || !ring->event_idx)
		return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
	off_wrap = __atomic_load_n(&ring->driver->off_wrap, __ATOMIC_RELAXED);
	event = (uint16_t)(off_wrap & INDEX_MASK);
	if (!!(off_wrap & WRAP_BIT) != ring->used_next.wrap)
		event = (uint16_t)(event - ring->num); /* the turn before */
	return vring_need_event(event, new, (uint16_t)(new - slots));
}

/**
 * packed_pending() - vu_ring_pending() of a packed ring
 * @ring:	Ring
 *
 * Returns: as vu_ring_pending()
 */
bool packed_pending(const struct vu_ring *ring)
{
	const struct vring_packed_desc *desc = &ring->packed[ring->next.index];

	return ring->resubmit ||
	       desc_avail(__atomic_load_n(&desc->flags, __ATOMIC_ACQUIRE),
			  ring->next.wrap);
}

/**
 * store_event() - Write one half of the device's event suppression
 * @ring:	Ring
 * @at:		Which
 * @value:	Value; nothing is written if it is there already
 */
static void store_event(struct vu_ring *ring, uint16_t *at, uint16_t value)
{
	if (__atomic_load_n(at, __ATOMIC_RELAXED) == value)
		return;
	__atomic_store_n(at, value, __ATOMIC_RELEASE);
	if (ring->mem->log)
		ring_log(ring, at, sizeof(*at));
}

/**
 * packed_want_kicks() - vu_ring_want_kicks() of a packed ring
 * @ring:	Ring
 * @want:	Ask for them
 *
 * Spec: VIRTIO 1.2 section 2.8.10: with EVENT_IDX, a kick for the descriptor
 * that comes next.
 *
 * Returns: as vu_ring_want_kicks()
 */
bool packed_want_kicks(struct vu_ring *ring, bool want)
{
	uint16_t flags = VRING_PACKED_EVENT_FLAG_DISABLE;

	if (want && ring->event_idx) {
		flags = VRING_PACKED_EVENT_FLAG_DESC;
		store_event(ring, &ring->device->off_wrap,
			    (uint16_t)(ring->next.index |
				       (ring->next.wrap ? WRAP_BIT : 0)));
	} else if (want) {
		flags = VRING_PACKED_EVENT_FLAG_ENABLE;
	}
	store_event(ring, &ring->device->flags, flags);
	if (!want)
		return false;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return packed_pending(ring);
}
