// SPDX-License-Identifier: Apache-2.0
/*
 * mem.c - guest memory map: from guest physical and front-end addresses to ours
 *
 * Theory of operation
 * ===================
 *
 * The front-end gives us the guest's RAM as at most VU_MAX_REGIONS mappings.
 * Python owns them (GuestMemory in memory.py); we only keep where each one
 * starts, by guest physical address (descriptors) and by the front-end's own
 * address (ring addresses). Nothing here maps or unmaps, and nothing allocates
 * after vu_mem_new(). Lookup is a linear scan: a guest has one to four regions.
 *
 * The guest chooses every address and length that reaches us. Two rules
 * follow. No sum of guest values is computed, because it can wrap; compare
 * with what is left of the region instead. And no guest value ends the
 * process: it makes a function return an error, and the caller stops the queue.
 */

#include <stdlib.h>

#include "vu.h"

/**
 * struct region - One contiguous piece of guest RAM
 * @gpa:	Guest physical address of its first byte
 * @uva:	The front-end's address of it
 * @size:	Size, bytes, not 0
 * @va:		Our address of it; Python keeps it mapped
 */
struct region {
	uint64_t gpa;
	uint64_t uva;
	uint64_t size;
	char *va;
};

struct vu_mem {
	unsigned count;
	struct region regions[VU_MAX_REGIONS];
};

/**
 * vu_mem_new() - Allocate an empty memory map
 *
 * Returns: the map, to be freed with vu_mem_free(); NULL if out of memory
 */
struct vu_mem *vu_mem_new(void)
{
	return calloc(1, sizeof(struct vu_mem));
}

/**
 * vu_mem_free() - Free a memory map, but not what its regions point to
 * @mem:	Map, or NULL
 */
void vu_mem_free(struct vu_mem *mem)
{
	free(mem);
}

/**
 * vu_mem_add() - Add one region to a memory map
 * @mem:	Map to add to
 * @gpa:	Guest physical address of the region's first byte
 * @uva:	The front-end's address of it
 * @size:	Size of the region, bytes
 * @va:		Our address of the first byte; outlives @mem
 *
 * Returns: 0 on success,
 *	-VU_ERR_EMPTY, if @size is 0
 *	-VU_ERR_FULL, if @mem has VU_MAX_REGIONS regions already
 */
int vu_mem_add(struct vu_mem *mem, uint64_t gpa, uint64_t uva, uint64_t size,
	       void *va)
{
	if (size == 0)
		return -VU_ERR_EMPTY;
	if (mem->count == VU_MAX_REGIONS)
		return -VU_ERR_FULL;

	mem->regions[mem->count++] = (struct region){
	    .gpa = gpa,
	    .uva = uva,
	    .size = size,
	    .va = va,
	};
	return 0;
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

/**
 * vu_mem_translate() - Find a guest physical range in our address space
 * @mem:	Memory map
 * @gpa:	Guest physical address of the first byte
 * @len:	In: bytes wanted. Out: bytes contiguous at *@ret_va, fewer if
 *		the region ends before; the caller asks again for the rest
 * @ret_va:	Our address of the first byte
 *
 * Returns: 0 on success,
 *	-VU_ERR_EMPTY, if *@len is 0
 *	-VU_ERR_RANGE, if @gpa isn't in any region
 */
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

/**
 * vu_mem_translate_uva() - The same for an address of the front-end
 * @mem:	Memory map
 * @uva:	The front-end's address of the first byte
 * @len:	As for vu_mem_translate()
 * @ret_va:	As for vu_mem_translate()
 *
 * Returns: as vu_mem_translate()
 */
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
