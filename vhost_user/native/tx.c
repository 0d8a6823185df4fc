// SPDX-License-Identifier: Apache-2.0
/*
 * tx.c - from the guest: packets, and what they do to connections
 *
 * Theory of operation
 * ===================
 *
 * Payloads of adjacent packets of one connection are gathered, in place, and
 * leave by one sendmsg(); then their chains go back to the guest, with one
 * used-index store for the whole turn. What the socket does not take is copied
 * to the connection. fwd_cnt counts bytes that left us, never bytes that we
 * only hold: so a connection holds at most buf_alloc, and a guest that sends
 * more has broken its credit and is reset.
 *
 * Every header field is the guest's word: it is copied once, and then checked.
 */

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vsock.h"

#define SOCKET_WORK 16 /* to make or close one: see VSOCK_TURN_WORK */

static_assert(sizeof(struct virtio_vsock_hdr) == 44, "VIRTIO 1.2 5.10.6");

/**
 * vsock_consumed() - Bytes from the guest have left us
 * @c:		Connection
 * @n:		How many
 *
 * The guest hears of it with the next packet, at the latest when half of its
 * window is used up, or of its own buffer: Linux (since CVE-2026-23086) has no
 * more in flight than that, however large the window is.
 */
void vsock_consumed(struct vu_conn *c, size_t n)
{
	uint32_t own = c->peer_buf_alloc, untold;

	c->fwd_cnt += (uint32_t)n;
	c->up_bytes += n;
	untold = c->fwd_cnt - c->fwd_sent;
	if (!untold || untold < (own < c->buf_alloc ? own : c->buf_alloc) / 2)
		return;
	if (untold >= c->buf_alloc / 2 && c->buf_alloc < c->dev->cfg.buf_alloc)
		limit_used(c);
	vsock_owe(c, OWE_CREDIT);
}

/**
 * vsock_up_broken() - The far end takes no more bytes
 * @c:		Connection
 *
 * What it sent before may still be read; so the guest's bytes are dropped
 * until that ends the connection (vsock_rx_socket() finds the error, or a FIN).
 */
void vsock_up_broken(struct vu_conn *c)
{
	vsock_consumed(c, c->type == VIRTIO_VSOCK_TYPE_SEQPACKET
			      ? seq_payload(&c->up)
			      : c->up.len);
	way_drop(&c->up);
	c->up.broken = true;
	c->far.readable = c->far.hup = true;
	list_add(&c->dev->engine->run, &c->run);
}

/**
 * deliver_socket() - Write a burst to the far end
 * @c:		Connection
 * @b:		Burst
 *
 * Returns: bytes that it took
 */
static size_t deliver_socket(struct vu_conn *c, const struct burst *b)
{
	struct vu_engine *e = c->dev->engine;
	ssize_t n;

	if (c->up.len || !c->far.writable)
		return 0;
	n = sendmsg(
	    c->far.fd,
	    &(struct msghdr){.msg_iov = e->tx_iov, .msg_iovlen = b->n_iov},
	    MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0 && errno == EFAULT)
		c->dev->faulted = true;
	else if (n < 0 && errno != EAGAIN && errno != EINTR)
		vsock_up_broken(c);
	else if (n < 0 ? errno == EAGAIN : (size_t)n < b->len)
		conn_full(e, c, &c->far);
	return n < 0 ? 0 : (size_t)n;
}

/**
 * deliver_echo() - Send a burst back to the guest
 * @c:		Connection
 * @b:		Burst
 *
 * Returns: bytes that it took
 */
static size_t deliver_echo(struct vu_conn *c, const struct burst *b)
{
	if (c->up.len || (c->owe & OWE_RESPONSE))
		return 0;
	return vsock_send(c, c->dev->engine->tx_iov, b->n_iov, b->len, 0);
}

/**
 * burst_end() - Deliver a burst and give its chains back
 * @d:		Device
 * @b:		Burst; empty afterwards
 */
