// SPDX-License-Identifier: Apache-2.0
/*
 * ring.c - the device side of a virtqueue: what split and packed rings share
 *
 * Theory of operation
 * ===================
 *
 * The driver makes chains of descriptors available; vu_ring_pop() takes one,
 * copies each descriptor once and checks the copy, so that a guest that
 * rewrites a descriptor meanwhile changes nothing. vu_ring_push() gives a
 * finished chain back, and vu_ring_flush() makes all of them visible with one
 * store and decides on one interrupt for the batch. A chain that was popped
 * but not needed goes back with vu_ring_unpop(): nothing of it is visible to
 * the driver.
 *
 * Notifications: the driver kicks only while vu_ring_want_kicks(true) was the
 * last word. Asking for kicks and looking once more must be ordered by a full
 * barrier, or a kick is lost; so must publishing used chains and reading what
 * interrupts the driver wants.
 *
 * A driver that breaks a rule gets -VU_ERR_RING or -VU_ERR_CHAIN; the caller
 * stops the queue.
 */

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include <linux/virtio_config.h>

#include "ring/ring.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	      "rings are little-endian; this code does not swap");

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
 * start() - Start a ring, all of its memory still to be freed on failure
 * @ring:	Ring, zeroed but for what both kinds have
 * @cfg:	Where it is
 *
 * Returns: as vu_ring_new()
 */
static int start(struct vu_ring *ring, const struct vu_ring_config *cfg)
{
	bool packed = cfg->features >> VIRTIO_F_RING_PACKED & 1;
	unsigned size = 1;
	int err;

	while (size < cfg->num)
		size *= 2;
	if (packed || cfg->inflight) {
		ring->mask = size - 1;
		ring->taken = calloc(size, sizeof(*ring->taken));
		ring->pushed = calloc(size, sizeof(*ring->pushed));
		if (!ring->taken || !ring->pushed)
			return -VU_ERR_NOMEM;
	}
	err = packed ? packed_start(ring, cfg) : split_start(ring, cfg);
	if (!err && cfg->inflight)
		err = inflight_start(ring, cfg);
	if (!err && vu_mem_faulted(ring->mem))
		err = -VU_ERR_FAULT;
	return err;
}

/**
 * vu_ring_new() - Start a ring
 * @mem:	Memory map; outlives the ring
 * @cfg:	Where the ring is
 * @ret_err:	On failure -VU_ERR_INVAL (size, inflight area), -VU_ERR_RANGE or
 *		-VU_ERR_RING (addresses, base), -VU_ERR_NOMEM, -VU_ERR_FAULT
 *
 * Returns: the ring, to be freed with vu_ring_free(), or NULL
 */
struct vu_ring *vu_ring_new(const struct vu_mem *mem,
			    const struct vu_ring_config *cfg, int *ret_err)
{
	struct vu_ring *ring;
	int err;

	if (cfg->num == 0 || cfg->num > VU_MAX_QUEUE) {
		*ret_err = -VU_ERR_INVAL;
		return NULL;
	}
	ring = malloc(sizeof(*ring));
	if (!ring) {
		*ret_err = -VU_ERR_NOMEM;
		return NULL;
	}
	*ring = (struct vu_ring){
	    .mem = mem,
	    .num = cfg->num,
	    .event_idx = cfg->features >> VIRTIO_RING_F_EVENT_IDX & 1,
	    .indirect = cfg->features >> VIRTIO_RING_F_INDIRECT_DESC & 1,
	    .call_fd = cfg->call_fd,
	    .log_used = cfg->log_used_gpa,
	};
	err = start(ring, cfg);
	if (!err)
		return ring;
	vu_ring_free(ring);
	*ret_err = err;
	return NULL;
}

/**
 * vu_ring_free() - Free a ring; the guest's memory stays as it is
 * @ring:	Ring, or NULL
 */
void vu_ring_free(struct vu_ring *ring)
{
	if (!ring)
		return;
	if (ring->inflight)
		fault_unguard(ring->mem, ring->inflight);
	free(ring->taken);
	free(ring->pushed);
	free(ring);
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
		mem_log(ring->mem, ring->log_used + off, len);
}

/**
 * ring_call() - Interrupt the guest
 * @ring:	Ring with a call eventfd (a full counter is a pending interrupt)
 */
