// SPDX-License-Identifier: Apache-2.0
/*
 * common.c - finding the parts of a ring in guest memory, marking them in the
 * dirty log
 */

#include <linux/virtio_config.h>

#include "ring/ring.h"

/**
 * ring_map() - Find one of the parts of a ring
 * @mem:	Memory map
 * @uva:	The front-end's address of it
 * @len:	Its size, bytes
 * @align:	Its alignment, bytes (VIRTIO 1.2 sections 2.7 and 2.8)
 * @ret_va:	Our address of it
 *
 * Returns: 0 on success,
 *	-VU_ERR_RANGE, if it isn't in guest memory as one piece
 *	-VU_ERR_RING, if it isn't aligned
 */
int ring_map(const struct vu_mem *mem, uint64_t uva, uint64_t len,
	     uint64_t align, void **ret_va)
{
	uint64_t got = len;
	int err = vu_mem_translate_uva(mem, uva, &got, ret_va);

	if (err)
		return err;
	if (got < len)
		return -VU_ERR_RANGE;
	return (uintptr_t)*ret_va % align ? -VU_ERR_RING : 0;
}

/**
 * ring_table() - Find an indirect table
 * @ring:	Ring
 * @gpa:	Its address
 * @len:	Its size, bytes
 * @ret_va:	Our address of it
 *
 * Spec: VIRTIO 1.2 sections 2.7.5.3 and 2.8.7 "Indirect Descriptors": only if
 * negotiated, a whole number of entries.
 *
 * Returns: 0, or -VU_ERR_CHAIN
 */
int ring_table(const struct vu_ring *ring, uint64_t gpa, uint32_t len,
	       const void **ret_va)
{
	uint64_t got = len;
	void *va;

	if (!ring->indirect || len % 16 || len == 0 || len / 16 > VU_MAX_QUEUE)
		return -VU_ERR_CHAIN;
	if (vu_mem_translate(ring->mem, gpa, &got, &va) || got < len ||
	    (uintptr_t)va % 8)
		return -VU_ERR_CHAIN;
	*ret_va = va;
	return 0;
}

/**
 * ring_log() - Mark a part of a ring that was written, if the log has the ring
 * @ring:	Ring
 * @part:	It, in our address space: behind @shared
 * @len:	Its size, bytes
 */
void ring_log(const struct vu_ring *ring, const void *part, uint64_t len)
{
	uint64_t off = (uintptr_t)part - (uintptr_t)ring->shared;

	if (ring->log_used <= UINT64_MAX - off - len)
		log_gpa(ring->mem, ring->log_used + off, len);
}