static void burst_end(struct vu_dev *d, struct burst *b)
{
	struct vu_engine *e = d->engine;
	struct vu_conn *c = b->conn;
	size_t n = b->len;

	if (vsock_faulted(d)) {
		; /* what it holds may be zeroes that nobody wrote */
	} else if (c && c->twin) {
		sibling_deliver(c, b);
	} else if (c && c->type == VIRTIO_VSOCK_TYPE_SEQPACKET) {
		seq_deliver(c, b);
	} else if (c && b->len) {
		if (c->up.broken)
			n = b->len;
		else if (c->far.fd >= 0)
			n = deliver_socket(c, b);
		else if (c->target == VU_TARGET_ECHO)
			n = deliver_echo(c, b);
		if (c->up.broken)
			n = b->len;
		if (n < b->len && !way_append(&c->up, e->tx_iov, b->n_iov, n)) {
			conn_abort(e, c, ENOMEM);
		} else {
			vsock_consumed(c, n);
			if (c->up.len)
				list_add(&e->run, &c->run);
		}
	}
	if (c && c->state == CONN_OPEN && (c->up.len | c->held))
		limit_queued(c);
	for (unsigned i = 0; i < b->n_chains; i++)
		vu_ring_push(d->rings[QUEUE_TX], &e->tx_chains[i], NULL, 0);
	*b = (struct burst){0};
}

/**
 * refuse() - Owe a RST about a packet of no known connection
 * @d:		Device
 * @hdr:	The packet
 *
 * Spec: VIRTIO 1.2 section 5.10.6.4.1. A RST is never answered.
 */
static void refuse(struct vu_dev *d, const struct virtio_vsock_hdr *hdr)
{
	unsigned at = (d->rst_first + d->rst_count) % RST_QUEUE;

	if (hdr->op == VIRTIO_VSOCK_OP_RST || d->rst_count == RST_QUEUE)
		return; /* vsock_tx() stops before it is full */
	d->rsts[at] = (struct rst){
	    .src_cid = hdr->dst_cid,
	    .src_port = hdr->dst_port,
	    .dst_port = hdr->src_port,
	    .type = hdr->type,
	};
	d->rst_count++;
	d->stats.rst_unknown++;
}

/**
 * update_credit() - Note what a packet says of the guest's receive window
 * @c:		Connection
 * @hdr:	Packet
 */
static void update_credit(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	c->peer_buf_alloc = hdr->buf_alloc;
	c->peer_fwd_cnt = hdr->fwd_cnt;
	if (c->state == CONN_OPEN &&
	    (c->far.readable || c->far.fd < 0 || c->down.len))
		list_add(&c->dev->engine->run, &c->run);
}

/**
 * guest_reset() - The guest sent a RST
 * @c:		Connection; gone afterwards, but for bytes on their way up
 */
static void guest_reset(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;
	bool closed = c->guest_shut == SHUT_BOTH;
	int error = c->state == CONN_OPEN	 ? ECONNRESET
		    : c->state == CONN_REQUESTED ? ECONNREFUSED
						 : ECONNABORTED;

	if (c->state == CONN_OPEN && closed && c->up.len &&
	    !(c->twin && c->twin->orphan)) {
		/* it closed long ago and gave up waiting for our RST */
		conn_unhash(e, c);
		list_del(&c->owe_link);
		c->owe = 0;
		c->orphan = true;
		c->alone_us = now_us();
		list_del(&c->timer);
		list_add(&e->orphans, &c->timer);
		return;
	}
	if (closed || (c->twin && c->twin->guest_shut == SHUT_BOTH))
		error = 0;
	if (c->state == CONN_OPEN)
		conn_post(e, c, VU_EV_CLOSED, error);
	else if (c->state != CONN_DEAD && c->state != CONN_LINGER) {
		c->dev->stats.failed++;
		conn_excuse(c, error);
		conn_post(e, c, VU_EV_FAILED, error);
	}
	sibling_part(c, error);
	c->dev->work[QUEUE_TX] += SOCKET_WORK;
	conn_close_far(e, c, !closed);
	conn_free(e, c);
}

