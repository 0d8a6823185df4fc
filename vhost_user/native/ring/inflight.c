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
 * on our side), and inflight_start() mends what the last batch left undone:
 *
 *	split	the used index is ahead of used_idx: the batch is visible, the
 *		list from last_batch_head says which chains it has
 *	packed	used_idx is ahead of old_used_idx: whether the descriptor there
 *		is still available says if the chain is visible; then the new
 *		indices hold, else the old ones
 *
 * A packed ring's descriptors are overwritten by used ones, so the area has
 * copies of them, in entries of a free list. A chain joins the free list when
 * it is flushed, not when it is pushed: what is popped in between must not take
 * its entries while it may have to be resubmitted.
 *
 * The area is the front-end's memory. Like the guest's, what it says is copied
 * once and checked. It may also lose its file: it is guarded (fault.c).
 */

#include <assert.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "ring/ring.h"

#define VERSION 1
#define ALIGN	64 /* of one queue's part */

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
 * area_size() - How large is a ring's part of the inflight area?
 * @num:	Entries of the ring
 * @packed:	It is a packed one
 *
 * Returns: bytes
 */
static uint64_t area_size(uint32_t num, bool packed)
{
	return packed ? sizeof(struct packed_area) +
			    num * sizeof(struct packed_state)
		      : sizeof(struct split_area) +
			    num * sizeof(struct desc_state);
}

/**
 * vu_inflight_size() - How far apart are two queues' parts?
 * @num:	Most entries of a ring
 * @packed:	Rings are packed
 *
 * Returns: bytes
 */
uint64_t vu_inflight_size(uint32_t num, bool packed)
{
	return (area_size(num, packed) + ALIGN - 1) & ~(uint64_t)(ALIGN - 1);
}

/* ---- resubmission ---- */

/**
 * struct found - A chain in flight
 */
struct found {
	uint64_t counter;
	struct taken taken;
};

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

/* ---- split rings ---- */

/**
 * split_settle() - Cross out what the last batch made visible
 * @ring:	Ring
 * @area:	Its part
 *
 * Returns: false if the area isn't about this ring: it is ahead by more than
 * the ring could be
 */
static bool split_settle(const struct vu_ring *ring, struct split_area *area)
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
 * split_recover() - Find what a split ring's last back-end left undone
 * @ring:	Ring
 * @found:	Room for what is in flight
 *
 * Returns: chains in flight
 */
