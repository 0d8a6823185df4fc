// SPDX-License-Identifier: GPL-2.0-only
/*
 * inner.c - the vsock sockets beneath
 *
 * Theory of operation
 * ===================
 *
 * An inner socket is made for connect() or listen(), and is the outer socket's
 * until it is disconnected or closed. It has no file: programs can't reach it.
 * It needs no inode either; it is made as vsock makes a connection's for a
 * listener, of one that all are like.
 *
 * The outer sk_user_data is where it hangs. Calls take a reference, so that one
 * that sleeps in it keeps it while another thread disconnects. They also hold
 * the outer socket's file, so that the wait queue outlives the last reference.
 * Who looks may find memory that is another's by now, but never anything that
 * is no struct inner; so it looks again once it has a reference.
 *
 * All tables that the host's messages are looked up in are under inner_lock.
 */

#include <linux/hashtable.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <net/af_vsock.h>

#include "inet.h"

#define FIRST_UPPER 128U /* of ports that connect or listen */
#define LAST_UPPER  0x7fffU
#define BIND_TRIES  64

DEFINE_SPINLOCK(inner_lock);
struct socket *inner_pattern;

static DEFINE_HASHTABLE(by_port, 10);
static struct kmem_cache *cache;

/**
 * inner_prepare() - Make the one that all are like
 *
 * Returns: 0, or a negated errno
 */
int __init inner_prepare(void)
{
	cache = KMEM_CACHE(inner, SLAB_TYPESAFE_BY_RCU | SLAB_ACCOUNT);
	if (!cache)
		return -ENOMEM;
	return sock_create_kern(&init_net, AF_VSOCK, SOCK_STREAM, 0,
				&inner_pattern);
}

/**
 * inner_new() - Begin with one
 *
 * Returns: it, without a vsock sock, or NULL; whoever holds it puts it
 */
struct inner *inner_new(void)
{
	struct inner *inner = kmem_cache_zalloc(cache, GFP_KERNEL);
	struct socket *sock;

	if (!inner)
		return NULL;
	sock = inner->sock = &inner->container.socket;
	sock->type = SOCK_STREAM;
	sock->state = SS_UNCONNECTED;
	sock->ops = inner_pattern->ops;
	init_waitqueue_head(&sock->wq.wait);
	smp_wmb(); /* who finds it by its old address sees all of it */
	refcount_set(&inner->users, 1);
	return inner;
}

/**
 * inner_own() - Give it its vsock sock
 * @inner:	It, which hasn't got one
 * @sk:		The sock, whose reference is the inner socket's from here on
 */
void inner_own(struct inner *inner, struct sock *sk)
{
	inner->sock->sk = sk;
	sk_set_socket(sk, inner->sock);
	rcu_assign_pointer(sk->sk_wq, &inner->sock->wq);
}

/**
 * inner_make() - Make one that is neither bound nor anybody's
 * @ret_inner:	Set to it; whoever holds it puts it
 *
 * Returns: 0, or a negated errno
 */
int inner_make(struct inner **ret_inner)
{
	struct inner *inner = inner_new();
	struct sock *sk =
	    inner ? vsock_create_connected(inner_pattern->sk) : NULL;

	if (!sk) {
		inner_put(inner);
		return -ENOBUFS;
	}
	inner_own(inner, sk);
	vsock_sk(sk)->buffer_size = CREDIT_SMALL;
	/* as vsock's own sockets are, before they are bound */
	spin_lock_bh(&vsock_table_lock);
	sock_hold(sk);
	list_add(&vsock_sk(sk)->bound_table,
		 &vsock_bind_table[VSOCK_HASH_SIZE]);
	spin_unlock_bh(&vsock_table_lock);
	*ret_inner = inner;
	return 0;
}

/**
 * inner_bind() - Give it a vsock port
 * @inner:	It, just made
 * @low:	Lower half of the port
 *
 * The upper half is chance, so that nobody can keep all of them.
 *
 * Returns: 0, or a negated errno
 */
