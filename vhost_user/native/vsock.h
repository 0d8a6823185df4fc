/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock.h - what the files behind a guest's connections share
 *
 * vsock.c	packets, credit, streams, the turns of a device
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

/* vsock.c */
uint32_t vsock_credit(const struct vu_conn *c);
void vsock_await_credit(struct vu_conn *c);
struct rx_batch vsock_rx_take(struct vu_dev *d, unsigned max_chains,
			      size_t want);
void vsock_rx_commit(struct vu_conn *c, const struct rx_batch *b, size_t len,
		     uint32_t flags);
size_t vsock_send_block(struct vu_conn *c, const char *data, size_t len,
			uint32_t flags);
bool vsock_send_empty(struct vu_conn *c, uint32_t flags);
bool vsock_send_rst(struct vu_dev *d, const struct rst *rst);
void vsock_consumed(struct vu_conn *c, size_t n);
void vsock_up_broken(struct vu_conn *c);
void vsock_down_ended(struct vu_conn *c);

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
