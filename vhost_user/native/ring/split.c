// SPDX-License-Identifier: Apache-2.0
/*
 * split.c - split virtqueues
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 2.7 "Split Virtqueues": a table of descriptors, and two
 * rings of indices into it. Chains become available by the driver's store to
 * the available index and used by ours to the used index.
 *
 * Suppression (sections 2.7.7 and 2.7.10): with EVENT_IDX, asking for kicks is
 * writing avail_event = the next index; asking for none then costs nothing,
 * since a stale avail_event lies behind the driver.
 */

#include <assert.h>
#include <string.h>

#include "ring/inflight.h"
#include "ring/ring.h"

static_assert(sizeof(struct vring_desc) == 16, "VIRTIO 1.2 section 2.7.5");
static_assert(sizeof(struct vring_used_elem) == 8, "VIRTIO 1.2 section 2.7.8");

/**
 * split_start() - Start a split ring
 * @ring:	Ring
 * @cfg:	Where it is
 *
 * Returns: as vu_ring_new()
 */
static int split_start(struct vu_ring *ring, const struct vu_ring_config *cfg)
{
	uint64_t num = cfg->num;
	void *desc, *avail, *used;
	int err;

	if (num & (num - 1))
		return -VU_ERR_INVAL;
	/* each of avail and used has an event index behind its entries */
	err = ring_map(ring->mem, cfg->desc_uva, 16 * num, 16, &desc);
	if (!err)
		err =
		    ring_map(ring->mem, cfg->avail_uva, 6 + 2 * num, 2, &avail);
	if (!err)
		err = ring_map(ring->mem, cfg->used_uva, 6 + 8 * num, 4, &used);
	if (err)
		return err;
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	ring->shared = used;
	ring->last_avail = (uint16_t)cfg->base;
	/* The front-end may hand over a ring that was in use: go on there */
	ring->used_idx = __atomic_load_n(&ring->used->idx, __ATOMIC_RELAXED);
	ring->used_published = ring->used_idx;
	return cfg->inflight ? inflight_split_start(ring, cfg) : 0;
}

/**
 * load_desc() - Copy one descriptor, once
 * @table:	Descriptor table, shared with the guest
 * @index:	Entry, checked by the caller
 *
 * Two 64-bit loads: the compiler may not read the guest's memory again.
 *
 * Returns: the copy
 */
static struct vring_desc load_desc(const struct vring_desc *table,
				   uint32_t index)
{
	const uint64_t *src = (const uint64_t *)(const void *)&table[index];
	uint64_t raw[2] = {
	    __atomic_load_n(&src[0], __ATOMIC_RELAXED),
	    __atomic_load_n(&src[1], __ATOMIC_RELAXED),
	};
	struct vring_desc desc;

	memcpy(&desc, raw, sizeof(desc));
	return desc;
}

/**
 * struct table - Descriptors that a chain walks: the ring's, or an indirect one
 * @desc:	First entry
 * @num:	Entries
 * @indirect:	It is an indirect table
 */
struct table {
	const struct vring_desc *desc;
	uint32_t num;
	bool indirect;
};

/**
 * enter_indirect() - Follow a descriptor that refers to an indirect table
 * @ring:	Ring
 * @desc:	That descriptor, our copy
 * @table:	In: where it was found. Out: the indirect table
 *
 * Spec: VIRTIO 1.2 section 2.7.5.3 "Indirect Descriptors": never nested, never
 * with NEXT.
 *
 * Returns: 0, or -VU_ERR_CHAIN
 */
static int enter_indirect(const struct vu_ring *ring,
			  const struct vring_desc *desc, struct table *table)
{
	const void *va;

	if (table->indirect || (desc->flags & VRING_DESC_F_NEXT) ||
	    ring_table(ring, desc->addr, desc->len, &va))
		return -VU_ERR_CHAIN;
	*table = (struct table){.desc = va, .num = desc->len / 16, true};
	return 0;
}

/**
 * walk() - Copy, check and translate one chain
 * @ring:	Ring
 * @head:	First descriptor, checked
 * @iov:	Free entries
 * @iov_cap:	How many
 * @ret_chain:	The chain
 *
 * Returns: 0 on success; -VU_ERR_CHAIN, -VU_ERR_RANGE, -VU_ERR_FULL
 */
static int walk(const struct vu_ring *ring, uint16_t head, struct iovec *iov,
		unsigned iov_cap, struct vu_chain *ret_chain)
{
	struct table table = {.desc = ring->desc, .num = ring->num};
	struct vu_chain chain = {.head = head, .slots = 1};
	uint32_t index = head;
	unsigned steps = 0;

	for (;;) {
		struct vring_desc desc = load_desc(table.desc, index);
		int err;

		if (desc.flags & VRING_DESC_F_INDIRECT) {
			err = enter_indirect(ring, &desc, &table);
			if (err)
				return err;
			index = 0;
			steps = 0;
			continue;
		}
		/* a chain as long as its table must end; else it loops */
		if (++steps > table.num)
			return -VU_ERR_CHAIN;
		err = ring_segment(ring, desc.addr, desc.len,
				   desc.flags & VRING_DESC_F_WRITE, iov,
				   iov_cap, &chain);
		if (err)
			return err;
		if (!(desc.flags & VRING_DESC_F_NEXT))
			break;
		index = desc.next;
		if (index >= table.num)
			return -VU_ERR_CHAIN;
	}
	*ret_chain = chain;
	return 0;
}

/**
 * next_head() - Look at the next entry of the available ring
 * @ring:	Ring
 * @ret_head:	First descriptor of its chain
 *
 * Returns: 1, 0 if there is none, -VU_ERR_RING
 */
