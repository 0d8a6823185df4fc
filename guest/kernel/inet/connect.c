// SPDX-License-Identifier: GPL-2.0-only
/*
 * connect.c - connect()
 *
 * Theory of operation
 * ===================
 *
 * As inet_stream_connect(), with the inner socket's phase in place of TCP's
 * state. Security modules have seen the inet address by now, as it is the
 * system call that asks them; the hooks of cgroups are inet's own, so they are
 * asked here, once: they may give the call another destination, in the guest
 * or outside. What stays in the guest is TCP's from there on.
 *
 *	outer socket		inner phase	connect()
 *	SS_UNCONNECTED		-		begins
 *	SS_CONNECTING		CONNECTING	EALREADY, or waits
 *	SS_CONNECTING		ESTABLISHED	0, and is SS_CONNECTED
 *	SS_CONNECTING		CLOSED		the errno, and is as before
 *	SS_CONNECTED		any		EISCONN
 *	SS_DISCONNECTING	CLOSED		EINVAL, after shutdown()
 *
 * The inner connect() is never waited for in vsock, which gives an attempt up
 * when a signal comes.
 */

#include <linux/bpf-cgroup.h>
#include <linux/sched/signal.h>
#include <net/af_vsock.h>
#include <net/inet_sock.h>
#include <net/ip.h>
#include <net/ipv6.h>

#include "inet.h"

#define TRIES 2 /* of streams: the first one's tokens may all be used */

/**
 * start() - Begin to connect
 * @sock:	Outer socket, locked
 * @to:		Destination
 * @token:	Its token
 *
 * Returns: 0, or a negated errno, and then nothing has changed
 */
static int start(struct socket *sock, const struct endpoint *to, u32 token)
{
	struct sock *sk = sock->sk;
	struct inner *inner;
	int error = stock_take(sk, &inner);

	if (error)
		return error == -ENODEV ? -ENETUNREACH : error;
	inner->token = token;
	inner->peer = *to;
	address_own(sk, &to->address, inner->port, &inner->own);
	credit_connect(sk, inner);
	inner_adopt(inner, sock, sk);
	WRITE_ONCE(sk->sk_err, 0); /* as tcp_connect() */
	sock_reset_flag(sk, SOCK_DONE);
	error = inner_connect(inner, token);
	if (error)
		goto put;
	sock->state = SS_CONNECTING;
	inner_set(sk, inner);
	return 0;
put:
	inner_put(inner);
	return error == -ENODEV ? -ENETUNREACH : error;
}

/**
 * await() - Wait until an attempt has come to its end
 * @sk:		Outer socket, locked
 * @inner:	The attempt, held
 * @timeout:	At most so long, jiffies
 *
 * Returns: what is left of @timeout
 */
static long await(struct sock *sk, struct inner *inner, long timeout)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);

	add_wait_queue(sk_sleep(sk), &wait);
	while (smp_load_acquire(&inner->phase) == CONNECTING && timeout &&
	       !signal_pending(current)) {
		release_sock(sk);
		timeout = wait_woken(&wait, TASK_INTERRUPTIBLE, timeout);
		lock_sock(sk);
	}
	remove_wait_queue(sk_sleep(sk), &wait);
	return timeout;
}

/**
 * outcome() - What connect() returns of an attempt that has begun
 * @sock:	Outer socket, locked
 * @inner:	The attempt, held
 * @flags:	Of the call
 * @error:	What it returns if the attempt isn't waited for
 *
 * Returns: 0, or a negated errno
 */
static int outcome(struct socket *sock, struct inner *inner, int flags,
		   int error)
{
	struct sock *sk = sock->sk;
	long timeout = sock_sndtimeo(sk, flags & O_NONBLOCK);
	long limit = stream_connect_timeout(), left = 0;

	if (timeout)
		left = await(sk, inner, min(timeout, limit));
	if (smp_load_acquire(&inner->phase) == CONNECTING) {
		if (timeout >= limit && !left)
			inner_expire(inner); /* the host is silent */
		else
			inner_arm(inner, limit); /* nobody waits any more */
	}
	if (!timeout && error == -EINPROGRESS)
		return error; /* as TCP, however fast the host is */
	switch (smp_load_acquire(&inner->phase)) {
	case ESTABLISHED:
		sock->state = SS_CONNECTED;
		return 0;
	case CONNECTING:
		return left ? sock_intr_errno(timeout) : error;
	default:
		error = sock_error(sk) ?: -ECONNABORTED;
		end_inner(sock, inner);
		return error;
	}
}

/**
 * is_in_guest() - Is it an address that lo was given meanwhile?
 * @sk:		Socket
 * @address:	The pod's, perhaps
 *
 * Returns: true if so
 */
static bool is_in_guest(const struct sock *sk, const struct in6_addr *address)
{
	return net_eq(sock_net(sk), &init_net) && address_is_pods(address);
}

