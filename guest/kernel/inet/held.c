// SPDX-License-Identifier: GPL-2.0-only
/*
 * held.c - what a connection holds, and which of its directions are over
 */

#include <net/af_vsock.h>

#include "inet.h"

/**
 * held_bytes() - Bytes that wait
 * @inner:	Inner socket
 *
 * Returns: how many
 */
size_t held_bytes(const struct inner *inner)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);
	s64 waiting = vsk->transport ? vsock_stream_has_data(vsk) : 0;

	return waiting > 0 ? waiting : 0;
}

/**
 * held_over() - Which directions are over, whatever still waits
 * @inner:	Inner socket
 *
 * Returns: RCV_SHUTDOWN, SEND_SHUTDOWN, both or neither
 */
int held_over(const struct inner *inner)
{
	const struct sock *sk = inner->sock->sk;
	u32 theirs = READ_ONCE(vsock_sk(sk)->peer_shutdown);
	int over = READ_ONCE(inner->outer->sk_shutdown);

	if (READ_ONCE(inner->phase) == ESTABLISHED) {
		if (theirs & SEND_SHUTDOWN)
			over |= RCV_SHUTDOWN;
		if (theirs & RCV_SHUTDOWN)
			over |= SEND_SHUTDOWN;
	}
	return over;
}
