/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_decide.h - the part of vu.h about CONNECTs that Python isn't asked about
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 */
#ifndef VU_DECIDE_H
#define VU_DECIDE_H

#include <stdint.h>

#include "vu_conn.h"
#include "vu_engine.h"

/* Decisions that a listener of tunnels has at a time */
#define VU_MAX_DECISIONS 4096

/**
 * struct vu_hbone_decision - Where CONNECTs that say the same go
 * @tag:	Of their VU_EV_OPENED or VU_EV_FAILED, not 0
 * @headers:	Id of vu_headers_add(), whose baggage the answer has; 0: none
 * @dev:	A guest's device, if @first_port isn't 0
 * @guest_port:	Port that a program in the guest listens on
 * @first_port:	The first of 65536 on our side: each comes from the one that is
 *		further by the client's port in "forwarded", or from another
 *		one if that is taken or unknown. 0: @target is where they go
 * @target:	As of vu_conn_answer(), not VU_TARGET_UNIX or VU_TARGET_VSOCK
 */
struct vu_hbone_decision {
	uint32_t tag;
	uint32_t headers;
	uint32_t dev;
	uint32_t guest_port;
	uint32_t first_port;
	struct vu_target target;
};

/**
 * vu_hbone_decide() - Have all CONNECTs that say what one says go one way
 * @engine:	Engine
 * @conn:	Id from VU_EV_REQUEST of a vu_hbone_listen(), not answered yet;
 *		it is still to be answered
 * @decision:	Where to, copied; takes the place of an earlier one about the
 *		same
 *
 * The same is said by whom has the same identity, by a tunnel from the same IP
 * to the same address of ours, with the same authority, baggage, network (or
 * none) and forwarded, but for the client's port in that. There comes no
 * VU_EV_REQUEST for them, but for one that the guest can't have, or has no room
 * for (a RST: @error is ECONNREFUSED): only VU_EV_OPENED or VU_EV_FAILED, with
 * @tag and the tunnel's addresses, from the listener or, of a guest, from its
 * device. vu_hbone_request() reads what one said while it lives. VU_EV_FORGOT,
 * from the same source, is the last event with that tag.
 *
 * Above VU_MAX_DECISIONS the least recently used one goes. One to a guest goes
 * with the guest's device, all with the listener.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if the connection has ended meanwhile, the listener is
 *		deleted, or there is no such device, or are no such headers
 *	-VU_ERR_INVAL, if a tag is 0, the ports don't begin at a multiple of
 *		65536, or the target is malformed or of another kind
 *	-VU_ERR_STATE, if it came by no tunnel or was answered
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_hbone_decide(struct vu_engine *engine, uint64_t conn,
		    const struct vu_hbone_decision *decision);

/**
 * vu_hbone_forget() - Ask about all CONNECTs again
 * @engine:	Engine
 * @listener:	Id of vu_hbone_listen()
 *
 * What was decided stays so for connections that there are.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such listener
 *	-VU_ERR_STATE, if it takes no tunnels
 */
int vu_hbone_forget(struct vu_engine *engine, uint32_t listener);

#endif /* VU_DECIDE_H */
