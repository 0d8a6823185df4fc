/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.h - what the files of a virtqueue share; vu.h is the outside
 *
 * ring.c		the functions of vu_ring.h: dispatch to one kind of ring
 * split.c		split rings
 * packed.c		packed rings
 * packed_event.c	their event suppression
 * common.c		what both kinds do with guest memory
 * call.c		interrupts, and the watch over them
 * inflight.h		chains that outlive this process
 *
 * Calls go down this list.
 */
#ifndef RING_H
#define RING_H

#include <linux/virtio_ring.h>

#include "mem/mem.h"
#include "vu_ring.h"

/* Bit numbers that a descriptor's flags have in packed rings only */
#define DESC_AVAIL (1U << VRING_PACKED_DESC_F_AVAIL)
#define DESC_USED  (1U << VRING_PACKED_DESC_F_USED)

/* A place in 16 bits, as VRING_BASE and event suppression have it */
#define INDEX_MASK 0x7fffU
#define WRAP_BIT   0x8000U

/**
 * struct taken - A chain that was popped
 * @entry:	Split ring: its head. Packed: its entry in the inflight area
 * @slots:	Descriptors of the ring that it takes up
 */
struct taken {
	uint16_t entry;
	uint16_t slots;
};

/**
 * struct pushed - A chain of a packed ring that was pushed and isn't visible
 * @entry:	Its entry in the inflight area
 * @slots:	Descriptors of the ring that it takes up
 * @flags:	Flags for its used descriptor
 */
struct pushed {
	uint16_t entry;
	uint16_t slots;
	uint16_t flags;
};

/**
 * struct place - A position in a packed ring
 * @index:	Descriptor
 * @wrap:	The wrap counter there
 */
struct place {
	uint16_t index;
	bool wrap;
};

struct vu_ring;

/**
 * struct ring_ops - One kind of ring
 * @start:	Start it, where the last back-end was if there is an inflight
 *		area; errors as vu_ring_new()
 * @pop:	vu_ring_pop()
 * @unpop:	vu_ring_unpop()
 * @push:	vu_ring_push() without the dirty log of what was written
 * @flush:	vu_ring_flush()
 * @pending:	vu_ring_pending()
 * @want_kicks:	vu_ring_want_kicks()
 * @base:	vu_ring_base()
 */
struct ring_ops {
	int (*start)(struct vu_ring *ring, const struct vu_ring_config *cfg);
	int (*pop)(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		   struct vu_chain *ret_chain);
	void (*unpop)(struct vu_ring *ring, unsigned count);
	void (*push)(struct vu_ring *ring, const struct vu_chain *chain,
		     uint32_t len);
	int (*flush)(struct vu_ring *ring);
	bool (*pending)(const struct vu_ring *ring);
	bool (*want_kicks)(struct vu_ring *ring, bool want);
	uint32_t (*base)(const struct vu_ring *ring);
};

/**
 * struct vu_ring - A virtqueue, device side
 * @ops:	Its kind
 * @mem:	Memory map
 * @desc:	Split: descriptor table, the driver's alone
 * @avail:	Split: available ring
 * @used:	Split: used ring
 * @packed:	Packed: the descriptor ring, both sides'; else NULL
 * @driver:	Packed: what interrupts the driver wants
 * @device:	Packed: what kicks we want
 * @shared:	What we write besides @packed, as the dirty log counts it
 * @last_avail:	Split: index of the next available entry
 * @used_idx:	Split: next used entry, ours alone
 * @used_published: Split: what the driver sees of that
 * @next:	Packed: where the next chain starts
 * @used_next:	Packed: where the next used descriptor goes
 * @batch_at:	Packed: the first used descriptor that the driver doesn't see
 * @batch_flags: Packed: its flags, written last
 * @batch_slots: Packed: how far the batch goes
 * @in_use:	Packed: slots that were popped and not pushed
 * @unflushed:	Segments of chains pushed but not flushed
 * @inflight:	The ring's part of the inflight area, or NULL
 * @taken:	Packed, or with @inflight: chains popped last, by @pops
 * @pushed:	Packed with @inflight: the batch
 * @n_pushed:	How many
 * @mask:	Entries of @taken - 1
 * @pops:	Chains popped so far
 * @resubmit:	Chains in @taken from @pops on, to be popped first
 * @counter:	The inflight area's global counter
 */
struct vu_ring {
	const struct ring_ops *ops;
	const struct vu_mem *mem;
	const struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	struct vring_packed_desc *packed;
	uint32_t num;
	uint16_t last_avail;
	uint16_t used_idx;
	uint16_t used_published;
	bool event_idx;
	bool indirect;
	int call_fd;
	unsigned unflushed;
	unsigned resubmit;
	void *inflight;
	const struct vring_packed_desc_event *driver;
	struct vring_packed_desc_event *device;
	struct place next;
	struct place used_next;
	struct place batch_at;
	uint16_t batch_flags;
	unsigned batch_slots;
	unsigned in_use;
	const char *shared;
	uint64_t log_used;
	struct taken *taken;
	struct pushed *pushed;
	unsigned n_pushed;
	unsigned mask;
	unsigned pops;
	uint64_t counter;
};

