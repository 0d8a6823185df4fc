// SPDX-License-Identifier: GPL-2.0-only
/*
 * connect.c - connect() of a socket that is as socket() left it
 *
 * Theory of operation
 * ===================
 *
 * A blocking connect() is a non-blocking one that is waited for here, because
 * TCP's goes on when a signal interrupts it, and vsock's does not. It also lets
 * go of the timer that a non-blocking connect() of vsock leaves behind.
 */

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/net.h>
#include <linux/random.h>
#include <linux/un.h>
#include <net/af_vsock.h>
#include <net/ip.h>
#include <net/ipv6.h>

#include "tsi.h"

#define BIND_TRIES 1000

/**
 * address_of() - Read the address of a connect()
 * @call:	The call
 * @v6:		Its socket is of AF_INET6
 * @ret_dst:	Set to the address, without a token
 *
 * Returns: false if it isn't an address outside of the guest that TCP would
 *	take on this socket
 */
static bool address_of(const struct call *call, bool v6,
		       struct tsi_known *ret_dst)
{
	struct sockaddr_in6 in6 = {};
	const struct sockaddr_in *in = (void *)&in6;
	size_t len = min_t(u32, call->args[2], sizeof(in6));
	struct in6_addr *address = (void *)ret_dst->address;

	if (copy_from_user(&in6, (void __user *)call->args[1], len))
		return false;
	if (v6) {
		if (in6.sin6_family != AF_INET6 ||
		    len < offsetof(struct sockaddr_in6, sin6_scope_id) ||
		    ipv6_addr_v4mapped(&in6.sin6_addr) ||
		    ipv6_addr_loopback(&in6.sin6_addr) ||
		    ipv6_addr_any(&in6.sin6_addr))
			return false;
		*address = in6.sin6_addr;
		ret_dst->port = ntohs(in6.sin6_port);
		return true;
	}
	if (in->sin_family != AF_INET || len < sizeof(*in) ||
	    ipv4_is_loopback(in->sin_addr.s_addr) ||
	    ipv4_is_zeronet(in->sin_addr.s_addr))
		return false;
	ipv6_addr_set_v4mapped(in->sin_addr.s_addr, address);
	ret_dst->port = ntohs(in->sin_port);
	return true;
}

/**
 * token_of() - The token that an agent has for a destination
 * @instance:	The agent's
 * @dst:	Destination
 *
 * Returns: the token; 0: it has none
 */
static u32 token_of(int instance, const struct tsi_known *dst)
{
	u32 slot = tsi_hash(dst->address, dst->port) % TSI_KNOWN;
	const struct tsi_shared *shared;
	struct tsi_known known = {};
	u32 token = 0;

	rcu_read_lock();
	shared = shared_of(instance);
	if (shared)
		token = shared_read_slot(&shared->known[slot], &known);
	rcu_read_unlock();
	if (known.port != dst->port || known.address[0] != dst->address[0] ||
	    known.address[1] != dst->address[1])
		return 0; /* another destination's slot */
	return token;
}

/**
 * timer_limit() - How long the timer of a connect() may run
 * @most:	The host's wish, jiffies
 *
 * Returns: jiffies; less than @most at a rate of connects that would let timers
 *	hold more than HELD_SOCKETS sockets
 */
static long timer_limit(long most)
{
	static DEFINE_SPINLOCK(lock);
	static unsigned long second;
	static u32 made, made_before;
	unsigned long now = jiffies / HZ;
	u32 rate;

	spin_lock(&lock);
	if (now != second) {
		made_before = now == second + 1 ? made : 0;
		made = 0;
		second = now;
	}
	made++;
	rate = max(made, made_before);
	spin_unlock(&lock);
	return min(most, max_t(long, HELD_SOCKETS / rate, MIN_TIMEOUT_S) * HZ);
}

/**
 * bind_any() - Bind a socket to a port that TCP could have chosen
 * @sock:	Socket, not bound
 *
 * The program sees the lower half; vsock's own choice may be 0. The agent does
 * the same (agent/socket/ports.c).
 */
static void bind_any(struct socket *sock)
{
	static atomic_t turn = ATOMIC_INIT(0);
	struct sockaddr_vm own = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_ANY,
	};
	int first, last, error = -EADDRINUSE;

	inet_get_local_port_range(sock_net(sock->sk), &first, &last);
	if (!atomic_read(&turn))
		atomic_cmpxchg(&turn, 0, get_random_u32());
	for (int i = 0; i < BIND_TRIES && error == -EADDRINUSE; i++) {
		u32 number = atomic_inc_return(&turn);
		u32 count = last - first + 1;

		own.svm_port = (FIRST_BOUND +
				number / count % (FIRST_CALLER - FIRST_BOUND))
				   << 16 |
			       (first + number % count);
		error = kernel_bind(sock, (void *)&own, sizeof(own));
	}
}

