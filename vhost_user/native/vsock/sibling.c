// SPDX-License-Identifier: Apache-2.0
/*
 * sibling.c - another guest as a far side
 *
 * Theory of operation
 * ===================
 *
 * Guests whose devices are siblings (vu_dev_sibling()) reach each other by CID.
 * Each of the two sees an ordinary connection: a vu_conn with its own guest as
 * near side, and as far side its *twin*, the other guest's vu_conn. The pipe up
 * of each is the way to the other; their pipes down aren't used. A packet for
 * one of them acts on the other:
 *
 *	REQUEST		a twin is made, which owes its guest the REQUEST
 *	RESPONSE, RST	the twin owes the same; a RST ends both
 *	SHUTDOWN	ends or breaks a pipe, as of any connection
 *	RW		bytes are copied from TX buffers into RX buffers, in
 *			other pieces maybe; a message's last has its flags
 *	CREDIT_REQUEST	goes on; the answer, a CREDIT_UPDATE, comes back
 *
 * The device decides nothing by itself, so what one guest sees is what the
 * other did, as if the rings were joined: in particular no RST answers a
 * guest's close() before the other guest gave one, and credit is end to end
 * (base/credit.c). Whoever lies about credit harms this connection only.
 *
 * When a guest that closed its socket gives up waiting for the other (RST), or
 * when its device goes, the bytes that it sent before may still be here: its
 * conn stays behind as an orphan until they are delivered.
 *
 * Both conns belong to one engine, so one thread and no lock of their own.
 */

#include <errno.h>
#include <stdlib.h>

#include "vsock/dev.h"

/* ---- who may reach whom ---- */

/**
 * sibling_find() - Find a device that a guest may reach
 * @d:		The guest's device
 * @cid:	CID that it wants to reach
 *
 * Returns: the device; NULL if no sibling has that CID
 */
struct vu_dev *sibling_find(const struct vu_dev *d, uint64_t cid)
{
	for (unsigned i = 0; i < d->n_siblings; i++) {
		if (d->siblings[i]->cfg.guest_cid == cid)
			return d->siblings[i];
	}
	return NULL;
}

/**
 * reserve() - Make room for one more sibling
 * @d:		Device
 *
 * Returns: false if out of memory
 */
static bool reserve(struct vu_dev *d)
{
	struct vu_dev **siblings;

	if (d->n_siblings & (d->n_siblings + 1)) /* room is 2^n - 1 */
		return true;
	siblings = realloc(d->siblings, (2 * (size_t)d->n_siblings + 1) *
					    sizeof(struct vu_dev *));
	if (siblings)
		d->siblings = siblings;
	return siblings;
}

/**
 * sibling_add() - Let two devices' guests reach each other
 * @a:		Device
 * @b:		Another
 *
 * Returns: 0,
 *	-VU_ERR_STATE, if either has the other's CID, or a sibling that has
 *	-VU_ERR_NOMEM
 */
int sibling_add(struct vu_dev *a, struct vu_dev *b)
{
	if (a->cfg.guest_cid == b->cfg.guest_cid ||
	    sibling_find(a, b->cfg.guest_cid) ||
	    sibling_find(b, a->cfg.guest_cid))
		return -VU_ERR_STATE;
	if (!reserve(a) || !reserve(b))
		return -VU_ERR_NOMEM;
	a->siblings[a->n_siblings++] = b;
	b->siblings[b->n_siblings++] = a;
	return 0;
}

/**
 * sibling_forget() - Nobody reaches a device's guest any more
 * @d:		Device
 */
void sibling_forget(struct vu_dev *d)
{
	for (unsigned i = 0; i < d->n_siblings; i++) {
		struct vu_dev *s = d->siblings[i];

		for (unsigned j = 0; j < s->n_siblings; j++) {
			if (s->siblings[j] == d)
				s->siblings[j] = s->siblings[--s->n_siblings];
		}
	}
	d->n_siblings = 0;
}

/* ---- the far side ---- */

/**
 * give() - Send the other guest bytes
 * @c:		The sender's connection
 * @s:		Its far side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	VIRTIO_VSOCK_SEQ_ bits
 *
 * Returns: as side_ops.give
 */