static unsigned split_recover(struct vu_ring *ring, struct found *found)
{
	struct split_area *area = ring->inflight;
	unsigned n = 0;

	if (LOAD(area->version) != VERSION || !split_settle(ring, area)) {
		memset(area, 0, area_size(ring->num, false));
		area->desc_num = (uint16_t)ring->num;
		area->used_idx = ring->used_idx;
		STORE(area->version, VERSION);
		return 0;
	}
	for (uint16_t i = 0; i < ring->num; i++) {
		if (LOAD(area->desc[i].inflight))
			found[n++] = (struct found){
			    .counter = LOAD(area->desc[i].counter),
			    .taken = {.entry = i, .slots = 1},
			};
	}
	if (n) /* whatever the front-end believes: it can't know after a crash
		*/
		ring->last_avail = ring->used_idx;
	return n;
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

/* ---- packed rings ---- */

/**
 * set_used() - Write the used indices and wrap counters, old and new, at once
 * @area:	Area
 * @used:	The new ones
 * @old:	The old ones
 *
 * One by one, we could be killed when an index and its counter don't fit.
 */
static void set_used(struct packed_area *area, struct place used,
		     struct place old)
{
	uint64_t word = used.index | (uint64_t)old.index << 16 |
			(uint64_t)used.wrap << 32 | (uint64_t)old.wrap << 40;

	STORE(area->used, word);
}

/**
 * old_used() - Read the old used index and wrap counter
 * @area:	Area
 *
 * Returns: the place
 */
static struct place old_used(const struct packed_area *area)
{
	return (struct place){LOAD(area->old_used_idx),
			      LOAD(area->old_used_wrap_counter) & 1};
}

/**
 * packed_init() - Make a packed ring's part new: all entries are free
 * @ring:	Ring
 * @area:	Its part
 */
static void packed_init(const struct vu_ring *ring, struct packed_area *area)
{
	memset(area, 0, area_size(ring->num, true));
	area->desc_num = (uint16_t)ring->num;
	for (uint16_t i = 0; i < ring->num; i++)
		area->desc[i].next = (uint16_t)(i + 1);
	set_used(area, ring->used_next, ring->used_next);
	STORE(area->version, VERSION);
}

/**
 * packed_settle() - Commit the last chain if it is visible, else forget it
 * @ring:	Ring
 * @area:	Its part
 *
 * Returns: false if the area isn't about this ring
 */
static bool packed_settle(struct vu_ring *ring, struct packed_area *area)
{
	struct place old = old_used(area);
	struct place used = {LOAD(area->used_idx),
			     LOAD(area->used_wrap_counter) & 1};
	uint16_t at;

	if (old.index >= ring->num || used.index >= ring->num)
		return false;
	if (used.index != old.index || used.wrap != old.wrap) {
		uint16_t flags = LOAD(ring->packed[old.index].flags);

		if (!desc_avail(flags, old.wrap)) {
			STORE(area->old_free_head, LOAD(area->free_head));
			old = used;
		}
	}
	ring->used_next = old;
	STORE(area->free_head, LOAD(area->old_free_head));
	set_used(area, old, old);
	at = LOAD(area->free_head);
	for (uint32_t i = 0; i < ring->num && at < ring->num; i++) {
		STORE(area->desc[at].inflight, 0);
		at = LOAD(area->desc[at].next);
	}
	return true;
}

/**
 * packed_recover() - Find what a packed ring's last back-end left undone
 * @ring:	Ring
 * @found:	Room for what is in flight
 *
 * The front-end can't know where a back-end that was killed stood: what the
 * area says holds, not VRING_BASE. A front-end zeroes the area when it resets
 * its machine.
 *
 * Returns: chains in flight
 */
static unsigned packed_recover(struct vu_ring *ring, struct found *found)
{
	struct packed_area *area = ring->inflight;
	unsigned n = 0, slots = 0;

	if (LOAD(area->version) != VERSION || !packed_settle(ring, area)) {
		packed_init(ring, area);
		return 0;
	}
	for (uint16_t i = 0; i < ring->num; i++) {
		uint16_t num = LOAD(area->desc[i].num);

		if (!LOAD(area->desc[i].inflight))
			continue;
		if (num == 0 || num > ring->num - slots) {
			packed_init(ring, area); /* nonsense */
			return 0;
		}
		slots += num;
		found[n++] =
		    (struct found){.counter = LOAD(area->desc[i].counter),
				   .taken = {.entry = i, .slots = num}};
	}
	ring->next = ring->used_next; /* popped again from there */
	ring->in_use = 0;
	return n;
}

/**
 * inflight_packed_take() - Note that a chain was popped
 * @ring:	Ring
 * @at:		Its first descriptor
 * @slots:	How many it has
 * @ret_entry:	Its first entry
 *
 * Returns: 0, or -VU_ERR_RING, if the area's free list is damaged
 */
int inflight_packed_take(struct vu_ring *ring, struct place at, unsigned slots,
			 uint16_t *ret_entry)
{
	struct packed_area *area = ring->inflight;
	uint16_t head = LOAD(area->old_free_head), free = head;
	struct packed_state *first;

	if (head >= ring->num)
		return -VU_ERR_RING;
	first = &area->desc[head];
	STORE(first->num, 0);
	STORE(first->counter, ring->counter++);
	STORE(first->inflight, 1);
	for (unsigned i = 0; i < slots; i++) {
		const struct vring_packed_desc *desc = &ring->packed[at.index];
		struct packed_state *state;

		if (free >= ring->num)
			return -VU_ERR_RING;
		state = &area->desc[free];
		if (i == slots - 1)
			STORE(first->last, free);
		STORE(first->num, (uint16_t)(i + 1));
		STORE(state->addr, LOAD(desc->addr));
		STORE(state->len, LOAD(desc->len));
		STORE(state->flags, LOAD(desc->flags));
		STORE(state->id, LOAD(desc->id));
		free = LOAD(state->next);
		STORE(area->free_head, free);
		at = place_add(ring, at, 1);
	}
	STORE(area->old_free_head, free);
	*ret_entry = head;
	return 0;
}

/**
 * inflight_packed_copy() - Read a descriptor of a chain in flight
 * @ring:	Ring
 * @entry:	In: its entry. Out: the one behind
 * @ret_desc:	Copy of the descriptor
 *
 * Returns: 0, or -VU_ERR_RING, if the area is damaged
 */
int inflight_packed_copy(const struct vu_ring *ring, uint16_t *entry,
			 struct vring_packed_desc *ret_desc)
{
	const struct packed_area *area = ring->inflight;
	const struct packed_state *state = &area->desc[*entry];

	if (*entry >= ring->num)
		return -VU_ERR_RING;
	*ret_desc = (struct vring_packed_desc){.addr = LOAD(state->addr),
					       .len = LOAD(state->len),
					       .id = LOAD(state->id),
					       .flags = LOAD(state->flags)};
	*entry = LOAD(state->next);
	return 0;
}

/**
 * inflight_packed_prepare() - A chain is about to become visible
 * @ring:	Ring
 * @entry:	Its first entry
 * @next:	Where the used descriptor behind its own goes
 */
void inflight_packed_prepare(struct vu_ring *ring, uint16_t entry,
			     struct place next)
{
	struct packed_area *area = ring->inflight;
	uint16_t last = LOAD(area->desc[entry].last);

	if (last < ring->num) { /* else it is damaged, and the entry lost */
		STORE(area->desc[last].next, LOAD(area->free_head));
		STORE(area->free_head, entry);
	}
	set_used(area, next, old_used(area));
}

/**
 * inflight_packed_commit() - It is visible
 * @ring:	Ring
 * @entry:	Its first entry
 * @next:	Where the used descriptor behind its own goes
 */
void inflight_packed_commit(struct vu_ring *ring, uint16_t entry,
			    struct place next)
{
	struct packed_area *area = ring->inflight;

	STORE(area->desc[entry].inflight, 0);
	STORE(area->old_free_head, LOAD(area->free_head));
	set_used(area, next, next);
}

/* ---- both ---- */

/**
 * inflight_start() - Go on where the last back-end was
 * @ring:	Ring, started
 * @cfg:	Its part of the area, mapped until the ring is freed
 *
 * Returns: 0,
 *	-VU_ERR_INVAL, if the part is too small or not aligned
 *	-VU_ERR_NOMEM, -VU_ERR_SYS
 */
int inflight_start(struct vu_ring *ring, const struct vu_ring_config *cfg)
{
	uint64_t need = area_size(ring->num, ring->packed);
	struct found *found;
	unsigned n;
	int err;

	if (cfg->inflight_size < need || (uintptr_t)cfg->inflight % 8)
		return -VU_ERR_INVAL;
	found = malloc(ring->num * sizeof(*found));
	if (!found)
		return -VU_ERR_NOMEM;
	err = fault_guard(ring->mem, cfg->inflight, need);
	if (!err) {
		ring->inflight = cfg->inflight;
		n = ring->packed ? packed_recover(ring, found)
				 : split_recover(ring, found);
		resubmit(ring, found, n);
	}
	free(found);
	return err;
}
