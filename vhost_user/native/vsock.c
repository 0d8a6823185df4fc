// SPDX-License-Identifier: Apache-2.0
/*
 * vsock.c - connections of a guest: virtio-vsock packets, credit, half-close
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 5.10 "Socket Device", stream sockets; what differs for
 * seqpacket sockets is in seqpacket.c.
 *
 * TX, guest to host. Payloads of adjacent packets of one connection are
 * gathered, in place, and leave by one sendmsg(); then their chains go back
 * to the guest, with one used-index store for the whole turn. What the socket
 * does not take is copied to the connection. fwd_cnt counts bytes that left
 * us, never bytes that we only hold: so a connection holds at most buf_alloc,
 * and a guest that sends more has broken its credit and is reset.
 *
 * RX, host to guest. One readv() fills many RX buffers, in place, behind room
 * for the headers, which are written when the byte count is known. Nothing is
 * read that the guest has no credit and no buffer for: the socket's own buffer
 * makes the sender wait. How many buffers a read takes doubles while reads
 * fill them and falls to what was used, so small messages cost one buffer.
 *
 * Credit. Every packet to the guest carries ours; an update of its own goes
 * when the guest asks, and when half a window was used since it last heard.
 * The guest's is taken from every packet as it is: a window that shrinks below
 * what is in flight leaves nothing to send. A guest whose window stays full is
 * asked once, in case it tells only then (vsock_await_credit()).
 *
 * What isn't payload is owed: bits in conn->owe, sent when RX buffers come. A
 * RST to a connection that we don't know has no place for a bit and waits in a
 * short queue; while that is full no TX packet is read, so a guest that
 * floods us and gives no RX buffers stops itself.
 *
 * Turns. A guest can keep its rings full for ever, and make each chain as dear
 * as a ring is long. So one turn of a device does so much work for its TX ring
 * and as much for its RX ring (TURN_WORK), whatever for; then the others' turns
 * come. For connections that is as if the RX ring were empty.
 *
 * The end. Each direction ends by itself: SHUTDOWN from the guest becomes
 * shutdown() once all bytes are out, a FIN becomes SHUTDOWN. With both done
 * the connection lingers until the guest lets go of the port (a RST). A guest
 * that closes (both SHUTDOWN flags) gets its RST when its bytes are out.
 *
 * Every header field is the guest's word: it is copied once, and then checked.
 */

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vsock.h"

#define BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)

/* Work is counted in descriptors. What else costs as much as how many: */
#define TURN_WORK   8192 /* of one ring in one turn */
#define CHAIN_WORK  4
#define SOCKET_WORK 16	 /* made or closed */
#define WORK_BYTES  1024 /* payload of one unit */

static_assert(sizeof(struct virtio_vsock_hdr) == 44, "VIRTIO 1.2 5.10.6");

/**
 * vsock_stop_ring() - Let go of a ring, all that was pushed shown
 * @d:		Device
 * @queue:	Its ring, running
 */
void vsock_stop_ring(struct vu_dev *d, uint32_t queue)
{
	vu_ring_flush(d->rings[queue]);
	d->bases[queue] = vu_ring_base(d->rings[queue]);
	vu_ring_free(d->rings[queue]);
	d->rings[queue] = NULL;
}

/**
 * faulted() - Did the front-end take the guest's memory away?
 * @d:		Device
 *
 * Returns: true if it did, until dev_fault() or a new map
 */
static bool faulted(const struct vu_dev *d)
{
	return d->faulted || (d->mem && vu_mem_faulted(d->mem));
}

/**
 * dev_fault() - Break a device whose guest's memory is gone
 * @d:		Device, faulted(); no connection of it is in anyone's hands
 *
 * What was read of that memory since is worth nothing, so nothing of it is
 * delivered: connections end with a reset.
 */
