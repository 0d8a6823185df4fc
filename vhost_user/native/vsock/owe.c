// SPDX-License-Identifier: Apache-2.0
/*
 * owe.c - packets to the guest that are no payload
 *
 * Theory of operation
 * ===================
 *
 * What isn't payload is owed: bits in conn->owe, sent when RX buffers come. A
 * RST to a connection that we don't know has no place for a bit and waits in a
 * short queue; while that is full no TX packet is read, so a guest that floods
 * us and gives no RX buffers stops itself.
 *
 * RX buffers are few: drivers give them back half a ring at a time. So a RST
 * that nobody waits for comes behind all that somebody waits for.
 *
 * Nothing is owed to a guest that has let go of a connection: one of the same
 * ports may be its next.
 *
 * A guest whose window stays full is asked for credit, in case it tells only
 * then (owe_await_credit()).
 */

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/iov.h"
#include "vsock/dev.h"

#define ASKS_MOST 16 /* rounds between two questions, at most */

/**
 * far_credit() - Whose window ends a guest's?
 * @c:		Its connection
 *
 * Returns: a sibling's credit, or NULL
 */
static const struct credit *far_credit(const struct vu_conn *c)
{
	return c->twin ? &c->twin->credit : NULL;
}

/**
 * owe_header() - Fill a packet header about a connection
 * @c:		Connection
 * @op:		VIRTIO_VSOCK_OP_
 * @flags:	VIRTIO_VSOCK_SHUTDOWN_ or, with OP_RW, VIRTIO_VSOCK_SEQ_ bits
 * @len:	Bytes of payload
 *
 * It carries the credit, so an update that was owed is paid.
 *
 * Returns: the header
 */
struct virtio_vsock_hdr owe_header(struct vu_conn *c, uint16_t op,
				   uint32_t flags, uint32_t len)
{
	uint32_t window = credit_tell(&c->credit, far_credit(c));

	c->owe &= (uint8_t)~OWE_CREDIT;
	return (struct virtio_vsock_hdr){
	    .src_cid = c->cid,
	    .dst_cid = c->dev->cfg.guest_cid,
	    .src_port = c->port,
	    .dst_port = c->peer_port,
	    .len = len,
	    .type = c->type,
	    .op = op,
	    .flags = flags,
	    .buf_alloc = window,
	    .fwd_cnt = c->credit.fwd_cnt,
	};
}

/**
 * rst_awaited() - Does somebody wait for a connection's RST?
 * @c:		Connection
 *
 * Nobody does when it answers the guest's own close, see turn.c. But one that a
 * sibling answers can be overtaken: what the sibling's program does next may
 * reach the guest's by another way, and it binds the port again.
 *
 * Returns: true if somebody may
 */
static bool rst_awaited(const struct vu_conn *c)
{
	return c->guest_shut != SHUT_BOTH || c->cid != HOST_CID;
}

/**
 * owe() - Send something about a connection when an RX buffer comes
 * @c:		Connection
 * @bits:	OWE_ bits
 */
void owe(struct vu_conn *c, uint8_t bits)
{
	struct vu_dev *d = c->dev;

	if (c->state == CONN_ORPHAN)
		return;
	c->owe |= bits;
	if (c->owe == OWE_RST && !rst_awaited(c))
		list_move(&d->parting, &c->owe_link);
	else
		list_add(&d->owing, &c->owe_link);
	list_add(&c->core->active, &d->active);
}

/**
 * owe_reset() - Owe a connection's RST, and nothing else any more
 * @c:		Connection, its far side closed; gone when the RST is sent, or
 *		at once if its guest has let go
 */
void owe_reset(struct vu_conn *c)
{
	if (c->state == CONN_ORPHAN) {
		conn_free(c);
		return;
	}
	conn_set(c, CONN_DEAD);
	c->owe = 0;
	owe(c, OWE_RST);
}

/**
 * owe_refusal() - Owe a RST about a packet of no known connection
 * @d:		Device
 * @hdr:	The packet
 *
 * Spec: VIRTIO 1.2 section 5.10.6.4.1. A RST is never answered.
 */
