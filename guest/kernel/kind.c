// SPDX-License-Identifier: GPL-2.0-only
/*
 * kind.c - what kind a socket is
 */

#include <linux/net.h>
#include <net/af_vsock.h>

#include "tsi.h"

/**
 * kind_of() - What kind a socket is
 * @sock:	Any socket
 *
 * Returns: LABELLED, DATAGRAM, OTHER, or 0
 */
unsigned int kind_of(const struct socket *sock)
{
	const struct sock *sk = sock->sk;
	u64 label;

	if (sk->sk_family == AF_VSOCK) {
		if (sock->type != SOCK_STREAM)
			return 0;
		label = READ_ONCE(((struct vsock_sock *)sk)->buffer_max_size);
		return (label & LABEL_MARK_MASK) == LABEL_MARK ? LABELLED : 0;
	}
	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return 0;
	return sock->type == SOCK_DGRAM ? DATAGRAM : OTHER;
}
