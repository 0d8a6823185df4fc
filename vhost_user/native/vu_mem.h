/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_mem.h - the part of vu.h about guest memory
 */
#ifndef VU_MEM_H
#define VU_MEM_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_err.h"

#define VU_MAX_REGIONS 32 /* of one memory map */

/**
 * struct vu_mem - A guest's memory as we have it mapped
 *
 * Threads. Maps know nothing of each other. One map is changed (add, del,
 * set_log, free) by one thread at a time, while no ring runs on it and nobody
 * else uses it; translate, translate_uva and faulted may be called on any
 * thread meanwhile, by any number at once.
 */
struct vu_mem;

/**
 * vu_mem_new() - Allocate an empty memory map
 *
 * Returns: the map, to be freed with vu_mem_free(); NULL if out of memory
 */
struct vu_mem *vu_mem_new(void);

/**
 * vu_mem_free() - Free a memory map, but not what its regions point to
 * @mem:	Map, or NULL; no ring runs on it
 */
void vu_mem_free(struct vu_mem *mem);

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
 *	-VU_ERR_NOMEM, if there is no memory to guard it against SIGBUS
 *	-VU_ERR_SYS, if SIGBUS can't be handled; errno says why
 */
int vu_mem_add(struct vu_mem *mem, uint64_t gpa, uint64_t uva, uint64_t size,
	       void *va);

/**
 * vu_mem_del() - Take one region out of a memory map
 * @mem:	Map; no ring runs on it
 * @gpa:	As it was added
 * @uva:	Same
 * @size:	Same
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such region
 */
int vu_mem_del(struct vu_mem *mem, uint64_t gpa, uint64_t uva, uint64_t size);

/**
 * vu_mem_faulted() - Did the front-end take memory away under us?
 * @mem:	Memory map
 *
 * Then what was read since the last look may be zeroes that nobody wrote. Look
 * after reading, before believing.
 *
 * Returns: true if it did, for as long as the map lives
 */
bool vu_mem_faulted(const struct vu_mem *mem);

/**
 * vu_mem_set_log() - Start or stop keeping the dirty log
 * @mem:	Memory map; no ring runs on it
 * @log:	The front-end's bitmap, mapped until the next call or
 *		vu_mem_free(); NULL: keep none
 * @log_size:	Its size, bytes; a page behind its end can't be marked
 *
 * On failure the map keeps no log.
 *
 * Returns: 0 on success,
 *	-VU_ERR_NOMEM, -VU_ERR_SYS, as vu_mem_add()
 */
int vu_mem_set_log(struct vu_mem *mem, void *log, uint64_t log_size);

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
		     void **ret_va);

/**
 * vu_mem_translate_uva() - The same for an address of the front-end
 * @mem:	Memory map
 * @uva:	The front-end's address of the first byte
 * @len:	As for vu_mem_translate()
 * @ret_va:	As for vu_mem_translate()
 *
 * Returns: 0 on success,
 *	-VU_ERR_EMPTY, if *@len is 0
 *	-VU_ERR_RANGE, if @uva isn't in any region
 */
int vu_mem_translate_uva(const struct vu_mem *mem, uint64_t uva, uint64_t *len,
			 void **ret_va);

#endif /* VU_MEM_H */
