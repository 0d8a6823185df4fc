// SPDX-License-Identifier: Apache-2.0
/*
 * sibling.c - another guest as a far side
 *
 * Theory of operation
 * ===================
 *
 * Guests whose devices are siblings, that is in one group (vu_dev_join()),
 * reach each other by CID. Each of the two sees an ordinary connection: a
 * vu_conn with its own guest as near side, and as far side its twin, the other
 * guest's vu_conn. The pipe up of each is the way to the other; their pipes
 * down aren't used. A packet for one of them acts on the other:
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
 * bucket() - Where devices are whose guests have a CID
 * @core:	What all connections share
 * @cid:	CID
 *
 * Returns: the first of them, and of some others
 */
static struct vu_dev **bucket(struct core *core, uint64_t cid)
{
	return &core->by_cid[cid % VU_MAX_DEVICES];
}

/**
 * find() - Find a device's group
 * @d:		Device
 * @group:	Number
 *
 * Returns: where it is among the device's groups, or would be
 */
static unsigned find(const struct vu_dev *d, uint32_t group)
{
	unsigned low = 0, high = d->n_groups;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (d->groups[middle] < group)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/**
 * is_in() - Is a device in a group?
 * @d:		Device
 * @group:	Number
 *
 * Returns: true if it is
 */
static bool is_in(const struct vu_dev *d, uint32_t group)
{
	unsigned at = find(d, group);

	return at < d->n_groups && d->groups[at] == group;
}

/**
 * share() - Have two devices a group in common?
 * @a:		Device
 * @b:		Another
 *
 * Returns: true if they do
 */
static bool share(const struct vu_dev *a, const struct vu_dev *b)
{
	unsigned i = 0, j = 0;

	while (i < a->n_groups && j < b->n_groups) {
		if (a->groups[i] == b->groups[j])
			return true;
		if (a->groups[i] < b->groups[j])
			i++;
		else
			j++;
	}
	return false;
}

/**
 * sibling_find() - Find a device that a guest may reach
 * @d:		The guest's device
 * @cid:	CID that it wants to reach
 *
 * Returns: the device; NULL if no sibling has that CID
 */
struct vu_dev *sibling_find(const struct vu_dev *d, uint64_t cid)
{
	struct vu_dev *at = *bucket(d->core, cid);

	while (at && (at->cfg.guest_cid != cid || at == d || !share(d, at)))
		at = at->cid_next;
	return at;
}

/**
 * ambiguous() - Would a CID mean two devices to a guest, or its own?
 * @d:		Device that is about to join
 * @m:		A member of the group
 *
 * Returns: true if it would, to one of the two
 */
static bool ambiguous(const struct vu_dev *d, const struct vu_dev *m)
{
	const struct vu_dev *to_d = sibling_find(d, m->cfg.guest_cid);
	const struct vu_dev *to_m = sibling_find(m, d->cfg.guest_cid);

	return d->cfg.guest_cid == m->cfg.guest_cid || (to_d && to_d != m) ||
	       (to_m && to_m != d);
}

/**
 * sibling_join() - Let a device's guest reach those of a group, and they it
 * @d:		Device
 * @group:	Number
 *
 * Returns: 0,
 *	-VU_ERR_STATE, if a CID would mean two devices to some guest
 *	-VU_ERR_NOMEM
 */
int sibling_join(struct vu_dev *d, uint32_t group)
{
	struct core *core = d->core;
	unsigned at = find(d, group);
	uint32_t *groups;

	if (is_in(d, group))
		return 0;
	for (unsigned i = 0; i < VU_MAX_DEVICES; i++) {
		for (struct vu_dev *m = core->by_cid[i]; m; m = m->cid_next) {
			if (is_in(m, group) && ambiguous(d, m))
				return -VU_ERR_STATE;
		}
	}
	groups = realloc(d->groups, (d->n_groups + 1) * sizeof(*groups));
	if (!groups)
		return -VU_ERR_NOMEM;
	d->groups = groups;
	if (!d->n_groups) {
		struct vu_dev **first = bucket(core, d->cfg.guest_cid);

		d->cid_next = *first;
		*first = d;
	}
	for (unsigned i = d->n_groups++; i > at; i--)
		groups[i] = groups[i - 1];
	groups[at] = group;
	return 0;
}

/**
 * sibling_forget() - Nobody reaches a device's guest any more
 * @d:		Device
 */
void sibling_forget(struct vu_dev *d)
{
	struct vu_dev **link = bucket(d->core, d->cfg.guest_cid);

	while (*link && *link != d)
		link = &(*link)->cid_next;
	if (*link)
		*link = d->cid_next;
	d->n_groups = 0;
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
