/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inflight.h - the inflight area as the specification lays it out, and what the
 * files about it share
 *
 * inflight.c		sizes, where a back-end goes on
 * inflight_split.c	split rings
 * inflight_packed.c	packed rings
 */
#ifndef INFLIGHT_H
#define INFLIGHT_H

#include <assert.h>
#include <stddef.h>

#include "ring/ring.h"

#define INFLIGHT_VERSION 1

#define LOAD(at)	 __atomic_load_n(&(at), __ATOMIC_RELAXED)
#define STORE(at, value) __atomic_store_n(&(at), value, __ATOMIC_RELEASE)

/**
 * struct desc_state - A chain of a split ring, by its head
 * @inflight:	It was popped, and isn't visibly used
 * @next:	The chain pushed before it
 * @counter:	When it was popped
 */
struct desc_state {
	uint8_t inflight;
	uint8_t padding[5];
	uint16_t next;
	uint64_t counter;
};

/**
 * struct split_area - A split ring's part; see the specification
 */
struct split_area {
	uint64_t features;
	uint16_t version;
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_idx;
	struct desc_state desc[];
};

/**
 * struct packed_state - A descriptor of a packed ring
 * @inflight:	Of a chain's first: it was popped, and isn't visibly used
 * @next:	The chain's next, or the next free one; the size: none
 * @last:	Of a chain's first: its last
 * @num:	Of a chain's first: how many it has
 * @counter:	Of a chain's first: when it was popped
 */
struct packed_state {
	uint8_t inflight;
	uint8_t padding;
	uint16_t next;
	uint16_t last;
	uint16_t num;
	uint64_t counter;
	uint16_t id;
	uint16_t flags;
	uint32_t len;
	uint64_t addr;
};

/**
 * struct packed_area - A packed ring's part; see the specification
 */
struct packed_area {
	uint64_t features;
	uint16_t version;
	uint16_t desc_num;
	uint16_t free_head;
	uint16_t old_free_head;
	union {
		struct {
			uint16_t used_idx;
			uint16_t old_used_idx;
			uint8_t used_wrap_counter;
			uint8_t old_used_wrap_counter;
		};
		uint64_t used; /* all four, and two bytes of padding */
	};
	uint8_t padding[8];
	struct packed_state desc[];
};

static_assert(sizeof(struct desc_state) == 16, "DescStateSplit");
static_assert(sizeof(struct split_area) == 16, "QueueRegionSplit");
static_assert(sizeof(struct packed_state) == 32, "DescStatePacked");
static_assert(offsetof(struct packed_area, used_idx) == 16 &&
		  offsetof(struct packed_area, used_wrap_counter) == 20 &&
		  offsetof(struct packed_area, desc) == 32,
	      "QueueRegionPacked");

/**
 * struct found - A chain in flight
 * @counter:	When it was popped
 * @taken:	What it was
 */
struct found {
	uint64_t counter;
	struct taken taken;
};

/* inflight.c */
uint64_t inflight_area_size(uint32_t num, bool packed);
int inflight_start(struct vu_ring *ring, const struct vu_ring_config *cfg,
		   unsigned (*recover)(struct vu_ring *ring,
				       struct found *found));
void inflight_stop(struct vu_ring *ring);

/* inflight_split.c */
int inflight_split_start(struct vu_ring *ring,
			 const struct vu_ring_config *cfg);
int inflight_split_take(struct vu_ring *ring, uint16_t head);
void inflight_split_give(struct vu_ring *ring, uint16_t head);
void inflight_split_commit(struct vu_ring *ring, uint16_t count);

/* inflight_packed.c */
int inflight_packed_start(struct vu_ring *ring,
			  const struct vu_ring_config *cfg);
int inflight_packed_take(struct vu_ring *ring, struct place at, unsigned slots,
			 uint16_t *ret_entry);
int inflight_packed_copy(const struct vu_ring *ring, uint16_t *entry,
			 struct vring_packed_desc *ret_desc);
void inflight_packed_prepare(struct vu_ring *ring, uint16_t entry,
			     struct place next);
void inflight_packed_commit(struct vu_ring *ring, uint16_t entry,
			    struct place next);

#endif /* INFLIGHT_H */
