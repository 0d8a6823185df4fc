// SPDX-License-Identifier: GPL-2.0-only
/*
 * peers.c - UDP endpoints outside the guest, and their numbers
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md, section 9, is the specification. A number is a slot of
 * the table here plus a multiple of its size: another multiple whenever the
 * slot is given to another endpoint, so that nothing that still uses the old
 * number reaches the new one. An endpoint's slot is one of a few that its hash
 * names, of which the one unused for longest is given away.
 *
 * The table is the thread's of datagrams.c: there is no lock.
 */

#include <linux/jhash.h>
#include <linux/slab.h>
#include <net/ipv6.h>

#include "inet.h"

#define MAX_SLOTS 4096U
#define WAYS	  4U

/**
 * struct peer - An endpoint
 * @to:		It
 * @number:	Its number; 0: the slot is free
 * @used:	When, by the clock below
 */
struct peer {
	struct endpoint to;
	u32 number;
	u32 used;
};

static struct peer *slots;
static u32 size;
static u32 given; /* numbers, since the stream's begin */
static u32 clock;

/**
 * peers_begin() - A new stream, whose host knows no peer yet
 * @count:	So many may have a number, a power of two
 *
 * Returns: 0, or a negated errno
 */
int peers_begin(u32 count)
{
	struct peer *fresh;

	if (!count || count > TSI_MAX_PEERS || (count & (count - 1)))
		return -EPROTO;
	count = min(count, MAX_SLOTS);
	fresh = kvcalloc(count, sizeof(*fresh), GFP_KERNEL);
	if (!fresh)
		return -ENOMEM;
	kvfree(slots);
	slots = fresh;
	size = count;
	given = 0;
	return 0;
}

/**
 * peers_number() - An endpoint's number
 * @to:		Endpoint
 * @ret_new:	It was given just now: the host has to be told
 *
 * Returns: the number
 */
u32 peers_number(const struct endpoint *to, bool *ret_new)
{
	u32 hash = jhash2((const u32 *)&to->address, 4, (__force u32)to->port);
	u32 first = hash & (size - 1) & ~(WAYS - 1), i;
	struct peer *found = NULL;

	for (i = first; i < first + WAYS && i < size; i++) {
		struct peer *peer = &slots[i];

		if (peer->number && peer->to.port == to->port &&
		    ipv6_addr_equal(&peer->to.address, &to->address)) {
			*ret_new = false;
			peer->used = ++clock;
			return peer->number;
		}
		if (!found || !peer->number ||
		    (found->number && (s32)(peer->used - found->used) < 0))
			found = peer;
	}
	*ret_new = true;
	given += size;
	*found = (struct peer){
	    .to = *to, .number = given + (u32)(found - slots), .used = ++clock};
	return found->number;
}

/**
 * peers_find() - Whose a number is
 * @number:	Number
 *
 * Returns: the endpoint; NULL if it is nobody's any more
 */
const struct endpoint *peers_find(u32 number)
{
	const struct peer *peer = slots ? &slots[number & (size - 1)] : NULL;

	return peer && number && peer->number == number ? &peer->to : NULL;
}
