// SPDX-License-Identifier: Apache-2.0
/*
 * conn.c - an engine's connections
 */

#include "api/api.h"
#include "side/hbone.h"
#include "side/socket.h"
#include "side/target.h"

/**
 * held() - Find a connection that awaits Python's answer
 * @e:		Engine, stopped
 * @conn:	Id
 * @ret:	The connection
 *
 * One that Python may only take isn't held, in this sense, nor is one on offer.
 *
 * Returns: 0, -VU_ERR_GONE or -VU_ERR_STATE
 */
static int held(const struct vu_engine *e, uint64_t conn, struct vu_conn **ret)
{
	*ret = conn_by_id(&e->core, conn);
	if (!*ret)
		return -VU_ERR_GONE;
	return (*ret)->state == CONN_HELD && !(*ret)->client &&
		       !stream_lent(*ret)
		   ? 0
		   : -VU_ERR_STATE;
}

/**
 * vu_conn_answer() - see vu_conn.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @target:	The far side
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_conn_answer(struct vu_engine *e, uint64_t conn,
		   const struct vu_target *target)
{
	struct vu_conn *c;
	int err;

	if (!target_valid(target) || target->kind == VU_TARGET_ASK)
		return -VU_ERR_INVAL;
	loop_enter(e);
	err = held(e, conn, &c);
	if (!err)
		target_reach(c, target);
	loop_leave(e);
	return err;
}

/**
 * vu_conn_answer_fd() - see vu_conn.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @fd:		Connected stream socket
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_conn_answer_fd(struct vu_engine *e, uint64_t conn, int fd)
{
	struct vu_conn *c;
	int err;

	loop_enter(e);
	err = held(e, conn, &c);
	if (!err)
		err = target_socket(c, fd);
	loop_leave(e);
	return err;
}

/**
 * vu_conn_take() - see vu_conn.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 *
 * Returns: the socket, or a negated enum vu_err
 */
int vu_conn_take(struct vu_engine *e, uint64_t conn)
{
	int ret = -VU_ERR_STATE;
	struct vu_conn *c;

	loop_enter(e);
	c = conn_by_id(&e->core, conn);
	if (!c) {
		ret = -VU_ERR_GONE;
	} else if (c->state == CONN_HELD && c->client) {
		ret = c->near.fd;
		c->near.fd = -1;
		conn_free(c);
	}
	loop_leave(e);
	return ret;
}

/**
 * struct open_arg - A connection to ask a guest for
 */
struct open_arg {
	uint32_t guest_port;
	uint32_t port;
	int fd;
	const struct side_ops *client;
};

/**
 * open_conn() - vu_conn_open() and vu_conn_offer() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct open_arg
 *
 * Returns: as those do
 */
static int64_t open_conn(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct open_arg *o = arg;

	(void)e;
	return guest_open(d, o->guest_port, o->port, o->fd, o->client);
}

/**
 * vu_conn_open() - see vu_conn.h
 * @e:		Engine
 * @dev:	Device
 * @guest_port:	Port that a program in the guest listens on
 * @fd:		Host client's connected socket
 * @hybrid:	Announce success on it
 *
 * Returns: the connection's id, or a negated enum vu_err
 */
int64_t vu_conn_open(struct vu_engine *e, uint32_t dev, uint32_t guest_port,
		     int fd, bool hybrid)
{
	struct open_arg o = {
	    .guest_port = guest_port,
	    .fd = fd,
	    .client = hybrid ? &client_hybrid : NULL,
	};

	return with_dev(e, dev, open_conn, &o);
}

/**
 * vu_conn_offer() - see vu_conn.h
 * @e:		Engine
 * @dev:	Device
 * @guest_port:	Port that a program in the guest listens on
 * @port:	Port on our side
 * @fd:		Host client's connected stream socket
 *
 * Returns: the connection's id, or a negated enum vu_err
 */
int64_t vu_conn_offer(struct vu_engine *e, uint32_t dev, uint32_t guest_port,
		      uint32_t port, int fd)
{
	struct open_arg o = {
	    .guest_port = guest_port,
	    .port = port,
	    .fd = fd,
	    .client = &client_offered,
	};

	return port ? with_dev(e, dev, open_conn, &o) : -VU_ERR_INVAL;
}

/**
 * vu_conn_reset() - see vu_conn.h
 * @e:		Engine
 * @conn:	Id
 * @error:	errno for its last event
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_conn_reset(struct vu_engine *e, uint64_t conn, int error)
{
	struct vu_conn *c;

	loop_enter(e);
	c = conn_by_id(&e->core, conn);
	if (c && c->state <= CONN_OPEN)
		conn_abort(c, error);
	loop_leave(e);
	return c ? 0 : -VU_ERR_GONE;
}
