/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_engine.h - the part of vu.h about the engine: devices, listeners,
 * connections
 */
#ifndef VU_ENGINE_H
#define VU_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vu_mem.h"
#include "vu_ring.h"

#define VU_MAX_DEVICES 1024 /* per engine */

/* VU_EV_BROKEN: not one queue but the whole device */
#define VU_QUEUE_ALL 0xffffffffU

/* Least window of a connection, bytes; each that a device may have is sure of
 * it */
#define VU_MIN_WINDOW 2048

/* Any port that has no route of its own; VMADDR_PORT_ANY */
#define VU_PORT_ANY 0xffffffffU

/* ---- targets: where a connection's other end is ---- */

/**
 * enum vu_target_kind - What the engine does with a connection request
 * @VU_TARGET_RESET:	Refuse it: RST
 * @VU_TARGET_ASK:	Post VU_EV_REQUEST and hold it for vu_conn_answer()
 * @VU_TARGET_UNIX:	Connect to the unix socket "<addr>_<port>", or RST
 * @VU_TARGET_DIAL:	Connect to the sockaddr in addr; the guest's RESPONSE
 *			waits until that settles
 * @VU_TARGET_ECHO:	Answered in the engine: every byte comes back (RFC 862)
 * @VU_TARGET_DISCARD:	Same: bytes are read and dropped; after the peer's
 *			FIN the engine closes its side (RFC 863)
 * @VU_TARGET_CHARGEN:	Same: bytes are sent until the peer closes (RFC 864)
 * @VU_TARGET_VSOCK:	Connect to the same port of the CID in addr, a
 *			sockaddr_vm: a vsock socket of the host, or behind it
 *
 * A SEQPACKET connection is refused by ASK and DIAL, and by VSOCK: a socket of
 * Linux that doesn't block may send a part of a message there and say EAGAIN.
 * With UNIX its socket is a SOCK_SEQPACKET one; ECHO and CHARGEN send messages.
 */
enum vu_target_kind {
	VU_TARGET_RESET = 0,
	VU_TARGET_ASK = 1,
	VU_TARGET_UNIX = 2,
	VU_TARGET_DIAL = 3,
	VU_TARGET_ECHO = 4,
	VU_TARGET_DISCARD = 5,
	VU_TARGET_CHARGEN = 6,
	VU_TARGET_VSOCK = 7,
};

/**
 * struct vu_target - See enum vu_target_kind
 * @kind:	enum vu_target_kind
 * @error:	RESET: errno for the events and for a TCP peer's benefit
 * @addr_len:	Bytes used of @addr: a sockaddr (DIAL, VSOCK), a path (UNIX),
 *		else 0
 * @addr:	The address
 */
struct vu_target {
	uint32_t kind;
	int32_t error;
	uint32_t addr_len;
	uint8_t addr[112];
};

/* ---- engine (engine.c) ---- */

/**
 * struct vu_engine_config - Fixed for an engine's life
 * @poll_us:	Longest the engine spins before it blocks; 0: never spins
 * @max_conns:	Connections over all devices and listeners
 * @dial_timeout_ms: An unanswered dial or guest REQUEST fails with ETIMEDOUT;
 *		a guest that does not answer our last SHUTDOWN gets a RST
 */
struct vu_engine_config {
	uint32_t poll_us;
	uint32_t max_conns;
	uint32_t dial_timeout_ms;
};

/**
 * enum vu_event_kind - Why Python hears of a connection or device
 * @VU_EV_REQUEST:	A guest (or a listener's client) wants a connection and
 *			its route is VU_TARGET_ASK: answer it. With @tag it is a
 *			client for a guest: take it. @error is 0 if it isn't
 *			known; ECONNREFUSED if the guest has no room, EAGAIN if
 *			the VM may have no more: then its listener is paused
 * @VU_EV_OPENED:	The connection is established at both ends
 * @VU_EV_FAILED:	It never was: dial error, reset target, timeout; @error
 *			is the errno. The connection is gone
 * @VU_EV_CLOSED:	An established connection ended; @error is 0 after an
 *			orderly end. The connection is gone
 * @VU_EV_BROKEN:	A device's ring broke the specification and is stopped;
 *			@port is the queue, @error the enum vu_err. With
 *			VU_ERR_FAULT and VU_ERR_CALL @port is VU_QUEUE_ALL: all
 *			rings are stopped, all connections ended, the memory map
 *			is gone
 * @VU_EV_LIMIT:	A device met a limit; @port is the enum vu_limit,
 *			@up_bytes how often so far. Comes at most once a
 *			minute for each
 * @VU_EV_GONE:		A listener was deleted, and its last connection has
 *			ended: nothing comes from @source any more
 */
