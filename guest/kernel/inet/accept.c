// SPDX-License-Identifier: GPL-2.0-only
/*
 * accept.c - accept()
 *
 * Theory of operation
 * ===================
 *
 * A client comes from the guest by TCP, or from the host by vsock. One of the
 * host's gets a new inet socket, which has the listener's options as TCP's
 * would. Only the host can be a client's: a program that connects to the vsock
 * port itself is sent away, or it could choose the address that is shown.
 */

#include <linux/sched/signal.h>
#include <linux/tcp.h>
#include <net/af_vsock.h>
#include <net/inet_connection_sock.h>
#include <net/ipv6.h>

#include "inet.h"

/**
 * inherit() - Give a connection what it has of its listener
 * @from:	Listener
 * @to:		Connection, new
 */
static void inherit(const struct sock *from, struct sock *to)
{
	static const enum sock_flags flags[] = {SOCK_KEEPOPEN, SOCK_LINGER,
						SOCK_URGINLINE, SOCK_ZEROCOPY};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(flags); i++)
		sock_valbool_flag(to, flags[i], sock_flag(from, flags[i]));
	to->sk_lingertime = from->sk_lingertime;
	to->sk_rcvtimeo = from->sk_rcvtimeo;
	to->sk_sndtimeo = from->sk_sndtimeo;
	to->sk_rcvlowat = from->sk_rcvlowat;
	to->sk_priority = from->sk_priority;
	to->sk_mark = from->sk_mark;
	to->sk_reuse = from->sk_reuse;
	to->sk_reuseport = from->sk_reuseport;
	to->sk_bound_dev_if = from->sk_bound_dev_if;
	to->sk_userlocks = from->sk_userlocks & SOCK_BUF_LOCK_MASK;
	to->sk_sndbuf = from->sk_sndbuf;
	to->sk_rcvbuf = from->sk_rcvbuf;
	to->sk_ipv6only = from->sk_ipv6only;
	tcp_sk(to)->nonagle = tcp_sk(from)->nonagle;
	tcp_sk(to)->keepalive_time = tcp_sk(from)->keepalive_time;
	tcp_sk(to)->keepalive_intvl = tcp_sk(from)->keepalive_intvl;
	tcp_sk(to)->keepalive_probes = tcp_sk(from)->keepalive_probes;
	inet_csk(to)->icsk_user_timeout = inet_csk(from)->icsk_user_timeout;
	inet_sk(to)->tos = inet_sk(from)->tos;
	inet_sk(to)->uc_ttl = inet_sk(from)->uc_ttl;
	if (from->sk_family == AF_INET6) {
		inet6_sk(to)->tclass = inet6_sk(from)->tclass;
		inet6_sk(to)->hop_limit = inet6_sk(from)->hop_limit;
	}
}

/**
 * next_client() - Take the next client off vsock's queue
 * @sk:		vsock's listener
 *
 * As vsock_accept() does it, which wants a socket with an inode.
 *
 * Returns: it, whose reference is the caller's; NULL if there is none
 */
static struct sock *next_client(struct sock *sk)
{
	struct vsock_sock *client;

	lock_sock(sk);
	client = list_first_entry_or_null(&vsock_sk(sk)->accept_queue,
					  struct vsock_sock, accept_queue);
	if (client) {
		list_del_init(&client->accept_queue);
		sk_acceptq_removed(sk);
		sock_put(sk); /* what the queue had; as is the client's */
		sock_put(&client->sk);
	}
	release_sock(sk);
	return client ? &client->sk : NULL;
}

/**
 * name_client() - Learn from the host's port who a client is
 * @listener:	Where it came
 * @inner:	The client
 *
 * Returns: false if it isn't the host's
 */
static bool name_client(const struct inner *listener, struct inner *inner)
{
	const struct sockaddr_vm *from =
	    &vsock_sk(inner->sock->sk)->remote_addr;

	inner->peer.port = htons((u16)from->svm_port);
	inner->port = listener->port;
	return from->svm_cid == VMADDR_CID_HOST &&
	       callers_find(from->svm_port, &inner->peer.address);
}

/**
 * dress() - Put the next client beneath an inet sock
 * @listener:	Where it came
 * @sock:	A new socket, which has the sock
 * @newsock:	The socket that gets it
 *
 * Returns: 0, or a negated errno, and then @sock still has it
 */
static int dress(struct inner *listener, struct socket *sock,
		 struct socket *newsock)
{
	struct inner *inner = inner_new();
	struct sock *sk = sock->sk;
	struct sock *client;

	if (!inner)
		return -ENOBUFS;
	client = next_client(listener->sock->sk);
	if (client)
		inner_own(inner, client);
	if (!client || !name_client(listener, inner)) {
		inner_put(inner);
		return -EAGAIN; /* ask for the next one */
	}
	inner->phase = ESTABLISHED;
	inner->sock->state = SS_CONNECTED;
	address_own(listener->outer, &inner->peer.address, listener->port,
		    &inner->own);
	inherit(listener->outer, sk);
	credit_accept(sk, inner, listener);
	sock->sk = NULL;
	sock_graft(sk, newsock);
	if (test_bit(SOCK_SUPPORT_ZC, &listener->outer->sk_socket->flags))
		set_bit(SOCK_SUPPORT_ZC, &newsock->flags);
	newsock->state = SS_CONNECTED;
	inner_adopt(inner, newsock, sk);
	inner_set(sk, inner);
	return 0;
}

/**
 * take() - Take a client that the host has brought
 * @listener:	Inner listener
 * @newsock:	Where it goes
 *
 * Returns: 0, or a negated errno; -EAGAIN: there is none
 */
static int take(struct inner *listener, struct socket *newsock)
{
	const struct sock *outer = listener->outer;
	struct vsock_sock *vsk = vsock_sk(listener->sock->sk);
	struct socket *sock;
	int error;

	while (!list_empty_careful(&vsk->accept_queue)) {
		error = __sock_create(sock_net(outer), outer->sk_family,
				      SOCK_STREAM, IPPROTO_TCP, &sock, 0);
		if (error)
			return error;
		error = dress(listener, sock, newsock);
		sock_release(sock); /* nothing but an inode, if it went well */
		if (error != -EAGAIN)
			return error;
	}
	return -EAGAIN;
}

/**
 * tsi_accept() - accept()
 * @sock:	Listener
 * @newsock:	Where the connection goes
 *
 * Returns: 0, or a negated errno
 */
int tsi_accept(struct socket *sock, struct socket *newsock, ACCEPT_ARGS)
{
	struct sock *sk = sock->sk;
	struct inner *inner = inner_get(sk);
	long timeout = sock_rcvtimeo(sk, ACCEPT_FLAGS() & O_NONBLOCK);
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	int error;

	if (!inner || inner->phase != LISTENING) {
		inner_put(inner);
		return real_ops(sk)->accept(sock, newsock, ACCEPT_PASS);
	}
	add_wait_queue_exclusive(sk_sleep(sk), &wait);
	for (;;) {
		error = real_accept(real_ops(sk), sock, newsock, true);
		if (error == -EAGAIN)
			error = take(inner, newsock);
		if (error != -EAGAIN || !timeout)
			break;
		if (signal_pending(current)) {
			error = sock_intr_errno(timeout);
			break;
		}
		timeout = wait_woken(&wait, TASK_INTERRUPTIBLE, timeout);
	}
	remove_wait_queue(sk_sleep(sk), &wait);
	if (error && signal_pending(current)) /* a client may have woken us */
		wake_up_interruptible(sk_sleep(sk));
	inner_put(inner);
	return error;
}
