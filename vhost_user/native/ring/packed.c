// SPDX-License-Identifier: Apache-2.0
/*
 * packed.c - packed virtqueues
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 2.8 "Packed Virtqueues": one ring of descriptors, which
 * both sides write. A descriptor's two flags, compared with a counter that
 * flips each time round, say whose it is. A chain is consecutive descriptors
 * and is given back as one: we write the used descriptor where the oldest that
 * we have began, and go on behind as many as the chain had. So what a popped
 * chain said may be overwritten: only our copy counts.
 *
 * A batch becomes visible by the flags of its first used descriptor, which are
 * written last: the driver looks no further than the first that isn't used.
 *
 * A hostile driver could make descriptors available again before it gets them
 * back: more slots at once than the ring has are refused.
 */

#include <assert.h>
#include <string.h>

#include "ring/inflight.h"
#include "ring/ring.h"

static_assert(sizeof(struct vring_packed_desc) == 16, "VIRTIO 1.2 section 2.8");

/**
 * packed_start() - Start a packed ring
 * @ring:	Ring
 * @cfg:	Where it is: @avail_uva is the driver's event suppression,
 *		@used_uva the device's
 *
 * Returns: as vu_ring_new()
 */
static int packed_start(struct vu_ring *ring, const struct vu_ring_config *cfg)
{
	void *desc, *driver, *device;
	unsigned next, used;
	int err;

	err = ring_map(ring->mem, cfg->desc_uva, 16 * (uint64_t)cfg->num, 16,
		       &desc);
	if (!err)
		err = ring_map(ring->mem, cfg->avail_uva, 4, 4, &driver);
	if (!err)
		err = ring_map(ring->mem, cfg->used_uva, 4, 4, &device);
	if (err)
		return err;
	ring->packed = desc;
	ring->driver = driver;
	ring->device = device;
	ring->shared = device;
	ring->next = place_at(cfg->base);
	ring->used_next = place_at(cfg->base >> 16);
	if (ring->next.index >= ring->num || ring->used_next.index >= ring->num)
		return -VU_ERR_RING;
	/* what lies between was popped by someone else, and never comes back */
	next = ring->next.index;
	used = ring->used_next.index;
	if (ring->next.wrap != ring->used_next.wrap)
		next += ring->num;
	if (next < used || next - used > ring->num)
		return -VU_ERR_RING;
	ring->in_use = next - used;
	return cfg->inflight ? inflight_packed_start(ring, cfg) : 0;
}

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
 * walk() - Copy, check and translate the next available chain
 * @ring:	Ring
 * @iov:	Free entries
 * @iov_cap:	How many
 * @chain:	The chain, empty
 *
 * Returns: 1, 0 if there is none; -VU_ERR_RING, -VU_ERR_CHAIN, -VU_ERR_RANGE,
 * -VU_ERR_FULL
 */
