// SPDX-License-Identifier: GPL-2.0-only
/*
 * inner.c - the vsock sockets beneath
 *
 * Theory of operation
 * ===================
 *
 * An inner socket is made at connect() or listen(), and is the outer socket's
 * until it is disconnected or closed. It has no file: programs can't reach it.
 * It needs no inode either; it is made as vsock makes a connection's for a
 * listener, of one that all are like.
 * It wakes whoever waits for the outer socket, because its wait queue is the
 * outer one's; so poll(), epoll, io_uring and SIGIO need nothing of ours.
 *
 * The outer sk_user_data is where it hangs. Calls take a reference, so that one
 * that sleeps in it keeps it while another thread disconnects. They also hold
 * the outer socket's file, so that the wait queue outlives the last reference.
 *
 *			 RESPONSE		   RST, or AF_UNSPEC
 *	CONNECTING ------------------> ESTABLISHED -----------------> CLOSED
 *	     |   RST and FAILED, or nobody answers			^
 *	     +----------------------------------------------------------+
 *
 * FAILED comes by another connection than the RST, and either may be first. An
 * attempt that was reset is CONNECTING until the errno is there, or PATIENCE is
 * over. All tables that the host's messages are looked up in are under
 * inner_lock.
 */

#include <linux/hashtable.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <net/af_vsock.h>

#include "inet.h"

#define PATIENCE    (1 * HZ) /* docs/tsi-protocol.md, section 4 */
#define FIRST_UPPER 128U     /* of ports that connect or listen */
#define LAST_UPPER  0x7fffU
#define BIND_TRIES  64

DEFINE_SPINLOCK(inner_lock);

static DEFINE_HASHTABLE(by_port, 10);
static struct socket *pattern;
static void (*default_change)(struct sock *sk); /* sock_def_wakeup() */
static void (*default_error)(struct sock *sk);	/* sock_def_error_report() */

/* ---- how far it is ---- */

/**
 * fail() - An attempt has failed, or a connection was reset
 * @inner:	It; inner_lock is held
 * @error:	Why
 */
static void fail(struct inner *inner, int error)
{
	struct sock *sk = inner->outer;

	WRITE_ONCE(sk->sk_err, error);
	WRITE_ONCE(sk->sk_shutdown, SHUTDOWN_MASK);
	smp_store_release(&inner->phase, CLOSED);
	sk->sk_error_report(sk);
}

/**
 * arm() - Wait so long, and not longer
 * @inner:	It; inner_lock is held
 * @timeout:	Jiffies
 */
static void arm(struct inner *inner, unsigned long timeout)
{
	inner->armed = true;
	mod_delayed_work(system_wq, &inner->patience, timeout);
}

/**
 * settle() - Has an attempt come to its end?
 * @inner:	It; inner_lock is held
 */
static void settle(struct inner *inner)
{
	struct sock *sk = inner->sock->sk;
	int state = READ_ONCE(sk->sk_state);

	if (inner->phase != CONNECTING)
		return;
	if (state == TCP_ESTABLISHED || state == TCP_CLOSING) {
		smp_store_release(&inner->phase, ESTABLISHED);
		if (inner->armed)
			cancel_delayed_work(&inner->patience);
	} else if (READ_ONCE(sk->sk_err) && inner->failed) {
		fail(inner, inner->failed);
	} else if (READ_ONCE(sk->sk_err)) {
		arm(inner, PATIENCE);
	}
}

/**
 * inner_expire() - An attempt takes too long
 * @inner:	It
 */
void inner_expire(struct inner *inner)
{
	bool reset = READ_ONCE(inner->sock->sk->sk_err);

	spin_lock_bh(&inner_lock);
	settle(inner);
	if (inner->phase == CONNECTING)
		fail(inner, inner->failed ?: reset ? ECONNREFUSED : ETIMEDOUT);
	spin_unlock_bh(&inner_lock);
}

static void impatient(struct work_struct *work)
{
	inner_expire(container_of(work, struct inner, patience.work));
}

/**
 * inner_arm() - Let an attempt that nobody waits for take so long
 * @inner:	It
 * @timeout:	Jiffies
 */
void inner_arm(struct inner *inner, unsigned long timeout)
{
	spin_lock_bh(&inner_lock);
	if (inner->phase == CONNECTING && !READ_ONCE(inner->sock->sk->sk_err))
		arm(inner, timeout);
	spin_unlock_bh(&inner_lock);
}

/**
 * look() - What has become of a connection?
 * @inner:	It
 *
 * A peer that ends its direction does so before it closes, so that a RST ahead
 * of any end is TCP's.
 */
