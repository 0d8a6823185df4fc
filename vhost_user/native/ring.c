// SPDX-License-Identifier: Apache-2.0
/*
 * ring.c - the device side of a split virtqueue
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 2.7 "Split Virtqueues". The driver puts descriptor chains
 * on the available ring; vu_ring_pop() takes one, copies each descriptor once
 * and checks the copy, so that a guest that rewrites a descriptor meanwhile
 * changes nothing. vu_ring_push() puts a finished chain on the used ring, and
 * vu_ring_flush() makes all of them visible with one store and decides on one
 * interrupt for the batch. A chain that was popped but not needed goes back
 * with vu_ring_unpop(): nothing of it is visible to the driver.
 *
 * Notifications (section 2.7.7 and 2.7.10): the driver kicks only while
 * vu_ring_want_kicks(true) was the last word. With EVENT_IDX that means writing
 * avail_event = the next index; "false" then costs nothing, since a stale
 * avail_event lies behind the driver. Asking for kicks and looking once more
 * must be ordered by a full barrier, or a kick is lost; so must publishing
 * the used index and reading used_event.
 *
 * A driver that breaks a rule gets -VU_ERR_RING or -VU_ERR_CHAIN; the caller
 * stops the queue.
 */

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/virtio_ring.h>

#include "mem.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	      "rings are little-endian; this code does not swap");
static_assert(sizeof(struct vring_desc) == 16, "VIRTIO 1.2 section 2.7.5");
static_assert(sizeof(struct vring_used_elem) == 8, "VIRTIO 1.2 section 2.7.8");

struct vu_ring {
	const struct vu_mem *mem;
	const struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint32_t num;
	uint16_t last_avail;
	uint16_t used_idx;	 /* next used entry, ours alone */
	uint16_t used_published; /* what the driver sees */
	unsigned unflushed;	 /* segments of chains between the two */
	bool event_idx;
	bool indirect;
	int call_fd;
	uint64_t log_used; /* the used ring's place in the log */
};

/**
 * map_ring() - Find one of the three parts of a ring
 * @mem:	Memory map
 * @uva:	The front-end's address of it
 * @len:	Its size, bytes
 * @align:	Its alignment, bytes (VIRTIO 1.2 section 2.7)
 * @ret_va:	Our address of it
 *
 * Returns: 0 on success,
 *	-VU_ERR_RANGE, if it isn't in guest memory as one piece
 *	-VU_ERR_RING, if it isn't aligned
 */
static int map_ring(const struct vu_mem *mem, uint64_t uva, uint64_t len,
		    uint64_t align, void **ret_va)
{
	uint64_t got = len;
	int err = vu_mem_translate_uva(mem, uva, &got, ret_va);

	if (err)
		return err;
	if (got < len)
		return -VU_ERR_RANGE;
	return (uintptr_t)*ret_va % align ? -VU_ERR_RING : 0;
}

/**
 * vu_ring_new() - Start a ring
 * @mem:	Memory map; outlives the ring
 * @cfg:	Where the ring is
 * @ret_err:	On failure -VU_ERR_INVAL (size), -VU_ERR_RANGE or -VU_ERR_RING
 *		(addresses), -VU_ERR_NOMEM, -VU_ERR_FAULT
 *
 * Returns: the ring, to be freed with vu_ring_free(), or NULL
 */
struct vu_ring *vu_ring_new(const struct vu_mem *mem,
			    const struct vu_ring_config *cfg, int *ret_err)
{
	uint64_t num = cfg->num;
	struct vu_ring *ring;
	void *desc = NULL, *avail = NULL, *used = NULL;
	int err;

	if (num == 0 || num > VU_MAX_QUEUE || (num & (num - 1))) {
		*ret_err = -VU_ERR_INVAL;
		return NULL;
	}
	/* each of avail and used has an event index behind its entries */
	err = map_ring(mem, cfg->desc_uva, 16 * num, 16, &desc);
	if (!err)
		err = map_ring(mem, cfg->avail_uva, 6 + 2 * num, 2, &avail);
	if (!err)
		err = map_ring(mem, cfg->used_uva, 6 + 8 * num, 4, &used);
	ring = err ? NULL : malloc(sizeof(*ring));
	if (!ring) {
		*ret_err = err ? err : -VU_ERR_NOMEM;
		return NULL;
	}

	*ring = (struct vu_ring){
	    .mem = mem,
	    .desc = desc,
	    .avail = avail,
	    .used = used,
	    .num = cfg->num,
	    .last_avail = cfg->base,
	    .event_idx = cfg->features >> VIRTIO_RING_F_EVENT_IDX & 1,
	    .indirect = cfg->features >> VIRTIO_RING_F_INDIRECT_DESC & 1,
	    .call_fd = cfg->call_fd,
	    .log_used = cfg->log_used_gpa,
	};
	/* The front-end may hand over a ring that was in use: go on there */
	ring->used_idx = __atomic_load_n(&ring->used->idx, __ATOMIC_RELAXED);
	ring->used_published = ring->used_idx;
	if (vu_mem_faulted(mem)) {
		free(ring);
		*ret_err = -VU_ERR_FAULT;
		return NULL;
	}
	return ring;
}