static int walk(const struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
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
 * walk_inflight() - The same for a chain that the inflight area has
 * @ring:	Ring
 * @iov:	Free entries
 * @iov_cap:	How many
 * @chain:	The chain, empty
 *
 * Returns: 1; -VU_ERR_RING, -VU_ERR_CHAIN, -VU_ERR_RANGE, -VU_ERR_FULL
 */
static int walk_inflight(const struct vu_ring *ring, struct iovec *iov,
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

/**
 * packed_pop() - vu_ring_pop() of a packed ring
 * @ring:	Ring
 * @iov:	Where its segments go
 * @iov_cap:	Entries of @iov
 * @ret_chain:	The chain
 *
 * Returns: as vu_ring_pop()
 */
static int packed_pop(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		      struct vu_chain *ret_chain)
{
	struct vu_chain chain = {0};
	int ret;

	if (ring->resubmit) {
		ret = walk_inflight(ring, iov, iov_cap, &chain);
	} else {
		ret = walk(ring, iov, iov_cap, &chain);
		if (ret > 0 && ring->inflight) {
			int err = inflight_packed_take(
			    ring, ring->next, chain.slots, &chain.entry);

			ret = err ? err : ret;
		}
	}
	if (ret <= 0)
		return ret;
	ring_took(ring, chain.entry, chain.slots);
	ring->next = place_add(ring, ring->next, chain.slots);
	ring->in_use += chain.slots;
	*ret_chain = chain;
	return 1;
}

/**
 * packed_unpop() - vu_ring_unpop() of a packed ring
 * @ring:	Ring
 * @count:	How many chains
 *
 * With an inflight area they stay in flight, and are popped first.
 */
static void packed_unpop(struct vu_ring *ring, unsigned count)
{
	if (ring->inflight)
		ring->resubmit += count;
	for (; count; count--) {
		unsigned slots = ring->taken[--ring->pops & ring->mask].slots;
		struct place back =
		    place_add(ring, ring->next, ring->num - slots);

		back.wrap = !back.wrap; /* a whole turn forward */
		ring->next = back;
		ring->in_use -= slots;
	}
}

/**
 * store_flags() - Write a used descriptor's flags
 * @ring:	Ring
 * @desc:	Descriptor, all else written
 * @flags:	Flags
 */
static void store_flags(const struct vu_ring *ring,
			struct vring_packed_desc *desc, uint16_t flags)
{
	__atomic_store_n(&desc->flags, flags, __ATOMIC_RELEASE);
	if (ring->mem->log && ring->log_used != UINT64_MAX)
		log_va(ring->mem, desc, sizeof(*desc));
}

/**
 * packed_push() - vu_ring_push() of a packed ring
 * @ring:	Ring
 * @chain:	The chain
 * @len:	Bytes written into it
 */
static void packed_push(struct vu_ring *ring, const struct vu_chain *chain,
			uint32_t len)
{
	struct vring_packed_desc *desc = &ring->packed[ring->used_next.index];
	uint16_t flags = len ? VRING_DESC_F_WRITE : 0;

	if (ring->used_next.wrap)
		flags |= DESC_AVAIL | DESC_USED;
	desc->id = chain->head;
	desc->len = len;
	if (!ring->batch_slots) {
		ring->batch_at = ring->used_next;
		ring->batch_flags = flags;
	} else if (!ring->inflight) {
		store_flags(ring, desc, flags);
	}
	if (ring->inflight)
		ring->pushed[ring->n_pushed++] = (struct pushed){
		    .entry = chain->entry,
		    .slots = chain->slots,
		    .flags = flags,
		};
	ring->batch_slots += chain->slots;
	ring->used_next = place_add(ring, ring->used_next, chain->slots);
	ring->in_use -= chain->slots;
}

/**
 * flush_inflight() - Make a batch visible, one chain after the other
 * @ring:	Ring with an inflight area
 *
 * Not all by one store: were we killed before it, the flags behind it would be
 * there, and say that chains are used which our successor has yet to push.
 */
static void flush_inflight(struct vu_ring *ring)
{
	struct place at = ring->batch_at;

	for (unsigned i = 0; i < ring->n_pushed; i++) {
		const struct pushed *p = &ring->pushed[i];
		struct place next = place_add(ring, at, p->slots);

		inflight_packed_prepare(ring, p->entry, next);
		store_flags(ring, &ring->packed[at.index], p->flags);
		inflight_packed_commit(ring, p->entry, next);
		at = next;
	}
	ring->n_pushed = 0;
}

/**
 * packed_flush() - vu_ring_flush() of a packed ring
 * @ring:	Ring
 *
 * Returns: as vu_ring_flush()
 */
static int packed_flush(struct vu_ring *ring)
{
	unsigned slots = ring->batch_slots;

	if (!slots)
		return 0;
	if (ring->inflight)
		flush_inflight(ring);
	else
		store_flags(ring, &ring->packed[ring->batch_at.index],
			    ring->batch_flags);
	ring->batch_slots = 0;
	ring->unflushed = 0;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (ring->call_fd < 0 || !packed_wants_call(ring, slots))
		return 0;
	return ring_call(ring);
}

/**
 * packed_base() - vu_ring_base() of a packed ring
 * @ring:	Ring
 *
 * Returns: as vu_ring_base()
 */
static uint32_t packed_base(const struct vu_ring *ring)
{
	return (uint32_t)ring->next.index | (uint32_t)ring->next.wrap << 15 |
	       (uint32_t)ring->used_next.index << 16 |
	       (uint32_t)ring->used_next.wrap << 31;
}

const struct ring_ops packed_ops = {
    .start = packed_start,
    .pop = packed_pop,
    .unpop = packed_unpop,
    .push = packed_push,
    .flush = packed_flush,
    .pending = packed_pending,
    .want_kicks = packed_want_kicks,
    .base = packed_base,
};
