// SPDX-License-Identifier: Apache-2.0
/*
 * sibling.c - connections between two guests
 *
 * Theory of operation
 * ===================
 *
 * Guests whose devices are siblings (vu_dev_sibling()) reach each other by CID.
 * Each of the two sees an ordinary connection: a vu_conn with its own guest as
 * near end, and as far end its *twin*, the other guest's vu_conn. A packet for
 * one of them acts on the other:
 *
 *	REQUEST		a twin is made, which owes its guest the REQUEST
 *	RESPONSE, RST	the twin owes the same; a RST ends both
 *	SHUTDOWN	its flags go on; SEND when all bytes before it have gone
 *	RW		bytes are copied from TX buffers into RX buffers, in
 *			other pieces maybe; a message's last has its flags
 *	CREDIT_REQUEST	goes on; the answer, a CREDIT_UPDATE, comes back
 *
 * The device decides nothing by itself, so what one guest sees is what the
 * other did, as if the rings were joined: in particular no RST answers a
 * guest's close() before the other guest gave one.
 *
 * Credit is end to end: each guest is told how much the other has consumed and
 * has room for. But a guest that offers no RX buffers has room which it doesn't
 * let us use. Bytes for it are kept, so that the sender's TX ring never waits
 * for another guest, and so that there are never more than the sender's
 * connection has buf_alloc (limits.c): the window that a guest is told ends
 * at that many bytes beyond what was delivered. It doesn't move back when the
 * other guest shrinks its buffer, or sends a fwd_cnt that is older than the
 * last: bytes that come meanwhile were allowed when they were sent, and wait
 * here. Bytes beyond the window reset the connection, and so does a fwd_cnt
 * beyond what was delivered: whoever lies about credit harms this connection
 * only.
 *
 * When a guest that closed its socket gives up waiting for the other (RST), or
 * when its device goes, the bytes that it sent before may still be here: its
 * conn stays behind as an orphan until they are delivered (tx.c).
 *
 * Both conns belong to one engine, so one thread and no lock of their own.
 */

#include <assert.h>
#include <errno.h>

#include "vsock.h"

#define MAX_WINDOW (1U << 30) /* keeps credit arithmetic in 32 bits */

static_assert(VU_MAX_DEVICES <= 64, "vu_dev.siblings has a bit for each");

/**
 * sibling_find() - Find a device that a guest may reach
 * @d:		The guest's device
 * @cid:	CID that it wants to reach
 *
 * Returns: the device; NULL if no sibling has that CID
 */
struct vu_dev *sibling_find(const struct vu_dev *d, uint64_t cid)
{
	for (uint64_t left = d->siblings; left; left &= left - 1) {
		struct vu_dev *s = d->engine->devs[__builtin_ctzll(left)];

		if (s->cfg.guest_cid == cid)
			return s;
	}
	return NULL;
}

/**
 * owe() - Send something about a connection to its guest, if it is there
 * @c:		Connection
 * @owe:	OWE_ bits
 */
static void owe(struct vu_conn *c, uint8_t owe)
{
	if (!c->orphan)
		vsock_owe(c, owe);
}

/* ---- the beginning ---- */

/**
 * make_twin() - Make the other guest's side of a connection
 * @c:		Connection that a guest requested
 * @to:		The other guest's device
 *
 * A guest without an RX ring couldn't hear of it, nor one whose driver knows no
 * SEQPACKET of such a connection. Nor is a connection made
 * while the last one between these ports isn't over at the other guest.
 *
 * Returns: the twin; NULL if there can't be one
 */
static struct vu_conn *make_twin(const struct vu_conn *c, struct vu_dev *to)
{
	struct vu_engine *e = to->engine;
	uint32_t cid = (uint32_t)c->dev->cfg.guest_cid;
	struct vu_conn *t;

	if (!to->rings[QUEUE_RX] || !vsock_has_type(to, c->type) ||
	    conn_find(e, to, c->port, cid, c->peer_port))
		return NULL;
	t = limit_conn(to, c->type, true);
	if (!t)
		return NULL;
	t->peer_port = c->port;
	t->cid = cid;
	t->port = c->peer_port;
	if (!conn_hash(e, t))
		return t;
	limit_hit(to, VU_LIMIT_MEMORY);
	conn_free(e, t);
	return NULL;
}

/**
 * sibling_dial() - Pass a guest's REQUEST on
 * @c:		Its connection, new; gone if the other guest can't be asked
 * @to:		The other guest's device
 */
