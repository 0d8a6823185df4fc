/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_dev.h - the part of vu.h about virtio-vsock devices
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 */
#ifndef VU_DEV_H
#define VU_DEV_H

#include <stdint.h>

#include "vu_conn.h"
#include "vu_engine.h"
#include "vu_mem.h"
#include "vu_ring.h"

/* Least window of a connection, bytes; each that a device may have is sure of
 * it, unless buf_alloc is less */
#define VU_MIN_WINDOW 2048

/* Any port that has no route of its own; VMADDR_PORT_ANY */
#define VU_PORT_ANY 0xffffffffU

/**
 * enum vu_limit - What a VM may run into; see vsock/limits.c, docs/limits.md
 * @VU_LIMIT_CONNS:	max_conns, or too many events wait: a request was
 *			refused
 * @VU_LIMIT_BYTES:	max_queued_bytes: a window is smaller for it
 * @VU_LIMIT_RATE:	accept_rate: a request was refused
 * @VU_LIMIT_FDS:	Out of descriptors: a connection failed
 * @VU_LIMIT_MEMORY:	Out of memory: a connection failed
 * @VU_LIMIT_BACKLOG:	A unix listener was full: a connection waits
 */
enum vu_limit {
	VU_LIMIT_CONNS = 0,
	VU_LIMIT_BYTES = 1,
	VU_LIMIT_RATE = 2,
	VU_LIMIT_FDS = 3,
	VU_LIMIT_MEMORY = 4,
	VU_LIMIT_BACKLOG = 5,
};

/**
 * struct vu_dev_config - A virtio-vsock device (VIRTIO 1.2 section 5.10)
 * @guest_cid:	The guest's CID, >= 3
 * @buf_alloc:	Receive window a connection offers to the guest, bytes
 * @max_queued_bytes: Bytes from the guest that the engine may hold; at least
 *		@max_conns times VU_MIN_WINDOW
 * @max_conns:	Connections; one more is answered with RST and counted
 * @accept_rate: Requests a second from the guest, and as many from host
 *		clients; 0: any number
 * @want:	VU_WANT_* bits
 */
struct vu_dev_config {
	uint64_t guest_cid;
	uint64_t max_queued_bytes;
	uint32_t buf_alloc;
	uint32_t max_conns;
	uint32_t accept_rate;
	uint32_t want;
};

/**
 * struct vu_dev_stats - Counters since vu_dev_add()
 * @conns:	Connections now
 * @queued_bytes: Bytes from the guest that the engine holds now
 * @window_bytes: Sum of the windows now
 * @opened:	Connections established
 * @failed:	Connections that ended before that
 * @tx_packets:	Packets from the guest
 * @tx_bytes:	Payload of them
 * @rx_packets:	Packets to the guest
 * @rx_bytes:	Payload of them
 * @kicks:	Guest notifications received
 * @calls:	Interrupts sent
 * @rst_unknown: RSTs for packets of no known connection
 * @bad_packets: Packets with a bad header, type, CID or length, or not in their
 *		connection's state. One that crossed our SHUTDOWN is none
 * @credit_violations: Connections reset: the guest overran its credit, or took
 *		more than it was sent
 * @limit_conns: Requests refused because of max_conns, or because Python is far
 *		behind with events of this device
 * @limit_bytes: Windows made smaller because of max_queued_bytes
 * @limit_rate: Requests refused because of accept_rate
 * @no_fds:	Connections that ended: the process was out of descriptors
 * @no_memory:	Same, out of memory
 * @backlog_full: Dials that found a unix listener full
 * @message_errors: SEQPACKET connections reset: a message was larger than its
 *		receiver's window or socket, or never ended, or too many were
 *		empty
 */
