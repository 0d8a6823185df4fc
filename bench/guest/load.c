// SPDX-License-Identifier: Apache-2.0
/*
 * load.c - what is measured: programs in the guest of driver.c
 *
 * Theory of operation
 * ===================
 *
 * A program writes until it has no credit left, or no room in the send queue,
 * which here is as long as the ring; then the driver's worker shows the device
 * all of it and kicks once. Nothing else happens between two readings of the
 * clock: results are kept in memory that the caller made.
 */

#include <errno.h>
#include <string.h>

#include "driver.h"

static uint32_t credit(const struct conn *c)
{
	return c->window - (c->tx - c->peer_fwd);
}

/**
 * guest_connect() - Open connections, one after the other
 * @g:		Guest
 * @host_port:	Host port
 * @count:	How many
 *
 * Returns: the first one's number, the others follow; or a negated errno
 */
int guest_connect(struct guest *g, uint32_t host_port, uint32_t count)
{
	uint32_t first = g->next_conn % MAX_CONNS;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t conn = request(g, host_port);

		while (g->conns[conn].state == CONNECTING) {
			if (pump(g))
				return -ETIMEDOUT;
		}
		if (g->conns[conn].state != OPEN)
			return -ECONNRESET;
	}
	return (int)first;
}

/**
 * guest_say() - Send bytes that mean something; all others are 'x'
 * @g:		Guest
 * @conn:	Number
 * @data:	Bytes
 * @len:	How many, at most 64 KiB; there is credit
 *
 * Returns: 0, or a negated errno
 */
int guest_say(struct guest *g, uint32_t conn, const void *data, uint32_t len)
{
	while (!g->tx.n_free) {
		if (pump(g))
			return -ETIMEDOUT;
	}
	memcpy(next_payload(g), data, len);
	return post(g, conn, VIRTIO_VSOCK_OP_RW, 0, len) ? -ETIMEDOUT : 0;
}

/**
 * guest_leave() - Close connections as a program does: without a wait
 * @g:		Guest
 * @first_conn:	First connection's number
 * @n_conns:	How many
 *
 * Returns: 0, or a negated errno
 */
int guest_leave(struct guest *g, uint32_t first_conn, uint32_t n_conns)
{
	for (uint32_t i = 0; i < n_conns; i++) {
		if (post(g, (first_conn + i) % MAX_CONNS,
			 VIRTIO_VSOCK_OP_SHUTDOWN,
			 VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND,
			 0))
			return -ETIMEDOUT;
	}
	kick(g);
	return 0;
}

/**
 * guest_close() - Close connections and wait for their RSTs
 * @g:		Guest
 * @first_conn:	First connection's number
 * @n_conns:	How many
 *
 * All at once: the device holds a RST that answers a close back for company.
 *
 * Returns: 0, or a negated errno
 */
int guest_close(struct guest *g, uint32_t first_conn, uint32_t n_conns)
{
	int err = guest_leave(g, first_conn, n_conns);

	for (uint32_t i = 0; i < n_conns && !err; i++) {
		while (g->conns[(first_conn + i) % MAX_CONNS].state == OPEN) {
			if (pump(g))
				return -ETIMEDOUT;
		}
	}
	return err;
}

/**
 * guest_rtt() - Ping-pong with an echo, over connections in turn
 * @g:		Guest
 * @first_conn:	First connection's number
 * @n_conns:	How many
 * @size:	Bytes each way, at most 64 KiB
 * @count:	Round trips
 * @ret_ns:	Their times, ns
 *
 * Returns: 0, or a negated errno
 */
int guest_rtt(struct guest *g, uint32_t first_conn, uint32_t n_conns,
	      uint32_t size, uint32_t count, uint64_t *ret_ns)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t conn = (first_conn + i % n_conns) % MAX_CONNS;
		struct conn *c = &g->conns[conn];
		uint64_t start = now_ns(), goal = c->rx_total + size;

		post(g, conn, VIRTIO_VSOCK_OP_RW, 0, size);
		while (c->rx_total < goal) {
			if (c->state != OPEN)
				return -ECONNRESET;
			if (pump(g))
				return -ETIMEDOUT;
		}
		ret_ns[i] = now_ns() - start;
		if (c->rx_total != goal)
			return -EPROTO;
	}
	return 0;
}

/**
 * send_some() - Write as much as there is credit and room for
 * @g:		Guest
 * @conn:	Number
 * @size:	Bytes a write
 * @left:	Bytes still to be written
 *
 * Returns: bytes written
 */
static uint64_t send_some(struct guest *g, uint32_t conn, uint32_t size,
			  uint64_t left)
{
	const struct conn *c = &g->conns[conn];
	uint64_t sent = 0;

	while (g->tx.n_free && sent < left && credit(c)) {
		uint32_t n = credit(c) < size ? credit(c) : size;

		n = left - sent < n ? (uint32_t)(left - sent) : n;
		post(g, conn, VIRTIO_VSOCK_OP_RW, 0, n);
		sent += n;
	}
	return sent;
}

/**
 * guest_send() - Stream bytes to the host until they have left the back-end
 * @g:		Guest
 * @conn:	Number
 * @size:	Bytes a write, at most 64 KiB
 * @bytes:	Bytes in all
 *
 * The end is when the back-end's credit says that it passed everything on, for
 * which it is asked after the last write.
 *
 * Returns: ns it took, or a negated errno
 */
