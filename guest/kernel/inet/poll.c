// SPDX-License-Identifier: GPL-2.0-only
/*
 * poll.c - poll()
 */

#include <linux/poll.h>
#include <net/af_vsock.h>

#include "inet.h"

/**
 * listener_events() - What there is of a listener
 * @inner:	It
 *
 * Returns: events, besides those of TCP's
 */
static __poll_t listener_events(const struct inner *inner)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);

	return list_empty_careful(&vsk->accept_queue) ? 0
						      : EPOLLIN | EPOLLRDNORM;
}

/**
 * connection_events() - As tcp_poll() has it
 * @sk:		Outer socket
 * @inner:	Inner one
 *
 * Returns: events
 */
static __poll_t connection_events(const struct sock *sk, struct inner *inner)
{
	enum phase phase = smp_load_acquire(&inner->phase);
	int over = held_over(inner);
	__poll_t events = 0;
	size_t target = max(READ_ONCE(sk->sk_rcvlowat), 1);

	if (over == SHUTDOWN_MASK || phase == CLOSED)
		events |= EPOLLHUP;
	if (over & RCV_SHUTDOWN)
		events |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	if (phase != CONNECTING) {
		if (held_bytes(inner, target) >= target)
			events |= EPOLLIN | EPOLLRDNORM;
		if (phase == CLOSED || (over & SEND_SHUTDOWN) ||
		    inner_has_room(inner))
			events |= EPOLLOUT | EPOLLWRNORM;
	}
	if (READ_ONCE(sk->sk_err) ||
	    !skb_queue_empty_lockless(&sk->sk_error_queue))
		events |= EPOLLERR;
	return events;
}

/**
 * tsi_poll() - poll()
 * @file:	The socket's file
 * @sock:	Socket
 * @wait:	Where to register, or NULL
 *
 * Returns: events
 */
__poll_t tsi_poll(struct file *file, struct socket *sock,
		  struct poll_table_struct *wait)
{
	struct sock *sk = sock->sk;
	struct inner *inner = inner_get(sk);
	__poll_t events;

	if (!inner || inner->phase == LISTENING) {
		events = real_ops(sk)->poll(file, sock, wait);
		if (inner)
			events |= listener_events(inner);
	} else {
		sock_poll_wait(file, sock, wait);
		events = connection_events(sk, inner);
	}
	inner_put(inner);
	return events;
}
