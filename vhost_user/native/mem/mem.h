/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.h - what the files of guest memory and rings share; vu.h is the outside
 *
 * mem.c	the memory map: addresses, and the dirty log
 * fault.c	SIGBUS from a mapping whose file was truncated
 */
#ifndef MEM_H
#define MEM_H

#include "vu_mem.h"

#define LOG_PAGE 4096 /* VHOST_LOG_PAGE */

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

/**
 * struct vu_mem - A memory map
 * @count:	Entries of @regions
 * @faulted:	A mapping lost its file; set by the signal handler
 * @log:	Dirty bitmap, shared with the front-end, or NULL
 * @log_size:	Its size, bytes
 */
struct vu_mem {
	unsigned count;
	bool faulted;
	uint8_t *log;
	uint64_t log_size;
	struct region regions[VU_MAX_REGIONS];
};

/* mem.c */
void log_gpa(const struct vu_mem *mem, uint64_t gpa, uint64_t len);
void log_va(const struct vu_mem *mem, const void *va, uint64_t len);

/* fault.c */
int fault_guard(const struct vu_mem *mem, void *va, uint64_t size);
void fault_unguard(const struct vu_mem *mem, const void *va);

#endif /* MEM_H */
