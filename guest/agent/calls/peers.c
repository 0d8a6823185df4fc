// SPDX-License-Identifier: Apache-2.0
/*
 * peers.c - UDP endpoints outside the guest
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md, section 9, is the specification. Each endpoint that a
 * program sends to gets a number, which is its slot in the table here plus a
 * multiple of the table's size: another multiple whenever the slot is given to
 * another endpoint, so that nothing that still uses the old number reaches the
 * new one. A hand goes round the table and gives away the first slot that was
 * not used since it last came by.
 *
 * The host is told of a peer before the first datagram to it on each stream
 * (carrier.c).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "agent/datagram.h"

#define NONE UINT32_MAX

static struct datagrams *table;	  /* state.c has the memory */
static uint32_t heads[MAX_PEERS]; /* by hash: slot in the table, or NONE */
static uint32_t hand;
static const struct delivery *to;

/* ---- the table ---- */

/**
 * chain() - Where the chain of an endpoint begins
 * @dst:	Endpoint
 *
 * Returns: in heads[]
 */
static uint32_t *chain(const struct destination *dst)
{
	return &heads[address_hash(dst) % MAX_PEERS];
}

/**
 * unlink_slot() - Take a slot off its chain
 * @slot:	Slot in use
 */
static void unlink_slot(uint32_t slot)
{
	uint32_t *link = chain(&table->peers[slot].dst);

	while (*link != NONE && *link != slot)
		link = &table->peers[*link].next;
	if (*link == slot)
		*link = table->peers[slot].next;
}

/**
 * add() - Give an endpoint a number
 * @dst:	Endpoint
 *
 * Returns: its slot
 */
static struct peer *add(const struct destination *dst)
{
	uint32_t *head = chain(dst);
	struct peer *peer;
	uint32_t slot, number;

	for (;;) {
		slot = hand++ % table->size;
		peer = &table->peers[slot];
		if (!peer->live || !peer->used)
			break;
		peer->used = false;
	}
	number = peer->live ? peer->number + table->size : slot;
	if (peer->live)
		unlink_slot(slot);
	*peer = (struct peer){
	    .dst = *dst,
	    .number = number,
	    .next = *head,
	    .live = true,
	};
	*head = slot;
	return peer;
}

/**
 * by_number() - The peer that has a number
 * @number:	Number, of which at least the bits in @mask are known
 * @mask:	Those
 *
 * Returns: the peer, or NULL
 */
static struct peer *by_number(uint32_t number, uint32_t mask)
{
	struct peer *peer;

	if (!table->size)
		return NULL;
	peer = &table->peers[number % table->size];
	if (!peer->live || (peer->number & mask) != (number & mask))
		return NULL;
	peer->used = true;
	return peer;
}

/**
 * granted() - A stream was opened
 * @size:	Peers that the host knows at once
 */
static void granted(uint32_t size)
{
	if (size > MAX_PEERS)
		size = MAX_PEERS;
	if (size == table->size)
		return;
	memset(table->peers, 0, sizeof(table->peers));
	memset(heads, 0xff, sizeof(heads)); /* NONE */
	table->size = size;		    /* numbers mean other slots now */
}

/**
 * forgotten() - The stream is closed, and the host knows no peer any more
 */
static void forgotten(void)
{
	for (uint32_t i = 0; i < table->size; i++) {
		struct peer *peer = &table->peers[i];

		if (peer->told && !peer->judged)
			later_wake(peer->number);
		peer->told = peer->judged = false;
	}
}

/* ---- what the host says ---- */

/**
 * plausible() - An errno that the host names
 * @error:	What it says
 *
 * Returns: it, or another one if it can't be
 */
static int plausible(uint32_t error)
{
	return error > MAX_ERRNO ? ECONNREFUSED : (int)error;
}

/**
 * handle() - Handle a message
 * @header:	Header
 * @payload:	header->len bytes
 *
 * Returns: false if the host should not have sent it
 */
static bool handle(const struct tsi_header *header, const uint8_t *payload)
{
	struct tsi_verdict verdict;
	struct tsi_datagram datagram;
	struct tsi_unreachable unreachable;
	struct peer *peer;

	switch (header->type) {
	case TSI_VERDICT:
		if (header->len != sizeof(verdict))
			return false;
		memcpy(&verdict, payload, sizeof(verdict));
		peer = by_number(verdict.peer, UINT32_MAX);
		if (peer) {
			peer->judged = true;
			peer->error = plausible(verdict.error);
			later_wake(peer->number);
		}
		return true;
	case TSI_DATAGRAM:
		if (header->len < sizeof(datagram))
			return false;
		memcpy(&datagram, payload, sizeof(datagram));
		if (by_number(datagram.peer, UINT32_MAX))
			to->deliver(datagram.flow, datagram.peer,
				    payload + sizeof(datagram),
				    header->len - sizeof(datagram));
		return true;
	case TSI_UNREACHABLE:
		if (header->len != sizeof(unreachable))
			return false;
		memcpy(&unreachable, payload, sizeof(unreachable));
		if (by_number(unreachable.peer, UINT32_MAX))
			to->bounce(unreachable.flow, unreachable.peer,
				   plausible(unreachable.error));
		return true;
	default:
		return false;
	}
}