static int next_head(const struct vu_ring *ring, uint16_t *ret_head)
{
	uint16_t avail = __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE);
	uint16_t waiting = (uint16_t)(avail - ring->last_avail);
	uint16_t head;

	if (waiting == 0)
		return 0;
	if (waiting > ring->num)
		return -VU_ERR_RING;
	head = __atomic_load_n(
	    &ring->avail->ring[ring->last_avail & (ring->num - 1)],
	    __ATOMIC_RELAXED);
	if (head >= ring->num)
		return -VU_ERR_RING;
	*ret_head = head;
	return 1;
}

/**
 * split_pop() - vu_ring_pop() of a split ring
 * @ring:	Ring
 * @iov:	Where its segments go
 * @iov_cap:	Entries of @iov
 * @ret_chain:	The chain
 *
 * Returns: as vu_ring_pop()
 */
static int split_pop(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		     struct vu_chain *ret_chain)
{
	uint16_t head;
	int ret = 1;

	if (ring->resubmit)
		head = ring_retake(ring).entry;
	else
		ret = next_head(ring, &head);
	if (ret <= 0)
		return ret;
	ret = walk(ring, head, iov, iov_cap, ret_chain);
	if (!ret && ring->inflight)
		ret = inflight_split_take(ring, head);
	if (ret)
		return ret;
	ring->last_avail++;
	return 1;
}

/**
 * split_unpop() - vu_ring_unpop() of a split ring
 * @ring:	Ring
 * @count:	How many chains
 *
 * With an inflight area they stay in flight, and are popped first.
 */
static void split_unpop(struct vu_ring *ring, unsigned count)
{
	ring->last_avail = (uint16_t)(ring->last_avail - count);
	if (ring->inflight) {
		ring->pops -= count;
		ring->resubmit += count;
	}
}

/**
 * split_push() - vu_ring_push() of a split ring
 * @ring:	Ring
 * @chain:	The chain
 * @len:	Bytes written into it
 */
static void split_push(struct vu_ring *ring, const struct vu_chain *chain,
		       uint32_t len)
{
	struct vring_used_elem *elem =
	    &ring->used->ring[ring->used_idx & (ring->num - 1)];

	elem->id = chain->head;
	elem->len = len;
	ring->used_idx++;
	if (ring->inflight)
		inflight_split_give(ring, chain->head);
	if (ring->mem->log)
		ring_log(ring, elem, sizeof(*elem));
}

/**
 * wants_call() - Does the driver want an interrupt for what was published?
 * @ring:	Ring
 * @old:	Used index that it saw before
 *
 * Spec: VIRTIO 1.2 section 2.7.7.2 and 2.7.10.
 *
 * Returns: true if it does
 */
static bool wants_call(const struct vu_ring *ring, uint16_t old)
{
	uint16_t event;

	if (!ring->event_idx)
		return !(
		    __atomic_load_n(&ring->avail->flags, __ATOMIC_RELAXED) &
		    VRING_AVAIL_F_NO_INTERRUPT);
	event =
	    __atomic_load_n(&ring->avail->ring[ring->num], __ATOMIC_RELAXED);
	return vring_need_event(event, ring->used_idx, old);
}

/**
 * split_flush() - vu_ring_flush() of a split ring
 * @ring:	Ring
 *
 * Returns: as vu_ring_flush()
 */
static int split_flush(struct vu_ring *ring)
{
	uint16_t old = ring->used_published;

	if (ring->used_idx == old)
		return 0;
	__atomic_store_n(&ring->used->idx, ring->used_idx, __ATOMIC_RELEASE);
	ring->used_published = ring->used_idx;
	ring->unflushed = 0;
	if (ring->inflight)
		inflight_split_commit(ring, (uint16_t)(ring->used_idx - old));
	if (ring->mem->log)
		ring_log(ring, &ring->used->idx, sizeof(ring->used->idx));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (ring->call_fd < 0 || !wants_call(ring, old))
		return 0;
	return ring_call(ring);
}

/**
 * split_pending() - vu_ring_pending() of a split ring
 * @ring:	Ring
 *
 * Returns: as vu_ring_pending()
 */
static bool split_pending(const struct vu_ring *ring)
{
	return __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE) !=
	       ring->last_avail;
}

/**
 * split_want_kicks() - vu_ring_want_kicks() of a split ring
 * @ring:	Ring
 * @want:	Ask for them
 *
 * Returns: as vu_ring_want_kicks()
 */
static bool split_want_kicks(struct vu_ring *ring, bool want)
{
	uint16_t *at = &ring->used->flags, value = 0;

	if (ring->event_idx) {
		at = (uint16_t *)(void *)&ring->used->ring[ring->num];
		value = ring->last_avail;
	} else if (!want) {
		value = VRING_USED_F_NO_NOTIFY;
	}
	if (want || !ring->event_idx) {
		__atomic_store_n(at, value, __ATOMIC_RELAXED);
		if (ring->mem->log)
			ring_log(ring, at, sizeof(*at));
	}
	if (!want)
		return false;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return split_pending(ring);
}

/**
 * split_base() - vu_ring_base() of a split ring
 * @ring:	Ring
 *
 * Returns: as vu_ring_base()
 */
static uint32_t split_base(const struct vu_ring *ring)
{
	return ring->last_avail;
}

const struct ring_ops split_ops = {
    .start = split_start,
    .pop = split_pop,
    .unpop = split_unpop,
    .push = split_push,
    .flush = split_flush,
    .pending = split_pending,
    .want_kicks = split_want_kicks,
    .base = split_base,
};
