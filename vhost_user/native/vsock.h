/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock.h - what the files behind a guest's connections share
 *
 * vsock.c	streams, the turns of a device
 * rx.c		packets to the guest, and what is owed
 * tx.c		packets from the guest
 * seqpacket.c	messages: SEQPACKET connections
 * event.c	what a driver is told that outlived its connections
 * sibling.c	connections between two guests
 */
#ifndef VSOCK_H
#define VSOCK_H

#include <linux/virtio_vsock.h>

#include "engine.h"

#define HDR	      sizeof(struct virtio_vsock_hdr)
#define RX_CHAINS_MAX 64 /* one read */
#define SHUT_BOTH     (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)
#define SEQ_MARK      ((uint32_t)sizeof(uint32_t))
#define SEQ_FLAGS     ((uint32_t)(VIRTIO_VSOCK_SEQ_EOM | VIRTIO_VSOCK_SEQ_EOR))

/**
 * struct burst - Adjacent packets of one connection, not delivered yet
 * @conn:	The connection, or NULL
 * @n_iov:	Segments of payload, from the start of tx_iov
 * @n_chains:	Chains that hold them, from the start of tx_chains
 * @len:	Bytes of payload
 * @flags:	VIRTIO_VSOCK_SEQ_ bits of the last packet, if they end a message
 */
struct burst {
	struct vu_conn *conn;
	unsigned n_iov;
	unsigned n_chains;
	uint32_t len;
	uint32_t flags;
};

/**
 * struct rx_batch - RX buffers taken, not pushed yet
 * @n_chains:	Entries of rx_chains
 * @n_iov:	Entries of rx_iov: the buffers as they are
 * @n_payload:	Entries of rx_payload: the same behind the headers
 * @room:	Bytes of payload that fit
 */
struct rx_batch {
	unsigned n_chains;
	unsigned n_iov;
	unsigned n_payload;
	size_t room;
};

/* Work is counted in descriptors. What else costs as much as how many: */
#define VSOCK_TURN_WORK	 8192 /* of one ring in one turn */
#define VSOCK_CHAIN_WORK 4
#define VSOCK_WORK_BYTES 1024 /* payload of one unit */

/**
 * vsock_faulted() - Did the front-end take the guest's memory away?
 * @d:		Device
 *
 * Returns: true if it did, until dev_fault() or a new map
 */
static inline bool vsock_faulted(const struct vu_dev *d)
{
	return d->faulted || (d->mem && vu_mem_faulted(d->mem));
}

/**
 * vsock_spent() - Has a ring had its turn's work?
 * @d:		Device
 * @queue:	Ring
 *
 * Returns: true if it has, until the device's next turn
 */
static inline bool vsock_spent(const struct vu_dev *d, uint32_t queue)
{
	return d->work[queue] >= VSOCK_TURN_WORK;
}

/**
 * vsock_chain_work() - How much work is a chain, but for what is written to it?
 * @chain:	The chain
 *
 * Returns: units
 */
static inline uint64_t vsock_chain_work(const struct vu_chain *chain)
{
	return VSOCK_CHAIN_WORK + chain->n_read + chain->n_write +
	       chain->read_len / VSOCK_WORK_BYTES;
}

/**
 * vsock_rx_room() - Is there an RX buffer?
 * @d:		Device
 *
 * Returns: true if there is
 */
static inline bool vsock_rx_room(const struct vu_dev *d)
{
	return d->rings[QUEUE_RX] && vu_ring_pending(d->rings[QUEUE_RX]);
}

/**
 * vsock_payload() - Find the payload in a packet's segments
 * @iov:	The packet
 * @n:		Its segments
 * @max:	Bytes of payload to find at most
 * @ret_iov:	Segments of the payload; may be @iov
 * @ret_len:	Bytes of it
 *
 * Returns: segments of the payload, at most @n
 */
static inline unsigned vsock_payload(const struct iovec *iov, unsigned n,
				     size_t max, struct iovec *ret_iov,
				     size_t *ret_len)
{
	size_t skip = HDR, len = 0;
	unsigned out = 0;

	for (unsigned i = 0; i < n && len < max; i++) {
		struct iovec seg = iov[i];
		size_t cut = skip < seg.iov_len ? skip : seg.iov_len;

		skip -= cut;
		seg.iov_base = (char *)seg.iov_base + cut;
		seg.iov_len -= cut;
		if (seg.iov_len > max - len)
			seg.iov_len = max - len;
		if (!seg.iov_len)
			continue;
		len += seg.iov_len;
		ret_iov[out++] = seg;
	}
	*ret_len = len;
	return out;
}

/* rx.c */
uint32_t vsock_credit(const struct vu_conn *c);
void vsock_await_credit(struct vu_conn *c);
bool vsock_rx_begin(struct vu_conn *c, unsigned max_chains, size_t most,
		    struct rx_batch *ret);
void vsock_rx_commit(struct vu_conn *c, const struct rx_batch *b, size_t len,
		     uint32_t flags);
size_t vsock_send_block(struct vu_conn *c, const char *data, size_t len,
			uint32_t flags);
bool vsock_send_empty(struct vu_conn *c, uint32_t flags);
bool vsock_send_rst(struct vu_dev *d, const struct rst *rst);
void vsock_down_ended(struct vu_conn *c);
void vsock_pay_all(struct vu_dev *d);
void vsock_rx_socket(struct vu_conn *c);

/* tx.c */
void vsock_consumed(struct vu_conn *c, size_t n);
void vsock_up_broken(struct vu_conn *c);
void vsock_tx(struct vu_dev *d);

/* event.c */
bool event_pending(const struct vu_dev *d);
bool event_want_kicks(struct vu_dev *d);
void event_turn(struct vu_dev *d);

/* seqpacket.c */
bool seq_keep(struct way *way, const struct iovec *iov, unsigned n_iov,
	      size_t skip, uint32_t flags);
bool seq_room(const struct vu_conn *c, const struct burst *b);
uint32_t seq_send_kept(struct vu_conn *c, struct way *way);
void seq_deliver(struct vu_conn *c, const struct burst *b);
bool seq_run_up(struct vu_conn *c);
void seq_run_down(struct vu_conn *c);
uint32_t seq_payload(const struct way *way);

/* sibling.c */
void sibling_deliver(struct vu_conn *c, const struct burst *b);

#endif /* VSOCK_H */
