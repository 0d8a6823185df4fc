// SPDX-License-Identifier: Apache-2.0
/*
 * callers.c - who the clients of published listeners are
 *
 * Theory of operation
 * ===================
 *
 * The upper half of the vsock port that a client's connection comes from says
 * who the client is: an index into a table that the host fills by CALLER. The
 * table holds sockaddrs as the program is to see them, all but the port.
 *
 * The kernel's accept() would show the vsock address, so one that asks for it
 * is trapped (accept.c). An address is known from the moment that it is
 * written, and the host, which waits for our answer to CALLER, lets no
 * connection come before. The next agent has the table, too (state.c).
 */

#define _GNU_SOURCE
#include <string.h>

#include "agent/tsi.h"

static struct caller *table;

/* ---- the table ---- */

/**
 * entry_of() - The table's entry for a port
 * @port:	vsock port of the end that connected
 *
 * Returns: entry, NULL if the port names nobody
 */
static struct caller *entry_of(uint32_t port)
{
	uint32_t index = (port >> 16) - FIRST_CALLER;

	return index < CALLERS ? &table[index] : NULL;
}

/**
 * callers_set() - Say whose a range of ports is
 * @port:	One of its vsock ports
 * @v6:		For AF_INET6 sockets
 * @address:	Client's
 *
 * Returns: false if there is no such range
 */
bool callers_set(uint32_t port, bool v6, const struct in6_addr *address)
{
	struct sockaddr_in *v4;
	struct caller entry = {.size = sizeof(entry.addr)};
	struct caller *place = entry_of(port);

	if (!place)
		return false;
	entry.addr.sin6_family = AF_INET6;
	entry.addr.sin6_addr = *address;
	if (!v6) {
		entry = (struct caller){.size = sizeof(*v4)};
		v4 = (struct sockaddr_in *)(void *)&entry.addr;
		v4->sin_family = AF_INET;
		v4->sin_addr.s_addr = address->s6_addr32[3];
	}
	*place = entry;
	return true;
}

/**
 * callers_name() - The client that a vsock address stands for
 * @end:	Of the end that connected
 * @ret_name:	Its address and port; 0.0.0.0 if it isn't known
 *
 * The host's word counts for connections of the host's. What is in the guest is
 * shown as that, whatever port it has bound.
 */
void callers_name(const struct sockaddr_vm *end, struct destination *ret_name)
{
	uint32_t port = end->svm_port, upper = port >> 16;
	bool inside = end->svm_cid == VMADDR_CID_LOCAL;
	const struct caller *entry =
	    entry_of(inside && upper - LOCAL_V4 > LOCAL_MAPPED - LOCAL_V4
			 ? VSOCK_PORT(LOCAL_V4, (uint16_t)port)
			 : port);
	struct sockaddr_storage sa = {.ss_family = AF_INET};

	if (entry && entry->size)
		memcpy(&sa, &entry->addr, entry->size);
	address_decode(&sa, sizeof(entry->addr), ret_name);
	ret_name->port = (uint16_t)port;
}

/**
 * set_known() - Fill in the ranges that the host doesn't name
 */
static void set_known(void)
{
	struct in6_addr nobody = {.s6_addr16[5] = 0xffff}, v4 = nobody;

	v4.s6_addr32[3] = htonl(INADDR_LOOPBACK);
	callers_set(VSOCK_PORT(LOCAL_V4, 0), false, &v4);
	callers_set(VSOCK_PORT(LOCAL_MAPPED, 0), true, &v4);
	callers_set(VSOCK_PORT(LOCAL_V6, 0), true, &in6addr_loopback);
	callers_set(TSI_UNNAMED_PORT, false, &nobody);
	callers_set(TSI_UNNAMED_V6_PORT, true, &nobody);
}

/**
 * callers_init() - Have the table
 */
void callers_init(void)
{
	table = state_callers();
	set_known();
}
