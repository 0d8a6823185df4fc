// SPDX-License-Identifier: Apache-2.0
/*
 * ids.c - things by ids that are for one thing only
 *
 * Theory of operation
 * ===================
 *
 * An id is a slot, and above it how often that slot was used: whoever still has
 * the id of something that is gone finds nothing. Slots are taken in a circle,
 * so that one comes again as late as may be. Ids have 30 bits, and none is 0.
 */

#include <stdlib.h>

#include "base/ids.h"
#include "vu_err.h"

#define SLOT_BITS 16
#define CAP_MIN	  64U
#define ROUNDS	  0x3fffU

/**
 * grow() - Make more slots
 * @t:		Ids
 *
 * Returns: 0, -VU_ERR_FULL or -VU_ERR_NOMEM
 */
static int grow(struct ids *t)
{
	uint32_t cap = t->cap ? 2 * t->cap : CAP_MIN;
	uint16_t *rounds;
	void **at;

	if (cap > IDS_MOST)
		return -VU_ERR_FULL;
	at = realloc(t->at, cap * sizeof(*at));
	if (!at)
		return -VU_ERR_NOMEM;
	t->at = at;
	rounds = realloc(t->rounds, cap * sizeof(*rounds));
	if (!rounds)
		return -VU_ERR_NOMEM;
	t->rounds = rounds;
	for (uint32_t i = t->cap; i < cap; i++) {
		at[i] = NULL;
		rounds[i] = 0;
	}
	t->next = t->cap;
	t->cap = cap;
	return 0;
}

/**
 * ids_add() - Name something
 * @t:		Ids
 * @what:	It, not NULL
 *
 * Returns: its id, above 0; -VU_ERR_FULL or -VU_ERR_NOMEM
 */
int ids_add(struct ids *t, void *what)
{
	uint32_t slot;

	if (t->count == t->cap) {
		int ret = grow(t);

		if (ret)
			return ret;
	}
	while (t->at[t->next % t->cap])
		t->next++;
	slot = t->next++ % t->cap;
	t->at[slot] = what;
	t->rounds[slot] = (uint16_t)(t->rounds[slot] % ROUNDS + 1);
	t->count++;
	return (int)((uint32_t)t->rounds[slot] << SLOT_BITS | slot);
}

/**
 * ids_get() - Find something by its id
 * @t:		Ids
 * @id:		Id
 *
 * Returns: it; NULL if it is gone
 */
void *ids_get(const struct ids *t, uint32_t id)
{
	uint32_t slot = id & ((1U << SLOT_BITS) - 1);

	if (slot >= t->cap || t->rounds[slot] != id >> SLOT_BITS)
		return NULL;
	return t->at[slot];
}

/**
 * ids_short() - Find something by a part of its id
 * @t:		Ids
 * @part:	Id & IDS_SHORT
 *
 * Returns: it; NULL if it is gone; something else after 256 rounds of its slot
 */
void *ids_short(const struct ids *t, uint32_t part)
{
	uint32_t slot = part & ((1U << SLOT_BITS) - 1);

	if (slot >= t->cap || (t->rounds[slot] & 0xffU) != part >> SLOT_BITS)
		return NULL;
	return t->at[slot];
}

/**
 * ids_del() - Forget something
 * @t:		Ids
 * @id:		Its id
 *
 * Returns: it; NULL if it was gone
 */
void *ids_del(struct ids *t, uint32_t id)
{
	void *what = ids_get(t, id);

	if (what) {
		t->at[id & ((1U << SLOT_BITS) - 1)] = NULL;
		t->count--;
	}
	return what;
}

/**
 * ids_any() - Find one of those that are left
 * @t:		Ids
 *
 * Returns: its id; 0 if there is none
 */
uint32_t ids_any(const struct ids *t)
{
	for (uint32_t i = 0; t->count && i < t->cap; i++) {
		if (t->at[i])
			return (uint32_t)t->rounds[i] << SLOT_BITS | i;
	}
	return 0;
}

/**
 * ids_free() - Free the table
 * @t:		Ids, of nothing any more
 */
void ids_free(struct ids *t)
{
	free(t->at);
	free(t->rounds);
	*t = (struct ids){0};
}
