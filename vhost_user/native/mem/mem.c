// SPDX-License-Identifier: Apache-2.0
/*
 * mem.c - guest memory: from guest physical and front-end addresses to ours,
 * and the dirty log
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
 *
 * While a machine migrates, the front-end shares a bitmap with one bit a page
 * of guest memory. Whoever writes there marks the page after the write:
 * vu_ring_push() marks what a device wrote into a chain, the ring's files mark
 * what they write themselves. A page that nobody wrote is never marked.
 */

#include <stdlib.h>

#include "mem/mem.h"

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

/**
 * vu_mem_add() - Add one region to a memory map
 * @mem:	Map to add to; no ring runs on it
 * @gpa:	Guest physical address of the region's first byte
 * @uva:	The front-end's address of it
 * @size:	Size of the region, bytes
 * @va:		Our address of the first byte, mapped until vu_mem_del() or
 *		vu_mem_free()
 *
 * Returns: 0 on success,
 *	-VU_ERR_EMPTY, if @size is 0
 *	-VU_ERR_REGION, if it wraps or overlaps another, in either address space
 *	-VU_ERR_FULL, if @mem has VU_MAX_REGIONS regions already
 *	-VU_ERR_NOMEM, -VU_ERR_SYS, if it can't be guarded against SIGBUS
 */
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

/**
 * vu_mem_del() - Take one region out of a memory map
 * @mem:	Map; no ring runs on it
 * @gpa:	As it was added
 * @uva:	Same
 * @size:	Same
 *
 * Returns: 0, or -VU_ERR_GONE, if there is no such region
 */
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

/**
 * vu_mem_faulted() - Did the front-end take memory away under us?
 * @mem:	Memory map
 *
 * Then what was read since the last look may be zeroes that nobody wrote.
 *
 * Returns: true if it did, for as long as the map lives
 */
bool vu_mem_faulted(const struct vu_mem *mem)
{
	return __atomic_load_n(&mem->faulted, __ATOMIC_ACQUIRE);
}

/**
 * vu_mem_set_log() - Start or stop keeping the dirty log
 * @mem:	Memory map; no ring runs on it
 * @log:	The front-end's bitmap, mapped until the next call or
 *		vu_mem_free(); NULL: keep none
 * @log_size:	Its size, bytes; a page behind its end can't be marked
 *
 * Returns: 0, or -VU_ERR_NOMEM, -VU_ERR_SYS as vu_mem_add()
 */
int vu_mem_set_log(struct vu_mem *mem, void *log, uint64_t log_size)
{
	if (mem->log)
		fault_unguard(mem, mem->log);
	mem->log = NULL;
	if (log) {
		int err = fault_guard(mem, log, log_size);

		if (err)
			return err;
	}
	mem->log = log;
	mem->log_size = log_size;
	return 0;
}

/**
 * mem_log() - Mark what was written, by guest physical address
 * @mem:	Memory map
 * @gpa:	First byte that was written
 * @len:	Bytes, inside one region
 *
 * Spec: vhost-user, "Migration". The locked instruction is also the barrier
 * that keeps the write before the mark: the front-end clears a bit first and
 * copies the page then.
 */
void mem_log(const struct vu_mem *mem, uint64_t gpa, uint64_t len)
{
	if (!mem->log || !len)
		return;
	for (uint64_t page = gpa / LOG_PAGE; page <= (gpa + len - 1) / LOG_PAGE;
	     page++) {
		if (page / 8 >= mem->log_size)
			return;
		__atomic_fetch_or(&mem->log[page / 8],
				  (uint8_t)(1U << page % 8), __ATOMIC_SEQ_CST);
	}
}

/**
 * mem_log_va() - The same by our address
 * @mem:	Memory map
 * @va:		First byte that was written
 * @len:	Bytes, inside one region
 */
void mem_log_va(const struct vu_mem *mem, const void *va, uint64_t len)
{
	for (unsigned i = 0; mem->log && i < mem->count; i++) {
		const struct region *r = &mem->regions[i];
		uint64_t off = (uintptr_t)va - (uintptr_t)r->va;

		if (off < r->size) {
			mem_log(mem, r->gpa + off, len);
			return;
		}
	}
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
