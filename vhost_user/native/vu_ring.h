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

#define VU_MAX_QUEUE 32768 /* entries in one ring, as VIRTIO has it */

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

/**
 * struct vu_ring - A virtqueue, device side
 *
 * Threads. Rings know nothing of each other. One ring is used by one thread at
 * a time; which one may change, with whatever lock the caller has.
 *
 * A driver that breaks a rule makes a function return an error. The caller then
 * stops the ring: what it says next is not defined, though safe.
 */
struct vu_ring;

/**
 * vu_ring_new() - Start a ring
 * @mem:	Memory map; outlives the ring
 * @cfg:	Where the ring is
 * @ret_err:	Why it failed; untouched on success
 *
 * Errors, in *@ret_err:
 *	-VU_ERR_INVAL, if @num is 0, above VU_MAX_QUEUE or, of a split ring, no
 *		power of two; if @inflight is not aligned to 8 bytes or too
 *		small for @num
 *	-VU_ERR_RANGE, if a part isn't in guest memory as one piece
 *	-VU_ERR_RING, if a part isn't aligned; if @base of a packed ring is
 *		outside the ring
 *	-VU_ERR_FAULT, if guest memory or the inflight area is gone
 *	-VU_ERR_NOMEM, if out of memory
 *	-VU_ERR_SYS, if SIGBUS can't be handled; errno says why
 *
 * Returns: the ring, to be freed with vu_ring_free(); NULL on failure
 */
struct vu_ring *vu_ring_new(const struct vu_mem *mem,
			    const struct vu_ring_config *cfg, int *ret_err);

/**
 * vu_ring_free() - Free a ring; the guest's memory stays as it is
 * @ring:	Ring, or NULL
 *
 * What was pushed and not flushed is not seen by the driver; what is in flight
 * stays so in the inflight area.
 */
void vu_ring_free(struct vu_ring *ring);

/**
 * vu_ring_pop() - Take the next available chain
 * @ring:	Ring
 * @iov:	Where its segments go, device-readable first
 * @iov_cap:	Entries of @iov
 * @ret_chain:	The chain
 *
 * Each descriptor is copied once, and the copy is checked. On failure, and if
 * there is none, nothing is taken and @ret_chain is untouched; @iov isn't.
 *
 * Returns: 1 if there was a chain, 0 if the ring is empty,
 *	-VU_ERR_FULL, if @iov is too short: pop again with more. A chain may
 *		have as many segments as the ring has entries, and more where
 *		memory regions meet
 *	-VU_ERR_RING, if an index is out of its range, a chain that we have is
 *		available again, or the inflight area is damaged
 *	-VU_ERR_CHAIN, if the chain loops, is in the wrong order, or refers to
 *		an indirect table that it may not
 *	-VU_ERR_RANGE, if a buffer isn't in guest memory
 */
int vu_ring_pop(struct vu_ring *ring, struct iovec *iov, unsigned iov_cap,
		struct vu_chain *ret_chain);

/**
 * vu_ring_unpop() - Put the last chains back
 * @ring:	Ring
 * @count:	How many of the chains popped last, not pushed yet
 */
void vu_ring_unpop(struct vu_ring *ring, unsigned count);

/**
 * vu_ring_push() - Give a chain back, not visible yet
 * @ring:	Ring
 * @chain:	The chain
 * @written:	Its device-writable segments; NULL if @len is 0
 * @len:	Bytes written into them, for the driver and the dirty log
 */
void vu_ring_push(struct vu_ring *ring, const struct vu_chain *chain,
		  const struct iovec *written, uint32_t len);

/**
 * vu_ring_unflushed() - How much was pushed that the driver doesn't see?
 * @ring:	Ring
 *
 * Returns: about so many descriptors
 */
unsigned vu_ring_unflushed(const struct vu_ring *ring);

/**
 * vu_ring_flush() - Publish what was pushed, interrupt the guest if it asks
 * @ring:	Ring
 *
 * On failure everything was published all the same, and no interrupt was sent.
 * The first call on each thread lets that thread's SIGURG be delivered, and the
 * process's first starts a thread and takes SIGURG: see ring/call.c.
 *
 * Returns: 1 if an interrupt was sent, 0 if the guest asks for none,
 *	-VU_ERR_CALL, if the call eventfd was full and kept us waiting, for 100
 *		ms at most if it stayed full, else about 1 s. The ring has
 *		no call eventfd then: stop the device, its front-end is hostile
 *	-VU_ERR_SYS, if the thread that watches the write can't be started;
 *		errno says why
 */
int vu_ring_flush(struct vu_ring *ring);

/**
 * vu_ring_pending() - Is there a chain to pop?
 * @ring:	Ring
 *
 * Returns: true if there is; one load of guest memory, made for spinning
 */
bool vu_ring_pending(const struct vu_ring *ring);

/**
 * vu_ring_want_kicks() - Ask the driver for kicks, or for none
 * @ring:	Ring
 * @want:	Ask for them
 *
 * Returns: true if a chain is available after all: a kick for it may never
 * come, so pop it now
 */
bool vu_ring_want_kicks(struct vu_ring *ring, bool want);

/**
 * vu_ring_set_call() - Change the eventfd that interrupts the guest
 * @ring:	Ring
 * @call_fd:	eventfd, open until the next call or vu_ring_free(); -1: none
 */
void vu_ring_set_call(struct vu_ring *ring, int call_fd);

/**
 * vu_ring_num() - How many entries a ring has
 * @ring:	Ring
 *
 * Returns: entries
 */
uint32_t vu_ring_num(const struct vu_ring *ring);

/**
 * vu_ring_base() - Where the next chain will be taken from
 * @ring:	Ring, all popped chains pushed and flushed
 *
 * Spec: vhost-user, "A vring state description": a packed ring has two indices
 * of 15 bits there, each with its wrap counter.
 *
 * Returns: what VHOST_USER_GET_VRING_BASE answers
 */
uint32_t vu_ring_base(const struct vu_ring *ring);

/**
 * vu_inflight_size() - How far apart are two queues' parts?
 * @num:	Most entries of a ring
 * @packed:	Rings are packed
 *
 * Returns: bytes
 */
uint64_t vu_inflight_size(uint32_t num, bool packed);

#endif /* VU_RING_H */
