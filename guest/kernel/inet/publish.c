// SPDX-License-Identifier: GPL-2.0-only
/*
 * publish.c - what the host is told of listeners
 */

#include <net/inet_sock.h>
#include <net/ipv6.h>

#include "inet.h"

/**
 * publish() - Tell the host of a listener, or of its other backlog
 * @listener:	It
 *
 * Returns: 0, or a negated errno
 */
int publish(struct inner *listener)
{
	const struct sock *sk = listener->outer;
	struct tsi_listen msg = {
	    .listener = listener->port,
	    .backlog = READ_ONCE(sk->sk_max_ack_backlog),
	    .port = (u16)listener->port,
	    .family = sk->sk_family == AF_INET6 ? TSI_IPV6 : TSI_IPV4,
	    .flags = ipv6_only_sock(sk) ? TSI_V6ONLY : 0,
	};
	struct endpoint bound;

	address_bound(sk, &bound);
	if (sk->sk_family == AF_INET6)
		memcpy(msg.address, &bound.address, sizeof(msg.address));
	else
		memcpy(msg.address, &bound.address.s6_addr32[3], 4);
	return stream_send(TSI_LISTEN, &msg, sizeof(msg));
}

/**
 * publish_all() - Tell a new host of all listeners
 */
void publish_all(void)
{
	struct inner *listener = NULL, *next;

	while ((next = listeners_after(listener))) {
		inner_put(listener);
		listener = next;
		publish(listener);
	}
	inner_put(listener);
}

/**
 * publish_end() - A listener is none any more
 * @listener:	It
 *
 * A host that can't be told would keep it: its stream ends, and with it all
 * that it knows.
 */
void publish_end(struct inner *listener)
{
	const struct tsi_unlisten msg = {.listener = listener->port};

	if (stream_send(TSI_UNLISTEN, &msg, sizeof(msg)))
		stream_end("it has no room for the end of a listener");
}