void sibling_dial(struct vu_conn *c, struct vu_dev *to)
{
	struct vu_engine *e = to->engine;
	struct vu_conn *t = make_twin(c, to);

	if (!t) {
		conn_failed(e, c, ECONNREFUSED);
		return;
	}
	limit_whole(c);
	limit_whole(t);
	c->twin = t;
	t->twin = c;
	c->state = CONN_DIALING;
	t->state = CONN_REQUESTED;
	list_add(&e->dialing, &t->timer);
	vsock_owe(t, OWE_REQUEST);
}

/**
 * sibling_part() - A connection ends: so does its twin
 * @c:		Connection; without a twin afterwards
 * @error:	errno for the twin's last event, 0 after an orderly end
 */
void sibling_part(struct vu_conn *c, int error)
{
	struct vu_conn *t = c->twin;

	if (!t)
		return;
	c->twin = t->twin = NULL;
	if (t->state == CONN_OPEN)
		conn_abort(t->dev->engine, t, error);
	else
		conn_failed(t->dev->engine, t, error);
}

/* ---- credit ---- */

/**
 * window_end() - How many bytes may a guest have sent?
 * @c:		Its connection
 *
 * Returns: the end of its window, in bytes since the start
 */
static uint32_t window_end(const struct vu_conn *c)
{
	const struct vu_conn *t = c->twin;
	uint32_t unread = t->tx_cnt - t->peer_fwd_cnt;
	uint32_t room = unread + c->buf_alloc;
	uint32_t end = t->peer_fwd_cnt +
		       (t->peer_buf_alloc < room ? t->peer_buf_alloc : room);

	return (int32_t)(end - c->edge) > 0 ? end : c->edge;
}

/**
 * sibling_window() - Say what a guest is told of its credit
 * @c:		Its connection; fwd_cnt and edge are set
 *
 * Returns: buf_alloc for a header
 */
uint32_t sibling_window(struct vu_conn *c)
{
	c->edge = window_end(c);
	c->fwd_cnt = c->twin->peer_fwd_cnt;
	return c->edge - c->fwd_cnt;
}

/**
 * note_credit() - Note what a packet says of its guest's receive window
 * @c:		The guest's connection
 * @hdr:	Packet
 *
 * A guest with several CPUs may send an older fwd_cnt behind a newer one.
 *
 * Returns: false if it has consumed more than it got
 */
static bool note_credit(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	uint32_t buf_alloc =
	    hdr->buf_alloc < MAX_WINDOW ? hdr->buf_alloc : MAX_WINDOW;

	if ((int32_t)(hdr->fwd_cnt - c->tx_cnt) > 0)
		return false;
	if ((int32_t)(hdr->fwd_cnt - c->peer_fwd_cnt) < 0 ||
	    (hdr->fwd_cnt == c->peer_fwd_cnt && buf_alloc == c->peer_buf_alloc))
		return true;
	c->peer_fwd_cnt = hdr->fwd_cnt;
	c->peer_buf_alloc = buf_alloc;
	if (c->state == CONN_OPEN) {
		owe(c->twin, OWE_CREDIT); /* payload may carry it first */
		if (c->twin->up.len)
			list_add(&c->dev->engine->run, &c->run);
	}
	return true;
}

/**
 * delivered() - Bytes of a guest have reached the other one
 * @c:		The sender's connection
 * @n:		How many
 */
static void delivered(struct vu_conn *c, size_t n)
{
	c->up_bytes += n;
	if (window_end(c) - c->edge < c->buf_alloc / 2)
		return;
	if (c->buf_alloc < c->dev->cfg.buf_alloc)
		limit_used(c);
	owe(c, OWE_CREDIT);
}

/* ---- packets ---- */

/**
 * tell_shut() - Tell a guest what the other will not do any more
 * @c:		Its connection
 */
static void tell_shut(struct vu_conn *c)
{
	if (sibling_shut(c) & ~(uint32_t)c->shut_told)
		owe(c, OWE_SHUTDOWN);
}

/**
 * sibling_shut() - Which directions has the other guest ended?
 * @c:		Connection
 *
 * Returns: VIRTIO_VSOCK_SHUTDOWN_ flags; SEND once all its bytes were delivered
 */
uint32_t sibling_shut(const struct vu_conn *c)
{
	uint32_t flags = c->twin->guest_shut;

	return c->twin->up.len ? flags & VIRTIO_VSOCK_SHUTDOWN_RCV : flags;
}