static void dev_fault(struct vu_dev *d)
{
	struct vu_event event = {
	    .kind = VU_EV_BROKEN,
	    .source = d->id,
	    .port = VU_QUEUE_ALL,
	    .error = VU_ERR_FAULT,
	};

	for (uint32_t q = 0; q < QUEUES; q++) {
		if (d->rings[q])
			vsock_stop_ring(d, q);
	}
	dev_drop_conns(d);
	d->mem = NULL;
	d->faulted = false;
	events_push(d->engine, &event, true);
}

/**
 * vsock_broken() - Stop a ring whose driver broke the rules
 * @d:		Device
 * @queue:	Its ring
 * @err:	Negated enum vu_err
 */
void vsock_broken(struct vu_dev *d, uint32_t queue, int err)
{
	struct vu_event event = {
	    .kind = VU_EV_BROKEN,
	    .source = d->id,
	    .port = queue,
	    .error = -err,
	};

	vsock_stop_ring(d, queue);
	if (!faulted(d)) /* else dev_fault() is about to tell */
		events_push(d->engine, &event, true);
}

/**
 * spent() - Has a ring had its turn's work?
 * @d:		Device
 * @queue:	Ring
 *
 * Returns: true if it has, until the device's next turn
 */
static bool spent(const struct vu_dev *d, uint32_t queue)
{
	return d->work[queue] >= TURN_WORK;
}

/**
 * chain_work() - How much work is a chain, but for what is written to it?
 * @chain:	The chain
 *
 * Returns: units
 */
static uint64_t chain_work(const struct vu_chain *chain)
{
	return CHAIN_WORK + chain->n_read + chain->n_write +
	       chain->read_len / WORK_BYTES;
}

/* ---- RX: to the guest ---- */

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

	if (!ring || spent(d, QUEUE_RX))
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
		d->work[QUEUE_RX] += chain_work(ret_chain);
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
 * rx_room() - Is there an RX buffer?
 * @d:		Device
 *
 * Returns: true if there is
 */
static bool rx_room(const struct vu_dev *d)
{
	return d->rings[QUEUE_RX] && vu_ring_pending(d->rings[QUEUE_RX]);
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
	return c->guest_shut != BOTH || c->cid != HOST_CID;
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
		c->shut_told |= hdr.flags & BOTH;
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
 * owes_reset() - Does the driver have to be told of a reset?
 * @d:		Device
 *
 * Returns: true if it does, then event.c has the details
 */
static bool owes_reset(const struct vu_dev *d)
{
	return d->reset_due || d->n_lost;
}

/**
 * pay_all() - Send what is owed, while there are RX buffers
 * @d:		Device
 */
static void pay_all(struct vu_dev *d)
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
 * behind_header() - Find the payload in a packet's segments
 * @iov:	The packet
 * @n:		Its segments
 * @max:	Bytes of payload to find at most
 * @ret_iov:	Segments of the payload; may be @iov
 * @ret_len:	Bytes of it
 *
 * Returns: segments of the payload, at most @n
 */
static unsigned behind_header(const struct iovec *iov, unsigned n, size_t max,
			      struct iovec *ret_iov, size_t *ret_len)
{
	size_t skip = HDR, len = 0;
	unsigned out = 0;

	for (unsigned i = 0; i < n && len < max; i++) {
		struct iovec seg = iov[i];
		size_t cut = skip < seg.iov_len ? skip : seg.iov_len;

		skip -= cut;
		seg.iov_base = (char *)seg.iov_base + cut;
		seg.iov_len -= cut;
		if (seg.iov_len > max - len)
			seg.iov_len = max - len;
		if (!seg.iov_len)
			continue;
		len += seg.iov_len;
		ret_iov[out++] = seg;
	}
	*ret_len = len;
	return out;
}

/**
 * vsock_rx_take() - Take RX buffers
 * @d:		Device
 * @max_chains:	At most so many
 * @want:	Bytes of payload to make room for
 *
 * Returns: what was taken; n_chains is 0 if there is no buffer
 */
struct rx_batch vsock_rx_take(struct vu_dev *d, unsigned max_chains,
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
		b.n_payload += behind_header(
		    e->rx_iov + b.n_iov, chain->n_write, want - b.room,
		    e->rx_payload + b.n_payload, &room);
		b.n_iov += chain->n_write;
		b.room += room;
	}
	return b;
}