/**
 * vu_ring_free() - Free a ring; the guest's memory stays as it is
 * @ring:	Ring, or NULL
 */
void vu_ring_free(struct vu_ring *ring)
{
	free(ring);
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
 * add_segment() - Translate one descriptor's buffer onto an iovec
 * @ring:	Ring
 * @desc:	Descriptor, our copy
 * @iov:	Free entries
 * @iov_cap:	How many
 *
 * Returns: entries used, more than one where regions meet,
 *	-VU_ERR_RANGE, if part of the buffer isn't guest memory
 *	-VU_ERR_FULL, if @iov has no room
 */
static int add_segment(const struct vu_ring *ring,
		       const struct vring_desc *desc, struct iovec *iov,
		       unsigned iov_cap)
{
	uint64_t gpa = desc->addr, left = desc->len;
	unsigned n = 0;

	while (left) {
		uint64_t span = left;
		void *va;
		int err = vu_mem_translate(ring->mem, gpa, &span, &va);

		if (err)
			return err;
		if (n == iov_cap)
			return -VU_ERR_FULL;
		iov[n++] = (struct iovec){.iov_base = va, .iov_len = span};
		gpa += span;
		left -= span;
	}
	return (int)n;
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
 * Spec: VIRTIO 1.2 section 2.7.5.3 "Indirect Descriptors": only if
 * negotiated, never nested, never with NEXT, a whole number of entries.
 *
 * Returns: 0, or -VU_ERR_CHAIN
 */
static int enter_indirect(const struct vu_ring *ring,
			  const struct vring_desc *desc, struct table *table)
{
	uint64_t len = desc->len;
	void *va;

	if (!ring->indirect || table->indirect ||
	    (desc->flags & VRING_DESC_F_NEXT) || len % 16 || len == 0 ||
	    len / 16 > VU_MAX_QUEUE)
		return -VU_ERR_CHAIN;
	if (vu_mem_translate(ring->mem, desc->addr, &len, &va) ||
	    len < desc->len || (uintptr_t)va % 8)
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
	struct vu_chain chain = {.head = head};
	unsigned steps = 0, used = 0;
	uint32_t index = head;

	for (;;) {
		struct vring_desc desc = load_desc(table.desc, index);
		int n;

		if (desc.flags & VRING_DESC_F_INDIRECT) {
			n = enter_indirect(ring, &desc, &table);
			if (n)
				return n;
			index = 0;
			steps = 0;
			continue;
		}
		/* a chain as long as its table must end; else it loops */
		if (++steps > table.num)
			return -VU_ERR_CHAIN;
		n = add_segment(ring, &desc, iov + used, iov_cap - used);
		if (n < 0)
			return n;
		used += (unsigned)n;
		if (desc.flags & VRING_DESC_F_WRITE) {
			chain.n_write = (uint16_t)(chain.n_write + n);
			chain.write_len += desc.len;
		} else if (chain.n_write) { /* section 2.7.4.2: reads first */
			return -VU_ERR_CHAIN;
		} else {
			chain.n_read = (uint16_t)(chain.n_read + n);
			chain.read_len += desc.len;
		}
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
 * vu_ring_pop() - Take the next available chain
 * @ring:	Ring
 * @iov:	Where its segments go, device-readable first
 * @iov_cap:	Entries of @iov
 * @ret_chain:	The chain
 *
 * Returns: 1 if there was one, 0 if the ring is empty,
 *	-VU_ERR_FULL, if @iov is too short: the chain stays on the ring
 *	-VU_ERR_RING, if the available ring is broken
 *	-VU_ERR_CHAIN, -VU_ERR_RANGE, if the chain is
 */
int vu_ring_pop(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		struct vu_chain *ret_chain)
{
	uint16_t avail = __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE);
	uint16_t waiting = (uint16_t)(avail - ring->last_avail);
	uint16_t head;
	int err;

	if (waiting == 0)
		return 0;
	if (waiting > ring->num)
		return -VU_ERR_RING;
	head = __atomic_load_n(
	    &ring->avail->ring[ring->last_avail & (ring->num - 1)],
	    __ATOMIC_RELAXED);
	if (head >= ring->num)
		return -VU_ERR_RING;
	err = walk(ring, head, iov, iov_cap, ret_chain);
	if (err)
		return err;
	ring->last_avail++;
	return 1;
}

/**
 * vu_ring_unpop() - Put the last chains back
 * @ring:	Ring
 * @count:	How many of the chains popped last, not pushed yet
 */
void vu_ring_unpop(struct vu_ring *ring, unsigned count)
{
	ring->last_avail = (uint16_t)(ring->last_avail - count);
}

/**
 * log_used() - Mark a part of the used ring that was written
 * @ring:	Ring
 * @part:	It, in our address space
 * @len:	Its size, bytes
 */
static void log_used(const struct vu_ring *ring, const void *part, uint64_t len)
{
	uint64_t off = (uintptr_t)part - (uintptr_t)ring->used;

	if (ring->mem->log && ring->log_used <= UINT64_MAX - off - len)
		mem_log(ring->mem, ring->log_used + off, len);
}

/**
 * log_written() - Mark what a device wrote into a chain
 * @ring:	Ring
 * @iov:	The chain's device-writable segments
 * @n:		How many
 * @len:	Bytes written, from the start of the first
 */
static void log_written(const struct vu_ring *ring, const struct iovec *iov,
			unsigned n, uint64_t len)
{
	for (unsigned i = 0; i < n && len; i++) {
		uint64_t span = len < iov[i].iov_len ? len : iov[i].iov_len;

		mem_log_va(ring->mem, iov[i].iov_base, span);
		len -= span;
	}
}

/**
 * vu_ring_push() - Put a chain on the used ring, not visible yet
 * @ring:	Ring
 * @chain:	The chain
 * @written:	Its device-writable segments; NULL if @len is 0
 * @len:	Bytes written into them, for the driver and the dirty log
 */
void vu_ring_push(struct vu_ring *ring, const struct vu_chain *chain,
		  const struct iovec *written, uint32_t len)
{
	struct vring_used_elem *elem =
	    &ring->used->ring[ring->used_idx & (ring->num - 1)];
	unsigned segments = (unsigned)chain->n_read + chain->n_write;

	elem->id = chain->head;
	elem->len = len;
	ring->used_idx++;
	ring->unflushed += segments ? segments : 1;
	if (ring->mem->log) {
		log_used(ring, elem, sizeof(*elem));
		log_written(ring, written, chain->n_write, len);
	}
}

/**
 * vu_ring_unflushed() - How much was pushed that the driver doesn't see?
 * @ring:	Ring
 *
 * Returns: about so many descriptors
 */
unsigned vu_ring_unflushed(const struct vu_ring *ring)
{
	return ring->unflushed;
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
	return (uint16_t)(ring->used_idx - event - 1) <
	       (uint16_t)(ring->used_idx - old);
}

/**
 * vu_ring_flush() - Publish what was pushed, interrupt the guest if it asks
 * @ring:	Ring
 *
 * Returns: 1 if an interrupt was sent, else 0. A call eventfd that can't be
 * written (its counter is full) has an interrupt pending anyway.
 */
int vu_ring_flush(struct vu_ring *ring)
{
	const uint64_t one = 1;
	uint16_t old = ring->used_published;

	if (ring->used_idx == old)
		return 0;
	__atomic_store_n(&ring->used->idx, ring->used_idx, __ATOMIC_RELEASE);
	ring->used_published = ring->used_idx;
	ring->unflushed = 0;
	log_used(ring, &ring->used->idx, sizeof(ring->used->idx));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!wants_call(ring, old) || ring->call_fd < 0)
		return 0;
	while (write(ring->call_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	return 1;
}

/**
 * vu_ring_pending() - Is there a chain to pop?
 * @ring:	Ring
 *
 * Returns: true if there is; one load, made for spinning
 */
bool vu_ring_pending(const struct vu_ring *ring)
{
	return __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE) !=
	       ring->last_avail;
}

/**
 * vu_ring_want_kicks() - Ask the driver for kicks, or for none
 * @ring:	Ring
 * @want:	Ask for them
 *
 * Returns: true if a chain is available after all: a kick for it may never
 * come, so pop it now
 */
bool vu_ring_want_kicks(struct vu_ring *ring, bool want)
{
	if (ring->event_idx) {
		if (want) {
			uint16_t *avail_event =
			    (uint16_t *)(void *)&ring->used->ring[ring->num];

			__atomic_store_n(avail_event, ring->last_avail,
					 __ATOMIC_RELAXED);
			log_used(ring, avail_event, sizeof(*avail_event));
		}
	} else {
		__atomic_store_n(&ring->used->flags,
				 want ? 0 : VRING_USED_F_NO_NOTIFY,
				 __ATOMIC_RELAXED);
		log_used(ring, &ring->used->flags, sizeof(ring->used->flags));
	}
	if (!want)
		return false;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return vu_ring_pending(ring);
}

/**
 * vu_ring_set_call() - Change the eventfd that interrupts the guest
 * @ring:	Ring
 * @call_fd:	eventfd, or -1
 */
void vu_ring_set_call(struct vu_ring *ring, int call_fd)
{
	ring->call_fd = call_fd;
}

/**
 * vu_ring_num() - How many entries a ring has
 * @ring:	Ring
 *
 * Returns: entries
 */
uint32_t vu_ring_num(const struct vu_ring *ring)
{
	return ring->num;
}

/**
 * vu_ring_base() - Where the next chain will be taken from
 * @ring:	Ring, all popped chains pushed
 *
 * Returns: index for VHOST_USER_GET_VRING_BASE
 */
uint16_t vu_ring_base(const struct vu_ring *ring)
{
	return ring->last_avail;
}