enum vu_event_kind {
	VU_EV_REQUEST = 1,
	VU_EV_OPENED = 2,
	VU_EV_FAILED = 3,
	VU_EV_CLOSED = 4,
	VU_EV_BROKEN = 5,
	VU_EV_LIMIT = 6,
	VU_EV_GONE = 7,
};

/**
 * enum vu_limit - What a VM may run into; see limits.c and docs/limits.md
 * @VU_LIMIT_CONNS:	max_conns: a request was refused
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
 * struct vu_event - One event
 * @conn:	Connection, unique in the engine's life; 0 for VU_EV_BROKEN
 * @up_bytes:	Bytes from the side that opened the connection, so far
 * @down_bytes:	Bytes back to it, so far
 * @duration_us: Since the request, us
 * @kind:	enum vu_event_kind
 * @source:	Device or listener id
 * @error:	errno, or enum vu_err for VU_EV_BROKEN
 * @peer_port:	vsock: the guest's port
 * @port:	vsock: the port on our side (the requested one, or of an
 *		opened connection the one we chose); VU_EV_BROKEN: the queue
 * @cid:	vsock: the CID on our side: 2, or a sibling's
 * @tag:	vu_listener_guest(): of a client, until VU_EV_OPENED; else 0
 * @src_len:	Bytes used of @src: 0 for vsock
 * @dst_len:	Bytes used of @dst: 0 for vsock
 * @src:	Listener: the client's sockaddr; without @tag empty once it has
 *		hung up
 * @dst:	Listener: getsockname(), with TPROXY the original destination
 */
struct vu_event {
	uint64_t conn;
	uint64_t up_bytes;
	uint64_t down_bytes;
	uint64_t duration_us;
	uint32_t kind;
	uint32_t source;
	int32_t error;
	uint32_t peer_port;
	uint32_t port;
	uint32_t cid;
	uint32_t tag;
	uint16_t src_len;
	uint16_t dst_len;
	uint8_t src[28];
	uint8_t dst[28];
};

/**
 * struct vu_engine_stats - Counters since vu_engine_new()
 * @conns:	Connections now
 * @wakeups:	Returns from a blocking wait
 * @spins:	Times the engine entered a polling window
 * @spin_hits:	Times it found work in one
 * @events_lost: Events that no memory was left for
 * @refused:	Clients of listeners that found no room
 */
struct vu_engine_stats {
	uint64_t conns;
	uint64_t wakeups;
	uint64_t spins;
	uint64_t spin_hits;
	uint64_t events_lost;
	uint64_t refused;
};

struct vu_engine;

struct vu_engine *vu_engine_new(const struct vu_engine_config *cfg);
void vu_engine_free(struct vu_engine *engine);
int vu_engine_run(struct vu_engine *engine);
void vu_engine_stop(struct vu_engine *engine);
int vu_engine_event_fd(const struct vu_engine *engine);
int vu_engine_events(struct vu_engine *engine, struct vu_event *ret_events,
		     unsigned max);
void vu_engine_stats(struct vu_engine *engine, struct vu_engine_stats *ret);

/* ---- vsock devices ---- */

/* Event classes a device or listener wants, or'ed (the others always come) */
#define VU_WANT_OPENED (1U << VU_EV_OPENED)
#define VU_WANT_FAILED (1U << VU_EV_FAILED)
#define VU_WANT_CLOSED (1U << VU_EV_CLOSED)

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
 * @failed:	Requests that ended before that
 * @tx_packets:	Packets from the guest
 * @tx_bytes:	Payload of them
 * @rx_packets:	Packets to the guest
 * @rx_bytes:	Payload of them
 * @kicks:	Guest notifications received
 * @calls:	Interrupts sent
 * @rst_unknown: RSTs for packets of no known connection
 * @bad_packets: Packets with a bad header, type, CID or length
 * @credit_violations: Connections reset: the guest overran its credit
 * @limit_conns: Requests refused because of max_conns, or because Python is far
 *		behind with events of this device
 * @limit_bytes: Windows made smaller because of max_queued_bytes
 * @limit_rate: Requests refused because of accept_rate
 * @no_fds:	Connections that failed: the process was out of descriptors
 * @no_memory:	Same, out of memory
 * @backlog_full: Times a unix listener was full when it was dialled
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

