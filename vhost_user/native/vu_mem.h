/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_mem.h - the part of vu.h about guest memory
 */
#ifndef VU_MEM_H
#define VU_MEM_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_err.h"

#define VU_MAX_REGIONS 32

/* ---- guest memory (mem.c, fault.c) ---- */

struct vu_mem;

struct vu_mem *vu_mem_new(void);
void vu_mem_free(struct vu_mem *mem);
int vu_mem_add(struct vu_mem *mem, uint64_t gpa, uint64_t uva, uint64_t size,
	       void *va);
int vu_mem_del(struct vu_mem *mem, uint64_t gpa, uint64_t uva, uint64_t size);
bool vu_mem_faulted(const struct vu_mem *mem);
int vu_mem_set_log(struct vu_mem *mem, void *log, uint64_t log_size);
int vu_mem_translate(const struct vu_mem *mem, uint64_t gpa, uint64_t *len,
		     void **ret_va);
int vu_mem_translate_uva(const struct vu_mem *mem, uint64_t uva, uint64_t *len,
			 void **ret_va);

#endif /* VU_MEM_H */
