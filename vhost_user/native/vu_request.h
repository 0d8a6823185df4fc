/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_request.h - the part of vu.h about CONNECTs of others: what one said, and
 *		  how it is answered; and what others answered ours
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 */
#ifndef VU_REQUEST_H
#define VU_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_engine.h"

/**
 * struct vu_hbone_request - What a CONNECT said; what it didn't is ""
 *
 * A request with a part that has no room here gets 400.
 *
 * @peer:	The client's SPIFFE identity, by its certificate
 * @authority:	":authority", with a host and a port
 * @baggage:	"baggage"
 * @forwarded:	"forwarded"
 * @traceparent: "traceparent"
 * @network:	"x-forwarded-network"
 * @has_network: It said one, which may be ""
 */
struct vu_hbone_request {
	char peer[2048];
	char authority[264];
	char baggage[8192];
	char forwarded[1024];
	char traceparent[256];
	char network[256];
	bool has_network;
};

/**
 * vu_hbone_request() - Read what a CONNECT said
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST of a vu_hbone_listen()
 * @ret:	That
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if the connection has ended meanwhile
 *	-VU_ERR_STATE, if it came by no tunnel
 */
int vu_hbone_request(struct vu_engine *engine, uint64_t conn,
		     struct vu_hbone_request *ret);

/**
 * vu_hbone_respond() - Say which headers the answer to a CONNECT has
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST of a vu_hbone_listen()
 * @headers:	Id of vu_headers_add(); its baggage is sent
 *
 * Call it before vu_conn_answer().
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if the connection has ended meanwhile, or there are no
 *		such headers
 *	-VU_ERR_STATE, if it came by no tunnel
 */
int vu_hbone_respond(struct vu_engine *engine, uint64_t conn, uint32_t headers);

/**
 * vu_hbone_preface() - Have the far side get bytes before those of the peer
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST of a vu_hbone_listen()
 * @data:	Bytes, copied
 * @len:	How many
 *
 * Events count them as the peer's. Call it before the CONNECT is answered.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if the connection has ended meanwhile
 *	-VU_ERR_STATE, if it came by no tunnel, was answered, is on offer or has
 *		some already
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_hbone_preface(struct vu_engine *engine, uint64_t conn, const void *data,
		     uint32_t len);

/**
 * vu_hbone_guest() - Give a CONNECT a program in a guest as its far side
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST of a vu_hbone_listen()
 * @dev:	The guest's device
 * @guest_port:	Port that the program listens on
 * @port:	Port on our side, not 0
 *
 * As vu_conn_offer() for a socket: what becomes of it is told of a connection
 * of the device's, with an id of its own. If the guest has no room (a RST:
 * VU_EV_FAILED with ECONNREFUSED), @conn is held again, and may be offered
 * again or answered. Should it fail otherwise, the CONNECT is answered by 503.
 * Nothing more is told of @conn then, nor when the guest takes it. As long as
 * it is on offer, its time runs: VU_EV_FAILED of @conn means that it will not
 * be held again.
 *
 * Returns: the connection's id,
 *	-VU_ERR_GONE, if the connection has ended meanwhile, or there is no such
 *		device
 *	-VU_ERR_INVAL, if @port is 0
 *	-VU_ERR_STATE, if it came by no tunnel, was answered or is on offer, or
 *		the two ports have a connection
 *	-VU_ERR_FULL, as vu_conn_open()
 *	-VU_ERR_NOMEM, if out of memory
 */
int64_t vu_hbone_guest(struct vu_engine *engine, uint64_t conn, uint32_t dev,
		       uint32_t guest_port, uint32_t port);

/* ---- answers to ours ---- */

/**
 * struct vu_hbone_answer - Who answered a CONNECT of ours, and what
 * @peer:	The server's SPIFFE identity, by its certificate
 * @baggage:	"baggage"; "" if it said none
 */
struct vu_hbone_answer {
	char peer[2048];
	char baggage[8192];
};

/**
 * vu_hbone_answer() - Read what a CONNECT was answered
 * @engine:	Engine
 * @answer:	From a connection's VU_EV_OPENED
 * @ret:	That
 *
 * Those of tunnels in streams of others have one: to whom such a stream leads
 * is not known before. The last 64 different ones are kept.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if it is kept no more
 */
int vu_hbone_answer(struct vu_engine *engine, uint32_t answer,
		    struct vu_hbone_answer *ret);

#endif /* VU_REQUEST_H */
