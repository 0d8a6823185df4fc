// SPDX-License-Identifier: Apache-2.0
/*
 * credit.c - how much each side of a guest's connection may send
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 5.10.6.3 "Buffer Space Management". Numbers in, numbers
 * out: nothing here knows of packets, rings or sockets, and no other file
 * computes with these counters. They wrap; differences don't, because no window
 * is larger than CREDIT_WINDOW_MAX.
 *
 * From the guest. It may send up to the edge that it was told: where the bytes
 * that left us end, and our window behind them. Towards a sibling credit is end
 * to end: bytes have left when the other guest's program took them, and the
 * edge is its buffer's end; but at most our window beyond what that guest was
 * sent, because a guest that offers no RX buffers has room which it doesn't let
 * us use. The edge never goes back, whatever the other guest says: bytes that
 * come meanwhile were allowed when they were sent, and wait here.
 *
 * To the guest. Its counters are its word, and noted in one place. A fwd_cnt
 * beyond what it was sent is a lie. One that is older than the last says
 * nothing: a guest with several CPUs may send it behind a newer one. A window
 * that shrinks below what is in flight leaves nothing to send.
 *
 * Packets. Linux counts each packet that its program hasn't read as about 576
 * bytes more (SKB_TRUESIZE(0), from 6.12.92 on) and resets the connection when
 * the sum passes its buffer. So packets in flight are bounded, too: one for
 * each CREDIT_PACKET bytes of the buffer. Where each ends isn't kept, but where
 * runs of a quarter of them do: one is in flight until its run is read.
 */

#include <stddef.h>

#include "base/credit.h"

#define ASK_LEAST 16 /* packets: for fewer it isn't worth one more */

/**
 * after() - Is a counter beyond another?
 * @a:		Counter
 * @b:		The other
 *
 * Returns: true if it is, modulo 2^32
 */
static bool after(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) > 0;
}

/* ---- from the guest ---- */

/**
 * end_of() - How far may the guest send, by what is known now?
 * @c:		Its credit
 * @far:	See credit.h
 *
 * Returns: the end of its window, in rx_cnt; not before the edge
 */
static uint32_t end_of(const struct credit *c, const struct credit *far)
{
	uint32_t end = c->fwd_cnt + c->buf_alloc, room;

	if (far) {
		room = far->tx_cnt - far->peer_fwd_cnt + c->buf_alloc;
		if (far->peer_buf_alloc < room)
			room = far->peer_buf_alloc;
		end = far->peer_fwd_cnt + room;
	}
	return after(end, c->edge) ? end : c->edge;
}

/**
 * credit_take() - Account for bytes from the guest
 * @c:		Its credit
 * @far:	See credit.h
 * @len:	Bytes
 *
 * Returns: false if it has no credit for them; nothing is changed then
 */
bool credit_take(struct credit *c, const struct credit *far, uint32_t len)
{
	/* what left us counts before the guest hears of it */
	uint32_t end = far ? c->edge : end_of(c, NULL);

	if (after(c->rx_cnt, end) || len > end - c->rx_cnt)
		return false;
	c->rx_cnt += len;
	return true;
}

/**
 * credit_tell() - Note that the guest is being told of its credit
 * @c:		Its credit; fwd_cnt is what to tell
 * @far:	See credit.h
 *
 * Returns: the buf_alloc to tell
 */
uint32_t credit_tell(struct credit *c, const struct credit *far)
{
	c->edge = end_of(c, far);
	if (far)
		c->fwd_cnt = far->peer_fwd_cnt;
	c->fwd_sent = c->fwd_cnt;
	return c->edge - c->fwd_cnt;
}

/**
 * credit_due() - Is it time that the guest hears of room?
 * @c:		Its credit
 * @far:	See credit.h
 *
 * When half of its window is free again that it doesn't know of; or of its own
 * buffer: Linux (since CVE-2026-23086) has no more in flight than that, however
 * large the window is.
 *
 * Returns: true if it is
 */
bool credit_due(const struct credit *c, const struct credit *far)
{
	uint32_t untold = end_of(c, far) - c->edge, least = c->buf_alloc;

	if (!far && c->peer_buf_alloc < least)
		least = c->peer_buf_alloc;
	return untold && untold >= least / 2;
}

/**
 * credit_due_message() - The same, where messages are whole or not at all
 * @c:		Its credit, towards the host
 *
 * A guest may have no more credit than its message's rest needs: so it hears of
 * room as soon as less than half a window is left to it.
 *
 * Returns: true if it is
 */