extern const struct ring_ops split_ops;	 /* split.c */
extern const struct ring_ops packed_ops; /* packed.c */

/* packed_event.c */
bool packed_wants_call(const struct vu_ring *ring, unsigned slots);
bool packed_pending(const struct vu_ring *ring);
bool packed_want_kicks(struct vu_ring *ring, bool want);

/* common.c */
int ring_map(const struct vu_mem *mem, uint64_t uva, uint64_t len,
	     uint64_t align, void **ret_va);
void ring_log(const struct vu_ring *ring, const void *part, uint64_t len);
int ring_table(const struct vu_ring *ring, uint64_t gpa, uint32_t len,
	       const void **ret_va);

/* call.c */
int ring_call(struct vu_ring *ring);

/**
 * ring_retake() - Take a chain again that was in flight, or was put back
 * @ring:	Ring with something to resubmit
 *
 * Returns: the chain
 */
static inline struct taken ring_retake(const struct vu_ring *ring)
{
	return ring->taken[ring->pops & ring->mask];
}

/**
 * ring_took() - Note that a chain was popped
 * @ring:	Ring that keeps @taken
 * @entry:	See struct taken
 * @slots:	Same
 */
static inline void ring_took(struct vu_ring *ring, uint16_t entry,
			     unsigned slots)
{
	ring->taken[ring->pops++ & ring->mask] =
	    (struct taken){.entry = entry, .slots = (uint16_t)slots};
	if (ring->resubmit)
		ring->resubmit--;
}

/**
 * desc_avail() - Is a descriptor the device's?
 * @flags:	Its flags
 * @wrap:	The wrap counter where it is
 *
 * Spec: VIRTIO 1.2 section 2.8.1 "Driver and Device Ring Wrap Counters".
 *
 * Returns: true if it is
 */
static inline bool desc_avail(uint16_t flags, bool wrap)
{
	return !!(flags & DESC_AVAIL) == wrap && !!(flags & DESC_USED) != wrap;
}

/**
 * place_at() - Read a place out of VRING_BASE
 * @half:	16 bits of it
 *
 * Returns: the place, its index unchecked
 */
static inline struct place place_at(uint32_t half)
{
	return (struct place){.index = (uint16_t)(half & INDEX_MASK),
			      .wrap = half & WRAP_BIT};
}

/**
 * place_add() - Go on in a packed ring
 * @ring:	Ring
 * @at:		From here
 * @slots:	By so many descriptors, at most the ring's size
 *
 * Returns: the place there
 */
static inline struct place place_add(const struct vu_ring *ring,
				     struct place at, unsigned slots)
{
	unsigned index = at.index + slots;

	if (index < ring->num)
		return (struct place){(uint16_t)index, at.wrap};
	return (struct place){(uint16_t)(index - ring->num), !at.wrap};
}

/**
 * ring_segment() - Add one descriptor's buffer to a chain
 * @ring:	Ring
 * @gpa:	The buffer
 * @len:	Its size, bytes
 * @write:	The device writes it
 * @iov:	The chain's segments
 * @iov_cap:	Room in @iov
 * @chain:	The chain
 *
 * An empty buffer takes a segment, too: a chain that costs nothing in @iov
 * could cost any time.
 *
 * Returns: 0 on success,
 *	-VU_ERR_CHAIN, if it is to be read and follows one to be written
 *	-VU_ERR_RANGE, if part of it isn't guest memory
 *	-VU_ERR_FULL, if @iov has no room
 */
static inline int ring_segment(const struct vu_ring *ring, uint64_t gpa,
			       uint32_t len, bool write, struct iovec *iov,
			       unsigned iov_cap, struct vu_chain *chain)
{
	unsigned first = (unsigned)chain->n_read + chain->n_write, n = first;
	uint64_t left = len;

	do { /* more than once where regions meet */
		uint64_t span = left;
		void *va = (void *)(uintptr_t)ring->shared;
		int err = 0;

		if (left)
			err = vu_mem_translate(ring->mem, gpa, &span, &va);
		if (err)
			return err;
		if (n == iov_cap)
			return -VU_ERR_FULL;
		iov[n++] = (struct iovec){.iov_base = va, .iov_len = span};
		gpa += span;
		left -= span;
	} while (left);
	n -= first;
	if (write) {
		chain->n_write = (uint16_t)(chain->n_write + n);
		chain->write_len += len;
	} else if (chain->n_write) { /* section 2.7.4.2: reads first */
		return -VU_ERR_CHAIN;
	} else {
		chain->n_read = (uint16_t)(chain->n_read + n);
		chain->read_len += len;
	}
	return 0;
}

#endif /* RING_H */