struct vu_dev_stats {
	uint64_t conns;
	uint64_t queued_bytes;
	uint64_t window_bytes;
	uint64_t opened;
	uint64_t failed;
	uint64_t tx_packets;
	uint64_t tx_bytes;
	uint64_t rx_packets;
	uint64_t rx_bytes;
	uint64_t kicks;
	uint64_t calls;
	uint64_t rst_unknown;
	uint64_t bad_packets;
	uint64_t credit_violations;
	uint64_t limit_conns;
	uint64_t limit_bytes;
	uint64_t limit_rate;
	uint64_t no_fds;
	uint64_t no_memory;
	uint64_t backlog_full;
	uint64_t message_errors;
};

/**
 * vu_dev_add() - Add a virtio-vsock device
 * @engine:	Engine
 * @cfg:	Configuration, copied
 *
 * Its memory and rings come later. Connection requests meet VU_TARGET_RESET
 * until vu_dev_route() says otherwise.
 *
 * Returns: the device's id,
 *	-VU_ERR_INVAL, if the CID is reserved (0 to 2, or from 2^32 - 1 on), the
 *		window is 0 or above 1 GiB, or max_queued_bytes is less than
 *		max_conns times VU_MIN_WINDOW
 *	-VU_ERR_FULL, if there are VU_MAX_DEVICES
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_dev_add(struct vu_engine *engine, const struct vu_dev_config *cfg);

/**
 * vu_dev_del() - Remove a device: its connections end, its rings stop
 * @engine:	Engine
 * @dev:	Id
 *
 * The connections end with ECONNRESET; what is queued of events is still to be
 * taken. Sockets that are many are closed over some turns. What was lent to the
 * device is the caller's again.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 */
int vu_dev_del(struct vu_engine *engine, uint32_t dev);

/**
 * vu_dev_set_mem() - Give a device its guest's memory
 * @engine:	Engine
 * @dev:	Id
 * @mem:	Memory map, borrowed until the next call or vu_dev_del(); nobody
 *		changes it while a ring runs. NULL: none
 *
 * A device that broke as a whole (VU_QUEUE_ALL) starts over with it.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_STATE, if a ring runs: it points into the old map
 */
int vu_dev_set_mem(struct vu_engine *engine, uint32_t dev,
		   const struct vu_mem *mem);

/**
 * vu_dev_start_ring() - Start one of a device's rings
 * @engine:	Engine
 * @dev:	Id
 * @queue:	0: RX, 1: TX, 2: event
 * @cfg:	Where it is, copied. kick_fd is duplicated; call_fd and inflight
 *		are borrowed until the ring stops. Its features are the
 *		device's until another ring starts
 *
 * Connections that there are go on. A ring that broke may be started again.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_STATE, if the ring runs already, or there is no memory map
 *	-VU_ERR_INVAL, if there is no such queue; also as vu_ring_new()
 *	-VU_ERR_RANGE, -VU_ERR_RING, -VU_ERR_FAULT, -VU_ERR_NOMEM, as
 *		vu_ring_new()
 *	-VU_ERR_SYS, if the kick eventfd can't be watched; also as
 *		vu_ring_new(). errno says why
 */
int vu_dev_start_ring(struct vu_engine *engine, uint32_t dev, uint32_t queue,
		      const struct vu_ring_config *cfg);

/**
 * vu_dev_stop_ring() - Stop one of a device's rings
 * @engine:	Engine
 * @dev:	Id
 * @queue:	Ring; one that doesn't run stays so
 *
 * Each chain that was taken has been given back, and the guest is interrupted
 * if it asks for that. A call eventfd that blocks keeps us waiting, as in
 * vu_ring_flush(), and is no error here. Connections stay: the front-end may
 * start the ring again.
 *
 * Returns: what VHOST_USER_GET_VRING_BASE answers, 0 before the first start,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_INVAL, if there is no such queue
 */
int64_t vu_dev_stop_ring(struct vu_engine *engine, uint32_t dev,
			 uint32_t queue);

/**
 * vu_dev_set_call() - Change what interrupts the guest for a ring
 * @engine:	Engine
 * @dev:	Id
 * @queue:	Ring
 * @call_fd:	eventfd, borrowed until the next call or until the ring stops;
 *		-1: none
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_INVAL, if there is no such queue
 *	-VU_ERR_STATE, if the ring doesn't run
 */