/**
 * request() - The guest asks for a connection
 * @d:		Device
 * @hdr:	Packet with op REQUEST
 */
static void request(struct vu_dev *d, const struct virtio_vsock_hdr *hdr)
{
	struct vu_engine *e = d->engine;
	struct vu_conn *c =
	    conn_find(e, d, hdr->src_port, hdr->dst_cid, hdr->dst_port);

	d->work[QUEUE_TX] += SOCKET_WORK;
	if (c) /* the guest has forgotten it: its port is in use again */
		guest_reset(c);
	c = limit_conn(d, hdr->type, false);
	if (!c) {
		refuse(d, hdr);
		return;
	}
	c->peer_port = hdr->src_port;
	c->cid = (uint32_t)hdr->dst_cid;
	c->port = hdr->dst_port;
	c->peer_buf_alloc = hdr->buf_alloc;
	c->peer_fwd_cnt = hdr->fwd_cnt;
	if (conn_hash(e, c)) {
		limit_hit(d, VU_LIMIT_MEMORY);
		conn_free(e, c);
		refuse(d, hdr);
		return;
	}
	if (c->cid == HOST_CID)
		conn_target(e, c, route_find(d, c->port));
	else
		sibling_dial(c, sibling_find(d, c->cid));
}

/**
 * accepted() - The guest took a connection that we asked for
 * @c:		Connection in CONN_REQUESTED
 */
static void accepted(struct vu_conn *c)
{
	char line[32];
	int n;

	if (c->hybrid) {
		n = snprintf(line, sizeof(line), "OK %u\n", c->peer_port);
		/* the client's buffer is empty: it takes the line whole */
		if (send(c->far.fd, line, (size_t)n,
			 MSG_NOSIGNAL | MSG_DONTWAIT) != n) {
			conn_failed(c->dev->engine, c, ECONNABORTED);
			return;
		}
	}
	conn_opened(c->dev->engine, c);
}

/**
 * control() - Act on a packet of a known connection that isn't payload
 * @c:		Connection
 * @hdr:	Packet
 *
 * Returns: false if the packet doesn't fit the connection's state
 */
static bool control(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	switch (hdr->op) {
	case VIRTIO_VSOCK_OP_RST:
		guest_reset(c);
		return true;
	case VIRTIO_VSOCK_OP_RESPONSE:
		if (c->state != CONN_REQUESTED)
			return false;
		accepted(c);
		return true;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		c->guest_shut |= hdr->flags & SHUT_BOTH;
		if (c->state == CONN_OPEN)
			list_add(&c->dev->engine->run, &c->run);
		else if (c->state == CONN_LINGER && c->guest_shut == SHUT_BOTH)
			vsock_reset(c); /* both sides have let go */
		return c->state >= CONN_OPEN;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		vsock_owe(c, OWE_CREDIT);
		return c->state == CONN_OPEN || c->state == CONN_LINGER;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		return true;
	default:
		return false;
	}
}

/**
 * vsock_has_type() - May the guest have connections of a type?
 * @d:		Device
 * @type:	VIRTIO_VSOCK_TYPE_
 *
 * Spec: VIRTIO 1.2 section 5.10.3. Streams need no feature bit.
 *
 * Returns: true if it may
 */
bool vsock_has_type(const struct vu_dev *d, uint16_t type)
{
	return type == VIRTIO_VSOCK_TYPE_STREAM ||
	       (type == VIRTIO_VSOCK_TYPE_SEQPACKET &&
		d->features >> VIRTIO_VSOCK_F_SEQPACKET & 1);
}

/**
 * vsock_window() - Which receive window does a connection offer its guest?
 * @d:		Device
 * @type:	VIRTIO_VSOCK_TYPE_
 *
 * Returns: bytes
 */
