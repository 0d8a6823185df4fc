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
#include <stdlib.h>

#include <linux/virtio_config.h>

#include "ring/inflight.h"
#include "ring/ring.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	      "rings are little-endian; this code does not swap");

/**
 * start() - Start a ring, all of its memory still to be freed on failure
 * @ring:	Ring, zeroed but for what both kinds have
 * @cfg:	Where it is
 *
 * Returns: as vu_ring_new()
 */
static int start(struct vu_ring *ring, const struct vu_ring_config *cfg)
{
	unsigned size = 1;
	int err;

	while (size < cfg->num)
		size *= 2;
	if (ring->ops == &packed_ops || cfg->inflight) {
		ring->mask = size - 1;
		ring->taken = calloc(size, sizeof(*ring->taken));
		ring->pushed = calloc(size, sizeof(*ring->pushed));
		if (!ring->taken || !ring->pushed)
			return -VU_ERR_NOMEM;
	}
	err = ring->ops->start(ring, cfg);
	if (!err && vu_mem_faulted(ring->mem))
		err = -VU_ERR_FAULT;
	return err;
}

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
	    .ops = cfg->features >> VIRTIO_F_RING_PACKED & 1 ? &packed_ops
							     : &split_ops,
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

void vu_ring_free(struct vu_ring *ring)
{
	if (!ring)
		return;
	inflight_stop(ring);
	free(ring->taken);
	free(ring->pushed);
	free(ring);
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

		log_va(ring->mem, iov[i].iov_base, span);
		len -= span;
	}
}

int vu_ring_pop(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		struct vu_chain *ret_chain)
{
	return ring->ops->pop(ring, iov, iov_cap, ret_chain);
}

void vu_ring_unpop(struct vu_ring *ring, unsigned count)
{
	ring->ops->unpop(ring, count);
}

void vu_ring_push(struct vu_ring *ring, const struct vu_chain *chain,
		  const struct iovec *written, uint32_t len)
{
	unsigned segments = (unsigned)chain->n_read + chain->n_write;

	ring->unflushed += segments ? segments : 1;
	ring->ops->push(ring, chain, len);
	if (ring->mem->log)
		log_written(ring, written, chain->n_write, len);
}

unsigned vu_ring_unflushed(const struct vu_ring *ring)
{
	return ring->unflushed;
}

int vu_ring_flush(struct vu_ring *ring)
{
	return ring->ops->flush(ring);
}

bool vu_ring_pending(const struct vu_ring *ring)
{
	return ring->ops->pending(ring);
}

bool vu_ring_want_kicks(struct vu_ring *ring, bool want)
{
	return ring->ops->want_kicks(ring, want);
}

void vu_ring_set_call(struct vu_ring *ring, int call_fd)
{
	ring->call_fd = call_fd;
}

uint32_t vu_ring_num(const struct vu_ring *ring)
{
	return ring->num;
}

uint32_t vu_ring_base(const struct vu_ring *ring)
{
	return ring->ops->base(ring);
}