static void look(struct inner *inner)
{
	struct sock *sk = inner->sock->sk;
	u32 ended = READ_ONCE(vsock_sk(sk)->peer_shutdown);

	if (inner->phase != ESTABLISHED || inner->ended)
		return;
	if (!sock_flag(sk, SOCK_DONE)) {
		inner->ended = ended & SEND_SHUTDOWN;
		return;
	}
	spin_lock_bh(&inner_lock);
	if (inner->phase == ESTABLISHED && !inner->ended &&
	    !(sk->sk_shutdown & SEND_SHUTDOWN))
		fail(inner, ECONNRESET);
	spin_unlock_bh(&inner_lock);
}

static void changed(struct sock *sk)
{
	struct inner *inner = READ_ONCE(sk->sk_user_data);

	if (READ_ONCE(inner->phase) == CONNECTING) {
		spin_lock_bh(&inner_lock);
		settle(inner);
		spin_unlock_bh(&inner_lock);
	}
	look(inner);
	default_change(sk);
}

static void failed(struct sock *sk)
{
	struct inner *inner = READ_ONCE(sk->sk_user_data);
	int error = READ_ONCE(sk->sk_err);

	spin_lock_bh(&inner_lock);
	settle(inner);
	if (inner->phase == ESTABLISHED && error)
		fail(inner, error); /* as when the device was reset */
	spin_unlock_bh(&inner_lock);
	default_error(sk);
}

/* ---- its life ---- */

/**
 * inner_begin() - Begin with one
 * @inner:	Its memory, all 0
 * @sk:		The inet socket
 * @sock:	The vsock socket
 */
void inner_begin(struct inner *inner, struct sock *sk, struct socket *sock)
{
	refcount_set(&inner->users, 1);
	INIT_DELAYED_WORK(&inner->patience, impatient);
	inner->outer = sk;
	inner->sock = sock;
}

/**
 * inner_prepare() - Make the one that all are like
 *
 * Returns: 0, or a negated errno
 */
int __init inner_prepare(void)
{
	int error =
	    sock_create_kern(&init_net, AF_VSOCK, SOCK_STREAM, 0, &pattern);

	if (!error) {
		default_change = pattern->sk->sk_state_change;
		default_error = pattern->sk->sk_error_report;
	}
	return error;
}

/**
 * inner_make() - Make one
 * @sk:		The inet socket
 * @ret_inner:	Set to it; whoever holds it puts it
 *
 * Returns: 0, or a negated errno
 */
int inner_make(struct sock *sk, struct inner **ret_inner)
{
	struct inner *inner = kzalloc(sizeof(*inner), GFP_KERNEL_ACCOUNT);
	struct sock *under = inner ? vsock_create_connected(pattern->sk) : NULL;
	struct socket *sock;

	if (!under) {
		kfree(inner);
		return -ENOBUFS;
	}
	sock = &inner->container.socket;
	sock->type = SOCK_STREAM;
	sock->state = SS_UNCONNECTED;
	sock->ops = pattern->ops;
	sock->sk = under;
	init_waitqueue_head(&sock->wq.wait);
	sk_set_socket(under, sock);
	under->sk_uid = sk->sk_uid;
	/* as vsock's own sockets are, before they are bound */
	spin_lock_bh(&vsock_table_lock);
	sock_hold(under);
	list_add(&vsock_sk(under)->bound_table,
		 &vsock_bind_table[VSOCK_HASH_SIZE]);
	spin_unlock_bh(&vsock_table_lock);
	inner_begin(inner, sk, sock);
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
 * inner_adopt() - Have it wake those who wait for the outer socket
 * @inner:	It, neither connected nor listening yet, or just accepted
 * @outer:	Outer socket
 */
void inner_adopt(struct inner *inner, struct socket *outer)
{
	struct sock *sk = inner->sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	rcu_assign_pointer(sk->sk_wq, &outer->wq);
	sk->sk_user_data = inner;
	sk->sk_state_change = changed;
	sk->sk_error_report = failed;
	write_unlock_bh(&sk->sk_callback_lock);
	sock_set_flag(sk, SOCK_FASYNC); /* the wait queue has the list */
	look(inner);
}

/**
 * inner_connect() - Ask the host for a connection
 * @inner:	It, bound and adopted
 * @token:	Where to
 *
 * As vsock_connect() of a non-blocking socket, without its timer, which would
 * keep the socket for as long as the host may take.
 *
 * Returns: 0, or a negated errno
 */
int inner_connect(struct inner *inner, u32 token)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);
	int error;

	lock_sock(&vsk->sk);
	vsock_addr_init(&vsk->remote_addr, VMADDR_CID_HOST, token);
	error = vsock_assign_transport(vsk, NULL);
	if (!error) {
		vsk->sk.sk_state = TCP_SYN_SENT;
		error = vsk->transport->connect(vsk);
	}
	if (error < 0)
		vsk->sk.sk_state = TCP_CLOSE;
	else
		inner->sock->state = SS_CONNECTING;
	release_sock(&vsk->sk);
	return error < 0 ? error : 0;
}