int inner_bind(struct inner *inner, u16 low)
{
	struct sockaddr_vm at = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_ANY,
	};
	int error = -EADDRINUSE, tries;

	for (tries = 0; tries < BIND_TRIES && error == -EADDRINUSE; tries++) {
		u32 upper = FIRST_UPPER +
			    get_random_u32() % (LAST_UPPER - FIRST_UPPER + 1);

		at.svm_port = upper << 16 | low;
		error = inner->sock->ops->bind(inner->sock, (any_sockaddr *)&at,
					       sizeof(at));
	}
	if (error)
		return error == -EADDRINUSE ? -EADDRNOTAVAIL : error;
	inner->port = at.svm_port;
	spin_lock_bh(&inner_lock);
	hash_add(by_port, &inner->by_port, inner->port);
	spin_unlock_bh(&inner_lock);
	return 0;
}

/**
 * inner_aim() - Have it know the way to the host
 * @inner:	It, bound
 *
 * Returns: 0, or a negated errno
 */
int inner_aim(struct inner *inner)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);
	int error;

	lock_sock(&vsk->sk);
	vsock_addr_init(&vsk->remote_addr, VMADDR_CID_HOST, VMADDR_PORT_ANY);
	error = vsock_assign_transport(vsk, NULL);
	release_sock(&vsk->sk);
	return error;
}

/**
 * inner_listen() - Have it listen
 * @inner:	It, bound and adopted
 * @backlog:	Its backlog
 *
 * Returns: 0, or a negated errno: -ENOBUFS: its user has too many
 */
int inner_listen(struct inner *inner, int backlog)
{
	int error = listeners_add(inner);

	if (error)
		return error;
	inner->phase = LISTENING;
	return inner->sock->ops->listen(inner->sock, backlog);
}

/**
 * inner_set() - Hang one to an inet socket
 * @sk:		The inet socket, locked
 * @inner:	It; the reference is the socket's from here on. NULL: the one
 *		that is there is the caller's
 */
void inner_set(struct sock *sk, struct inner *inner)
{
	write_lock_bh(&sk->sk_callback_lock);
	if (inner)
		__rcu_assign_sk_user_data_with_flags(sk, inner,
						     SK_USER_DATA_NOCOPY);
	else
		rcu_assign_sk_user_data(sk, NULL);
	write_unlock_bh(&sk->sk_callback_lock);
}

/**
 * inner_end() - Free one
 * @inner:	It, which nobody holds
 */
void inner_end(struct inner *inner)
{
	bool listened;
	struct sock *sk;

	spin_lock_bh(&inner_lock);
	hash_del(&inner->by_port);
	listened = inner->phase == LISTENING;
	inner->phase = CLOSED;
	spin_unlock_bh(&inner_lock);
	if (inner->armed)
		del_timer_sync(&inner->patience);
	if (listened)
		listeners_remove(inner);
	sk = inner->sock->sk;
	if (sk) {
		write_lock_bh(&sk->sk_callback_lock);
		sk->sk_state_change = inner_pattern->sk->sk_state_change;
		sk->sk_error_report = inner_pattern->sk->sk_error_report;
		sk->sk_write_space = inner_pattern->sk->sk_write_space;
		sk->sk_data_ready = inner_pattern->sk->sk_data_ready;
		write_unlock_bh(&sk->sk_callback_lock);
		inner->sock->ops->release(inner->sock);
	}
	kmem_cache_free(cache, inner);
}

/**
 * inner_find() - The one with a port
 * @port:	vsock port; inner_lock is held
 *
 * Returns: it, until inner_lock is released; NULL if there is none
 */
struct inner *inner_find(u32 port)
{
	struct inner *inner;

	hash_for_each_possible(by_port, inner, by_port,
			       port) if (inner->port == port) return inner;
	return NULL;
}

/**
 * inner_listening() - A LISTENING message
 * @listening:	Payload
 */
void inner_listening(const struct tsi_listening *listening)
{
	struct inner *inner;

	spin_lock_bh(&inner_lock);
	inner = inner_find(listening->listener);
	if (inner && inner->phase == LISTENING) {
		inner->published = listening->port;
		inner->refused =
		    listening->error < MAX_ERRNO ? listening->error : EIO;
		WRITE_ONCE(inner->answered, true);
		inner->sock->sk->sk_state_change(inner->sock->sk);
	}
	spin_unlock_bh(&inner_lock);
}
