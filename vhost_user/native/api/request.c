// SPDX-License-Identifier: Apache-2.0
/*
 * request.c - CONNECTs of others
 */

#include <stdio.h>

#include "api/api.h"
#include "side/target.h"
#include "vsock/visit.h"

/**
 * text() - What did a part of a request say?
 * @part:	Part, or NULL
 *
 * Returns: that
 */
static const char *text(const char *part)
{
	return part ? part : "";
}

/**
 * stream_by_id() - Find the CONNECT that a connection is of
 * @e:		Engine, stopped
 * @conn:	Its id
 * @ret:	The stream
 *
 * Returns: 0, -VU_ERR_GONE or -VU_ERR_STATE
 */
static int stream_by_id(const struct vu_engine *e, uint64_t conn,
			struct stream **ret)
{
	struct vu_conn *c = conn_by_id(&e->core, conn);

	if (!c)
		return -VU_ERR_GONE;
	*ret = c->near.ops == &hbone_side && c->near.stream ? c->near.stream
							    : c->far.stream;
	return *ret && (*ret)->group->server ? 0 : -VU_ERR_STATE;
}

/**
 * vu_hbone_request() - see vu_hbone.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @ret:	What the CONNECT said
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_request(struct vu_engine *e, uint64_t conn,
		     struct vu_hbone_request *ret)
{
	struct stream *s;
	int err;

	loop_enter(e);
	err = stream_by_id(e, conn, &s);
	if (!err) {
		const struct h2_fields *f = &s->request;

		snprintf(ret->peer, sizeof(ret->peer), "%s",
			 text(s->tunnel->tls->peer));
		snprintf(ret->authority, sizeof(ret->authority), "%s",
			 text(f->authority));
		snprintf(ret->baggage, sizeof(ret->baggage), "%s",
			 text(f->baggage));
		snprintf(ret->forwarded, sizeof(ret->forwarded), "%s",
			 text(f->forwarded));
		snprintf(ret->traceparent, sizeof(ret->traceparent), "%s",
			 text(f->traceparent));
		snprintf(ret->network, sizeof(ret->network), "%s",
			 text(f->network));
		ret->has_network = f->network;
	}
	loop_release(e);
	return err;
}

/**
 * vu_hbone_respond() - see vu_hbone.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @headers:	Id
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_respond(struct vu_engine *e, uint64_t conn, uint32_t headers)
{
	struct vu_headers *h;
	struct stream *s;
	int err;

	loop_enter(e);
	err = stream_by_id(e, conn, &s);
	h = ids_get(&e->core.hbone->headers, headers);
	if (!err && !h)
		err = -VU_ERR_GONE;
	if (!err) {
		h->refs++;
		if (s->headers)
			headers_unref(s->headers);
		s->headers = h;
	}
	loop_release(e);
	return err;
}

/**
 * vu_hbone_preface() - see vu_hbone.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @data:	Bytes
 * @len:	How many
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_preface(struct vu_engine *e, uint64_t conn, const void *data,
		     uint32_t len)
{
	struct stream *s;
	int err;

	loop_enter(e);
	err = stream_by_id(e, conn, &s);
	if (!err && s->c->state != CONN_HELD)
		err = -VU_ERR_STATE;
	if (!err)
		err = stream_preface(s, data, len);
	loop_release(e);
	return err;
}

/**
 * struct guest_arg - A CONNECT for a guest
 */
struct guest_arg {
	uint64_t conn;
	uint32_t guest_port;
	uint32_t port;
};

/**
 * adopt() - vu_hbone_guest() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct guest_arg
 *
 * Returns: as that does
 */
static int64_t adopt(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct guest_arg *g = arg;
	struct vu_conn *c = conn_by_id(&e->core, g->conn);

	if (!c)
		return -VU_ERR_GONE;
	if (c->state != CONN_HELD || !c->near.stream)
		return -VU_ERR_STATE;
	return guest_adopt(d, g->guest_port, g->port, c);
}

/**
 * vu_hbone_guest() - see vu_hbone.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @dev:	Device
 * @guest_port:	Port that a program in the guest listens on
 * @port:	Port on our side
 *
 * Returns: the connection's id, or a negated enum vu_err
 */
int64_t vu_hbone_guest(struct vu_engine *e, uint64_t conn, uint32_t dev,
		       uint32_t guest_port, uint32_t port)
{
	struct guest_arg g = {
	    .conn = conn,
	    .guest_port = guest_port,
	    .port = port,
	};

	return port ? with_dev(e, dev, adopt, &g) : -VU_ERR_INVAL;
}

/**
 * valid() - Check a decision
 * @d:		Decision
 *
 * Returns: true if its tag, its ports and its target are in range
 */
static bool valid(const struct vu_hbone_decision *d)
{
	if (!d->tag || d->first_port & (RANGE_PORTS - 1))
		return false;
	return d->first_port ||
	       (target_valid(&d->target) && d->target.kind != VU_TARGET_ASK &&
		d->target.kind != VU_TARGET_UNIX &&
		d->target.kind != VU_TARGET_VSOCK);
}

/**
 * decide() - vu_hbone_decide() with the engine stopped
 * @e:		Engine
 * @s:		Stream of a gate, its connection held
 * @from:	Decision
 *
 * Returns: as that does
 */
static int decide(struct vu_engine *e, const struct stream *s,
		  const struct vu_hbone_decision *from)
{
	struct decisions *all = gate_decisions(s->group);
	struct vu_headers *h = NULL;
	struct vu_dev *dev = NULL;
	struct decision *d;

	if (from->headers)
		h = ids_get(&e->core.hbone->headers, from->headers);
	if (from->first_port)
		dev = dev_by_id(e, from->dev);
	if (!all || (from->headers && !h) || (from->first_port && !dev))
		return -VU_ERR_GONE;
	d = decision_new(all, s, &e->core,
			 dev ? dev->outbox : s->group->outbox);
	if (!d)
		return -VU_ERR_NOMEM;
	d->tag = from->tag;
	d->target = from->target;
	d->headers = h;
	if (h)
		h->refs++;
	if (dev)
		visit_decide(d, dev, from->guest_port, from->first_port);
	return 0;
}

/**
 * vu_hbone_decide() - see vu_hbone.h
 * @e:		Engine
 * @conn:	Id from VU_EV_REQUEST
 * @decision:	Where to
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_decide(struct vu_engine *e, uint64_t conn,
		    const struct vu_hbone_decision *decision)
{
	struct stream *s;
	int err;

	if (!valid(decision))
		return -VU_ERR_INVAL;
	loop_enter(e);
	err = stream_by_id(e, conn, &s);
	if (!err && s->c->state != CONN_HELD)
		err = -VU_ERR_STATE;
	if (!err)
		err = decide(e, s, decision);
	loop_leave(e);
	return err;
}

/**
 * vu_hbone_forget() - see vu_hbone.h
 * @e:		Engine
 * @listener:	Id
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_hbone_forget(struct vu_engine *e, uint32_t listener)
{
	struct vu_listener *l;
	int err = 0;

	loop_enter(e);
	l = listener & POOL_ID ? NULL : listener_by_id(e, listener);
	if (!l)
		err = -VU_ERR_GONE;
	else if (!gate_group(l))
		err = -VU_ERR_STATE;
	else
		gate_forget(l);
	loop_leave(e);
	return err;
}