void owe_refusal(struct vu_dev *d, const struct virtio_vsock_hdr *hdr)
{
	unsigned at = (d->rst_first + d->rst_count) % RST_QUEUE;

	if (hdr->op == VIRTIO_VSOCK_OP_RST || d->rst_count == RST_QUEUE)
		return; /* tx_turn() stops before it is full */
	d->rsts[at] = (struct rst){
	    .src_cid = hdr->dst_cid,
	    .src_port = hdr->dst_port,
	    .dst_port = hdr->src_port,
	    .type = hdr->type,
	};
	d->rst_count++;
	d->stats.rst_unknown++;
}

/* ---- sending ---- */

/**
 * owe_pop() - Take one RX buffer
 * @d:		Device
 * @at:		First free entry of rx_iov
 * @ret_chain:	The chain; its segments are rx_iov[@at..]
 *
 * Returns: true if there was one with room for a header, in this turn
 */
bool owe_pop(struct vu_dev *d, unsigned at, struct vu_chain *ret_chain)
{
	struct vu_ring *ring = d->rings[QUEUE_RX];
	struct iovec *iov = d->core->rx_iov + at;
	int ret;

	if (!ring)
		return false;
	list_add(&d->core->active, &d->active); /* spent: a new turn helps */
	if (dev_spent(d, WORK_RX))
		return false;
	ret = vu_ring_pop(ring, iov, BATCH_IOV - at, ret_chain);
	if (ret < 0 && at)
		return false; /* end the batch; the next one starts with it */
	if (ret > 0 && ret_chain->write_len < HDR) {
		vu_ring_unpop(ring, 1);
		if (at)
			return false;
		ret = -VU_ERR_CHAIN;
	}
	if (ret < 0) {
		dev_broken(d, QUEUE_RX, ret);
		return false;
	}
	if (ret)
		dev_popped(d, WORK_RX, ret_chain);
	if (ret && ret_chain->n_read) /* section 5.10.6.2: RX is write-only */
		memmove(iov, iov + ret_chain->n_read,
			ret_chain->n_write * sizeof(*iov));
	return ret;
}

/**
 * owe_control() - Send the guest a packet without payload
 * @d:		Device
 * @hdr:	The packet
 * @urgent:	Somebody waits for it
 *
 * Returns: false if there is no RX buffer
 */
bool owe_control(struct vu_dev *d, struct virtio_vsock_hdr *hdr, bool urgent)
{
	struct vu_chain chain;

	if (!owe_pop(d, 0, &chain))
		return false;
	iov_copy(d->core->rx_iov, chain.n_write, 0, hdr, HDR, true);
	vu_ring_push(d->rings[QUEUE_RX], &chain, d->core->rx_iov, HDR);
	d->stats.rx_packets++;
	d->rx_urgent |= urgent;
	return true;
}

/**
 * owe_send_rst() - Send the guest a RST about a connection that isn't there
 * @d:		Device
 * @rst:	RST
 *
 * Returns: false if there is no RX buffer
 */
bool owe_send_rst(struct vu_dev *d, const struct rst *rst)
{
	struct virtio_vsock_hdr hdr = {
	    .src_cid = rst->src_cid,
	    .dst_cid = d->cfg.guest_cid,
	    .src_port = rst->src_port,
	    .dst_port = rst->dst_port,
	    .type = rst->type,
	    .op = VIRTIO_VSOCK_OP_RST,
	};

	return owe_control(d, &hdr, true);
}

/**
 * shutdown_flags() - Say which directions are over
 * @c:		Connection
 *
 * Returns: VIRTIO_VSOCK_SHUTDOWN_ flags for the guest
 */
static uint32_t shutdown_flags(const struct vu_conn *c)
{
	const struct pipe *down = c->twin ? &c->twin->up : &c->down;
	uint32_t flags = 0;

	if (down->state == PIPE_ENDED)
		flags |= VIRTIO_VSOCK_SHUTDOWN_SEND;
	if (c->up.state == PIPE_BROKEN)
		flags |= VIRTIO_VSOCK_SHUTDOWN_RCV;
	return c->state == CONN_LINGER ? SHUT_BOTH : flags;
}

/* What each bit of conn.owe is sent as, lowest first */
static const uint16_t ops[] = {
    VIRTIO_VSOCK_OP_REQUEST,	   VIRTIO_VSOCK_OP_RESPONSE,
    VIRTIO_VSOCK_OP_RST,	   VIRTIO_VSOCK_OP_SHUTDOWN,
    VIRTIO_VSOCK_OP_CREDIT_UPDATE, VIRTIO_VSOCK_OP_CREDIT_REQUEST,
};