int64_t guest_send(struct guest *g, uint32_t conn, uint32_t size,
		   uint64_t bytes)
{
	const struct conn *c = &g->conns[conn];
	uint64_t start = now_ns(), left = bytes;

	while (left || c->tx != c->peer_fwd) {
		if (c->state != OPEN)
			return -ECONNRESET;
		left -= send_some(g, conn, size, left);
		if (!left && g->tx.n_free)
			post(g, conn, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, 0);
		if (pump(g))
			return -ETIMEDOUT;
	}
	return (int64_t)(now_ns() - start);
}

/**
 * guest_send_all() - Stream bytes to the host over several connections at once
 * @g:		Guest
 * @first_conn:	The first one's number, the others follow
 * @n_conns:	How many
 * @size:	Bytes a write, at most 64 KiB
 * @bytes:	Bytes in all; each sends as fast as it may
 *
 * Returns: ns it took, as of guest_send(), or a negated errno
 */
int64_t guest_send_all(struct guest *g, uint32_t first_conn, uint32_t n_conns,
		       uint32_t size, uint64_t bytes)
{
	uint64_t start = now_ns(), left = bytes;
	bool busy = true;

	while (busy) {
		busy = left != 0;
		for (uint32_t i = 0; i < n_conns; i++) {
			uint32_t conn = (first_conn + i) % MAX_CONNS;
			const struct conn *c = &g->conns[conn];

			if (c->state != OPEN)
				return -ECONNRESET;
			left -= send_some(g, conn, size, left);
			if (c->tx == c->peer_fwd)
				continue;
			busy = true;
			if (!left && g->tx.n_free)
				post(g, conn, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0,
				     0);
		}
		if (busy && pump(g))
			return -ETIMEDOUT;
	}
	return (int64_t)(now_ns() - start);
}

/**
 * guest_send_for() - Stream bytes to the host for a time
 * @g:		Guest
 * @conn:	Number
 * @size:	Bytes a write, at most 64 KiB
 * @ns:		How long
 *
 * Returns: bytes that left the back-end, or a negated errno
 */
int64_t guest_send_for(struct guest *g, uint32_t conn, uint32_t size,
		       uint64_t ns)
{
	const struct conn *c = &g->conns[conn];
	uint64_t end = now_ns() + ns, sent = 0;

	while (now_ns() < end) {
		if (c->state != OPEN)
			return -ECONNRESET;
		sent += send_some(g, conn, size, UINT64_MAX);
		if (pump(g))
			return -ETIMEDOUT;
	}
	return (int64_t)(sent - (c->tx - c->peer_fwd));
}

/**
 * guest_receive() - Take bytes that the host streams
 * @g:		Guest
 * @conn:	Number
 * @bytes:	Bytes to take
 *
 * Returns: ns it took, or a negated errno
 */
int64_t guest_receive(struct guest *g, uint32_t conn, uint64_t bytes)
{
	const struct conn *c = &g->conns[conn];
	uint64_t start = now_ns(), goal = c->rx_total + bytes;

	while (c->rx_total < goal) {
		if (c->state != OPEN)
			return -ECONNRESET;
		if (pump(g))
			return -ETIMEDOUT;
	}
	return (int64_t)(now_ns() - start);
}

/**
 * guest_receive_for() - Take what the host streams for a time
 * @g:		Guest
 * @conn:	Number
 * @ns:		How long
 *
 * Returns: bytes, or a negated errno
 */
int64_t guest_receive_for(struct guest *g, uint32_t conn, uint64_t ns)
{
	const struct conn *c = &g->conns[conn];
	uint64_t end = now_ns() + ns, before = c->rx_total;

	while (now_ns() < end) {
		if (c->state != OPEN)
			return -ECONNRESET;
		if (pump(g))
			return -ETIMEDOUT;
	}
	return (int64_t)(c->rx_total - before);
}

/**
 * churn_step() - Close what is open, count what is gone
 * @g:		Guest
 * @live:	Connections asked for
 * @n_live:	How many; those that were closed leave
 */
static void churn_step(struct guest *g, uint32_t *live, uint32_t *n_live)
{
	for (uint32_t i = 0; i < *n_live;) {
		struct conn *c = &g->conns[live[i]];

		if (c->state == CONNECTING) {
			i++;
			continue;
		}
		if (c->state == OPEN)
			post(g, live[i], VIRTIO_VSOCK_OP_SHUTDOWN,
			     VIRTIO_VSOCK_SHUTDOWN_RCV |
				 VIRTIO_VSOCK_SHUTDOWN_SEND,
			     0);
		c->state = CLOSED; /* the RST comes whenever it comes */
		live[i] = live[--*n_live];
	}
}

/**
 * guest_churn() - Connect and close, several at a time
 * @g:		Guest
 * @host_port:	Host port
 * @in_flight:	Connections at a time
 * @count:	Connections in all
 *
 * As for a program, close() doesn't wait for the RST that answers it; the
 * last of all has to be here before the clock stops.
 *
 * Returns: ns it took, or a negated errno
 */
int64_t guest_churn(struct guest *g, uint32_t host_port, uint32_t in_flight,
		    uint32_t count)
{
	uint32_t live[256], n_live = 0, begun = 0, first = g->resets;
	uint64_t start = now_ns();

	if (in_flight > 256)
		return -EINVAL;
	while (g->resets - first < count) {
		uint32_t seen;

		while (n_live < in_flight && begun < count) {
			live[n_live++] = request(g, host_port);
			begun++;
		}
		seen = g->changes;
		while (seen == g->changes) {
			if (pump(g))
				return -ETIMEDOUT;
		}
		churn_step(g, live, &n_live);
	}
	return (int64_t)(now_ns() - start);
}
