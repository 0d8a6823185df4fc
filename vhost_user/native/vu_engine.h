/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_engine.h - the part of vu.h about the engine and its events
 *
 * vu_conn.h	targets, listeners, connections
 * vu_netns.h	network namespaces that far sides are dialled in
 * vu_peer.h	processes that take connections by rings of shared memory
 * vu_hbone.h	tunnels of mutual TLS and HTTP/2
 * vu_request.h	CONNECTs of others
 * vu_decide.h	CONNECTs that Python is not asked about
 * vu_dev.h	devices, their rings and routes
 */
#ifndef VU_ENGINE_H
#define VU_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#include "vu_err.h"

#define VU_MAX_DEVICES 1024 /* per engine, and as many listeners */

/* VU_EV_BROKEN: not one queue but the whole device */
#define VU_QUEUE_ALL 0xffffffffU

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
 *			VU_ERR_FAULT, VU_ERR_CALL and VU_ERR_SYS @port is
 *			VU_QUEUE_ALL: all rings are stopped, all connections
 *			ended, and the memory map is not used any more
 * @VU_EV_LIMIT:	A device met a limit; @port is the enum vu_limit,
 *			@up_bytes how often so far. Comes at most once a
 *			minute for each
 * @VU_EV_GONE:		A listener or pool was deleted, and the last connection
 *			or tunnel of it has ended: nothing comes from @source
 *			any more
 * @VU_EV_TUNNEL:	A tunnel of a pool or listener is there (@reason is
 *			VU_REASON_NONE), failed, or has ended (@tag is 1), which
 *			@reason and @error tell of; see vu_reason.h
 * @VU_EV_MAKER:	The maker of a network namespace is of no use: it said
 *			nonsense (@error is EPROTO), or has gone (ECONNRESET).
 *			Another one is wanted: vu_netns_renew()
 * @VU_EV_FORGOT:	No event with this @tag of vu_hbone_decide() comes any
 *			more from @source
 */
enum vu_event_kind {
	VU_EV_REQUEST = 1,
	VU_EV_OPENED = 2,
	VU_EV_FAILED = 3,
	VU_EV_CLOSED = 4,
	VU_EV_BROKEN = 5,
	VU_EV_LIMIT = 6,
	VU_EV_GONE = 7,
	VU_EV_TUNNEL = 8,
	VU_EV_FORGOT = 9,
	VU_EV_MAKER = 10,
};

/**
 * struct vu_event - One event
 * @conn:	Connection's id; 0 for VU_EV_BROKEN, VU_EV_LIMIT, VU_EV_GONE,
 *		VU_EV_TUNNEL, VU_EV_FORGOT and VU_EV_MAKER
 * @up_bytes:	Bytes from the side that opened the connection, so far
 * @down_bytes:	Bytes back to it, so far
 * @duration_us: Since the request, us
 * @kind:	enum vu_event_kind
 * @source:	Device's, listener's or pool's id; of a network namespace
 *		VU_NETNS_SOURCE and its id
 * @error:	errno, or enum vu_err for VU_EV_BROKEN
 * @peer_port:	vsock: the guest's port
 * @port:	vsock: the port on our side (the requested one, or of an
 *		opened connection the one we chose); VU_EV_BROKEN: the queue
 * @cid:	vsock: the CID on our side: 2, or a sibling's
 * @tag:	vu_listener_guest(), vu_hbone_decide(): of a client, until
 *		VU_EV_OPENED; else 0
 * @reason:	enum vu_reason, or 0
 * @src_len:	Bytes used of @src: 0 for vsock
 * @dst_len:	Bytes used of @dst: 0 for vsock
 * @src:	Listener: the client's sockaddr, or its tunnel's; without @tag
 *		empty once it has hung up
 * @dst:	Listener: getsockname(), with TPROXY the original destination;
 *		VU_EV_REQUEST: that before NAT, if there was any
 * @answer:	VU_EV_OPENED of one to another network: vu_hbone_answer() has it
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
	uint32_t reason;
	uint32_t answer;
};

/* Event classes a device or listener wants, or'ed (the others always come) */
#define VU_WANT_OPENED (1U << VU_EV_OPENED)
#define VU_WANT_FAILED (1U << VU_EV_FAILED)
#define VU_WANT_CLOSED (1U << VU_EV_CLOSED)

