// SPDX-License-Identifier: GPL-2.0-only
/*
 * end.c - shutdown(), close()
 *
 * Theory of operation
 * ===================
 *
 * The end of the own direction is the host's business, and an end of reading is
 * not: with TCP no peer hears of it, and what is there can still be read. Where
 * TCP resets - unread bytes, SO_LINGER of 0 s, connect() to no address - so
 * does vsock.
 */

#include <linux/sched.h>
#include <net/af_vsock.h>

#include "inet.h"

/**
 * reset() - Have the host reset a connection, in place of ending it
 * @inner:	It
 *
 * vsock answers a peer that has ended both directions by a RST.
 */
static void reset(struct inner *inner)
{
	struct sock *sk = inner->sock->sk;

	if (inner->phase != ESTABLISHED)
		return;
	lock_sock(sk);
	vsock_sk(sk)->peer_shutdown = SHUTDOWN_MASK;
	release_sock(sk);
}

/**
 * reset_clients() - Have the host reset those that nobody has accepted
 * @listener:	Inner listener; no more come
 */
static void reset_clients(struct inner *listener)
{
	struct vsock_sock *vsk = vsock_sk(listener->sock->sk), *client;

	lock_sock(&vsk->sk);
	vsk->sk.sk_shutdown = SHUTDOWN_MASK;
	list_for_each_entry(client, &vsk->accept_queue, accept_queue)
	    WRITE_ONCE(client->peer_shutdown, SHUTDOWN_MASK);
	release_sock(&vsk->sk);
}

/**
 * end_reading() - Wake who waits in vsock for bytes
 * @under:	vsock sock; the peer hears nothing
 */
static void end_reading(struct sock *under)
{
	lock_sock(under);
	under->sk_shutdown |= RCV_SHUTDOWN;
	release_sock(under);
}

/**
 * end_inner() - Part an inet socket from its inner one
 * @sock:	Outer socket, locked
 * @inner:	The inner one, held by the caller, too
 *
 * Whoever sleeps in it wakes.
 */
void end_inner(struct socket *sock, struct inner *inner)
{
	struct sock *sk = sock->sk;
	struct inner *there = inner_get(sk);

	inner_put(there);
	if (there != inner)
		return; /* another thread was faster */
	inner_set(sk, NULL);
	if (inner->phase == LISTENING) {
		publish_end(inner);
		reset_clients(inner);
	} else {
		sock->state = SS_UNCONNECTED;
		WRITE_ONCE(sk->sk_shutdown, 0);
		if (!inet_sk(sk)->inet_num) /* TCP goes on showing it */
			inet_sk(sk)->inet_sport = inner->own.port;
	}
	reset(inner);
	lock_sock(inner->sock->sk);
	inner->sock->sk->sk_shutdown = SHUTDOWN_MASK;
	inner->sock->sk->sk_state_change(inner->sock->sk);
	release_sock(inner->sock->sk);
	inner_put(inner);
}

/**
 * is_closed() - Have both ends ended their direction? TCP is in CLOSE then
 * @sk:		Outer socket, locked
 * @inner:	Connection
 *
 * Returns: true if so
 */
static bool is_closed(const struct sock *sk, const struct inner *inner)
{
	struct sock *under = inner->sock->sk;
	u32 theirs = READ_ONCE(vsock_sk(under)->peer_shutdown);

	return (sk->sk_shutdown & SEND_SHUTDOWN) &&
	       ((theirs & SEND_SHUTDOWN) || sock_flag(under, SOCK_DONE));
}

/**
 * tsi_shutdown() - shutdown()
 * @sock:	Socket
 * @how:	SHUT_RD, SHUT_WR or SHUT_RDWR
 *
 * Returns: 0, or a negated errno
 */
int tsi_shutdown(struct socket *sock, int how)
{
	int directions = how + 1; /* SEND_SHUTDOWN, RCV_SHUTDOWN */
	struct sock *sk = sock->sk;
	struct inner *inner = inner_get(sk);
	bool real = !inner;
	int error = 0;

	if (!inner || (directions & ~SHUTDOWN_MASK) || !directions) {
		inner_put(inner);
		return real_ops(sk)->shutdown(sock, how);
	}
	lock_sock(sk);
	switch (inner->phase) {
	case LISTENING:
		if (directions & RCV_SHUTDOWN)
			end_inner(sock, inner);
		real = true;
		break;
	case CONNECTING:
		end_inner(sock, inner);
		WRITE_ONCE(sk->sk_err, ECONNRESET);
		sk->sk_state_change(sk);
		break;
	case ESTABLISHED:
		if (is_closed(sk, inner))
			error = -ENOTCONN;
		sock->state = SS_CONNECTED; /* as inet_shutdown() */
		WRITE_ONCE(sk->sk_shutdown, sk->sk_shutdown | directions);
		if (directions & SEND_SHUTDOWN)
			kernel_sock_shutdown(inner->sock, SHUT_WR);
		if (directions & RCV_SHUTDOWN)
			end_reading(inner->sock->sk);
		if (sk->sk_shutdown == SHUTDOWN_MASK)
			inner_refuse(inner);
		sk->sk_state_change(sk);
		break;
	case CLOSED:
		if (sock->state == SS_CONNECTING)
			sock->state = SS_DISCONNECTING; /* as inet_shutdown() */
		sk->sk_state_change(sk);
		error = -ENOTCONN;
		break;
	}
	release_sock(sk);
	inner_put(inner);
	return real ? real_ops(sk)->shutdown(sock, how) : error;
}

/**
 * tsi_release() - close() of the last descriptor
 * @sock:	Socket
 *
 * Returns: 0
 */
int tsi_release(struct socket *sock)
{
	struct sock *sk = sock->sk;
	struct inner *inner = sk ? inner_get(sk) : NULL;
	struct sock *under;
	bool connected;

	if (!inner)
		return sk ? real_ops(sk)->release(sock) : 0;
	lock_sock(sk);
	inner_set(sk, NULL);
	release_sock(sk);
	connected = inner->token;
	if (inner->phase == LISTENING) {
		publish_end(inner);
		reset_clients(inner);
	}
	under = inner->sock->sk;
	if (held_bytes(inner, 1) ||
	    (sock_flag(sk, SOCK_LINGER) && !sk->sk_lingertime)) {
		reset(inner);
	} else if (sock_flag(sk, SOCK_LINGER)) {
		under->sk_lingertime = sk->sk_lingertime;
		sock_set_flag(under, SOCK_LINGER);
	}
	inner_put(inner); /* the socket's */
	inner_put(inner);
	if (connected)
		stock_fill();
	return real_ops(sk)->release(sock);
}
