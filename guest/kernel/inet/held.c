// SPDX-License-Identifier: GPL-2.0-only
/*
 * held.c - what a connection holds, and which of its directions are over
 */

#include <linux/virtio_vsock.h>
#include <net/af_vsock.h>

#include "inet.h"

/**
 * held_bytes() - Bytes that wait
 * @inner:	Inner socket
 * @enough:	Count so many, or a few more
 *
 * vsock's own count has packets that are read in part as a whole.
 *
 * Returns: how many
 */
size_t held_bytes(const struct inner *inner, size_t enough)
{
	struct virtio_vsock_sock *trans = vsock_sk(inner->sock->sk)->trans;
	const struct sk_buff *skb;
	size_t held = 0;

	if (!trans)
		return 0;
	spin_lock_bh(&trans->rx_lock);
	skb_queue_walk(&trans->rx_queue, skb)
	{
		if (held >= enough)
			break;
		held += skb->len - packet_read(skb);
	}
	spin_unlock_bh(&trans->rx_lock);
	return held;
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
		if ((theirs & RCV_SHUTDOWN) && !READ_ONCE(inner->ended))
			over |= SEND_SHUTDOWN; /* else an error comes with it */
	}
	return over;
}