/**
 * sibling_packet() - Act on a packet that isn't payload, nor REQUEST or RST
 * @c:		Its guest's connection
 * @hdr:	Packet
 *
 * Returns: false if it doesn't fit the connection's state
 */
bool sibling_packet(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	struct vu_engine *e = c->dev->engine;
	struct vu_conn *t = c->twin;

	if (!note_credit(c, hdr))
		return false;
	if (c->state == CONN_REQUESTED) {
		if (hdr->op != VIRTIO_VSOCK_OP_RESPONSE)
			return false;
		conn_opened(e, c);
		conn_opened(e, t);
		return true;
	}
	if (c->state != CONN_OPEN)
		return false;
	switch (hdr->op) {
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		c->guest_shut |= hdr->flags & SHUT_BOTH;
		tell_shut(t);
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

/**
 * sibling_take() - Account for a packet's payload
 * @c:		The sender's connection, open
 * @hdr:	Packet with op RW
 *
 * Returns: false if the guest broke the rules of credit
 */
bool sibling_take(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	struct vu_dev_stats *stats = &c->dev->stats;

	if (!note_credit(c, hdr) || hdr->len > c->edge - c->rx_cnt) {
		stats->credit_violations++;
		return false;
	}
	c->rx_cnt += hdr->len;
	stats->tx_bytes += hdr->len;
	return true;
}

/**
 * keep() - Keep what the other guest has no room for
 * @c:		The sender's connection
 * @b:		Burst of it
 * @skip:	Bytes of it that are sent
 * @flags:	VIRTIO_VSOCK_SEQ_ bits of it
 *
 * Returns: 0,
 *	ENOMEM
 *	ENOBUFS, in a flood of empty messages, which cost no credit
 */
static int keep(struct vu_conn *c, const struct burst *b, size_t skip,
		uint32_t flags)
{
	const struct iovec *iov = c->dev->engine->tx_iov;
	bool ok;

	if (c->type == VIRTIO_VSOCK_TYPE_STREAM) {
		ok = way_append(&c->up, iov, b->n_iov, skip);
	} else if (!seq_room(c, b)) {
		c->dev->stats.message_errors++;
		return ENOBUFS;
	} else {
		ok = seq_keep(&c->up, iov, b->n_iov, skip, flags);
	}
	return ok ? 0 : ENOMEM;
}

/**
 * sibling_deliver() - Copy a guest's bytes to the other one
 * @c:		The sender's connection, open
 * @b:		Burst of it
 *
 * A message may arrive in other pieces than it was sent in; its last one has
 * the flags.
 */
void sibling_deliver(struct vu_conn *c, const struct burst *b)
{
	struct vu_engine *e = c->dev->engine;
	struct vu_conn *t = c->twin;
	uint32_t flags = b->flags & SEQ_FLAGS;
	bool all = t->orphan || (!b->len && !flags); /* nobody, or nothing */
	size_t n = 0;
	int err;

	if (!all && !c->up.len && !(t->owe & OWE_RESPONSE)) {
		if (b->len)
			n = vsock_send(t, e->tx_iov, b->n_iov, b->len, flags);
		all = b->len ? n == b->len : vsock_send_empty(t, flags);
	}
	err = all ? 0 : keep(c, b, n, flags);
	if (err) {
		conn_abort(e, c, err);
		return;
	}
	limit_queued(c);
	delivered(c, n);
}

/**
 * send_kept() - Send a guest bytes that are kept for it
 * @c:		Its connection, a stream
 * @way:	Where they are kept
 *
 * Returns: bytes sent, at most a turn's worth
 */
static uint32_t send_kept(struct vu_conn *c, struct way *way)
{
	uint32_t len = way->len < SCRATCH ? way->len : SCRATCH;
	uint32_t n =
	    (uint32_t)vsock_send_block(c, way->data + way->off, len, 0);

	way->off += n;
	way->len -= n;
	if (!way->len)
		way_drop(way);
	else if (n == len)
		list_add(&c->dev->engine->run, &c->run);
	return n;
}

/**
 * sibling_run() - Send a guest what is kept for it
 * @c:		Its connection, open
 */
void sibling_run(struct vu_conn *c)
{
	struct vu_conn *t = c->twin;
	uint32_t n;

	if (c->orphan || (c->owe & OWE_RESPONSE))
		return;
	if (t->up.len) {
		n = c->type == VIRTIO_VSOCK_TYPE_STREAM
			? send_kept(c, &t->up)
			: seq_send_kept(c, &t->up);
		limit_queued(t);
		delivered(t, n);
	}
	tell_shut(c);
}