uint32_t vsock_window(const struct vu_dev *d, uint16_t type)
{
	if (type == VIRTIO_VSOCK_TYPE_SEQPACKET &&
	    d->cfg.buf_alloc > SEQ_WINDOW_MAX)
		return SEQ_WINDOW_MAX;
	return d->cfg.buf_alloc;
}

/**
 * known_op() - Does the specification have this packet's operation?
 * @hdr:	Packet
 *
 * Returns: true if it does
 */
static bool known_op(const struct virtio_vsock_hdr *hdr)
{
	return hdr->op >= VIRTIO_VSOCK_OP_REQUEST &&
	       hdr->op <= VIRTIO_VSOCK_OP_CREDIT_REQUEST;
}

/**
 * misfit() - A packet broke the protocol: reset its connection
 * @c:		Connection; dead afterwards
 */
static void misfit(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	c->dev->stats.bad_packets++;
	if (c->state == CONN_LINGER) {
		vsock_reset(c);
	} else if (c->state == CONN_OPEN) {
		conn_abort(e, c, EPROTO);
	} else if (c->state != CONN_DEAD) {
		conn_failed(e, c, EPROTO);
	}
}

/**
 * packet() - Act on a packet that isn't payload of an open connection
 * @d:		Device
 * @hdr:	Packet
 */
static void packet(struct vu_dev *d, const struct virtio_vsock_hdr *hdr)
{
	struct vu_conn *c;

	if (hdr->src_cid != d->cfg.guest_cid) {
		d->stats.bad_packets++; /* spoofed: nobody to answer */
		return;
	}
	if ((hdr->dst_cid != HOST_CID && !sibling_find(d, hdr->dst_cid)) ||
	    !vsock_has_type(d, hdr->type) || !known_op(hdr)) {
		d->stats.bad_packets++;
		refuse(d, hdr);
		return;
	}
	if (hdr->op == VIRTIO_VSOCK_OP_REQUEST) {
		request(d, hdr);
		return;
	}
	c = conn_find(d->engine, d, hdr->src_port, hdr->dst_cid, hdr->dst_port);
	if (!c || c->type != hdr->type) {
		refuse(d, hdr);
		return;
	}
	if (c->twin && hdr->op != VIRTIO_VSOCK_OP_RST) {
		if (!sibling_packet(c, hdr))
			misfit(c);
		return;
	}
	update_credit(c, hdr);
	if (!control(c, hdr))
		misfit(c);
}

/**
 * take_credit() - Account for a packet's payload
 * @d:		Device
 * @c:		Connection
 * @hdr:	Packet with op RW
 *
 * Returns: false if the guest overran its credit
 */
static bool take_credit(struct vu_dev *d, struct vu_conn *c,
			const struct virtio_vsock_hdr *hdr)
{
	uint32_t held = c->rx_cnt - c->fwd_cnt;

	if (c->twin)
		return sibling_take(c, hdr);
	if (held > c->buf_alloc || hdr->len > c->buf_alloc - held) {
		d->stats.credit_violations++;
		return false;
	}
	c->rx_cnt += hdr->len;
	d->stats.tx_bytes += hdr->len;
	c->peer_buf_alloc = hdr->buf_alloc;
	c->peer_fwd_cnt = hdr->fwd_cnt;
	if (c->far.readable || c->up.len || c->down.len)
		list_add(&d->engine->run, &c->run);
	return true;
}

/**
 * open_stream() - Find the connection that a payload packet may go on with
 * @d:		Device
 * @b:		Burst: most packets belong to the same connection as the last
 * @hdr:	Packet
 *
 * Returns: the connection; NULL if the packet is for packet() to judge
 */
