// SPDX-License-Identifier: Apache-2.0
/*
 * rx.c - to the guest: RX buffers, credit that the guest gives, what is owed
 *
 * Theory of operation
 * ===================
 *
 * One readv() fills many RX buffers, in place, behind room for the headers,
 * which are written when the byte count is known. Nothing is read that the
 * guest has no credit and no buffer for: the socket's own buffer makes the
 * sender wait. How many buffers a read takes doubles while reads fill them and
 * falls to what was used, so small messages cost one buffer.
 *
 * The guest's credit is taken from every packet as it is: a window that shrinks
 * below what is in flight leaves nothing to send. A guest whose window stays
 * full is asked once, in case it tells only then (vsock_await_credit()).
 *
 * What isn't payload is owed: bits in conn->owe, sent when RX buffers come. A
 * RST to a connection that we don't know has no place for a bit and waits in a
 * short queue; while that is full no TX packet is read, so a guest that
 * floods us and gives no RX buffers stops itself.
 */

#include <errno.h>
#include <string.h>

#include "vsock.h"

/**
 * make_hdr() - Fill a packet header about a connection
 * @c:		Connection
 * @op:		VIRTIO_VSOCK_OP_
 * @flags:	VIRTIO_VSOCK_SHUTDOWN_ or, with OP_RW, VIRTIO_VSOCK_SEQ_ bits
 * @len:	Bytes of payload
 *
 * Carries the credit, so a credit update that was owed is paid.
 *
 * Returns: the header
 */
static struct virtio_vsock_hdr make_hdr(struct vu_conn *c, uint16_t op,
					uint32_t flags, uint32_t len)
{
	uint32_t window = c->twin ? sibling_window(c) : c->buf_alloc;

	c->fwd_sent = c->fwd_cnt;
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
	    .fwd_cnt = c->fwd_cnt,
	};
}

/**
 * rx_pop() - Take one RX buffer
 * @d:		Device
 * @at:		First free entry of rx_iov
 * @ret_chain:	The chain; its segments are rx_iov[@at..]
 *
 * Returns: true if there was one with room for a header, in this turn
 */
static bool rx_pop(struct vu_dev *d, unsigned at, struct vu_chain *ret_chain)
{
	struct vu_ring *ring = d->rings[QUEUE_RX];
	struct iovec *iov = d->engine->rx_iov + at;
	int ret;

	if (!ring || vsock_spent(d, QUEUE_RX))
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
		vsock_broken(d, QUEUE_RX, ret);
		return false;
	}
	if (ret)
		d->work[QUEUE_RX] += vsock_chain_work(ret_chain);
	if (ret && ret_chain->n_read) /* section 5.10.6.2: RX is write-only */
		memmove(iov, iov + ret_chain->n_read,
			ret_chain->n_write * sizeof(*iov));
	return ret;
}

/**
 * rx_control() - Send the guest a packet without payload
 * @d:		Device
 * @hdr:	The packet
 * @urgent:	Somebody waits for it
 *
 * Returns: false if there is no RX buffer
 */
static bool rx_control(struct vu_dev *d, struct virtio_vsock_hdr *hdr,
		       bool urgent)
{
	struct vu_chain chain;

	if (!rx_pop(d, 0, &chain))
		return false;
	iov_copy(d->engine->rx_iov, chain.n_write, 0, hdr, HDR, true);
	vu_ring_push(d->rings[QUEUE_RX], &chain, d->engine->rx_iov, HDR);
	d->stats.rx_packets++;
	d->rx_urgent |= urgent;
	return true;
}

/**
 * vsock_owe() - Send something about a connection when an RX buffer comes
 * @c:		Connection
 * @owe:	OWE_ bits
 */
void vsock_owe(struct vu_conn *c, uint8_t owe)
{
	c->owe |= owe;
	list_add(&c->dev->owing, &c->owe_link);
}

/**
 * vsock_reset() - Owe a connection's RST, and nothing else any more
 * @c:		Connection, its far end closed; gone when the RST is sent
 */
void vsock_reset(struct vu_conn *c)
{
	c->state = CONN_DEAD;
	c->owe = 0;
	vsock_owe(c, OWE_RST);
}

/**
 * shutdown_flags() - Say which directions are over
 * @c:		Connection
 *
 * Returns: VIRTIO_VSOCK_SHUTDOWN_ flags for the guest
 */
static uint32_t shutdown_flags(const struct vu_conn *c)
{
	if (c->twin)
		return sibling_shut(c);
	return VIRTIO_VSOCK_SHUTDOWN_SEND |
	       (c->state == CONN_LINGER ? VIRTIO_VSOCK_SHUTDOWN_RCV : 0U);
}

