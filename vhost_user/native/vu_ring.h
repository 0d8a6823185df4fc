/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_ring.h - the part of vu.h about virtqueues
 */
#ifndef VU_RING_H
#define VU_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "vu_mem.h"

#define VU_MAX_QUEUE 1024 /* entries in one ring; IOV_MAX bounds a batch */

/* ---- virtqueues (ring.c, split.c, packed.c, inflight.c) ---- */

/**
 * struct vu_ring_config - A ring as the front-end describes it
 * @desc_uva:	Descriptor table, in the front-end's address space; packed:
 *		descriptor ring
 * @avail_uva:	Available ring, same; packed: driver event suppression
 * @used_uva:	Used ring, same; packed: device event suppression
 * @features:	Negotiated feature bits; VIRTIO_F_RING_PACKED: a packed ring
 * @num:	Entries, up to VU_MAX_QUEUE; a split ring: a power of two
 * @base:	VRING_BASE: index of the next available entry to take; packed:
 *		that and the next used one, with their wrap counters
 * @kick_fd:	eventfd the guest signals, or -1 (the engine then polls)
 * @call_fd:	eventfd that interrupts the guest, or -1
 * @log_used_gpa: Where the dirty log has the used ring (VHOST_VRING_F_LOG);
 *		UINT64_MAX: what is written to the ring isn't logged
 * @inflight:	The ring's part of the inflight area, or NULL: what is in flight
 *		there is popped first
 * @inflight_size: Its size, bytes; see vu_inflight_size()
 */
struct vu_ring_config {
	uint64_t desc_uva;
	uint64_t avail_uva;
	uint64_t used_uva;
	uint64_t log_used_gpa;
	uint64_t features;
	void *inflight;
	uint64_t inflight_size;
	uint32_t num;
	uint32_t base;
	int kick_fd;
	int call_fd;
};

/**
 * struct vu_chain - One descriptor chain, copied out and checked
 * @head:	Its first descriptor's index; packed: its buffer id
 * @n_read:	Segments the device reads; they come first in the iovec
 * @n_write:	Segments the device writes; they follow
 * @slots:	Packed: descriptors of the ring that it takes up
 * @entry:	Packed: where the inflight area has it
 * @read_len:	Sum of the former, bytes
 * @write_len:	Sum of the latter, bytes
 */
struct vu_chain {
	uint16_t head;
	uint16_t n_read;
	uint16_t n_write;
	uint16_t slots;
	uint16_t entry;
	uint64_t read_len;
	uint64_t write_len;
};

struct vu_ring;

struct vu_ring *vu_ring_new(const struct vu_mem *mem,
			    const struct vu_ring_config *cfg, int *ret_err);
void vu_ring_free(struct vu_ring *ring);
int vu_ring_pop(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		struct vu_chain *ret_chain);
void vu_ring_unpop(struct vu_ring *ring, unsigned count);
void vu_ring_push(struct vu_ring *ring, const struct vu_chain *chain,
		  const struct iovec *written, uint32_t len);
unsigned vu_ring_unflushed(const struct vu_ring *ring);
int vu_ring_flush(struct vu_ring *ring);
bool vu_ring_pending(const struct vu_ring *ring);
bool vu_ring_want_kicks(struct vu_ring *ring, bool want);
void vu_ring_set_call(struct vu_ring *ring, int call_fd);
uint32_t vu_ring_num(const struct vu_ring *ring);
uint32_t vu_ring_base(const struct vu_ring *ring);
uint64_t vu_inflight_size(uint32_t num, bool packed);

#endif /* VU_RING_H */