static struct vu_conn *open_stream(struct vu_dev *d, const struct burst *b,
				   const struct virtio_vsock_hdr *hdr)
{
	struct vu_conn *c = b->conn;

	if (hdr->op != VIRTIO_VSOCK_OP_RW || hdr->src_cid != d->cfg.guest_cid)
		return NULL;
	if (!c || c->peer_port != hdr->src_port || c->port != hdr->dst_port ||
	    c->cid != hdr->dst_cid)
		c = conn_find(d->engine, d, hdr->src_port, hdr->dst_cid,
			      hdr->dst_port);
	if (!c || c->state != CONN_OPEN || hdr->type != c->type ||
	    (c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND))
		return NULL;
	return c;
}

/**
 * tx_chain() - Act on one chain from the guest
 * @d:		Device
 * @b:		Burst
 * @chain:	Chain, its segments behind the burst's in tx_iov
 */
static void tx_chain(struct vu_dev *d, struct burst *b,
		     const struct vu_chain *chain)
{
	struct vu_engine *e = d->engine;
	struct iovec *iov = e->tx_iov + b->n_iov;
	struct virtio_vsock_hdr hdr;
	struct vu_conn *c;
	unsigned n;
	size_t len;

	d->stats.tx_packets++;
	if (chain->read_len < HDR) {
		d->stats.bad_packets++;
		vu_ring_push(d->rings[QUEUE_TX], chain, NULL, 0);
		return;
	}
	iov_copy(iov, chain->n_read, 0, &hdr, HDR, false);
	if (hdr.len > chain->read_len - HDR) {
		d->stats.bad_packets++;
		vu_ring_push(d->rings[QUEUE_TX], chain, NULL, 0);
		return;
	}
	c = open_stream(d, b, &hdr);
	if (!c || !take_credit(d, c, &hdr)) {
		burst_end(d, b);
		/* the burst's end may have ended the connection: ask again */
		c = c ? conn_find(e, d, hdr.src_port, hdr.dst_cid, hdr.dst_port)
		      : NULL;
		if (c && c->state == CONN_OPEN)
			conn_abort(e, c, EPROTO);
		else
			packet(d, &hdr);
		vu_ring_push(d->rings[QUEUE_TX], chain, NULL, 0);
		return;
	}
	n = vsock_payload(iov, chain->n_read, hdr.len, iov, &len);
	if (b->conn && b->conn != c) {
		unsigned moved = b->n_iov;

		burst_end(d, b);
		memmove(e->tx_iov, e->tx_iov + moved, n * sizeof(*iov));
	}
	b->conn = c;
	b->n_iov += n;
	b->len += (uint32_t)len;
	e->tx_chains[b->n_chains++] = *chain;
	if (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET &&
	    hdr.flags & VIRTIO_VSOCK_SEQ_EOM) {
		b->flags = hdr.flags;
		burst_end(d, b);
	}
}

/**
 * vsock_tx() - Act on what the guest sent
 * @d:		Device with a TX ring
 *
 * One turn takes at most a turn's work: other devices wait too.
 */
void vsock_tx(struct vu_dev *d)
{
	struct vu_engine *e = d->engine;
	struct burst b = {0};

	while (!vsock_spent(d, QUEUE_TX)) {
		struct vu_chain chain;
		int ret;

		if (d->rst_count == RST_QUEUE)
			break;
		if (b.n_chains == BATCH_CHAINS || b.len >= SCRATCH)
			burst_end(d, &b);
		ret = vu_ring_pop(d->rings[QUEUE_TX], e->tx_iov + b.n_iov,
				  BATCH_IOV - b.n_iov, &chain);
		if (ret == -VU_ERR_FULL && b.n_chains) {
			burst_end(d, &b);
			continue;
		}
		if (ret < 0) {
			burst_end(d, &b);
			vsock_broken(d, QUEUE_TX, ret);
			return;
		}
		if (!ret)
			break;
		d->work[QUEUE_TX] += vsock_chain_work(&chain);
		tx_chain(d, &b, &chain);
	}
	burst_end(d, &b);
}