/**
 * rst_awaited() - Does somebody wait for a connection's RST?
 * @c:		Connection
 *
 * Nobody does when it answers the guest's own close, see held_long(). But one
 * that a sibling answers can be overtaken: what the sibling's program does
 * next may reach the guest's by another way, and it binds the port again.
 *
 * Returns: true if somebody may
 */
static bool rst_awaited(const struct vu_conn *c)
{
	return c->guest_shut != SHUT_BOTH || c->cid != HOST_CID;
}

/**
 * pay() - Send the most urgent thing that a connection owes
 * @c:		Connection with something owed; may be gone afterwards
 *
 * Returns: false if there is no RX buffer
 */
static bool pay(struct vu_conn *c)
{
	struct vu_dev *d = c->dev;
	uint8_t bit = (uint8_t)(c->owe & -c->owe);
	uint8_t owe =
	    c->owe; /* make_hdr() changes it: on failure put it back */
	struct virtio_vsock_hdr hdr;

	if (!owe) { /* a packet with payload carried the credit */
		list_del(&c->owe_link);
		return true;
	}

	switch (bit) {
	case OWE_REQUEST:
		hdr = make_hdr(c, VIRTIO_VSOCK_OP_REQUEST, 0, 0);
		break;
	case OWE_RESPONSE:
		hdr = make_hdr(c, VIRTIO_VSOCK_OP_RESPONSE, 0, 0);
		break;
	case OWE_RST:
		hdr = make_hdr(c, VIRTIO_VSOCK_OP_RST, 0, 0);
		break;
	case OWE_SHUTDOWN:
		hdr =
		    make_hdr(c, VIRTIO_VSOCK_OP_SHUTDOWN, shutdown_flags(c), 0);
		break;
	case OWE_ASK:
		hdr = make_hdr(c, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, 0);
		break;
	default:
		hdr = make_hdr(c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, 0);
	}
	if (!rx_control(d, &hdr, bit != OWE_RST || rst_awaited(c))) {
		c->owe = owe;
		return false;
	}
	c->owe &= (uint8_t)~bit;
	if (bit == OWE_SHUTDOWN)
		c->shut_told |= hdr.flags & SHUT_BOTH;
	if (bit == OWE_RESPONSE) /* data had to wait for it */
		list_add(&d->engine->run, &c->run);
	if (bit == OWE_RST)
		conn_free(d->engine, c);
	else if (!c->owe)
		list_del(&c->owe_link);
	return true;
}

/**
 * vsock_send_rst() - Send the guest a RST about a connection that isn't there
 * @d:		Device
 * @rst:	RST
 *
 * Returns: false if there is no RX buffer
 */
bool vsock_send_rst(struct vu_dev *d, const struct rst *rst)
{
	struct virtio_vsock_hdr hdr = {
	    .src_cid = rst->src_cid,
	    .dst_cid = d->cfg.guest_cid,
	    .src_port = rst->src_port,
	    .dst_port = rst->dst_port,
	    .type = rst->type,
	    .op = VIRTIO_VSOCK_OP_RST,
	};

	return rx_control(d, &hdr, true);
}

/**
 * vsock_pay_all() - Send what is owed, while there are RX buffers
 * @d:		Device
 */
void vsock_pay_all(struct vu_dev *d)
{
	while (d->rst_count) {
		if (!vsock_send_rst(d, &d->rsts[d->rst_first]))
			return;
		d->rst_first = (d->rst_first + 1) % RST_QUEUE;
		d->rst_count--;
	}
	while (!list_empty(&d->owing)) {
		if (!pay(container_of(d->owing.next, struct vu_conn, owe_link)))
			return;
	}
}

/**
 * vsock_credit() - How much may the guest still be sent?
 * @c:		Connection
 *
 * A window that shrank below what is in flight leaves nothing.
 *
 * Returns: bytes
 */
uint32_t vsock_credit(const struct vu_conn *c)
{
	uint32_t in_flight = c->tx_cnt - c->peer_fwd_cnt;

	return in_flight < c->peer_buf_alloc ? c->peer_buf_alloc - in_flight
					     : 0;
}

/**
 * vsock_await_credit() - Wait until the guest gives credit
 * @c:		Connection; the packet that brings some runs it
 *
 * A driver need not tell of room unasked (section 5.10.6.3). Most do, so it is
 * asked only when nothing was heard for a while, and once for a full window:
 * one that isn't read stays full for hours.
 */
