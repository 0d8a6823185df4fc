// SPDX-License-Identifier: Apache-2.0
/*
 * packed_walk.c - a packed ring's chains: copied, checked, translated
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 2.8: a chain is consecutive descriptors of the ring, or
 * one that refers to an indirect table. Each is copied once, and only the copy
 * counts: it may be overwritten by a used descriptor later, and by a hostile
 * driver at any time. A chain that was in flight when the last back-end died is
 * read from the inflight area's copies instead.
 *
 * A hostile driver could make descriptors available again before it gets them
 * back: more slots at once than the ring has are refused.
 */

#include <string.h>

#include "ring/inflight.h"
#include "ring/ring.h"

/**
 * load_desc() - Copy one descriptor, once
 * @from:	Descriptor, shared with the guest
 *
 * Flags are in the second half, which is read first, with acquire: what they
 * say holds for the first half too.
 *
 * Returns: the copy
 */
static struct vring_packed_desc load_desc(const struct vring_packed_desc *from)
{
	const uint64_t *src = (const uint64_t *)(const void *)from;
	struct vring_packed_desc desc;
	uint64_t raw[2];

	raw[1] = __atomic_load_n(&src[1], __ATOMIC_ACQUIRE);
	raw[0] = __atomic_load_n(&src[0], __ATOMIC_RELAXED);
	memcpy(&desc, raw, sizeof(desc));
	return desc;
}

/**
 * add_table() - Add an indirect table to a chain
 * @ring:	Ring
 * @desc:	The descriptor that refers to it, our copy
 * @iov:	The chain's segments
 * @iov_cap:	Room in @iov
 * @chain:	The chain
 *
 * Spec: VIRTIO 1.2 section 2.8.7: all of its entries, in order; of their flags
 * only WRITE counts, and of @desc's it doesn't.
 *
 * Returns: 0; -VU_ERR_CHAIN, -VU_ERR_RANGE, -VU_ERR_FULL
 */
static int add_table(const struct vu_ring *ring,
		     const struct vring_packed_desc *desc, struct iovec *iov,
		     unsigned iov_cap, struct vu_chain *chain)
{
	const struct vring_packed_desc *table;
	const void *va;

	if ((desc->flags & VRING_DESC_F_NEXT) ||
	    ring_table(ring, desc->addr, desc->len, &va))
		return -VU_ERR_CHAIN;
	table = va;
	for (uint32_t i = 0; i < desc->len / 16; i++) {
		struct vring_packed_desc entry = load_desc(&table[i]);
		int err;

		err = ring_segment(ring, entry.addr, entry.len,
				   entry.flags & VRING_DESC_F_WRITE, iov,
				   iov_cap, chain);
		if (err)
			return err;
	}
	return 0;
}

/**
 * add_desc() - Add a descriptor of the ring to a chain
 * @ring:	Ring
 * @desc:	Descriptor, our copy
 * @iov:	The chain's segments
 * @iov_cap:	Room in @iov
 * @chain:	The chain
 *
 * Returns: 0; -VU_ERR_CHAIN, -VU_ERR_RANGE, -VU_ERR_FULL
 */
static int add_desc(const struct vu_ring *ring,
		    const struct vring_packed_desc *desc, struct iovec *iov,
		    unsigned iov_cap, struct vu_chain *chain)
{
	chain->head = desc->id; /* the last one's is the buffer's id */
	chain->slots++;
	if (desc->flags & VRING_DESC_F_INDIRECT)
		return add_table(ring, desc, iov, iov_cap, chain);
	return ring_segment(ring, desc->addr, desc->len,
			    desc->flags & VRING_DESC_F_WRITE, iov, iov_cap,
			    chain);
}

/**
 * packed_walk() - Copy, check and translate the next available chain
 * @ring:	Ring
 * @iov:	Free entries
 * @iov_cap:	How many
 * @chain:	The chain, empty
 *
 * Returns: 1, 0 if there is none; -VU_ERR_RING, -VU_ERR_CHAIN, -VU_ERR_RANGE,
 * -VU_ERR_FULL
 */
int packed_walk(const struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		struct vu_chain *chain)
{
	struct place at = ring->next;
	struct vring_packed_desc desc = load_desc(&ring->packed[at.index]);

	if (!desc_avail(desc.flags, at.wrap))
		return 0;
	for (;;) {
		int err;

		/* what was pushed isn't the driver's yet, either */
		if (chain->slots + ring->batch_slots >=
		    ring->num - ring->in_use)
			return -VU_ERR_RING;
		err = add_desc(ring, &desc, iov, iov_cap, chain);
		if (err)
			return err;
		if (!(desc.flags & VRING_DESC_F_NEXT))
			return 1;
		at = place_add(ring, at, 1);
		desc = load_desc(&ring->packed[at.index]);
	}
}

/**
 * packed_walk_inflight() - The same for a chain that the inflight area has
 * @ring:	Ring
 * @iov:	Free entries
 * @iov_cap:	How many
 * @chain:	The chain, empty
 *
 * Returns: 1; -VU_ERR_RING, -VU_ERR_CHAIN, -VU_ERR_RANGE, -VU_ERR_FULL
 */
int packed_walk_inflight(const struct vu_ring *ring, struct iovec *iov,
			 unsigned iov_cap, struct vu_chain *chain)
{
	struct taken taken = ring_retake(ring);
	uint16_t entry = taken.entry;

	chain->entry = taken.entry;
	for (unsigned i = 0; i < taken.slots; i++) {
		struct vring_packed_desc desc;
		int err = inflight_packed_copy(ring, &entry, &desc);

		if (!err)
			err = add_desc(ring, &desc, iov, iov_cap, chain);
		if (err)
			return err;
	}
	return 1;
}
