// SPDX-License-Identifier: Apache-2.0
/*
 * inflight.c - chains that outlive this process
 *
 * Theory of operation
 * ===================
 *
 * vhost-user, "Inflight I/O tracking": the front-end keeps an area of shared
 * memory for us. A chain is noted there when it is popped and crossed out when
 * the driver has seen it used, so that a back-end that was killed in between
 * is followed by one that does it again: ring_retake() hands those chains out
 * first, in the order in which they were popped.
 *
 * We can be killed between any two stores. Stores are made in the order of the
 * specification (they are atomic with release, which is a compiler's matter
 * on our side), and the two kinds' recover() mend what the last batch left
 * undone.
 *
 * The area is the front-end's memory. Like the guest's, what it says is copied
 * once and checked. It may also lose its file: it is guarded (fault.c).
 */

#include <stdlib.h>

#include "ring/inflight.h"

#define ALIGN 64 /* of one queue's part */

/**
 * inflight_area_size() - How large is a ring's part of the inflight area?
 * @num:	Entries of the ring
 * @packed:	It is a packed one
 *
 * Returns: bytes
 */
uint64_t inflight_area_size(uint32_t num, bool packed)
{
	return packed ? sizeof(struct packed_area) +
			    num * sizeof(struct packed_state)
		      : sizeof(struct split_area) +
			    num * sizeof(struct desc_state);
}

uint64_t vu_inflight_size(uint32_t num, bool packed)
{
	return (inflight_area_size(num, packed) + ALIGN - 1) &
	       ~(uint64_t)(ALIGN - 1);
}

/**
 * by_counter() - qsort()'s order of struct found
 * @a:		One
 * @b:		Another
 *
 * Returns: less than 0, 0, more than 0
 */
static int by_counter(const void *a, const void *b)
{
	const struct found *x = a, *y = b;

	return (x->counter > y->counter) - (x->counter < y->counter);
}

/**
 * resubmit() - Have chains in flight popped first, oldest first
 * @ring:	Ring
 * @found:	They; sorted afterwards
 * @n:		How many
 */
static void resubmit(struct vu_ring *ring, struct found *found, unsigned n)
{
	qsort(found, n, sizeof(*found), by_counter);
	for (unsigned i = 0; i < n; i++)
		ring->taken[i] = found[i].taken;
	ring->resubmit = n;
	ring->counter = n ? found[n - 1].counter + 1 : 0;
}

/**
 * inflight_start() - Go on where the last back-end was
 * @ring:	Ring, started
 * @cfg:	Its part of the area, mapped until the ring is freed
 * @recover:	Finds what the last back-end left undone: fills in the chains in
 *		flight, for which there is room, and returns how many
 *
 * Returns: 0,
 *	-VU_ERR_INVAL, if the part is too small or not aligned
 *	-VU_ERR_NOMEM, -VU_ERR_SYS
 */
int inflight_start(struct vu_ring *ring, const struct vu_ring_config *cfg,
		   unsigned (*recover)(struct vu_ring *ring,
				       struct found *found))
{
	uint64_t need = inflight_area_size(ring->num, ring->packed);
	struct found *found;
	int err;

	if (cfg->inflight_size < need || (uintptr_t)cfg->inflight % 8)
		return -VU_ERR_INVAL;
	found = malloc(ring->num * sizeof(*found));
	if (!found)
		return -VU_ERR_NOMEM;
	err = fault_guard(ring->mem, cfg->inflight, need);
	if (!err) {
		ring->inflight = cfg->inflight;
		resubmit(ring, found, recover(ring, found));
	}
	free(found);
	return err;
}

/**
 * inflight_stop() - Let go of the area; what is in flight stays there
 * @ring:	Ring
 */
void inflight_stop(struct vu_ring *ring)
{
	if (ring->inflight)
		fault_unguard(ring->mem, ring->inflight);
	ring->inflight = NULL;
}