/* ---- peers ---- */

/**
 * tell() - Make sure that the host knows a peer
 * @peer:	Peer
 *
 * Returns: 0, or an errno
 */
static int tell(struct peer *peer)
{
	bool v4 = IN6_IS_ADDR_V4MAPPED(&peer->dst.address);
	struct tsi_peer msg = {
	    .peer = peer->number,
	    .family = v4 ? TSI_IPV4 : TSI_IPV6,
	    .port = peer->dst.port,
	};

	if (carrier_open())
		return ENETUNREACH;
	if (peer->told)
		return 0;
	memcpy(msg.address, peer->dst.address.s6_addr + (v4 ? 12 : 0),
	       v4 ? 4 : 16);
	if (!carrier_send(TSI_PEER, &msg, sizeof(msg), NULL, 0))
		return ENOBUFS;
	peer->told = true;
	return 0;
}

/**
 * find() - The slot of an endpoint
 * @dst:	Endpoint
 *
 * Returns: slot, NONE if it has no number
 */
static uint32_t find(const struct destination *dst)
{
	uint32_t slot = *chain(dst);

	while (slot != NONE && !address_same(&table->peers[slot].dst, dst))
		slot = table->peers[slot].next;
	return slot;
}

/**
 * peers_know() - Has an endpoint a number?
 * @dst:	Endpoint
 *
 * Returns: true if it has
 */
bool peers_know(const struct destination *dst)
{
	return table && find(dst) != NONE;
}

/**
 * peers_number() - The number of an endpoint
 * @dst:	Endpoint
 * @ret_peer:	Its number, given now if it had none
 *
 * Returns: 0, or an errno; EINPROGRESS: the host has yet to say how many there
 *	may be, later_wake() is called with STREAM_KEY when it has
 */
int peers_number(const struct destination *dst, uint32_t *ret_peer)
{
	struct peer *peer;
	uint32_t slot;

	if (!table->size)
		return carrier_open() ? ENETUNREACH : EINPROGRESS;
	slot = find(dst);
	peer = slot != NONE ? &table->peers[slot] : add(dst);
	peer->used = true;
	*ret_peer = peer->number;
	return 0;
}

/**
 * peers_destination() - Who has a number
 * @number:	Number, of which the bits in @mask are known
 * @mask:	Those
 * @ret_dst:	Who
 *
 * Returns: false if nobody has any more
 */
bool peers_destination(uint32_t number, uint32_t mask,
		       struct destination *ret_dst)
{
	const struct peer *peer = by_number(number, mask);

	if (peer)
		*ret_dst = peer->dst;
	return peer;
}

/**
 * peers_verdict() - Are datagrams to a peer carried?
 * @number:	Its number
 * @again:	The host was asked for the sake of this datagram
 *
 * The first time the host is asked; and each time that it says no, so that it
 * hears of each attempt.
 *
 * Returns: 0, or the errno that sendto() fails with; EINPROGRESS: the host
 *	hasn't said yet, later_wake() is called with the number when it has
 */
int peers_verdict(uint32_t number, bool again)
{
	struct peer *peer = by_number(number, UINT32_MAX);
	int error;

	if (!peer)
		return ENETUNREACH;
	if (peer->judged && peer->error && !again)
		peer->told = peer->judged = false;
	error = tell(peer);
	if (error)
		return error;
	return peer->judged ? peer->error : EINPROGRESS;
}

/**
 * peers_send() - Send a datagram to a peer
 * @flow:	Port of the socket that it came from
 * @number:	In: the peer's number, of which the bits in @mask are known.
 *		Out: all of it
 * @mask:	Those
 * @data:	Data
 * @len:	Bytes of it
 *
 * Returns: 0 if it is sent or lost, or why it can't arrive: errno
 */
int peers_send(uint16_t flow, uint32_t *number, uint32_t mask, const void *data,
	       size_t len)
{
	struct peer *peer = by_number(*number, mask);
	struct tsi_datagram head = {.flow = flow};
	int error;

	if (!peer)
		return ENETUNREACH;
	*number = peer->number;
	error = tell(peer);
	if (error)
		return error == ENOBUFS ? 0 : error;
	head.peer = peer->number;
	if (!carrier_send(TSI_DATAGRAM, &head, sizeof(head), data, len))
		debug("datagram of port %u: dropped", flow);
	return 0;
}

/**
 * peers_start() - Use the table, perhaps the one of the agent before this one
 * @delivery:	Where their datagrams go
 *
 * Its stream was closed with it, so that the host knows none of the peers.
 */
void peers_start(const struct delivery *delivery)
{
	static const struct carried told = {
	    .granted = granted, .message = handle, .gone = forgotten};

	to = delivery;
	carrier_tell(&told);
	table = state_datagrams();
	memset(heads, 0xff, sizeof(heads)); /* NONE */
	for (uint32_t slot = 0; slot < table->size; slot++) {
		struct peer *peer = &table->peers[slot];
		uint32_t *head = chain(&peer->dst);

		if (!peer->live)
			continue;
		peer->told = peer->judged = false;
		peer->next = *head;
		*head = slot;
	}
}