static ssize_t give(struct vu_conn *c, struct side *s, const struct iovec *iov,
		    unsigned n_iov, size_t len, uint32_t flags)
{
	struct vu_conn *t = c->twin;

	(void)s;
	if (t->state != CONN_OPEN)
		return -EAGAIN;
	return rx_give(t, &t->near, iov, n_iov, len, flags);
}

/**
 * shut() - Tell the other guest what this one will not do any more
 * @c:		The connection of the one that said so
 * @s:		Its far side
 * @how:	SHUT_WR or SHUT_RD
 */
static void shut(struct vu_conn *c, struct side *s, int how)
{
	struct vu_conn *t = c->twin;

	t->near.ops->shut(t, s, how);
}

/**
 * part() - A connection ends: so does its twin
 * @c:		Connection; without a twin afterwards
 * @s:		Its far side
 * @error:	errno for the twin's last event, 0 after an orderly end
 */
static void part(struct vu_conn *c, struct side *s, int error)
{
	struct vu_conn *t = c->twin;

	(void)s;
	if (!t)
		return;
	c->twin = t->twin = NULL;
	conn_abort(t, error);
}

static const struct side_ops sibling_ops = {
    .give = give,
    .shut = shut,
    .close = part,
};

/* ---- the beginning ---- */

/**
 * make_twin() - Make the other guest's side of a connection
 * @c:		Connection that a guest requested
 * @to:		The other guest's device
 *
 * A guest without an RX ring couldn't hear of it, nor one whose driver knows no
 * SEQPACKET of such a connection. Nor is a connection made while the last one
 * between these ports isn't over at the other guest.
 *
 * Returns: the twin; NULL if there can't be one
 */
static struct vu_conn *make_twin(const struct vu_conn *c, struct vu_dev *to)
{
	uint32_t cid = (uint32_t)c->dev->cfg.guest_cid;
	struct vu_conn *t;

	if (!to->rings[QUEUE_RX] || !dev_has_type(to, c->type) ||
	    conn_find(to->core, to, c->port, cid, c->peer_port))
		return NULL;
	t = limit_conn(to, c->type, true);
	if (!t)
		return NULL;
	t->near.ops = &guest_ops;
	t->peer_port = c->port;
	t->cid = cid;
	t->port = c->peer_port;
	if (!conn_hash(t))
		return t;
	limit_hit(to, VU_LIMIT_MEMORY);
	conn_free(t);
	return NULL;
}

/**
 * sibling_dial() - Pass a guest's REQUEST on
 * @c:		Its connection, new; gone if the other guest can't be asked
 * @to:		The other guest's device
 */
void sibling_dial(struct vu_conn *c, struct vu_dev *to)
{
	struct vu_conn *t = make_twin(c, to);

	if (!t) {
		conn_abort(c, ECONNREFUSED);
		return;
	}
	limit_whole(c);
	limit_whole(t);
	c->twin = t;
	t->twin = c;
	c->far.ops = t->far.ops = &sibling_ops;
	conn_set(c, CONN_DIALING);
	/* of the two the one that is asked has the deadline */
	list_del(&c->timer);
	conn_set(t, CONN_REQUESTED);
	owe(t, OWE_REQUEST);
}

/* ---- packets ---- */

/**
 * sibling_packet() - Act on a packet that isn't payload, nor REQUEST or RST
 * @c:		Its guest's connection
 * @hdr:	Packet; what it says of credit is noted
 *
 * Returns: false if it doesn't fit the connection's state
 */
bool sibling_packet(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	struct vu_conn *t = c->twin;

	if (c->state == CONN_REQUESTED) {
		if (hdr->op != VIRTIO_VSOCK_OP_RESPONSE)
			return false;
		conn_opened(c);
		conn_opened(t);
		return true;
	}
	if (c->state != CONN_OPEN)
		return false;
	switch (hdr->op) {
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		guest_shutdown(c, hdr->flags);
		return true;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		owe(t, OWE_ASK);
		return true;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		owe(t, OWE_CREDIT); /* it may be the answer to a request */
		return true;
	default:
		return false;
	}
}
