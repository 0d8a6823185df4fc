// SPDX-License-Identifier: Apache-2.0
/*
 * local.c - connections within the guest to published listeners
 *
 * Theory of operation
 * ===================
 *
 * Connections from inside the guest to 127.0.0.1 or the pod's own address go to
 * the vsock listener by vsock's own loopback (CID 1). They come from ports in
 * the ranges from LOCAL_V4 on, so that both ends know their address.
 */

#include <errno.h>

#include "agent/tsi.h"

#define FIRST_LOCAL 32768U

/**
 * serves() - Would a listener's TCP accept this destination?
 * @listener:	Listener
 * @dst:	Loopback, unspecified, or the pod's address
 *
 * Returns: true if it would
 */
static bool serves(const struct listener *listener,
		   const struct destination *dst)
{
	const struct in6_addr *bound = &listener->is->name.address;
	bool v4 = IN6_IS_ADDR_V4MAPPED(&dst->address);

	if (listener->is->name.port != dst->port)
		return false;
	if (IN6_ARE_ADDR_EQUAL(bound, &dst->address))
		return true;
	if (v4 && IN6_IS_ADDR_V4MAPPED(bound))
		return bound->s6_addr32[3] == 0;
	return IN6_IS_ADDR_UNSPECIFIED(bound) &&
	       !(v4 && (listener->is->label & LABEL_V6ONLY));
}

/**
 * local_listener() - The listener that a connection from inside is for
 * @dst:	Destination
 * @ret_port:	Its vsock port
 *
 * Returns: false if @dst isn't the guest, or no published listener serves it
 */
bool local_listener(const struct destination *dst, uint32_t *ret_port)
{
	bool v4 = IN6_IS_ADDR_V4MAPPED(&dst->address);
	struct in6_addr own = control_pod_address(v4);
	struct listener *listener = NULL;

	if (!listeners_any())
		return false;
	if (!address_is_native(dst) && !IN6_ARE_ADDR_EQUAL(&own, &dst->address))
		return false;
	closings_reap();
	while ((listener = listeners_next(listener)))
		if (serves(listener, dst)) {
			*ret_port = listener->is->port;
			return true;
		}
	return false;
}

/**
 * local_upper() - Where a connection within the guest comes from
 * @port:	vsock port of the listener
 * @v4:		It connects to an IPv4 address
 *
 * Returns: upper half of its port
 */
uint32_t local_upper(uint32_t port, bool v4)
{
	const struct listener *listener = listeners_find(port);

	if (!v4)
		return LOCAL_V6;
	return listener && (listener->is->label & LABEL_V6) ? LOCAL_MAPPED
							    : LOCAL_V4;
}

/**
 * local_bind() - Give a socket that connects within the guest a port
 * @fd:		One of our sockets
 * @port:	vsock port of the listener that it connects to
 * @v4:		It connects to an IPv4 address
 */
void local_bind(int fd, uint32_t port, bool v4)
{
	static uint16_t last = FIRST_LOCAL;
	uint32_t upper = local_upper(port, v4);
	int error = EADDRINUSE;

	for (unsigned i = FIRST_LOCAL; i <= UINT16_MAX && error == EADDRINUSE;
	     i++) {
		last = last == UINT16_MAX ? FIRST_LOCAL : (uint16_t)(last + 1);
		error = ports_bind(fd, VSOCK_PORT(upper, last));
	}
}
