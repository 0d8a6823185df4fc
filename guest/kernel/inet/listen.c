// SPDX-License-Identifier: GPL-2.0-only
/*
 * listen.c - bind(), listen()
 *
 * Theory of operation
 * ===================
 *
 * A listener is TCP's, for the guest's own programs, and beneath it is one of
 * vsock, for the host's. The program waits for both in one queue. If the host
 * doesn't publish the port, it stays TCP's alone. A host that has yet to come
 * is told when it is there.
 */

#include <linux/sched/signal.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>

#include "inet.h"

#define ANSWER (5 * HZ) /* for the host to say whether it publishes */

/**
 * bind_bound() - bind() of a connection whose port is no port of TCP's
 * @sk:		Outer socket
 * @address:	Address; its port is changed
 * @len:	Bytes of it
 *
 * An address that can't be bound is told first: so another socket is asked.
 *
 * Returns: a negated errno
 */
static int bind_bound(const struct sock *sk, any_sockaddr *address, int len)
{
	struct sockaddr_in *in = (struct sockaddr_in *)address;
	struct socket *other;
	int error = sock_create_kern(sock_net(sk), sk->sk_family, SOCK_STREAM,
				     IPPROTO_TCP, &other);

	if (error)
		return error;
	if (len >= (int)sizeof(*in) && ntohs(in->sin_port) >= PROT_SOCK)
		in->sin_port = 0; /* where IPv6's is, too */
	other->sk->sk_ipv6only = sk->sk_ipv6only;
	error = other->ops->bind(other, address, len);
	sock_release(other);
	return error && error != -EADDRINUSE ? error : -EINVAL;
}

/**
 * tsi_bind() - bind()
 * @sock:	Socket
 * @address:	Address
 * @len:	Bytes of it
 *
 * The pod's address is the program's, although in other network namespaces no
 * interface has it, nor any before the host has named it.
 *
 * Returns: 0, or a negated errno
 */
int tsi_bind(struct socket *sock, any_sockaddr *address, int len)
{
	struct sock *sk = sock->sk;
	struct inner *inner = inner_get(sk);
	bool was, pods, bound = inner && !inet_sk(sk)->inet_num;
	struct endpoint wanted;
	int error;

	inner_put(inner);
	if (bound)
		return bind_bound(sk, address, len);
	pods = address_leaves(sk, (struct sockaddr *)address, len, &wanted) &&
	       !control_need() && address_is_pods(&wanted.address);
	if (pods) {
		lock_sock(sk);
		was = free_bind(sk, true);
		release_sock(sk);
	}
	error = real_ops(sk)->bind(sock, address, len);
	if (pods) {
		lock_sock(sk);
		free_bind(sk, was);
		release_sock(sk);
	}
	return error;
}

/**
 * is_private() - Is a socket for the guest's own programs?
 * @sk:		Socket, bound
 *
 * Returns: true if nobody else could reach it
 */
static bool is_private(const struct sock *sk)
{
	struct endpoint bound;

	if (!interface_serves(sk))
		return true;
	address_bound(sk, &bound);
	if (ipv6_addr_v4mapped(&bound.address))
		return ipv4_is_loopback(bound.address.s6_addr32[3]);
	return ipv6_addr_loopback(&bound.address);
}

/**
 * await() - Wait for the host's answer
 * @listener:	Listener that it was told of
 */
static void await(struct inner *listener)
{
	wait_event_interruptible_timeout(*sk_sleep(listener->outer),
					 READ_ONCE(listener->answered), ANSWER);
}

/**
 * make() - Make the vsock listener beneath a TCP one
 * @sock:	Outer socket, listening
 * @backlog:	Its backlog
 * @ret_inner:	Set to it
 *
 * Returns: 0, or a negated errno
 */
static int make(struct socket *sock, int backlog, struct inner **ret_inner)
{
	struct inner *inner;
	int error = inner_make(&inner);

	if (error)
		return error;
	error = inner_bind(inner, inet_sk(sock->sk)->inet_num);
	if (!error) {
		inner_adopt(inner, sock, sock->sk);
		error = inner_listen(inner, backlog);
	}
	if (error)
		inner_put(inner);
	else
		*ret_inner = inner;
	return error;
}

/**
 * keep() - Hang a listener beneath its socket, if it is still wanted
 * @sk:		Outer socket
 * @inner:	Listener
 *
 * Returns: true if it is the socket's now
 */
static bool keep(struct sock *sk, struct inner *inner)
{
	struct inner *other;
	bool kept;

	lock_sock(sk);
	other = inner_get(sk);
	kept = !other && sk->sk_state == TCP_LISTEN;
	if (kept)
		inner_set(sk, inner);
	release_sock(sk);
	inner_put(other);
	return kept;
}

/**
 * tsi_listen() - listen()
 * @sock:	Socket
 * @backlog:	Backlog
 *
 * Returns: 0, or a negated errno
 */
int tsi_listen(struct socket *sock, int backlog)
{
	struct sock *sk = sock->sk;
	struct inner *inner;
	int error = real_ops(sk)->listen(sock, backlog);

	if (error)
		return error;
	inner = inner_get(sk);
	if (inner) {
		inner->sock->ops->listen(inner->sock, backlog);
		if (!users_wait())
			publish(inner);
		inner_put(inner);
		return 0;
	}
	if (is_private(sk))
		return 0;
	error = users_wait() ?: make(sock, backlog, &inner);
	if (error)
		goto fail;
	if (!control_need() && !publish(inner))
		await(inner);
	if (READ_ONCE(inner->answered))
		error = -inner->refused;
	if (error || (inner->answered && !inner->published) ||
	    !keep(sk, inner)) {
		if (!error)
			publish_end(inner); /* else the host has none */
		inner_put(inner);
	}
fail:
	if (error)
		real_ops(sk)->shutdown(sock, SHUT_RD);
	return error;
}