void vsock_await_credit(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	if (c->twin || (c->asked && c->asked_at == c->tx_cnt))
		return;
	if (list_empty(&e->thirsty))
		e->thirsty_us = now_us();
	list_add(&e->thirsty, &c->timer);
}

/**
 * vsock_ask_credit() - Ask the guests whose windows are still full
 * @e:		Engine
 */
void vsock_ask_credit(struct vu_engine *e)
{
	while (!list_empty(&e->thirsty)) {
		struct vu_conn *c =
		    container_of(e->thirsty.next, struct vu_conn, timer);

		list_del(&c->timer);
		if (c->state != CONN_OPEN ||
		    (vsock_credit(c) && c->type == VIRTIO_VSOCK_TYPE_STREAM))
			continue; /* for a message a little is not enough */
		c->asked = true;
		c->asked_at = c->tx_cnt;
		vsock_owe(c, OWE_ASK);
	}
}

/**
 * rx_take() - Take RX buffers
 * @d:		Device
 * @max_chains:	At most so many
 * @want:	Bytes of payload to make room for
 *
 * Returns: what was taken; n_chains is 0 if there is no buffer
 */
static struct rx_batch rx_take(struct vu_dev *d, unsigned max_chains,
			       size_t want)
{
	struct vu_engine *e = d->engine;
	struct rx_batch b = {0};

	while (b.n_chains < max_chains && b.room < want) {
		struct vu_chain *chain = &e->rx_chains[b.n_chains];
		size_t room;

		if (!rx_pop(d, b.n_iov, chain))
			break;
		b.n_chains++;
		b.n_payload += vsock_payload(
		    e->rx_iov + b.n_iov, chain->n_write, want - b.room,
		    e->rx_payload + b.n_payload, &room);
		b.n_iov += chain->n_write;
		b.room += room;
	}
	return b;
}

/**
 * vsock_rx_begin() - Take RX buffers for what a connection has for its guest
 * @c:		Connection; it runs again when it can get what it lacks
 * @max_chains:	Most chains to take
 * @most:	Bytes that there are at most
 * @ret:	Buffers, within the guest's credit
 *
 * Returns: false if it has no credit, or the ring no buffers
 */
bool vsock_rx_begin(struct vu_conn *c, unsigned max_chains, size_t most,
		    struct rx_batch *ret)
{
	uint32_t window = vsock_credit(c);

	if (!window) {
		vsock_await_credit(c);
		return false;
	}
	*ret = rx_take(c->dev, max_chains, most < window ? most : window);
	if (!ret->n_chains)
		list_add(&c->dev->starved, &c->run);
	return ret->n_chains;
}

/**
 * vsock_rx_commit() - Give the guest the buffers that were filled
 * @c:		Connection whose bytes they hold
 * @b:		What rx_take() took
 * @len:	Bytes of payload in them; the buffers behind go back
 * @flags:	VIRTIO_VSOCK_SEQ_ bits for the last packet
 */
void vsock_rx_commit(struct vu_conn *c, const struct rx_batch *b, size_t len,
		     uint32_t flags)
{
	struct vu_dev *d = c->dev;
	struct vu_engine *e = d->engine;
	struct vu_ring *ring = d->rings[QUEUE_RX];
	const struct iovec *iov = e->rx_iov;
	unsigned i = 0;

	if (!b->n_chains)
		return;
	/* buffers without room for payload leave as empty packets */
	for (; i < b->n_chains && (len || !b->room); i++) {
		const struct vu_chain *chain = &e->rx_chains[i];
		uint64_t room = chain->write_len - HDR;
		uint32_t n = (uint32_t)(len < room ? len : room);
		struct virtio_vsock_hdr hdr =
		    make_hdr(c, VIRTIO_VSOCK_OP_RW, len == n ? flags : 0, n);

		iov_copy(iov, chain->n_write, 0, &hdr, HDR, true);
		vu_ring_push(ring, chain, iov, (uint32_t)HDR + n);
		iov += chain->n_write;
		len -= n;
		c->tx_cnt += n;
		c->down_bytes += n;
		d->stats.rx_bytes += n;
		d->work[QUEUE_RX] += n / VSOCK_WORK_BYTES;
		d->stats.rx_packets++;
	}
	vu_ring_unpop(ring, b->n_chains - i);
	d->rx_urgent |= i > 0;
	/* a long turn feeds the guest while it goes on */
	if (vu_ring_unflushed(ring) >= vu_ring_num(ring) / 8)
		vsock_show_ring(d, QUEUE_RX);
}