/**
 * vsock_rx_commit() - Give the guest the buffers that were filled
 * @c:		Connection whose bytes they hold
 * @b:		What vsock_rx_take() took
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
		d->work[QUEUE_RX] += n / WORK_BYTES;
		d->stats.rx_packets++;
	}
	vu_ring_unpop(ring, b->n_chains - i);
	d->rx_urgent |= i > 0;
	/* a long turn feeds the guest while it goes on */
	if (vu_ring_unflushed(ring) >= vu_ring_num(ring) / 8 &&
	    vu_ring_flush(ring))
		d->stats.calls++;
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
		uint32_t window = vsock_credit(c);
		size_t want = len - sent < window ? len - sent : window;
		struct rx_batch b;

		if (!want) {
			vsock_await_credit(c);
			break;
		}
		b = vsock_rx_take(c->dev, RX_CHAINS_MAX, want);
		if (!b.n_chains) {
			list_add(&c->dev->starved, &c->run);
			break;
		}
		iov_move(e->rx_payload, b.n_payload, iov, n_iov, sent, b.room);
		if (c->twin && faulted(c->twin->dev)) {
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
 * rx_socket() - Send the guest what its far end has
 * @c:		Connection whose far end is a socket
 *
 * Stops after a turn's worth and runs again later: others wait too.
 */
static void rx_socket(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;
	size_t total = 0;

	while (c->far.readable && total < SCRATCH) {
		uint32_t window = vsock_credit(c);
		struct rx_batch b;
		unsigned used;
		ssize_t n;

		if (!window) {
			vsock_await_credit(c);
			return;
		}
		b = vsock_rx_take(c->dev, c->rx_chains, window);
		if (!b.n_chains) {
			list_add(&c->dev->starved, &c->run);
			return;
		}
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

/* ---- TX: from the guest ---- */

/**
 * vsock_consumed() - Bytes from the guest have left us
 * @c:		Connection
 * @n:		How many
 *
 * The guest hears of it with the next packet, at the latest when half of its
 * window is used up.
 */
void vsock_consumed(struct vu_conn *c, size_t n)
{
	c->fwd_cnt += (uint32_t)n;
	c->up_bytes += n;
	if (c->fwd_cnt - c->fwd_sent < c->buf_alloc / 2)
		return;
	if (c->buf_alloc < c->dev->cfg.buf_alloc)
		limit_used(c);
	vsock_owe(c, OWE_CREDIT);
}

/**
 * vsock_up_broken() - The far end takes no more bytes
 * @c:		Connection
 *
 * What it sent before may still be read; so the guest's bytes are dropped
 * until that ends the connection (rx_socket() finds the error, or a FIN).
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

	if (faulted(d)) {
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
		return; /* tx() leaves packets on the ring before it is full */
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
	bool closed = c->guest_shut == BOTH;
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
	if (closed || (c->twin && c->twin->guest_shut == BOTH))
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
	conn_close_end(&c->far, !closed);
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
		c->guest_shut |= hdr->flags & BOTH;
		if (c->state == CONN_OPEN)
			list_add(&c->dev->engine->run, &c->run);
		else if (c->state == CONN_LINGER && c->guest_shut == BOTH)
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
	n = behind_header(iov, chain->n_read, hdr.len, iov, &len);
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
 * tx() - Act on what the guest sent
 * @d:		Device with a TX ring
 *
 * One turn takes at most a turn's work: other devices wait too.
 */
static void tx(struct vu_dev *d)
{
	struct vu_engine *e = d->engine;
	struct burst b = {0};

	while (!spent(d, QUEUE_TX)) {
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
		d->work[QUEUE_TX] += chain_work(&chain);
		tx_chain(d, &b, &chain);
	}
	burst_end(d, &b);
}

/* ---- turns ---- */

/**
 * finish() - Both directions are done: only the guest's port is left
 * @c:		Connection in CONN_OPEN
 */
static void finish(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	conn_post(e, c, VU_EV_CLOSED, 0);
	conn_close_end(&c->far, false);
	list_del(&c->run);
	c->state = CONN_LINGER;
	c->alone_us = now_us();
	list_del(&c->timer);
	list_add(&e->lingering, &c->timer);
	vsock_owe(c, OWE_SHUTDOWN);
}

/**
 * stream_run_up() - Move a stream's held bytes up
 * @c:		Connection
 */
static void stream_run_up(struct vu_conn *c)
{
	int64_t n;

	if (c->up.len && c->far.fd >= 0 && c->far.writable) {
		n = way_drain(c->dev->engine, c, &c->up, &c->far);
		if (n < 0)
			vsock_up_broken(c);
		else
			vsock_consumed(c, (size_t)n);
	} else if (c->up.len && c->target == VU_TARGET_ECHO &&
		   !(c->owe & OWE_RESPONSE)) {
		n = (int64_t)vsock_send_block(c, c->up.data + c->up.off,
					      c->up.len, 0);
		c->up.off += (uint32_t)n;
		c->up.len -= (uint32_t)n;
		if (!c->up.len)
			way_drop(&c->up);
		vsock_consumed(c, (size_t)n);
	}
}

/**
 * run_up() - Move what a connection holds up, and its end
 * @c:		Connection
 *
 * Returns: false if the connection has ended
 */
static bool run_up(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	if (c->type == VIRTIO_VSOCK_TYPE_STREAM)
		stream_run_up(c);
	else if (!seq_run_up(c))
		return false;
	limit_queued(c);
	if (c->up.len &&
	    !(c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV && c->far.fd < 0))
		return true;
	if (c->guest_shut == BOTH) { /* also an orphan */
		conn_abort(e, c, 0);
		return false;
	}
	if ((c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND) && !c->up.shut) {
		c->up.shut = true;
		if (c->far.fd >= 0)
			shutdown(c->far.fd, SHUT_WR);
		else if (c->target != VU_TARGET_CHARGEN)
			vsock_down_ended(c);
	}
	return true;
}

/**
 * vsock_run() - Move an open connection's bytes for one turn
 * @c:		Connection
 */
void vsock_run(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	if (c->twin) {
		sibling_run(c);
		return;
	}
	if (!run_up(c))
		return;
	if (!(c->owe & OWE_RESPONSE) && !c->down.eof && !c->orphan &&
	    !(c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV)) {
		if (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET) {
			seq_run_down(c);
			if (c->state != CONN_OPEN)
				return;
		} else if (c->far.fd >= 0) {
			rx_socket(c);
			if (c->state != CONN_OPEN)
				return;
		} else if (c->target == VU_TARGET_CHARGEN) {
			size_t n = vsock_send_block(c, e->chargen, SCRATCH, 0);

			if (n == SCRATCH)
				list_add(&e->run, &c->run);
		}
	}
	if (c->down.eof && (c->up.shut || c->up.broken) && !c->up.len)
		finish(c);
}

/**
 * vsock_pending() - Is there something that a turn would do?
 * @d:		Device
 *
 * Returns: true if there is; a few loads, made for spinning
 */
bool vsock_pending(const struct vu_dev *d)
{
	bool wait_rx =
	    d->rst_count || !list_empty(&d->owing) || !list_empty(&d->starved);

	if ((wait_rx && rx_room(d)) || faulted(d) ||
	    (owes_reset(d) && event_pending(d)))
		return true;
	return d->rings[QUEUE_TX] && d->rst_count < RST_QUEUE &&
	       vu_ring_pending(d->rings[QUEUE_TX]);
}

/**
 * vsock_turn() - Act on a device's rings once
 * @d:		Device
 */
void vsock_turn(struct vu_dev *d)
{
	d->work[QUEUE_RX] = d->work[QUEUE_TX] = 0;
	if (faulted(d))
		dev_fault(d);
	if (owes_reset(d))
		event_turn(d);
	if (d->rings[QUEUE_TX] && vu_ring_pending(d->rings[QUEUE_TX])) {
		vu_ring_want_kicks(d->rings[QUEUE_TX], false);
		tx(d);
	}
	if (faulted(d)) { /* before a connection passes on what it read */
		dev_fault(d);
		return;
	}
	pay_all(d);
	if (!list_empty(&d->starved) && rx_room(d))
		list_splice(&d->engine->run, &d->starved);
}

/**
 * held_long() - Is it time to show the guest what nobody waits for?
 * @d:		Device
 * @queue:	Its ring, running
 *
 * No driver waits for its TX buffers until the ring runs full, nor for the RST
 * that answers its own close; but the interrupt that brings them costs the
 * guest as much as one that brings data. So they are shown with what is
 * urgent, when they are a quarter of the ring, or after HOLD_US.
 *
 * Returns: true if it is
 */
static bool held_long(struct vu_dev *d, uint32_t queue)
{
	unsigned held = vu_ring_unflushed(d->rings[queue]);
	uint64_t now;

	if (!held)
		return false;
	if (held >= vu_ring_num(d->rings[queue]) / 4)
		return true;
	now = now_us();
	if (!d->held_us[queue])
		d->held_us[queue] = now;
	return now - d->held_us[queue] >= HOLD_US;
}

/**
 * vsock_flush() - Show the guest what a turn did
 * @d:		Device
 */
void vsock_flush(struct vu_dev *d)
{
	pay_all(d);
	if (faulted(d)) {
		dev_fault(d);
		return;
	}
	for (uint32_t q = QUEUE_RX; q <= QUEUE_TX; q++) {
		bool urgent = q == QUEUE_RX && d->rx_urgent;

		if (!d->rings[q] || (!urgent && !held_long(d, q)))
			continue;
		d->held_us[q] = 0;
		if (vu_ring_flush(d->rings[q]))
			d->stats.calls++;
	}
	d->rx_urgent = false;
}

/**
 * vsock_show() - Show the guest the RX buffers that are held back
 * @d:		Device
 *
 * Without polling nothing is held for the sake of fewer interrupts: a program
 * that lingers in close() (SO_LINGER) does wait for the RST.
 */
void vsock_show(struct vu_dev *d)
{
	d->held_us[QUEUE_RX] = 0;
	if (d->rings[QUEUE_RX] && vu_ring_flush(d->rings[QUEUE_RX]))
		d->stats.calls++;
}

/**
 * vsock_holds() - Is there something that the guest doesn't see yet?
 * @d:		Device
 *
 * Returns: true if there is: another turn is due within HOLD_US
 */
bool vsock_holds(const struct vu_dev *d)
{
	return (d->rings[QUEUE_RX] && vu_ring_unflushed(d->rings[QUEUE_RX])) ||
	       (d->rings[QUEUE_TX] && vu_ring_unflushed(d->rings[QUEUE_TX]));
}

/**
 * vsock_want_kicks() - Ask the guest to wake us, as far as it could help
 * @d:		Device
 *
 * Returns: true if there is work already: don't block
 */
bool vsock_want_kicks(struct vu_dev *d)
{
	bool wait_rx = d->rst_count || !list_empty(&d->owing) ||
		       !list_empty(&d->starved) || d->n_lost;
	bool ready = event_want_kicks(d);

	if (d->rings[QUEUE_RX] && wait_rx)
		ready |= vu_ring_want_kicks(d->rings[QUEUE_RX], true);
	else if (d->rings[QUEUE_RX])
		vu_ring_want_kicks(d->rings[QUEUE_RX], false);
	if (d->rings[QUEUE_TX] && d->rst_count < RST_QUEUE)
		ready |= vu_ring_want_kicks(d->rings[QUEUE_TX], true);
	return ready;
}