bool credit_due_message(const struct credit *c)
{
	return c->fwd_cnt != c->fwd_sent &&
	       c->rx_cnt - c->fwd_sent > c->buf_alloc / 2;
}

/**
 * credit_half_used() - Has the guest used half of its window?
 * @c:		Its credit
 * @far:	See credit.h
 *
 * Returns: true if it has since it heard of it
 */
bool credit_half_used(const struct credit *c, const struct credit *far)
{
	return end_of(c, far) - c->edge >= c->buf_alloc / 2;
}

/* ---- to the guest ---- */

/**
 * retire() - Forget the packets that the guest's program has read
 * @c:		Credit
 */
static void retire(struct credit *c)
{
	uint32_t gone = 0;

	while (gone < c->n_runs && !after(c->runs[gone].end, c->peer_fwd_cnt))
		gone++;
	c->n_runs -= gone;
	for (uint32_t i = 0; gone && i < c->n_runs; i++)
		c->runs[i] = c->runs[i + gone];
}

/**
 * credit_note() - Note what a packet says of the guest's receive buffer
 * @c:		Credit; unchanged by a lie
 * @fwd_cnt:	From its header
 * @buf_alloc:	Same
 *
 * Returns: what it means
 */
enum credit_note credit_note(struct credit *c, uint32_t fwd_cnt,
			     uint32_t buf_alloc)
{
	uint32_t more = fwd_cnt - c->peer_fwd_cnt;

	if (buf_alloc > CREDIT_WINDOW_MAX)
		buf_alloc = CREDIT_WINDOW_MAX;
	if (more > c->tx_cnt - c->peer_fwd_cnt) /* not what is in flight */
		return -more <= CREDIT_WINDOW_MAX ? CREDIT_SAME : CREDIT_LIE;
	if (!more && buf_alloc == c->peer_buf_alloc)
		return CREDIT_SAME;
	c->peer_fwd_cnt = fwd_cnt;
	c->peer_buf_alloc = buf_alloc;
	retire(c);
	return CREDIT_NEWS;
}

/**
 * credit_bytes() - How much may the guest be sent?
 * @c:		Credit
 *
 * Returns: bytes
 */
uint32_t credit_bytes(const struct credit *c)
{
	uint32_t in_flight = c->tx_cnt - c->peer_fwd_cnt;

	return in_flight < c->peer_buf_alloc ? c->peer_buf_alloc - in_flight
					     : 0;
}

/**
 * most_packets() - How many packets may be in flight?
 * @c:		Credit
 *
 * Returns: packets, at least one
 */
static uint32_t most_packets(const struct credit *c)
{
	uint32_t most = c->peer_buf_alloc / CREDIT_PACKET;

	return most ? most : 1;
}

/**
 * in_flight() - How many packets hasn't the guest's program read?
 * @c:		Credit
 *
 * Returns: packets, at most a run too many
 */
static uint32_t in_flight(const struct credit *c)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < c->n_runs; i++)
		sum += c->runs[i].count;
	return sum;
}

/**
 * credit_packets() - How many packets may the guest be sent?
 * @c:		Credit
 *
 * Returns: packets with payload
 */
uint32_t credit_packets(const struct credit *c)
{
	uint32_t most = most_packets(c), now = in_flight(c);

	return now < most ? most - now : 0;
}

/**
 * credit_few_packets() - Should the guest be asked what it has taken?
 * @c:		Credit, with a packet just sent
 *
 * A guest that has most of its buffer free tells nothing unasked.
 *
 * Returns: true at half of the packets that may be in flight
 */
bool credit_few_packets(const struct credit *c)
{
	uint32_t most = most_packets(c);

	return most >= ASK_LEAST && in_flight(c) == most / 2;
}

/**
 * credit_sent() - A packet goes to the guest
 * @c:		Credit
 * @n:		Its payload, bytes; not more than credit_bytes()
 */
void credit_sent(struct credit *c, uint32_t n)
{
	struct credit_run *run = c->runs;
	uint32_t most = most_packets(c) / CREDIT_RUNS;

	c->tx_cnt += n;
	if (c->n_runs)
		run += c->n_runs - 1;
	if (c->n_runs < CREDIT_RUNS && (!c->n_runs || run->count >= most)) {
		run = &c->runs[c->n_runs++];
		run->count = 0;
	}
	run->count++;
	run->end = c->tx_cnt;
}
