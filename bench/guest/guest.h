/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest.h - a guest's virtio-vsock driver in user space, for measurements
 *
 * Functions return a count, 0, or a negated errno: ETIMEDOUT when the back-end
 * said nothing for GUEST_TIMEOUT_MS, ECONNRESET when it sent RST, EPROTO when
 * a byte or a header is not what it should be. A guest is one thread's at a
 * time; several guests may be several threads'.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stdint.h>

#define GUEST_TIMEOUT_MS 60000

/**
 * struct guest_ring - One split ring; addresses are ours, eventfds borrowed
 */
struct guest_ring {
	void *desc;
	void *avail;
	void *used;
	uint32_t num;
	int kick_fd;
	int call_fd;
};

/**
 * struct guest_config - What guest_new() is made of
 * @ram:	Guest memory for buffers, ours
 * @gpa:	Its guest physical address
 * @size:	Its size, bytes
 * @cid:	The guest's CID
 * @rx_len:	Payload room of one RX buffer, bytes
 * @rx:		Ring 0
 * @tx:		Ring 1
 * @event_idx:	VIRTIO_RING_F_EVENT_IDX was negotiated
 * @spin:	Spin for the used index instead of sleeping on the call eventfd
 */
struct guest_config {
	void *ram;
	uint64_t gpa;
	uint64_t size;
	uint64_t cid;
	uint32_t rx_len;
	struct guest_ring rx;
	struct guest_ring tx;
	bool event_idx;
	bool spin;
};

struct guest;

struct guest *guest_new(const struct guest_config *cfg);
void guest_free(struct guest *g);
int guest_connect(struct guest *g, uint32_t host_port, uint32_t count);
int guest_say(struct guest *g, uint32_t conn, const void *data, uint32_t len);
int guest_leave(struct guest *g, uint32_t first_conn, uint32_t n_conns);
int guest_close(struct guest *g, uint32_t first_conn, uint32_t n_conns);
int guest_rtt(struct guest *g, uint32_t first_conn, uint32_t n_conns,
	      uint32_t size, uint32_t count, uint64_t *ret_ns);
int64_t guest_send(struct guest *g, uint32_t conn, uint32_t size,
		   uint64_t bytes);
int64_t guest_send_all(struct guest *g, uint32_t first_conn, uint32_t n_conns,
		       uint32_t size, uint64_t bytes);
int64_t guest_send_for(struct guest *g, uint32_t conn, uint32_t size,
		       uint64_t ns);
int64_t guest_receive(struct guest *g, uint32_t conn, uint64_t bytes);
int64_t guest_receive_for(struct guest *g, uint32_t conn, uint64_t ns);
int64_t guest_churn(struct guest *g, uint32_t host_port, uint32_t in_flight,
		    uint32_t count);

#endif /* GUEST_H */
