/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.h - what the driver (driver.c) and the loads (load.c) share
 */
#ifndef DRIVER_H
#define DRIVER_H

#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

#include "guest.h"

#define MAX_SLOTS 512U
#define MAX_CONNS (1U << 18)

enum state { CLOSED, CONNECTING, OPEN, ENDED };

/**
 * struct ring - A ring and where the driver is in it
 * @cfg:	As configured
 * @desc:	Descriptor table
 * @avail:	Available ring
 * @used:	Used ring
 * @avail_idx:	Next available entry
 * @kicked_idx:	@avail_idx when the device was last asked about a kick
 * @last_used:	Next used entry to take
 * @free:	Buffers that the device does not have
 * @n_free:	How many
 */
struct ring {
	struct guest_ring cfg;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint16_t avail_idx;
	uint16_t kicked_idx;
	uint16_t last_used;
	uint16_t free[MAX_SLOTS];
	unsigned n_free;
};

/**
 * struct conn - A connection
 * @rx_total:	Payload received, bytes
 * @peer_port:	The host's port
 * @rx:		@rx_total, as fwd_cnt counts it
 * @rx_told:	@rx as the back-end last heard it
 * @tx:		Payload sent
 * @peer_fwd:	Of it, what the back-end passed on
 * @window:	Its buf_alloc
 * @state:	Where it is in its life
 */
struct conn {
	uint64_t rx_total;
	uint32_t peer_port;
	uint32_t rx;
	uint32_t rx_told;
	uint32_t tx;
	uint32_t peer_fwd;
	uint32_t window;
	enum state state;
};

/**
 * struct guest - A guest
 * @cfg:	As configured
 * @rx:		Ring 0
 * @tx:		Ring 1
 * @epoll_fd:	Reports edges of both call eventfds
 * @rx_hdrs:	Headers of RX buffers, one each 64 bytes
 * @rx_data:	Their payload, one each cfg.rx_len bytes
 * @tx_hdrs:	Headers of TX buffers
 * @tx_data:	Their payload, one each 64 KiB
 * @next_conn:	Number of the next connection
 * @changes:	Packets so far that changed a connection's state
 * @resets:	Of them, RSTs
 * @conns:	All connections, by number
 */
struct guest {
	struct guest_config cfg;
	struct ring rx;
	struct ring tx;
	int epoll_fd;
	char *rx_hdrs, *rx_data, *tx_hdrs, *tx_data;
	uint32_t next_conn;
	uint32_t changes;
	uint32_t resets;
	struct conn *conns;
};

uint64_t now_ns(void);
uint32_t request(struct guest *g, uint32_t host_port);
int post(struct guest *g, uint32_t conn, uint16_t op, uint32_t flags,
	 uint32_t len);
void *next_payload(struct guest *g);
void kick(struct guest *g);
int pump(struct guest *g);

#endif /* DRIVER_H */