/**
 * struct vu_engine_stats - Counters since vu_engine_new()
 * @conns:	Connections now
 * @wakeups:	Returns from a wait that could block
 * @spins:	Times the engine entered a polling window
 * @spin_hits:	Times it found work in one
 * @events_lost: Events that no memory was left for
 * @refused:	Clients that a listener took and closed: max_conns of the
 *		engine, no memory, or its events are far behind
 */
struct vu_engine_stats {
	uint64_t conns;
	uint64_t wakeups;
	uint64_t spins;
	uint64_t spin_hits;
	uint64_t events_lost;
	uint64_t refused;
};

/**
 * struct vu_engine - Devices, listeners and connections, and the thread that
 *	serves them
 *
 * Threads. vu_engine_run() makes its caller the engine thread. All else may be
 * called on any other thread, by several at once, before, during and after
 * vu_engine_run(); only vu_engine_new() and vu_engine_free() are alone with
 * their engine. Except where it says so, a call waits until the thread is
 * between two turns, or blocks, and stops it for as long as the call takes. On
 * the engine thread it would wait for itself.
 *
 * Ids. A device and a listener are named by ids of 31 bits, a connection by one
 * of 63. Each is for one thing: whoever still has the id of something that is
 * gone gets -VU_ERR_GONE, not another one's. Only after 2^20 more devices and
 * listeners, and for a connection after 2^31 more in its slot, may one come
 * again.
 *
 * Failure. A call that fails changes nothing but counters, and outputs are
 * untouched. Where it takes over a file descriptor, that is still the caller's.
 */
struct vu_engine;

/**
 * vu_engine_new() - Make an engine
 * @cfg:	Configuration, copied
 *
 * Returns: the engine, to be freed with vu_engine_free(); NULL if out of memory
 * or descriptors, errno says why
 */
struct vu_engine *vu_engine_new(const struct vu_engine_config *cfg);

/**
 * vu_engine_free() - Free an engine and all it has
 * @engine:	Engine whose vu_engine_run() returned or never ran; or NULL
 *
 * Sockets are closed, rings stopped as by vu_dev_stop_ring(), events dropped.
 * Memory maps are the caller's.
 */
void vu_engine_free(struct vu_engine *engine);

/**
 * vu_engine_run() - Be the engine thread
 * @engine:	Engine, run once
 *
 * Returns: 0, after vu_engine_stop(). Never an error: what fails is told by
 * events and counters
 */
int vu_engine_run(struct vu_engine *engine);

/**
 * vu_engine_stop() - Make vu_engine_run() return
 * @engine:	Engine
 *
 * It returns soon after. One that is called later returns at once.
 */
void vu_engine_stop(struct vu_engine *engine);

/**
 * vu_engine_event_fd() - What becomes readable when events are queued?
 * @engine:	Engine
 *
 * An event that somebody waits for (VU_EV_REQUEST, VU_EV_FAILED, VU_EV_BROKEN)
 * makes it readable at the end of the turn, another one within about 5 ms. Does
 * not stop the engine.
 *
 * Returns: an eventfd, the engine's own: vu_engine_events() resets it. Never an
 * error: it was made with the engine
 */
int vu_engine_event_fd(const struct vu_engine *engine);

/**
 * vu_engine_events() - Take queued events
 * @engine:	Engine
 * @ret_events:	Room for them
 * @max:	Entries of @ret_events
 *
 * Those of one source come in their order, sources by turns. An event that
 * there was no memory for is lost, and counted in events_lost. Does not stop
 * the engine.
 *
 * Returns: how many; fewer than @max: there are no more now, and the event fd
 * becomes readable after the next. Never an error: nothing is allocated
 */
int vu_engine_events(struct vu_engine *engine, struct vu_event *ret_events,
		     unsigned max);

/**
 * vu_engine_stats() - Read the engine's counters
 * @engine:	Engine
 * @ret:	Counters
 */
void vu_engine_stats(struct vu_engine *engine, struct vu_engine_stats *ret);

#endif /* VU_ENGINE_H */
