// SPDX-License-Identifier: GPL-2.0-only
/*
 * name.c - names, options, ioctl()
 *
 * Theory of operation
 * ===================
 *
 * Options are those of the outer socket, which keeps them as any TCP socket
 * does. What only a connection knows is said here.
 */

#include <asm/ioctls.h>
#include <linux/compat.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <linux/virtio_vsock.h>
#include <net/af_vsock.h>
#include <net/tcp_states.h>

#include "inet.h"

/**
 * state_of() - The state that TCP would be in
 * @inner:	Inner socket, no listener
 *
 * Returns: TCP_ESTABLISHED and the like
 */
static u8 state_of(const struct inner *inner)
{
	bool own = READ_ONCE(inner->outer->sk_shutdown) & SEND_SHUTDOWN;
	bool theirs =
	    READ_ONCE(vsock_sk(inner->sock->sk)->peer_shutdown) & SEND_SHUTDOWN;

	if (inner->phase == CONNECTING)
		return TCP_SYN_SENT;
	if (inner->phase == CLOSED || (own && theirs))
		return TCP_CLOSE;
	if (own)
		return TCP_FIN_WAIT2;
	return theirs ? TCP_CLOSE_WAIT : TCP_ESTABLISHED;
}

/**
 * has_peer() - Would TCP name the peer?
 * @inner:	Inner socket, no listener
 *
 * Returns: true if so
 */
static bool has_peer(const struct inner *inner)
{
	u8 state = state_of(inner);

	return state != TCP_SYN_SENT && state != TCP_CLOSE;
}

/**
 * show() - Write a name, as the cgroup's programs want it
 * @sk:		Socket
 * @name:	Name
 * @peer:	Whether it is the peer's
 * @address:	Where to
 *
 * Returns: bytes written
 */
static int show(struct sock *sk, const struct endpoint *name, bool peer,
		struct sockaddr *address)
{
	int len = address_show(sk, name, address);

	lock_sock(sk);
	if (sk->sk_family == AF_INET6 && peer)
		ask_name(sk, address, len, CGROUP_INET6_GETPEERNAME);
	else if (sk->sk_family == AF_INET6)
		ask_name(sk, address, len, CGROUP_INET6_GETSOCKNAME);
	else if (peer)
		ask_name(sk, address, len, CGROUP_INET4_GETPEERNAME);
	else
		ask_name(sk, address, len, CGROUP_INET4_GETSOCKNAME);
	release_sock(sk);
	return len;
}

/**
 * tsi_getname() - getsockname(), getpeername(), the address of accept()
 * @sock:	Socket
 * @address:	Where to
 * @peer:	0: the own name; 1: the peer's; 2: the peer's, whatever the
 * state
 *
 * Returns: bytes written, or a negated errno
 */
int tsi_getname(struct socket *sock, struct sockaddr *address, int peer)
{
	struct sock *sk = sock->sk;
	struct inner *inner = inner_get(sk);
	int len;

	if (!inner || inner->phase == LISTENING)
		len = real_ops(sk)->getname(sock, address, peer);
	else if (peer == 1 && !has_peer(inner))
		len = -ENOTCONN;
	else
		len =
		    show(sk, peer ? &inner->peer : &inner->own, peer, address);
	inner_put(inner);
	return len;
}

/**
 * tsi_getsockopt() - getsockopt(), but of SOL_SOCKET
 * @sock:	Socket
 * @level:	Level
 * @name:	Option
 * @value:	Where to
 * @len:	Room there, then bytes written
 *
 * Returns: 0, or a negated errno
 */
int tsi_getsockopt(struct socket *sock, int level, int name, char __user *value,
		   int __user *len)
{
	struct sock *sk = sock->sk;
	struct inner *inner = NULL;
	int error = real_ops(sk)->getsockopt(sock, level, name, value, len);
	int written;

	if (error || level != SOL_TCP || name != TCP_INFO)
		return error;
	inner = inner_get(sk);
	if (inner && inner->phase != LISTENING) {
		error = get_user(written, len);
		if (!error && written > 0)
			error = put_user(state_of(inner), (u8 __user *)value);
	}
	inner_put(inner);
	return error;
}

/**
 * tsi_setsockopt() - setsockopt(), but of SOL_SOCKET
 * @sock:	Socket
 * @level:	Level
 * @name:	Option
 * @value:	Value
 * @len:	Bytes of it
 *
 * TCP refuses this one to a socket that has a port.
 *
 * Returns: 0, or a negated errno
 */
int tsi_setsockopt(struct socket *sock, int level, int name, sockptr_t value,
		   unsigned int len)
{
	struct sock *sk = sock->sk;
	struct inner *inner = NULL;

	if (level == SOL_IPV6 && name == IPV6_V6ONLY)
		inner = inner_get(sk);
	inner_put(inner);
	if (inner && sk->sk_family == AF_INET6)
		return -EINVAL;
	return real_ops(sk)->setsockopt(sock, level, name, value, len);
}

/**
 * unsent() - Bytes that the peer has not taken yet
 * @inner:	Connection
 *
 * The host tells now and then what it has taken, and always before it lets a
 * full window open. A count that may be stale is none: programs wait for 0.
 *
 * Returns: how many, if the window is full; else 0
 */
static int unsent(const struct inner *inner)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);
	const struct virtio_vsock_sock *trans = vsk->trans;

	if (inner->phase != ESTABLISHED || vsock_stream_has_space(vsk) > 0)
		return 0;
	return READ_ONCE(trans->tx_cnt) - READ_ONCE(trans->peer_fwd_cnt);
}

/**
 * count() - ioctl() about bytes
 * @sock:	Socket
 * @request:	Request
 * @ret_count:	Set to how many
 *
 * Returns: false if it is another one, or TCP's
 */
static bool count(struct socket *sock, unsigned int request, int *ret_count)
{
	struct inner *inner;
	bool ours;

	if (request != SIOCINQ && request != SIOCOUTQ && request != SIOCOUTQNSD)
		return false;
	inner = inner_get(sock->sk);
	ours = inner && inner->phase != LISTENING;
	if (ours && request == SIOCINQ)
		*ret_count = min_t(size_t, held_bytes(inner, INT_MAX), INT_MAX);
	else if (ours && inner->phase == CLOSED &&
		 inner->sock->state == SS_CONNECTING)
		*ret_count = request == SIOCOUTQ; /* the SYN */
	else if (ours)
		*ret_count = unsent(inner);
	inner_put(inner);
	return ours;
}

/**
 * tsi_ioctl() - ioctl()
 * @sock:	Socket
 * @request:	Request
 * @arg:	Argument
 *
 * Returns: 0, or a negated errno
 */
int tsi_ioctl(struct socket *sock, unsigned int request, unsigned long arg)
{
	int bytes;

	if (count(sock, request, &bytes))
		return put_user(bytes, (int __user *)arg);
	return real_ops(sock->sk)->ioctl(sock, request, arg);
}

#ifdef CONFIG_COMPAT
/**
 * tsi_compat_ioctl() - ioctl() of a 32-bit program
 * @sock:	Socket
 * @request:	Request
 * @arg:	Argument
 *
 * Returns: 0, or a negated errno
 */
int tsi_compat_ioctl(struct socket *sock, unsigned int request,
		     unsigned long arg)
{
	int bytes;

	if (count(sock, request, &bytes))
		return put_user(bytes, (int __user *)compat_ptr(arg));
	return real_ops(sock->sk)->compat_ioctl(sock, request, arg);
}
#endif
