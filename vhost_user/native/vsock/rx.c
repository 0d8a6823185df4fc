// SPDX-License-Identifier: Apache-2.0
/*
 * rx.c - payload to the guest
 *
 * Theory of operation
 * ===================
 *
 * One read fills many RX buffers, in place, behind room for the headers, which
 * are written when the byte count is known. Nothing is read that the guest has
 * no credit and no buffer for: the socket's own buffer makes the sender wait.
 * How many buffers a read takes doubles while reads fill them and falls to what
 * was used, so small messages cost one buffer.
 *
 * A buffer that holds a header and nothing else brings what has no payload. In
 * front of one with room it leaves as an empty packet; where there is none with
 * room it stays, and the payload waits.
 */

#include <errno.h>

#include "base/iov.h"
#include "vsock/dev.h"

#define CHAINS_MAX 64 /* one read */

/**
 * rx_payload() - Find the payload in a packet's segments
 * @iov:	The packet
 * @n:		Its segments
 * @max:	Bytes of payload to find at most
 * @ret_iov:	Segments of the payload; may be @iov
 * @ret_len:	Bytes of it
 *
 * Returns: segments of the payload, at most @n
 */
unsigned rx_payload(const struct iovec *iov, unsigned n, size_t max,
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
 * take() - Take RX buffers
 * @d:		Device
 * @max_chains:	At most so many that have room for payload
 * @want:	Bytes of payload to make room for
 *
 * Returns: what was taken; n_chains is 0 if there is no buffer with room
 */
static struct room take(struct vu_dev *d, unsigned max_chains, size_t want)
{
	struct core *core = d->core;
	struct room b = {0};
	unsigned small = 0;

	while (b.n_chains < max_chains + small && b.n_chains < BATCH_CHAINS &&
	       b.len < want) {
		struct vu_chain *chain = &core->rx_chains[b.n_chains];
		size_t room;

		if (!owe_pop(d, b.n_iov, chain))
			break;
		b.n_chains++;
		b.n_payload += rx_payload(
		    core->rx_iov + b.n_iov, chain->n_write, want - b.len,
		    core->rx_payload + b.n_payload, &room);
		b.n_iov += chain->n_write;
		b.len += room;
		small += !room;
	}
	if (b.n_chains && !b.len) {
		vu_ring_unpop(d->rings[QUEUE_RX], b.n_chains);
		d->rx_small = true;
		if (b.n_chains == BATCH_CHAINS) /* that is no driver */
			dev_broken(d, QUEUE_RX, -VU_ERR_CHAIN);
		return (struct room){0};
	}
	return b;
}

/**
 * lend() - Take RX buffers for what a connection has for its guest
 * @c:		Connection; it runs again when it can get what it lacks
 * @max_chains:	Most chains to take
 * @most:	Bytes that there are at most
 * @ret:	Buffers, within the guest's credit
 *
 * Returns: false if it has no credit, or the ring no buffers
 */
static bool lend(struct vu_conn *c, unsigned max_chains, size_t most,
		 struct room *ret)
{
	uint32_t window = credit_bytes(&c->credit);
	uint32_t packets = credit_packets(&c->credit);

	if (c->owe & OWE_RESPONSE)
		return false; /* first things first: it wakes us */
	if (!window || !packets) {
		owe_await_credit(c);
		return false;
	}
	*ret = take(c->dev, packets < max_chains ? packets : max_chains,
		    most < window ? most : window);
	if (!ret->n_chains)
		list_add(&c->dev->starved, &c->run);
	return ret->n_chains;
}

/**
 * rx_room() - Lend RX buffers to read into
 * @c:		Connection; it runs again when it can get what it lacks
 * @most:	Bytes that there are at most
 * @ret:	Buffers
 *
 * Returns: false if there are none now
 */
bool rx_room(struct vu_conn *c, size_t most, struct room *ret)
{
	return lend(c, c->rx_chains, most, ret);
}

/**
 * adapt() - Learn how many buffers the next read needs
 * @c:		Connection
 * @room:	What this one had
 * @len:	What it used, bytes
 */
static void adapt(struct vu_conn *c, const struct room *room, size_t len)
{
	size_t used;

	if (!len)
		return;
	if (len == room->len) {
		c->rx_chains =
		    (uint8_t)(room->n_chains < CHAINS_MAX ? 2 * room->n_chains
							  : 2 * CHAINS_MAX);
		return;
	}
	used = room->n_chains * len / room->len + 2;
	if (used < c->rx_chains)
		c->rx_chains = (uint8_t)used;
}

/**
 * sent() - Count a packet with payload
 * @c:		Connection
 * @n:		Bytes
 */
static void sent(struct vu_conn *c, uint32_t n)
{
	credit_sent(&c->credit, n);
	c->down_bytes += n;
	c->dev->stats.rx_bytes += n;
	if (credit_few_packets(&c->credit))
		owe(c, OWE_ASK);
}

/**
 * rx_fill() - Give the guest the buffers that were filled
 * @c:		Connection whose bytes they hold
 * @room:	Buffers
 * @len:	Bytes of payload in them; the buffers behind go back
 * @flags:	VIRTIO_VSOCK_SEQ_ bits for the last packet
 */
void rx_fill(struct vu_conn *c, const struct room *room, size_t len,
	     uint32_t flags)
{
	struct vu_dev *d = c->dev;
	struct core *core = d->core;
	struct vu_ring *ring = d->rings[QUEUE_RX];
	const struct iovec *iov = core->rx_iov;
	size_t left = len;
	unsigned i = 0;

	if (!room->n_chains)
		return;
	list_add(&core->active, &d->active); /* whoever fills them: show it */
	adapt(c, room, len);
	dev_worked(d, WORK_RX, len);
	for (; i < room->n_chains && left; i++) {
		const struct vu_chain *chain = &core->rx_chains[i];
		uint64_t fits = chain->write_len - HDR;
		uint32_t n = (uint32_t)(left < fits ? left : fits);
		struct virtio_vsock_hdr hdr =
		    owe_header(c, VIRTIO_VSOCK_OP_RW, left == n ? flags : 0, n);

		iov_copy(iov, chain->n_write, 0, &hdr, HDR, true);
		vu_ring_push(ring, chain, iov, (uint32_t)HDR + n);
		iov += chain->n_write;
		left -= n;
		sent(c, n);
		d->stats.rx_packets++;
	}
	vu_ring_unpop(ring, room->n_chains - i);
	d->rx_urgent |= i > 0;
	/* a long turn feeds the guest while it goes on */
	if (vu_ring_unflushed(ring) >= vu_ring_num(ring) / 8)
		dev_flush(d, QUEUE_RX);
}

/**
 * send_empty() - Send the guest an empty message, or a message's end
 * @c:		Connection
 * @flags:	VIRTIO_VSOCK_SEQ_ bits
 *
 * Returns: 0; -EAGAIN: there is no RX buffer
 */
static ssize_t send_empty(struct vu_conn *c, uint32_t flags)
{
	const struct credit credit = c->credit;
	struct virtio_vsock_hdr hdr;
	uint8_t before = c->owe;

	if (c->owe & OWE_RESPONSE)
		return -EAGAIN;
	hdr = owe_header(c, VIRTIO_VSOCK_OP_RW, flags, 0);
	if (owe_control(c->dev, &hdr, true))
		return 0;
	c->owe = before;
	c->credit = credit;
	list_add(&c->dev->starved, &c->run);
	return -EAGAIN;
}

/**
 * rx_give() - Send the guest bytes that are in memory
 * @c:		Connection
 * @s:		Its near side
 * @iov:	Where they are: ours, or another guest's TX buffers
 * @n_iov:	Segments
 * @len:	How many bytes of them
 * @flags:	VIRTIO_VSOCK_SEQ_ bits for the packet with the last of them
 *
 * Returns: as side_ops.give
 */
ssize_t rx_give(struct vu_conn *c, struct side *s, const struct iovec *iov,
		unsigned n_iov, size_t len, uint32_t flags)
{
	struct core *core = c->core;
	size_t total = 0;

	(void)s;
	if (!len)
		return send_empty(c, flags);
	while (total < len) {
		struct room b;

		if (!lend(c, CHAINS_MAX, len - total, &b))
			break;
		iov_move(core->rx_payload, b.n_payload, iov, n_iov, total,
			 b.len);
		if (c->twin && dev_failed(c->twin->dev)) {
			rx_fill(c, &b, 0, 0); /* not what it sent */
			break;
		}
		total += b.len;
		rx_fill(c, &b, b.len, total == len ? flags : 0);
	}
	return total ? (ssize_t)total : -EAGAIN;
}
