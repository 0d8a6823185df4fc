// SPDX-License-Identifier: Apache-2.0
/*
 * tx.c - packets from the guest, and what they do to connections
 *
 * Theory of operation
 * ===================
 *
 * Payloads of adjacent packets of one connection are gathered, in place, and
 * go into its pipe as one burst; then their chains go back to the guest, with
 * one used-index store for the whole turn.
 *
 * Every header field is the guest's word: it is copied once, and then checked.
 */

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/iov.h"
#include "side/target.h"
#include "vsock/dev.h"

static_assert(sizeof(struct virtio_vsock_hdr) == 44, "VIRTIO 1.2 5.10.6");

/**
 * struct burst - Adjacent packets of one connection, not delivered yet
 * @conn:	The connection, or NULL
 * @n_iov:	Segments of payload, from the start of tx_iov
 * @n_chains:	Chains that hold them, from the start of tx_chains
 * @len:	Bytes of payload
 * @flags:	VIRTIO_VSOCK_SEQ_ bits of the last packet, if they end a message
 */
struct burst {
	struct vu_conn *conn;
	unsigned n_iov;
	unsigned n_chains;
	uint32_t len;
	uint32_t flags;
};

/**
 * burst_end() - Deliver a burst and give its chains back
 * @d:		Device
 * @b:		Burst; empty afterwards
 */
static void burst_end(struct vu_dev *d, struct burst *b)
{
	struct core *core = d->core;

	/* with the memory gone it may hold zeroes that nobody wrote */
	if (b->conn && !dev_failed(d)) {
		d->work[WORK_TX] += WORK_BURST;
		pipe_put(b->conn, &b->conn->up, core->tx_iov, b->n_iov, b->len,
			 b->flags & SEQ_FLAGS);
		if (b->conn->state == CONN_OPEN &&
		    bytes_len(&b->conn->up.kept.bytes))
			conn_wake(b->conn->twin ? b->conn->twin : b->conn);
	}
	for (unsigned i = 0; i < b->n_chains; i++)
		vu_ring_push(d->rings[QUEUE_TX], &core->tx_chains[i], NULL, 0);
	*b = (struct burst){0};
}

/* ---- packets that are no payload ---- */

/**
 * request() - The guest asks for a connection
 * @d:		Device
 * @hdr:	Packet with op REQUEST
 */
static void request(struct vu_dev *d, const struct virtio_vsock_hdr *hdr)
{
	struct vu_conn *c =
	    conn_find(d->core, d, hdr->src_port, hdr->dst_cid, hdr->dst_port);

	d->work[WORK_TX] += WORK_SOCKET;
	if (c) /* the guest has forgotten it: its port is in use again */
		guest_gone(c);
	c = limit_conn(d, hdr->type, false);
	if (!c) {
		owe_refusal(d, hdr);
		return;
	}
	c->near.ops = &guest_ops;
	c->peer_port = hdr->src_port;
	c->cid = (uint32_t)hdr->dst_cid;
	c->port = hdr->dst_port;
	if (conn_hash(c)) {
		limit_hit(d, VU_LIMIT_MEMORY);
		conn_free(c);
		owe_refusal(d, hdr);
		return;
	}
	/* whatever it says: nothing was sent that it could have taken */
	credit_note(&c->credit, 0, hdr->buf_alloc);
	if (c->cid == HOST_CID) {
		target_reach(c, route_find(&d->routes, c->port));
	} else {
		sibling_dial(c, sibling_find(d, c->cid));
	}
}

/**
 * control() - Act on a packet of a connection to the host that isn't payload
 * @c:		Connection; may be gone afterwards
 * @hdr:	Packet
 *
 * Returns: false if the packet doesn't fit the connection's state
 */
static bool control(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	bool open = c->state == CONN_OPEN || c->state == CONN_LINGER;

	switch (hdr->op) {
	case VIRTIO_VSOCK_OP_RESPONSE:
		if (c->state != CONN_REQUESTED)
			return false;
		conn_opened(c);
		return true;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		if (c->state < CONN_OPEN)
			return false;
		guest_shutdown(c, hdr->flags);
		return true;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		if (open)
			owe(c, OWE_CREDIT);
		return open;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		return true;
	case VIRTIO_VSOCK_OP_RW: /* it crossed our SHUTDOWN: nobody takes it */
		return c->state == CONN_LINGER &&
		       !(c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND);
	default:
		return false;
	}
}

/**
 * note() - Note what a packet says of the guest's receive buffer
 * @c:		Connection
 * @hdr:	Packet
 *
 * Returns: false if it lies
 */
static bool note(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	switch (credit_note(&c->credit, hdr->fwd_cnt, hdr->buf_alloc)) {
	case CREDIT_LIE:
		return false;
	case CREDIT_SAME:
		return true;
	default:
		break;
	}
	if (c->state != CONN_OPEN)
		return true;
	if (c->twin)
		owe(c->twin, OWE_CREDIT); /* payload may carry it first */
	if (c->twin ? bytes_len(&c->twin->up.kept.bytes)
		    : c->far.readable || c->far.fd < 0 ||
			  bytes_len(&c->down.kept.bytes))
		conn_wake(c);
	return true;
}

