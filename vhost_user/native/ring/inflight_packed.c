// SPDX-License-Identifier: Apache-2.0
/*
 * inflight_packed.c - chains of a packed ring that outlive this process
 *
 * Theory of operation
 * ===================
 *
 * See inflight.c. A ring's descriptors are overwritten by used ones, so the
 * area has copies of them, in entries of a free list. A chain joins the free
 * list when it is flushed, not when it is pushed: what is popped in between
 * must not take its entries while it may have to be resubmitted.
 *
 * When the area's used_idx is ahead of old_used_idx, our predecessor was
 * killed between the two: whether the descriptor there is still available says
 * if the chain is visible; then the new indices hold, else the old ones.
 */

#include <string.h>

#include "ring/inflight.h"

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
 * init_area() - Make a packed ring's part new: all entries are free
 * @ring:	Ring
 * @area:	Its part
 */
static void init_area(const struct vu_ring *ring, struct packed_area *area)
{
	memset(area, 0, inflight_area_size(ring->num, true));
	area->desc_num = (uint16_t)ring->num;
	for (uint16_t i = 0; i < ring->num; i++)
		area->desc[i].next = (uint16_t)(i + 1);
	set_used(area, ring->used_next, ring->used_next);
	STORE(area->version, INFLIGHT_VERSION);
}

/**
 * settle() - Commit the last chain if it is visible, else forget it
 * @ring:	Ring
 * @area:	Its part
 *
 * Returns: false if the area isn't about this ring
 */
static bool settle(struct vu_ring *ring, struct packed_area *area)
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
 * recover() - Find what a packed ring's last back-end left undone
 * @ring:	Ring
 * @found:	Room for what is in flight
 *
 * The front-end can't know where a back-end that was killed stood: what the
 * area says holds, not VRING_BASE. A front-end zeroes the area when it resets
 * its machine.
 *
 * Returns: chains in flight
 */
static unsigned recover(struct vu_ring *ring, struct found *found)
{
	struct packed_area *area = ring->inflight;
	unsigned n = 0, slots = 0;

	if (LOAD(area->version) != INFLIGHT_VERSION || !settle(ring, area)) {
		init_area(ring, area);
		return 0;
	}
	for (uint16_t i = 0; i < ring->num; i++) {
		uint16_t num = LOAD(area->desc[i].num);

		if (!LOAD(area->desc[i].inflight))
			continue;
		if (num == 0 || num > ring->num - slots) {
			init_area(ring, area); /* nonsense */
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
 * inflight_packed_start() - Go on where the last back-end was
 * @ring:	Packed ring, started
 * @cfg:	Its part of the area
 *
 * Returns: as inflight_start()
 */
int inflight_packed_start(struct vu_ring *ring,
			  const struct vu_ring_config *cfg)
{
	return inflight_start(ring, cfg, recover);
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