void ring_call(const struct vu_ring *ring)
{
	const uint64_t one = 1;

	while (write(ring->call_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/**
 * log_written() - Mark what a device wrote into a chain
 * @ring:	Ring
 * @iov:	The chain's device-writable segments
 * @n:		How many
 * @len:	Bytes written, from the start of the first
 */
static void log_written(const struct vu_ring *ring, const struct iovec *iov,
			unsigned n, uint64_t len)
{
	for (unsigned i = 0; i < n && len; i++) {
		uint64_t span = len < iov[i].iov_len ? len : iov[i].iov_len;

		mem_log_va(ring->mem, iov[i].iov_base, span);
		len -= span;
	}
}

/**
 * vu_ring_pop() - Take the next available chain
 * @ring:	Ring
 * @iov:	Where its segments go, device-readable first
 * @iov_cap:	Entries of @iov
 * @ret_chain:	The chain
 *
 * Returns: 1 if there was one, 0 if the ring is empty,
 *	-VU_ERR_FULL, if @iov is too short: the chain stays on the ring
 *	-VU_ERR_RING, if the ring is broken
 *	-VU_ERR_CHAIN, -VU_ERR_RANGE, if the chain is
 */
int vu_ring_pop(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		struct vu_chain *ret_chain)
{
	return ring->packed ? packed_pop(ring, iov, iov_cap, ret_chain)
			    : split_pop(ring, iov, iov_cap, ret_chain);
}

/**
 * vu_ring_unpop() - Put the last chains back
 * @ring:	Ring
 * @count:	How many of the chains popped last, not pushed yet
 */
void vu_ring_unpop(struct vu_ring *ring, unsigned count)
{
	if (ring->packed)
		packed_unpop(ring, count);
	else
		split_unpop(ring, count);
}

/**
 * vu_ring_push() - Give a chain back, not visible yet
 * @ring:	Ring
 * @chain:	The chain
 * @written:	Its device-writable segments; NULL if @len is 0
 * @len:	Bytes written into them, for the driver and the dirty log
 */
void vu_ring_push(struct vu_ring *ring, const struct vu_chain *chain,
		  const struct iovec *written, uint32_t len)
{
	unsigned segments = (unsigned)chain->n_read + chain->n_write;

	ring->unflushed += segments ? segments : 1;
	if (ring->packed)
		packed_push(ring, chain, len);
	else
		split_push(ring, chain, len);
	if (ring->mem->log)
		log_written(ring, written, chain->n_write, len);
}

/**
 * vu_ring_unflushed() - How much was pushed that the driver doesn't see?
 * @ring:	Ring
 *
 * Returns: about so many descriptors
 */
unsigned vu_ring_unflushed(const struct vu_ring *ring)
{
	return ring->unflushed;
}

/**
 * vu_ring_flush() - Publish what was pushed, interrupt the guest if it asks
 * @ring:	Ring
 *
 * Returns: 1 if an interrupt was sent, else 0
 */
int vu_ring_flush(struct vu_ring *ring)
{
	return ring->packed ? packed_flush(ring) : split_flush(ring);
}

/**
 * vu_ring_pending() - Is there a chain to pop?
 * @ring:	Ring
 *
 * Returns: true if there is; one load of guest memory, made for spinning
 */
bool vu_ring_pending(const struct vu_ring *ring)
{
	return ring->packed ? packed_pending(ring) : split_pending(ring);
}

/**
 * vu_ring_want_kicks() - Ask the driver for kicks, or for none
 * @ring:	Ring
 * @want:	Ask for them
 *
 * Returns: true if a chain is available after all: a kick for it may never
 * come, so pop it now
 */
bool vu_ring_want_kicks(struct vu_ring *ring, bool want)
{
	return ring->packed ? packed_want_kicks(ring, want)
			    : split_want_kicks(ring, want);
}

/**
 * vu_ring_set_call() - Change the eventfd that interrupts the guest
 * @ring:	Ring
 * @call_fd:	eventfd, or -1
 */
void vu_ring_set_call(struct vu_ring *ring, int call_fd)
{
	ring->call_fd = call_fd;
}

/**
 * vu_ring_num() - How many entries a ring has
 * @ring:	Ring
 *
 * Returns: entries
 */
uint32_t vu_ring_num(const struct vu_ring *ring)
{
	return ring->num;
}

/**
 * vu_ring_base() - Where the next chain will be taken from
 * @ring:	Ring, all popped chains pushed and flushed
 *
 * Spec: vhost-user, "A vring state description": a packed ring has two indices
 * of 15 bits there, each with its wrap counter.
 *
 * Returns: what VHOST_USER_GET_VRING_BASE answers
 */
uint32_t vu_ring_base(const struct vu_ring *ring)
{
	if (!ring->packed)
		return ring->last_avail;
	return (uint32_t)ring->next.index | (uint32_t)ring->next.wrap << 15 |
	       (uint32_t)ring->used_next.index << 16 |
	       (uint32_t)ring->used_next.wrap << 31;
}