int vu_dev_add(struct vu_engine *engine, const struct vu_dev_config *cfg);
int vu_dev_del(struct vu_engine *engine, uint32_t dev);
int vu_dev_set_mem(struct vu_engine *engine, uint32_t dev,
		   const struct vu_mem *mem);
int vu_dev_start_ring(struct vu_engine *engine, uint32_t dev, uint32_t queue,
		      const struct vu_ring_config *cfg);
int64_t vu_dev_stop_ring(struct vu_engine *engine, uint32_t dev,
			 uint32_t queue);
int vu_dev_set_call(struct vu_engine *engine, uint32_t dev, uint32_t queue,
		    int call_fd);
int vu_dev_reset(struct vu_engine *engine, uint32_t dev);
int vu_dev_transport_reset(struct vu_engine *engine, uint32_t dev);
int vu_dev_route(struct vu_engine *engine, uint32_t dev, uint32_t port,
		 const struct vu_target *target);
int vu_dev_unroute(struct vu_engine *engine, uint32_t dev, uint32_t port);
int vu_dev_unroute_from(struct vu_engine *engine, uint32_t dev, uint32_t first);
int vu_dev_limit(struct vu_engine *engine, uint32_t dev, uint32_t max_conns,
		 uint64_t max_queued_bytes, uint32_t accept_rate);
int64_t vu_dev_conns_from(struct vu_engine *engine, uint32_t dev,
			  uint32_t first_port);
int vu_dev_sibling(struct vu_engine *engine, uint32_t dev, uint32_t other);
int vu_dev_stats(struct vu_engine *engine, uint32_t dev,
		 struct vu_dev_stats *ret);

/* ---- TCP and unix listeners ---- */

int vu_listener_add(struct vu_engine *engine, int fd, uint32_t want,
		    const struct vu_target *target);
int vu_listener_del(struct vu_engine *engine, uint32_t listener);
int vu_listener_backlog(struct vu_engine *engine, uint32_t listener,
			int backlog);
int vu_listener_pause(struct vu_engine *engine, uint32_t listener, bool paused);

/* Callers that a listener may have */
#define VU_MAX_CALLERS 1024

/**
 * struct vu_caller - Where the clients of an IP go: to a port of a guest
 * @ip:		Their address, in network order; of IPv4 the first 4 bytes, the
 *		others 0
 * @version:	4 or 6
 * @guest_port:	Port that a program in the guest listens on
 * @first_port:	The first of 65536 on our side: each comes from the one that is
 *		its TCP port further. 0: they are unknown
 */
struct vu_caller {
	uint8_t ip[16];
	uint32_t version;
	uint32_t guest_port;
	uint32_t first_port;
};

int vu_listener_guest(struct vu_engine *engine, int fd, int backlog,
		      uint32_t dev, uint32_t tag);
int vu_listener_caller(struct vu_engine *engine, uint32_t listener,
		       const struct vu_caller *caller);
int vu_listener_forget(struct vu_engine *engine, uint32_t listener);

/* ---- connections ---- */

int vu_conn_answer(struct vu_engine *engine, uint64_t conn,
		   const struct vu_target *target);
int vu_conn_answer_fd(struct vu_engine *engine, uint64_t conn, int fd);
int vu_conn_take(struct vu_engine *engine, uint64_t conn);
int64_t vu_conn_open(struct vu_engine *engine, uint32_t dev,
		     uint32_t guest_port, int fd, bool hybrid);
int64_t vu_conn_offer(struct vu_engine *engine, uint32_t dev,
		      uint32_t guest_port, uint32_t port, int fd);
int vu_conn_reset(struct vu_engine *engine, uint64_t conn, int error);

#endif /* VU_ENGINE_H */