int vu_dev_set_call(struct vu_engine *engine, uint32_t dev, uint32_t queue,
		    int call_fd);

/**
 * vu_dev_reset() - The front-end is gone: end all connections
 * @engine:	Engine
 * @dev:	Id
 *
 * They end with ECONNRESET. Rings go on. Bytes of a connection that the guest
 * had let go of before are still delivered.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 */
int vu_dev_reset(struct vu_engine *engine, uint32_t dev);

/**
 * vu_dev_transport_reset() - Tell a driver that its connections are gone
 * @engine:	Engine
 * @dev:	Id
 *
 * By VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (VIRTIO 1.2 section 5.10.6.7), once its
 * RX and TX rings run and it has a buffer on the event ring; never, if both
 * begin at 0 then: that driver never had a connection. Without that call, or
 * without an event ring, it gets RSTs about the connections that
 * vu_dev_reset() ended.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 */
int vu_dev_transport_reset(struct vu_engine *engine, uint32_t dev);

/**
 * vu_dev_route() - Say where connections to a port go
 * @engine:	Engine
 * @dev:	Id
 * @port:	Host port; VU_PORT_ANY: any that has no route
 * @target:	Where to, copied; takes the place of the port's last
 *
 * It holds for requests from now on, and for those that wait for a full unix
 * listener.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_INVAL, if the target is malformed: its kind, or the size of its
 *		address
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_dev_route(struct vu_engine *engine, uint32_t dev, uint32_t port,
		 const struct vu_target *target);

/**
 * vu_dev_unroute() - Forget a port's route: that of VU_PORT_ANY holds again
 * @engine:	Engine
 * @dev:	Id
 * @port:	Host port; VU_PORT_ANY always has a route
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device, or no such route
 */
int vu_dev_unroute(struct vu_engine *engine, uint32_t dev, uint32_t port);

/**
 * vu_dev_unroute_from() - Forget the routes of many ports at one moment
 * @engine:	Engine
 * @dev:	Id
 * @first:	The lowest port
 *
 * Returns: 0 on success, also if there were none,
 *	-VU_ERR_GONE, if there is no such device
 */
int vu_dev_unroute_from(struct vu_engine *engine, uint32_t dev, uint32_t first);

/**
 * vu_dev_limit() - Change what a device's VM may take
 * @engine:	Engine
 * @dev:	Id
 * @max_conns:	As in struct vu_dev_config, like the others
 * @max_queued_bytes: At least @max_conns times VU_MIN_WINDOW
 * @accept_rate: Requests a second; 0: any number
 *
 * What the VM has is left alone: above a lower limit it just gets nothing more.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_INVAL, if @max_queued_bytes is too small
 */
int vu_dev_limit(struct vu_engine *engine, uint32_t dev, uint32_t max_conns,
		 uint64_t max_queued_bytes, uint32_t accept_rate);

/**
 * vu_dev_conns_from() - Count the connections from a range of our ports
 * @engine:	Engine
 * @dev:	Id
 * @first_port:	The first of 65536, a multiple of that
 *
 * Returns: how many that a client of vu_listener_guest() has,
 *	-VU_ERR_GONE, if there is no such device
 */
int64_t vu_dev_conns_from(struct vu_engine *engine, uint32_t dev,
			  uint32_t first_port);

/**
 * vu_dev_join() - Put a device into a group
 * @engine:	Engine
 * @dev:	Id
 * @group:	Number, the caller's choice
 *
 * Guests of the devices of a group reach each other by CID, until a device is
 * removed. Each then takes connections of the others' VMs.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_STATE, if a guest would reach two devices by one CID, or another
 *		one by its own
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_dev_join(struct vu_engine *engine, uint32_t dev, uint32_t group);

/**
 * vu_dev_stats() - Read a device's counters
 * @engine:	Engine
 * @dev:	Id
 * @ret:	Counters
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such device
 */
int vu_dev_stats(struct vu_engine *engine, uint32_t dev,
		 struct vu_dev_stats *ret);

#endif /* VU_DEV_H */