/**
 * start() - Begin to connect a socket that is as socket() left it
 * @sock:	Socket, LABELLED
 * @token:	Where to
 * @nonblock:	The program won't wait
 *
 * Returns: -EINPROGRESS, or why it can't be begun; 1: it isn't as it was left
 */
static int start(struct socket *sock, u32 token, bool nonblock)
{
	struct vsock_sock *vsk = vsock_sk(sock->sk);
	struct sockaddr_vm to = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_HOST,
	    .svm_port = token,
	};
	bool fresh;
	int error;

	lock_sock(sock->sk);
	fresh =
	    sock->state == SS_UNCONNECTED && sock->sk->sk_state == TCP_CLOSE &&
	    !sock->sk->sk_err && vsk->remote_addr.svm_port == VMADDR_PORT_ANY &&
	    !(vsk->buffer_max_size &
	      (LABEL_UNREPORTED | LABEL_ABORTED | LABEL_LOCAL | LABEL_INBOUND));
	if (fresh && nonblock) {
		vsk->connect_timeout = timer_limit(vsk->connect_timeout);
		vsk->buffer_max_size |= LABEL_UNREPORTED;
	}
	release_sock(sock->sk);
	if (!fresh)
		return 1;
	if (vsk->local_addr.svm_port == VMADDR_PORT_ANY)
		bind_any(sock);
	error = kernel_connect(sock, (void *)&to, sizeof(to), O_NONBLOCK);
	if (error == -EALREADY || error == -EISCONN)
		return 1; /* another thread was faster */
	if (error != -EINPROGRESS && nonblock) {
		lock_sock(sock->sk);
		vsk->buffer_max_size &= ~LABEL_UNREPORTED;
		release_sock(sock->sk);
	}
	return error == -ENODEV ? -ENETUNREACH : error;
}

/**
 * finish() - Wait for the outcome of an attempt
 * @sock:	Socket that is connecting
 * @ret_answer:	What connect() returns, if it is ours
 *
 * A reset is left in the socket for the agent, which knows the errno, or for
 * the next connect(), should a signal keep this one from hearing of it.
 *
 * Returns: whose it is
 */
static enum whose finish(struct socket *sock, long *ret_answer)
{
	struct sock *sk = sock->sk;
	struct vsock_sock *vsk = vsock_sk(sk);
	enum whose whose = OURS;

	wait_event_interruptible(
	    *sk_sleep(sk), READ_ONCE(sk->sk_state) != TCP_SYN_SENT ||
			       READ_ONCE(sk->sk_shutdown) == SHUTDOWN_MASK);
	lock_sock(sk);
	if (sk->sk_state == TCP_SYN_SENT && sk->sk_shutdown != SHUTDOWN_MASK) {
		vsk->buffer_max_size |= LABEL_UNREPORTED;
		*ret_answer = -ERESTARTSYS;
	} else {
		if (cancel_delayed_work(&vsk->connect_work))
			sock_put(sk);
		if (sock->state == SS_CONNECTING) { /* still: it was reset */
			vsk->buffer_max_size |= LABEL_UNREPORTED;
			whose = AGENT_RESET;
		} else if (sk->sk_state == TCP_CLOSE ||
			   sk->sk_state == TCP_SYN_SENT) {
			*ret_answer = sock_error(sk) ?: -ECONNRESET;
		} else {
			*ret_answer = 0;
		}
	}
	release_sock(sk);
	return whose;
}

/**
 * connect_known() - connect()
 * @call:	The call
 * @sock:	Its socket
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
enum whose connect_known(struct call *call, struct socket *sock,
			 long *ret_answer)
{
	bool nonblock = sock->file->f_flags & O_NONBLOCK;
	struct tsi_known dst;
	int instance, error;
	u64 label;
	u32 token;

	if ((u32)call->args[2] == sizeof(struct sockaddr_un))
		return KERNEL; /* as the filter has it */
	if (kind_of(sock) != LABELLED)
		return AGENT;
	label = READ_ONCE(vsock_sk(sock->sk)->buffer_max_size);
	if ((!nonblock && (label & LABEL_SNDTIMEO)) ||
	    !address_of(call, label & LABEL_V6, &dst))
		return AGENT;
	instance = filter_instance(call);
	token = instance ? token_of(instance, &dst) : 0;
	if (!token)
		return AGENT;
	error = start(sock, token, nonblock);
	if (error > 0)
		return AGENT;
	call->args[3] = token; /* for the agent, should it be reset */
	*ret_answer = error;
	return error == -EINPROGRESS && !nonblock ? finish(sock, ret_answer)
						  : OURS;
}
