// SPDX-License-Identifier: GPL-2.0-only
/*
 * callers.c - clients and their ranges of ports
 *
 * Theory of operation
 * ===================
 *
 * The upper half of the port that the host connects from names the client's
 * address. The host says whose it is before it connects (CALLER), and gives a
 * range to another one when no connection from it is left.
 */

#include <linux/spinlock.h>
#include <linux/vmalloc.h>
#include <net/ipv6.h>

#include "inet.h"

static DEFINE_SPINLOCK(lock);
static struct in6_addr *callers; /* of TSI_PEER_RANGES; unspecified: nobody's */

/**
 * callers_begin() - Get the table's memory
 *
 * Returns: 0, or a negated errno
 */
int __init callers_begin(void)
{
	callers = vzalloc(array_size(TSI_PEER_RANGES, sizeof(*callers)));
	return callers ? 0 : -ENOMEM;
}

/**
 * callers_set() - A CALLER message
 * @caller:	Payload
 *
 * Returns: false if the host may not send that
 */
bool callers_set(const struct tsi_caller *caller)
{
	u32 range = (caller->ports - TSI_FIRST_PEER_PORT) >> 16;
	struct in6_addr address;

	if (caller->ports < TSI_FIRST_PEER_PORT || (u16)caller->ports ||
	    range == 0 || range >= TSI_PEER_RANGES - 1)
		return false;
	if (caller->family == TSI_IPV4)
		ipv6_addr_set_v4mapped(*(const __be32 *)caller->address,
				       &address);
	else
		memcpy(&address, caller->address, sizeof(address));
	spin_lock(&lock);
	callers[range] = address;
	spin_unlock(&lock);
	return true;
}

/**
 * callers_find() - Who a connection comes from
 * @port:	vsock port at the host
 * @ret_address: Set to its address; unspecified if the host can't say
 *
 * Returns: false if the host uses no such port for clients
 */
bool callers_find(u32 port, struct in6_addr *ret_address)
{
	u32 range = (port - TSI_FIRST_PEER_PORT) >> 16;

	*ret_address = in6addr_any;
	if (port < TSI_FIRST_PEER_PORT || range >= TSI_PEER_RANGES)
		return false;
	if (range == 0 || range == TSI_PEER_RANGES - 1)
		return true;
	spin_lock(&lock);
	*ret_address = callers[range];
	spin_unlock(&lock);
	return !ipv6_addr_any(ret_address);
}