/**
 * pay() - Send the most urgent thing that a connection owes
 * @c:		Connection that owes, or did; may be gone afterwards
 *
 * Returns: false if there is no RX buffer
 */
static bool pay(struct vu_conn *c)
{
	uint8_t bit = (uint8_t)(c->owe & -c->owe);
	uint8_t before = c->owe; /* the header's credit is paid, too */
	const struct credit credit = c->credit;
	struct virtio_vsock_hdr hdr;
	uint32_t flags = 0;

	if (!bit) { /* a packet with payload carried the credit */
		list_del(&c->owe_link);
		return true;
	}
	if (bit == OWE_SHUTDOWN)
		flags = shutdown_flags(c);
	hdr = owe_header(c, ops[__builtin_ctz(bit)], flags, 0);
	if (!owe_control(c->dev, &hdr, bit != OWE_RST || rst_awaited(c))) {
		c->owe = before;
		c->credit = credit;
		return false;
	}
	c->owe &= (uint8_t)~bit;
	c->told |= (uint8_t)flags;
	if (bit == OWE_RESPONSE) /* data had to wait for it */
		conn_wake(c);
	if (bit == OWE_RST)
		conn_free(c);
	else if (!c->owe)
		list_del(&c->owe_link);
	return true;
}

/**
 * debtor() - Which connection's turn is it?
 * @d:		Device
 *
 * Returns: the one that owes what somebody waits for, or else one that owes
 * something; NULL if none does
 */
static struct vu_conn *debtor(struct vu_dev *d)
{
	struct list *head = list_empty(&d->owing) ? &d->parting : &d->owing;

	return list_empty(head)
		   ? NULL
		   : container_of(head->next, struct vu_conn, owe_link);
}

/**
 * owe_pay() - Send what is owed, while there are RX buffers
 * @d:		Device
 */
void owe_pay(struct vu_dev *d)
{
	struct vu_conn *c;

	while (d->rst_count) {
		if (!owe_send_rst(d, &d->rsts[d->rst_first]))
			return;
		d->rst_first = (d->rst_first + 1) % RST_QUEUE;
		d->rst_count--;
	}
	while ((c = debtor(d))) {
		if (!pay(c))
			return;
	}
}

/* ---- credit from the guest ---- */

/**
 * owe_await_credit() - Wait until the guest gives credit
 * @c:		Connection; the packet that brings some runs it
 *
 * A driver need not tell of room unasked (section 5.10.6.3). Most do, so it is
 * asked only when nothing was heard for a while.
 */
void owe_await_credit(struct vu_conn *c)
{
	struct core *core = c->core;

	if (c->twin && !credit_bytes(&c->credit))
		return; /* the other guest asks if it wants to know */
	if (c->asks && c->asked_at == c->credit.tx_cnt &&
	    !credit_bytes(&c->credit))
		return; /* a full window that isn't read stays so for hours */
	if (c->asked_at != c->credit.tx_cnt)
		c->asks = 0;
	if (list_empty(&core->thirsty))
		core->thirsty_us = clock_us();
	list_add(&core->thirsty, &c->timer);
}

/**
 * owe_ask() - Ask the guests that haven't given credit since
 * @core:	Table
 *
 * Where bytes are left but no packets, a guest that has most of its buffer free
 * tells nothing by itself: it is asked again, less and less often.
 */
void owe_ask(struct core *core)
{
	struct list now;

	list_init(&now);
	list_splice(&now, &core->thirsty);
	core->thirsty_us = clock_us();
	while (!list_empty(&now)) {
		struct vu_conn *c =
		    container_of(now.next, struct vu_conn, timer);
		bool packets;

		list_del(&c->timer);
		packets =
		    credit_bytes(&c->credit) && !credit_packets(&c->credit);
		if (c->state != CONN_OPEN ||
		    (credit_bytes(&c->credit) && !packets && c->type == STREAM))
			continue; /* for a message a little is not enough */
		c->asked_at = c->credit.tx_cnt;
		c->asks++;
		if (!(c->asks & (c->asks - 1)) || c->asks % ASKS_MOST == 0)
			owe(c, OWE_ASK);
		if (packets)
			list_add(&core->thirsty, &c->timer);
	}
}