/**
 * begin() - connect() of a socket that has no inner one
 * @sock:	Outer socket, locked
 * @to:		Destination
 *
 * Returns: 0, or a negated errno; 1: it is the pod's own address, which the
 * guest didn't know before. The socket is locked
 */
static int begin(struct socket *sock, const struct endpoint *to)
{
	struct sock *sk = sock->sk;
	struct inner *inner;
	u32 token = stream_is_open() ? routes_find(to) : 0;
	int error, tries = 0;

	if (likely(token))
		return start(sock, to, token);
	release_sock(sk); /* a destination's first connect() may take a while */
	do {
		error = control_need();
		if (!error && is_in_guest(sk, &to->address))
			error = 1;
		else if (!error && !address_can_reach(&to->address))
			error = -ENETUNREACH;
		else if (!error)
			error = routes_token(to, &token);
	} while (error == -ESTALE && ++tries < TRIES);
	lock_sock(sk);
	if (error)
		return error == -ESTALE ? -ENETUNREACH : error;
	inner = inner_get(sk);
	inner_put(inner);
	if (inner || sock->state != SS_UNCONNECTED || sk->sk_state != TCP_CLOSE)
		return -EALREADY; /* another thread was faster */
	return start(sock, to, token);
}

/**
 * disconnect() - connect() to no address
 * @sock:	Outer socket
 * @address:	AF_UNSPEC
 * @len:	Bytes of it
 * @flags:	Of the call
 *
 * Returns: 0, or a negated errno
 */
static int disconnect(struct socket *sock, any_sockaddr *address, int len,
		      int flags)
{
	struct sock *sk = sock->sk;
	struct inner *inner;
	bool reset = false;
	int error;

	lock_sock(sk);
	inner = inner_get(sk);
	if (inner) {
		reset = inner->phase != CLOSED && inner->phase != LISTENING;
		end_inner(sock, inner);
	}
	release_sock(sk);
	inner_put(inner);
	error = real_ops(sk)->connect(sock, address, len, flags);
	if (!error && reset)
		WRITE_ONCE(sk->sk_err, ECONNRESET);
	return error;
}

/**
 * stay() - Connect within the guest, the cgroup's programs having been asked
 * @sock:	Socket, locked; released at the end
 * @address:	Address
 * @len:	Bytes of it
 * @flags:	Of the call
 *
 * TCP's own connect() would ask them again. So its first step is done here, and
 * it finds a socket that is connecting.
 *
 * Returns: 0, or a negated errno
 */
static int stay(struct socket *sock, any_sockaddr *address, int len, int flags)
{
	struct sock *sk = sock->sk;
	int error = sk->sk_prot->connect(sk, address, len);
	bool over = error < 0 || is_deferred(sk);

	if (error >= 0)
		sock->state = SS_CONNECTING;
	release_sock(sk);
	if (over)
		return error;
	if (flags & O_NONBLOCK)
		return -EINPROGRESS;
	error = real_ops(sk)->connect(sock, address, len, flags);
	return error == -EALREADY ? -EINPROGRESS : error;
}

/**
 * tsi_connect() - connect()
 * @sock:	Socket
 * @address:	Address
 * @len:	Bytes of it
 * @flags:	Of the call
 *
 * Returns: 0, or a negated errno
 */
int tsi_connect(struct socket *sock, any_sockaddr *address, int len, int flags)
{
	struct sockaddr *plain = (struct sockaddr *)address;
	struct sock *sk = sock->sk;
	struct inner *inner;
	struct endpoint to;
	bool asked = false, real = false;
	int error = 0;

	if (len < (int)sizeof(plain->sa_family))
		return -EINVAL;
	if (plain->sa_family == AF_UNSPEC)
		return disconnect(sock, address, len, flags);
	lock_sock(sk);
	inner = inner_get(sk);
	if (inner && inner->phase == LISTENING) {
		error = -EISCONN;
	} else if (inner && sock->state == SS_CONNECTED) {
		error = -EISCONN;
	} else if (inner && sock->state == SS_DISCONNECTING) {
		error = -EINVAL;
	} else if (inner) {
		error = outcome(sock, inner, flags, -EALREADY);
	} else if (sock->state != SS_UNCONNECTED || sk->sk_state != TCP_CLOSE) {
		real = true;
	} else {
		asked = BPF_CGROUP_PRE_CONNECT_ENABLED(sk);
		if (asked)
			error = sk->sk_prot->pre_connect(sk, address, len);
		real = !error && (!interface_serves(sk) ||
				  !address_leaves(sk, plain, len, &to));
		if (!error && !real)
			error = begin(sock, &to);
		real = real || error > 0;
		if (!error && !real) {
			inner = inner_get(sk);
			error = inner
				    ? outcome(sock, inner, flags, -EINPROGRESS)
				    : -ECONNABORTED;
		}
	}
	if (real && asked)
		return stay(sock, address, len, flags);
	release_sock(sk);
	inner_put(inner);
	return real ? real_ops(sk)->connect(sock, address, len, flags) : error;
}