/**
 * inner_get() - The inner socket of an inet one
 * @sk:		The inet socket, its file held
 *
 * sk_user_data may be somebody else's, by whose flags it is told from ours.
 *
 * Returns: it, to be put; NULL if there is none
 */
struct inner *inner_get(const struct sock *sk)
{
	struct inner *inner = NULL;
	uintptr_t data;

	if (!READ_ONCE(sk->sk_user_data))
		return NULL;
	rcu_read_lock();
	data = (uintptr_t)rcu_dereference(__sk_user_data((struct sock *)sk));
	if ((data & ~SK_USER_DATA_PTRMASK) == SK_USER_DATA_NOCOPY)
		inner = (struct inner *)(data & SK_USER_DATA_PTRMASK);
	if (inner && !refcount_inc_not_zero(&inner->users))
		inner = NULL;
	rcu_read_unlock();
	return inner;
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
 * inner_put() - Let go of one
 * @inner:	It, or NULL
 */
void inner_put(struct inner *inner)
{
	struct sock *sk;

	if (!inner || !refcount_dec_and_test(&inner->users))
		return;
	spin_lock_bh(&inner_lock);
	hash_del(&inner->by_port);
	inner->phase = CLOSED;
	spin_unlock_bh(&inner_lock);
	if (inner->armed)
		cancel_delayed_work_sync(&inner->patience);
	sk = inner->sock->sk;
	write_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_user_data) {
		sk->sk_state_change = default_change;
		sk->sk_error_report = default_error;
	}
	write_unlock_bh(&sk->sk_callback_lock);
	if (inner->sock == &inner->container.socket)
		inner->sock->ops->release(inner->sock);
	else
		sock_release(inner->sock);
	kfree_rcu(inner, rcu);
}

/* ---- what the host says of it ---- */

/**
 * find() - The one with a port
 * @port:	vsock port; inner_lock is held
 *
 * Returns: it, until inner_lock is released; NULL if there is none
 */
static struct inner *find(u32 port)
{
	struct inner *inner;

	hash_for_each_possible(by_port, inner, by_port,
			       port) if (inner->port == port) return inner;
	return NULL;
}

/**
 * inner_failed() - A FAILED message
 * @failed:	Payload
 */
void inner_failed(const struct tsi_failed *failed)
{
	u32 error = failed->error;
	struct inner *inner;

	spin_lock_bh(&inner_lock);
	inner = find(failed->guest_port);
	if (inner && inner->phase == CONNECTING && !inner->failed &&
	    inner->token == failed->token) {
		inner->failed = error && error < MAX_ERRNO ? error : EIO;
		if (error == ESTALE)
			inner->failed = ENETUNREACH;
		if (READ_ONCE(inner->sock->sk->sk_err))
			arm(inner, 0); /* the RST came first */
	}
	spin_unlock_bh(&inner_lock);
}

/**
 * inner_listening() - A LISTENING message
 * @listening:	Payload
 */
void inner_listening(const struct tsi_listening *listening)
{
	struct inner *inner;

	spin_lock_bh(&inner_lock);
	inner = find(listening->listener);
	if (inner && inner->phase == LISTENING) {
		inner->published = listening->port;
		inner->refused =
		    listening->error < MAX_ERRNO ? listening->error : EIO;
		WRITE_ONCE(inner->answered, true);
		default_change(inner->sock->sk);
	}
	spin_unlock_bh(&inner_lock);
}

/**
 * inner_each_listener() - Tell of all listeners
 * @tell:	Called with each, which it doesn't keep; it may sleep
 */
void inner_each_listener(int (*tell)(struct inner *listener))
{
	struct inner *inner;
	int bucket;

	for (bucket = 0; bucket < HASH_SIZE(by_port); bucket++) {
		struct inner *held[16];
		int count = 0;

		spin_lock_bh(&inner_lock);
		hlist_for_each_entry(
		    inner, &by_port[bucket],
		    by_port) if (inner->phase == LISTENING &&
				 count < ARRAY_SIZE(held) &&
				 refcount_inc_not_zero(&inner->users))
		    held[count++] = inner;
		spin_unlock_bh(&inner_lock);
		while (count) {
			tell(held[--count]);
			inner_put(held[count]);
		}
	}
}
