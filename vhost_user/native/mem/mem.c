// SPDX-License-Identifier: Apache-2.0
/*
 * mem.c - guest memory: from guest physical and front-end addresses to ours
 *
 * Theory of operation
 * ===================
 *
 * The front-end gives us the guest's RAM as at most VU_MAX_REGIONS mappings.
 * Python owns them (GuestMemory in memory.py); we only keep where each one
 * starts, by guest physical address (descriptors) and by the front-end's own
 * address (ring addresses). Nothing here maps or unmaps. Lookup is a linear
 * scan: a guest has one to four regions.
 *
 * The guest chooses every address and length that reaches us. Two rules
 * follow. No sum of guest values is computed, because it can wrap; compare
 * with what is left of the region instead. And no guest value ends the
 * process: it makes a function return an error, and the caller stops the queue.
 */

#include <stdlib.h>

#include "mem/mem.h"

struct vu_mem *vu_mem_new(void)
{
	return calloc(1, sizeof(struct vu_mem));
}

void vu_mem_free(struct vu_mem *mem)
{
	if (mem)
		fault_unguard(mem, NULL);
	free(mem);
}

/**
 * apart() - Do two ranges have nothing in common?
 * @a:		First address of one
 * @a_size:	Its size, not 0; it doesn't wrap
 * @b:		First address of the other
 * @b_size:	Same
 *
 * Returns: true if they don't
 */
static bool apart(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b ? b - a >= a_size : a - b >= b_size;
}

int vu_mem_add(struct vu_mem *mem, uint64_t gpa, uint64_t uva, uint64_t size,
	       void *va)
{
	int err;

	if (size == 0)
		return -VU_ERR_EMPTY;
	if (size - 1 > UINT64_MAX - gpa || size - 1 > UINT64_MAX - uva)
		return -VU_ERR_REGION;
	for (unsigned i = 0; i < mem->count; i++) {
		const struct region *r = &mem->regions[i];

		if (!apart(gpa, size, r->gpa, r->size) ||
		    !apart(uva, size, r->uva, r->size))
			return -VU_ERR_REGION;
	}
	if (mem->count == VU_MAX_REGIONS)
		return -VU_ERR_FULL;
	err = fault_guard(mem, va, size);
	if (err)
		return err;

	mem->regions[mem->count++] = (struct region){
	    .gpa = gpa,
	    .uva = uva,
	    .size = size,
	    .va = va,
	};
	return 0;
}

int vu_mem_del(struct vu_mem *mem, uint64_t gpa, uint64_t uva, uint64_t size)
{
	for (unsigned i = 0; i < mem->count; i++) {
		struct region *r = &mem->regions[i];

		if (r->gpa != gpa || r->uva != uva || r->size != size)
			continue;
		fault_unguard(mem, r->va);
		*r = mem->regions[--mem->count];
		return 0;
	}
	return -VU_ERR_GONE;
}

bool vu_mem_faulted(const struct vu_mem *mem)
{
	return __atomic_load_n(&mem->faulted, __ATOMIC_ACQUIRE);
}

/**
 * clip() - Answer a lookup from one region
 * @r:		Region that holds the first byte
 * @off:	Offset of that byte in @r
 * @len:	In: bytes wanted. Out: bytes that @r has of them
 * @ret_va:	Our address of the first byte
 *
 * Returns: 0
 */
static int clip(const struct region *r, uint64_t off, uint64_t *len,
		void **ret_va)
{
	if (*len > r->size - off)
		*len = r->size - off;
	*ret_va = r->va + off;
	return 0;
}

int vu_mem_translate(const struct vu_mem *mem, uint64_t gpa, uint64_t *len,
		     void **ret_va)
{
	if (*len == 0)
		return -VU_ERR_EMPTY;

	for (unsigned i = 0; i < mem->count; i++) {
		const struct region *r = &mem->regions[i];
		uint64_t off = gpa - r->gpa; /* below the region: wraps high */

		if (off < r->size)
			return clip(r, off, len, ret_va);
	}

	return -VU_ERR_RANGE;
}

int vu_mem_translate_uva(const struct vu_mem *mem, uint64_t uva, uint64_t *len,
			 void **ret_va)
{
	if (*len == 0)
		return -VU_ERR_EMPTY;

	for (unsigned i = 0; i < mem->count; i++) {
		const struct region *r = &mem->regions[i];
		uint64_t off = uva - r->uva;

		if (off < r->size)
			return clip(r, off, len, ret_va);
	}

	return -VU_ERR_RANGE;
}
