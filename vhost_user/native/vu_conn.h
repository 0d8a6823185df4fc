/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_conn.h - the part of vu.h about listeners and connections
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 */
#ifndef VU_CONN_H
#define VU_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_engine.h"

/* ---- targets: where a connection's other end is ---- */

/**
 * enum vu_target_kind - What the engine does with a connection request
 * @VU_TARGET_RESET:	Refuse it: RST
 * @VU_TARGET_ASK:	Post VU_EV_REQUEST and hold it for vu_conn_answer()
 * @VU_TARGET_UNIX:	Connect to the unix socket "<addr>_<port>", or RST; one
 *			that is full is dialled again every 5 ms
 * @VU_TARGET_DIAL:	Connect to the sockaddr in addr, in the network
 *			namespace netns, or by the proxy handoff; the guest's
 *			RESPONSE waits until that settles
 * @VU_TARGET_ECHO:	Answered in the engine: every byte comes back (RFC 862)
 * @VU_TARGET_DISCARD:	Same: bytes are read and dropped; after the peer's
 *			FIN the engine closes its side (RFC 863)
 * @VU_TARGET_CHARGEN:	Same: bytes are sent until the peer closes (RFC 864)
 * @VU_TARGET_VSOCK:	Connect to the same port of the CID in addr, a
 *			sockaddr_vm: a vsock socket of the host, or behind it
 * @VU_TARGET_RING:	Offer it to the process peer, by rings of shared memory;
 *			addr is the sockaddr that the program asked for. The
 *			guest's RESPONSE waits until the process answers
 * @VU_TARGET_HBONE:	Open a stream of a tunnel; addr is a struct
 *			vu_hbone_target
 *
 * A SEQPACKET connection is refused by ASK, DIAL, RING and HBONE, and by VSOCK:
 * a socket of Linux that doesn't block may send a part of a message there and
 * say EAGAIN.
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
	VU_TARGET_RING = 8,
	VU_TARGET_HBONE = 9,
};

/**
 * struct vu_target - See enum vu_target_kind
 * @kind:	enum vu_target_kind
 * @error:	RESET: errno of VU_EV_FAILED; 0: ECONNREFUSED
 * @addr_len:	Bytes used of @addr: a sockaddr (DIAL, VSOCK, RING), a path
 *		(UNIX), else 0
 * @netns:	DIAL: id of vu_netns_add(): an IP address; one that is gone
 *		refuses with ENETUNREACH. 0: our own namespace
 * @handoff:	DIAL: id of vu_handoff_add(): the proxy is connected to, and is
 *		told of the IP address; one that is gone refuses with
 *		ENETUNREACH. @netns is where a SOCKS5 proxy is; 0 for UNIX. 0:
 *		none
 * @peer:	RING: id of vu_peer_add(); one that is gone refuses with
 *		ECONNREFUSED. Else 0
 * @addr:	The address
 */
struct vu_target {
	uint32_t kind;
	int32_t error;
	uint32_t addr_len;
	uint32_t netns;
	uint32_t handoff;
	uint32_t peer;
	uint8_t addr[112];
};

/* ---- TCP and unix listeners ---- */

/**
 * vu_listener_add() - Accept connections from a listening socket
 * @engine:	Engine
 * @fd:		Listening socket, non-blocking, its only descriptor; taken over
 *		on success
 * @want:	VU_WANT_ bits
 * @target:	Where its connections go, copied; not VU_TARGET_UNIX or
 *		VU_TARGET_VSOCK, which go by the vsock port that is asked for
 *
 * Out of descriptors, it accepts nobody for some ms: clients wait in its
 * backlog.
 *
 * Returns: the listener's id,
 *	-VU_ERR_INVAL, if the target is malformed, or of those two kinds
 *	-VU_ERR_FULL, if there are 65536 listeners
 *	-VU_ERR_NOMEM, if out of memory
 *	-VU_ERR_SYS, if the socket can't be watched; errno says why
 */
int vu_listener_add(struct vu_engine *engine, int fd, uint32_t want,
		    const struct vu_target *target);

/**
 * vu_listener_del() - Close a listening socket; its connections stay
 * @engine:	Engine
 * @listener:	Id
 *
 * Their events still come from it; VU_EV_GONE is the last.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such listener
 */
int vu_listener_del(struct vu_engine *engine, uint32_t listener);

/**
 * vu_listener_backlog() - Change how many clients a listener lets wait
 * @engine:	Engine
 * @listener:	Id
 * @backlog:	As of listen()
 *
 * Of a guest's listener, it bounds also how many may be pending.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such listener
 *	-VU_ERR_SYS, if listen() fails; errno says why
 */
int vu_listener_backlog(struct vu_engine *engine, uint32_t listener,
			int backlog);

/**
 * vu_listener_pause() - Accept nobody for a while
 * @engine:	Engine
 * @listener:	Id
 * @paused:	Accept nobody: clients wait in its backlog; false: accept again
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such listener
 */
int vu_listener_pause(struct vu_engine *engine, uint32_t listener, bool paused);

/* ---- listeners whose clients are a guest's ---- */

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

/**
 * vu_listener_guest() - Offer clients of a listening socket to a guest
 * @engine:	Engine
 * @fd:		Listening TCP socket, non-blocking, its only descriptor; taken
 *		over on success
 * @backlog:	Its backlog: one client more may be pending, but not over 256
 * @dev:	The guest's device
 * @tag:	Of its clients' events, not 0
 *
 * A client of a known IP (vu_listener_caller()) is offered to the guest at once
 * and Python hears VU_EV_OPENED, VU_EV_FAILED or VU_EV_CLOSED. Of any other,
 * and of one that the guest or its device has no room for, it hears
 * VU_EV_REQUEST and gets the socket by vu_conn_take(). No room also pauses the
 * listener. A client is pending until the guest or Python has it.
 *
 * Returns: the listener's id,
 *	-VU_ERR_INVAL, if @tag is 0
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_FULL, -VU_ERR_NOMEM, -VU_ERR_SYS, as vu_listener_add()
 */