/**
 * vsock_send() - Send the guest bytes that are in memory
 * @c:		Connection
 * @iov:	Where they are: ours, or another guest's TX buffers
 * @n_iov:	Segments
 * @len:	How many bytes of them
 * @flags:	VIRTIO_VSOCK_SEQ_ bits for the packet with the last of them
 *
 * Returns: bytes sent; fewer than @len if credit or RX buffers ran out
 */
size_t vsock_send(struct vu_conn *c, const struct iovec *iov, unsigned n_iov,
		  size_t len, uint32_t flags)
{
	struct vu_engine *e = c->dev->engine;
	size_t sent = 0;

	while (sent < len) {
		struct rx_batch b;

		if (!vsock_rx_begin(c, RX_CHAINS_MAX, len - sent, &b))
			break;
		iov_move(e->rx_payload, b.n_payload, iov, n_iov, sent, b.room);
		if (c->twin && vsock_faulted(c->twin->dev)) {
			vsock_rx_commit(c, &b, 0, 0); /* not what it sent */
			break;
		}
		sent += b.room;
		vsock_rx_commit(c, &b, b.room, sent == len ? flags : 0);
	}
	return sent;
}

/**
 * vsock_send_block() - Send the guest bytes from our memory
 * @c:		Connection
 * @data:	Bytes
 * @len:	How many
 * @flags:	VIRTIO_VSOCK_SEQ_ bits for the packet with the last of them
 *
 * Returns: bytes sent; fewer than @len if credit or RX buffers ran out
 */
size_t vsock_send_block(struct vu_conn *c, const char *data, size_t len,
			uint32_t flags)
{
	const struct iovec iov = {
	    .iov_base = (char *)(uintptr_t)data,
	    .iov_len = len,
	};

	return vsock_send(c, &iov, 1, len, flags);
}

/**
 * vsock_send_empty() - Send the guest an empty message, or a message's end
 * @c:		Connection
 * @flags:	VIRTIO_VSOCK_SEQ_ bits
 *
 * Returns: false if there is no RX buffer
 */
bool vsock_send_empty(struct vu_conn *c, uint32_t flags)
{
	struct virtio_vsock_hdr hdr;
	uint8_t owe = c->owe;

	hdr = make_hdr(c, VIRTIO_VSOCK_OP_RW, flags, 0);
	if (rx_control(c->dev, &hdr, true))
		return true;
	c->owe = owe;
	list_add(&c->dev->starved, &c->run);
	return false;
}

/**
 * vsock_down_ended() - The far end sends no more
 * @c:		Connection
 */
void vsock_down_ended(struct vu_conn *c)
{
	c->down.eof = true;
	vsock_owe(c, OWE_SHUTDOWN);
}

/**
 * vsock_rx_socket() - Send the guest what its far end has
 * @c:		Connection whose far end is a socket
 *
 * Stops after a turn's worth and runs again later: others wait too.
 */
void vsock_rx_socket(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;
	size_t total = 0;

	while (c->far.readable && total < SCRATCH) {
		struct rx_batch b;
		unsigned used;
		ssize_t n;

		if (!vsock_rx_begin(c, c->rx_chains, SIZE_MAX, &b))
			return;
		if (!b.room) {
			vsock_rx_commit(c, &b, 0, 0);
			continue;
		}
		n = recvmsg(c->far.fd,
			    &(struct msghdr){.msg_iov = e->rx_payload,
					     .msg_iovlen = b.n_payload},
			    MSG_DONTWAIT);
		vsock_rx_commit(c, &b, n > 0 ? (size_t)n : 0, 0);
		if (n == 0) {
			c->far.readable = false;
			vsock_down_ended(c);
			return;
		}
		if (n < 0 && errno == EFAULT) {
			c->dev->faulted = true;
			return;
		}
		if (n < 0) {
			c->far.readable = errno == EINTR;
			if (errno != EAGAIN && errno != EINTR)
				conn_abort(e, c, errno);
			return;
		}
		total += (size_t)n;
		if ((size_t)n == b.room) {
			c->rx_chains =
			    (uint8_t)(b.n_chains < 64 ? 2 * b.n_chains : 128);
			continue;
		}
		/* Short: the socket is empty, unless a FIN stands behind */
		used = (unsigned)(b.n_chains * (size_t)n / b.room) + 2;
		if (used < c->rx_chains)
			c->rx_chains = (uint8_t)used;
		c->far.readable = c->far.hup;
	}
	if (c->far.readable)
		list_add(&e->run, &c->run);
}