/**
 * misfit() - A packet broke the protocol: reset its connection
 * @c:		Connection; gone afterwards, or as good as
 */
static void misfit(struct vu_conn *c)
{
	c->dev->stats.bad_packets++;
	conn_abort(c, EPROTO);
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
	    !dev_has_type(d, hdr->type) || !known_op(hdr)) {
		d->stats.bad_packets++;
		owe_refusal(d, hdr);
		return;
	}
	if (hdr->op == VIRTIO_VSOCK_OP_REQUEST) {
		request(d, hdr);
		return;
	}
	c = conn_find(d->core, d, hdr->src_port, hdr->dst_cid, hdr->dst_port);
	if (!c || c->type != hdr->type)
		owe_refusal(d, hdr);
	else if (hdr->op == VIRTIO_VSOCK_OP_RST)
		guest_gone(c);
	else if (c->state == CONN_DEAD)
		return; /* its RST is on the way */
	else if (!note(c, hdr) ||
		 !(c->twin ? sibling_packet(c, hdr) : control(c, hdr)))
		misfit(c);
}

/* ---- payload ---- */

/**
 * take_credit() - Account for a packet's payload
 * @c:		Connection
 * @hdr:	Packet with op RW
 *
 * Returns: false if the guest broke the rules of credit
 */
static bool take_credit(struct vu_conn *c, const struct virtio_vsock_hdr *hdr)
{
	const struct credit *far = c->twin ? &c->twin->credit : NULL;
	struct vu_dev_stats *stats = &c->dev->stats;

	if (!note(c, hdr) || !credit_take(&c->credit, far, hdr->len)) {
		stats->credit_violations++;
		return false;
	}
	stats->tx_bytes += hdr->len;
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
		c = conn_find(d->core, d, hdr->src_port, hdr->dst_cid,
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
	struct core *core = d->core;
	struct iovec *iov = core->tx_iov + b->n_iov;
	struct virtio_vsock_hdr hdr;
	struct vu_conn *c;
	unsigned n;
	size_t len;

	d->stats.tx_packets++;
	if (chain->read_len >= HDR)
		iov_copy(iov, chain->n_read, 0, &hdr, HDR, false);
	if (chain->read_len < HDR || hdr.len > chain->read_len - HDR) {
		d->stats.bad_packets++;
		vu_ring_push(d->rings[QUEUE_TX], chain, NULL, 0);
		return;
	}
	c = open_stream(d, b, &hdr);
	if (!c || !take_credit(c, &hdr)) {
		burst_end(d, b);
		/* the burst's end may have ended the connection: ask again */
		c = c ? conn_find(core, d, hdr.src_port, hdr.dst_cid,
				  hdr.dst_port)
		      : NULL;
		if (c && c->state == CONN_OPEN)
			conn_abort(c, EPROTO);
		else
			packet(d, &hdr);
		vu_ring_push(d->rings[QUEUE_TX], chain, NULL, 0);
		return;
	}
	n = rx_payload(iov, chain->n_read, hdr.len, iov, &len);
	if (b->conn && b->conn != c) {
		unsigned moved = b->n_iov;

		burst_end(d, b);
		memmove(core->tx_iov, core->tx_iov + moved, n * sizeof(*iov));
	}
	b->conn = c;
	b->n_iov += n;
	b->len += (uint32_t)len;
	core->tx_chains[b->n_chains++] = *chain;
	if (c->type == SEQPACKET && hdr.flags & VIRTIO_VSOCK_SEQ_EOM) {
		b->flags = hdr.flags;
		burst_end(d, b);
	}
}

/**
 * tx_turn() - Act on what the guest sent
 * @d:		Device with a TX ring
 *
 * One turn takes at most a turn's work: other devices wait too.
 */
void tx_turn(struct vu_dev *d)
{
	struct core *core = d->core;
	struct burst b = {0};

	dev_doing(d, WORK_TX);
	while (!dev_spent(d, WORK_TX) && d->rst_count < RST_QUEUE) {
		struct vu_chain chain;
		int ret;

		if (b.n_chains == BATCH_CHAINS || b.len >= SCRATCH)
			burst_end(d, &b);
		ret = vu_ring_pop(d->rings[QUEUE_TX], core->tx_iov + b.n_iov,
				  BATCH_IOV - b.n_iov, &chain);
		if (ret == -VU_ERR_FULL && b.n_chains) {
			burst_end(d, &b);
			continue;
		}
		if (ret <= 0) {
			burst_end(d, &b);
			if (ret < 0)
				dev_broken(d, QUEUE_TX, ret);
			break;
		}
		dev_popped(d, WORK_TX, &chain);
		tx_chain(d, &b, &chain);
	}
	if (b.n_chains)
		burst_end(d, &b);
	dev_doing(d, WORK_RUN);
}
