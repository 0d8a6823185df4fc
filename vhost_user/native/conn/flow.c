// SPDX-License-Identifier: Apache-2.0
/*
 * flow.c - a connection's turns, and when it is over
 *
 * Theory of operation
 * ===================
 *
 * A turn moves the bytes of both pipes, for a bounded amount. Their states say
 * whether the connection goes on, in one table.
 */

#include <errno.h>

#include "conn/conn.h"

/**
 * enum verdict - What the states of two pipes mean
 * @STAYS:	The connection goes on
 * @FINISHES:	Both directions are done, and the near side was told so by
 *		their ends: all that is left to it is to let go
 * @IS_OVER:	Both are done, and it wants, or has, to hear that it is over
 */
enum verdict { STAYS, FINISHES, IS_OVER };

/*
 * By the state of up, then of down. VIRTIO 1.2 section 5.10.6.5 "Stream
 * Sockets": "VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE bit 0 set indicates that the peer
 * will not receive any more data", "F_SEND bit 1 set indicates that the peer
 * will not send any more data". "These hints are permanent once sent". "Clean
 * disconnect is achieved by one or more VIRTIO_VSOCK_OP_SHUTDOWN packets that
 * indicate no more data will be sent and received, followed by a
 * VIRTIO_VSOCK_OP_RST response from the peer."
 *
 *   guest said     far side said  up      down
 *   -              -              FLOWS   FLOWS
 *   SEND           -              ENDED   FLOWS   (ENDING while bytes are kept)
 *   RECEIVE        -              FLOWS   BROKEN
 *   SEND, RECEIVE  -              ENDED   BROKEN  close(): a RST answers
 *   -              end            FLOWS   ENDED
 *   SEND           end            ENDED   ENDED   we say both, a RST answers
 *   RECEIVE        end            FLOWS   BROKEN  it may still send
 *   -              takes no more  BROKEN  FLOWS   told RECEIVE
 *   -              both           BROKEN  ENDED   told both, a RST answers
 *   SEND           takes no more  ENDED   FLOWS   (BROKEN if bytes are lost)
 *   RECEIVE        takes no more  BROKEN  BROKEN  nothing is left: a RST
 */
static const uint8_t verdicts[PIPE_STATES][PIPE_STATES] = {
    [PIPE_FLOWS] = {STAYS, STAYS, STAYS, STAYS},
    [PIPE_ENDING] = {STAYS, STAYS, STAYS, STAYS},
    [PIPE_ENDED] = {STAYS, STAYS, FINISHES, IS_OVER},
    [PIPE_BROKEN] = {STAYS, STAYS, FINISHES, IS_OVER},
};

/**
 * settle() - End a connection if its pipes say so
 * @c:		Connection, bytes flow; may be gone afterwards
 *
 * Between two guests neither decides for the other: that ends by their RSTs.
 */
static void settle(struct vu_conn *c)
{
	uint8_t verdict = verdicts[c->up.state][c->down.state];

	if (c->twin || verdict == STAYS)
		return;
	/* EPIPE: it has closed in good order, and the guest knows */
	if (verdict == IS_OVER || (c->error && c->error != EPIPE)) {
		conn_abort(c, c->error);
		return;
	}
	conn_finish(c);
}

/**
 * conn_run() - Move a connection's bytes for one turn
 * @c:		Connection from the run list; may be gone afterwards
 *
 * Between two guests the bytes for a guest are in the pipe of the other's.
 */
void conn_run(struct vu_conn *c)
{
	if (!conn_flows(c))
		return;
	if (c->closed) {
		conn_abort(c, c->error);
		return;
	}
	if (c->twin) {
		if (c->state == CONN_OPEN && conn_flows(c->twin))
			pipe_run(c->twin, &c->twin->up);
		return;
	}
	pipe_run(c, &c->up);
	if (conn_flows(c))
		pipe_run(c, &c->down);
	if (conn_flows(c))
		settle(c);
}
