// SPDX-License-Identifier: Apache-2.0
/*
 * log.c - the dirty log
 *
 * Theory of operation
 * ===================
 *
 * While a machine migrates, the front-end shares a bitmap with one bit a page
 * of guest memory. Whoever writes there marks the page after the write:
 * vu_ring_push() marks what a device wrote into a chain, the ring's files mark
 * what they write themselves. A page that nobody wrote is never marked.
 */

#include <stddef.h>

#include "mem/mem.h"

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
 * log_gpa() - Mark what was written, by guest physical address
 * @mem:	Memory map
 * @gpa:	First byte that was written
 * @len:	Bytes, inside one region
 *
 * Spec: vhost-user, "Migration". The locked instruction is also the barrier
 * that keeps the write before the mark: the front-end clears a bit first and
 * copies the page then.
 */
void log_gpa(const struct vu_mem *mem, uint64_t gpa, uint64_t len)
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
 * log_va() - The same by our address
 * @mem:	Memory map
 * @va:		First byte that was written
 * @len:	Bytes, inside one region
 */
void log_va(const struct vu_mem *mem, const void *va, uint64_t len)
{
	for (unsigned i = 0; mem->log && i < mem->count; i++) {
		const struct region *r = &mem->regions[i];
		uint64_t off = (uintptr_t)va - (uintptr_t)r->va;

		if (off < r->size) {
			log_gpa(mem, r->gpa + off, len);
			return;
		}
	}
}