int vu_listener_guest(struct vu_engine *engine, int fd, int backlog,
		      uint32_t dev, uint32_t tag);

/**
 * vu_listener_caller() - Say where a guest's listener has an IP's clients go
 * @engine:	Engine
 * @listener:	Id of vu_listener_guest()
 * @caller:	The IP and the ports, copied; takes the place of the IP's last
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such listener
 *	-VU_ERR_INVAL, if an IP has another version than 4 or 6, or the ports
 *		don't begin at a multiple of 65536
 *	-VU_ERR_STATE, if it is no guest's listener
 *	-VU_ERR_FULL, if it has VU_MAX_CALLERS
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_listener_caller(struct vu_engine *engine, uint32_t listener,
		       const struct vu_caller *caller);

/**
 * vu_listener_forget() - Know nobody's IP any more
 * @engine:	Engine
 * @listener:	Id
 *
 * Clients that were offered stay so.
 *
 * Returns: 0 on success, also if it knew none,
 *	-VU_ERR_GONE, if there is no such listener
 */
int vu_listener_forget(struct vu_engine *engine, uint32_t listener);

/* ---- connections ---- */

/**
 * vu_conn_answer() - Give a held connection its far side
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST
 * @target:	The far side, copied; not VU_TARGET_ASK. VU_TARGET_UNIX and
 *		VU_TARGET_VSOCK are for a guest's connections: they go by its
 *		port
 *
 * Whether it is reached is told by VU_EV_OPENED or VU_EV_FAILED.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if the connection has ended meanwhile
 *	-VU_ERR_STATE, if it was answered before, or was never held
 *	-VU_ERR_INVAL, if the target is malformed, or VU_TARGET_ASK
 */
int vu_conn_answer(struct vu_engine *engine, uint64_t conn,
		   const struct vu_target *target);

/**
 * vu_conn_answer_fd() - Give a held connection a socket as its far side
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST
 * @fd:		Connected stream socket, its only descriptor; taken over on
 *		success
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, -VU_ERR_STATE, as vu_conn_answer()
 *	-VU_ERR_SYS, if the socket can't be watched; errno says why
 */
int vu_conn_answer_fd(struct vu_engine *engine, uint64_t conn, int fd);

/**
 * vu_conn_take() - Take the socket of a guest's client that is held
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST of a vu_listener_guest()
 *
 * The connection is gone, without another event.
 *
 * Returns: the socket, the caller's,
 *	-VU_ERR_GONE, if the connection has ended meanwhile
 *	-VU_ERR_STATE, if it isn't a guest's client's that is held
 */
int vu_conn_take(struct vu_engine *engine, uint64_t conn);

/**
 * vu_conn_open() - Ask the guest for a connection
 * @engine:	Engine
 * @dev:	Device's id
 * @guest_port:	Port that a program in the guest listens on
 * @fd:		Host client's connected socket, its only descriptor; taken over
 *		on success. That of a SOCK_SEQPACKET socket becomes a SEQPACKET
 *		connection
 * @hybrid:	Write "OK <port>" and a line feed to it when the guest accepts,
 *		the port being the one on the host's end (the hybrid unix
 *		socket protocol of Firecracker), or "ERROR <why>" if not
 *
 * The guest hears of it when it has an RX buffer, and has dial_timeout_ms to
 * answer. Which it did is told by VU_EV_OPENED or VU_EV_FAILED.
 *
 * Returns: the connection's id,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_STATE, if the guest's driver knows no SEQPACKET
 *	-VU_ERR_FULL, if it or the engine has max_conns, accept_rate is
 *		exceeded, too many events wait, or memory is short
 *	-VU_ERR_SYS, if it is no socket, can't be watched or sized, or memory
 *		is short; errno says why
 */
int64_t vu_conn_open(struct vu_engine *engine, uint32_t dev,
		     uint32_t guest_port, int fd, bool hybrid);

/**
 * vu_conn_offer() - Ask the guest for a connection from a port, on trial
 * @engine:	Engine
 * @dev:	Device's id
 * @guest_port:	Port that a program in the guest listens on
 * @port:	Port on our side, not 0
 * @fd:		Host client's connected socket, of which the caller has another
 *		descriptor; this one is taken over on success
 *
 * Should the connection fail, the client isn't told: the caller, who hears of
 * it by VU_EV_FAILED, can offer the socket once more. With VU_EV_OPENED the
 * caller's descriptor has served its purpose.
 *
 * Returns: the connection's id,
 *	-VU_ERR_GONE, if there is no such device
 *	-VU_ERR_INVAL, if @port is 0
 *	-VU_ERR_STATE, if the two ports have a connection; also as
 *		vu_conn_open()
 *	-VU_ERR_FULL, -VU_ERR_SYS, as vu_conn_open()
 */
int64_t vu_conn_offer(struct vu_engine *engine, uint32_t dev,
		      uint32_t guest_port, uint32_t port, int fd);

/**
 * vu_conn_reset() - End a connection
 * @engine:	Engine
 * @conn:	Id
 * @error:	errno for its last event, not 0: both sides see a reset
 *
 * One that is only waiting for its guest to let go, or for bytes of a guest
 * that has left, goes on with that.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if it has ended
 */
int vu_conn_reset(struct vu_engine *engine, uint64_t conn, int error);

#endif /* VU_CONN_H */
