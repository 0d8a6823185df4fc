// SPDX-License-Identifier: GPL-2.0-only
/*
 * phase.c - how far a vsock socket is
 *
 * Theory of operation
 * ===================
 *
 *			 RESPONSE		   RST, or AF_UNSPEC
 *	CONNECTING ------------------> ESTABLISHED -----------------> CLOSED
 *	     |   RST and FAILED, or nobody answers			^
 *	     +----------------------------------------------------------+
 *
 * FAILED comes by another connection than the RST, and either may be first. An
 * attempt that was reset is CONNECTING until the errno is there, or PATIENCE is
 * over. Until then nobody hears of an error, or of the room that each packet
 * tells of: io_uring takes the wake-up's word for it. All of it is under
 * inner_lock.
 */

#include <linux/virtio_vsock.h>
#include <net/af_vsock.h>

#include "inet.h"

#define PATIENCE (1 * HZ) /* docs/tsi-protocol.md, section 4 */

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
	mod_timer(&inner->patience, jiffies + timeout);
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
			del_timer(&inner->patience);
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

static void impatient(struct timer_list *timer)
{
	inner_expire(container_of(timer, struct inner, patience));
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
 * of any end is TCP's. Who has ended it, and takes nothing more while we may
 * still send, has reset what TCP has in CLOSE_WAIT.
 */
static void look(struct inner *inner)
{
	struct sock *sk = inner->sock->sk;
	u32 ended = READ_ONCE(vsock_sk(sk)->peer_shutdown);
	bool reset =
	    inner->ended ? ended & RCV_SHUTDOWN : sock_flag(sk, SOCK_DONE);

	if (inner->phase != ESTABLISHED)
		return;
	if (!reset) {
		inner->ended = ended & SEND_SHUTDOWN;
		return;
	}
	spin_lock_bh(&inner_lock);
	if (inner->phase == ESTABLISHED && !(sk->sk_shutdown & SEND_SHUTDOWN))
		fail(inner, inner->ended ? EPIPE : ECONNRESET);
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
	inner_pattern->sk->sk_state_change(sk);
}

static void failed(struct sock *sk)
{
	struct inner *inner = READ_ONCE(sk->sk_user_data);
	int error = READ_ONCE(sk->sk_err);
	bool pending;

	spin_lock_bh(&inner_lock);
	settle(inner);
	if (inner->phase == ESTABLISHED && error)
		fail(inner, error); /* as when the device was reset */
	pending = inner->phase == CONNECTING;
	spin_unlock_bh(&inner_lock);
	if (pending)
		return;
	inner_pattern->sk->sk_error_report(sk);
	sk_wake_async(inner->outer, SOCK_WAKE_IO, POLL_ERR);
}

/**
 * wake() - Wake the outer socket's waiters
 * @sk:		vsock sock, whose wait queue is the outer socket's
 * @events:	Of poll()
 * @how:	Of a signal
 * @band:	Same
 *
 * As sock_def_readable() and sock_def_write_space() for who waits, of which
 * the latter looks at the memory of packets that the host has yet to return:
 * vsock's credit doesn't depend on it. Each packet comes here; those that are
 * freed come without a lock.
 */
static inline void wake(struct sock *sk, __poll_t events, int how, int band)
{
	struct socket_wq *wq;

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq))
		wake_up_interruptible_sync_poll(&wq->wait, events);
	if (wq && READ_ONCE(wq->fasync_list))
		sock_wake_async(wq, how, band);
	rcu_read_unlock();
}

static void ready(struct sock *sk)
{
	wake(sk, EPOLLIN | EPOLLPRI | EPOLLRDNORM | EPOLLRDBAND,
	     SOCK_WAKE_WAITD, POLL_IN);
}

/**
 * tell_room() - Wake who waits for room, if there is some
 * @sk:		vsock sock
 * @inner:	Its inner one; sk_callback_lock keeps it
 */
static void tell_room(struct sock *sk, struct inner *inner)
{
	if (READ_ONCE(inner->phase) != CONNECTING &&
	    vsock_stream_has_space(vsock_sk(sk)) > 0 &&
	    atomic_xchg(&inner->nospace, 0))
		wake(sk, EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND, SOCK_WAKE_SPACE,
		     POLL_OUT);
}

/**
 * room() - There may be room: any packet of the peer's, or one of ours freed
 * @sk:		vsock sock
 *
 * As TCP, which tells only those that wait for it: else each write would be an
 * event to epoll's edges, and wake who waits for bytes. A packet is freed at
 * any time, by who has locked nothing. So what is looked at first may be
 * another's by now; then nobody waits for this one.
 */
static void room(struct sock *sk)
{
	const struct inner *inner = READ_ONCE(sk->sk_user_data);
	bool awaited;

	smp_mb(); /* as in inner_has_room(), the other way round */
	rcu_read_lock();
	awaited = READ_ONCE(sk->sk_write_space) == room &&
		  atomic_read(&inner->nospace);
	rcu_read_unlock();
	if (!awaited)
		return;
	read_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_write_space == room)
		tell_room(sk, sk->sk_user_data);
	read_unlock_bh(&sk->sk_callback_lock);
}

/**
 * inner_has_room() - Is there room, or will who waits hear of some?
 * @inner:	Connection
 *
 * Returns: whether there is
 */
bool inner_has_room(struct inner *inner)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);

	if (vsock_stream_has_space(vsk) > 0)
		return true;
	atomic_set(&inner->nospace, 1);
	smp_mb(); /* room may have come meanwhile */
	return vsock_stream_has_space(vsk) > 0;
}

/**
 * whole() - How long a packet was when it came
 * @skb:	It
 *
 * Returns: bytes; older kernels take off what is read
 */
static u32 whole(struct sk_buff *skb)
{
	return le32_to_cpu(virtio_vsock_hdr(skb)->len);
}

/**
 * received() - How much has come so far?
 * @trans:	Of a vsock sock
 *
 * Returns: bytes, modulo 2^32
 */
static u32 received(struct virtio_vsock_sock *trans)
{
	struct sk_buff *skb;
	u32 bytes;

	spin_lock_bh(&trans->rx_lock);
	bytes = trans->fwd_cnt; /* packets that were read to their end */
	skb_queue_walk(&trans->rx_queue, skb)
	{
		bytes += whole(skb);
	}
	spin_unlock_bh(&trans->rx_lock);
	return bytes;
}

/**
 * cut() - Drop what has come behind a point
 * @unread:	Packets that nobody else has; small ones have one buffer
 * @keep:	So many bytes stay, with those that are read
 */
static void cut(struct sk_buff_head *unread, u32 keep)
{
	struct sk_buff *skb, *next;

	skb_queue_walk_safe(unread, skb, next)
	{
		u32 gone = whole(skb) - skb->len;
		u32 stays = min(keep, whole(skb));

		keep -= stays;
		if (stays > gone + packet_read(skb) &&
		    !pskb_trim(skb, stays - gone))
			continue;
		__skb_unlink(skb, unread);
		kfree_skb(skb);
	}
}

/**
 * refuse() - Bytes have come although the program has ended both directions
 * @sk:		vsock sock, locked
 *
 * TCP resets such a connection, so that the peer doesn't go on, and what came
 * before can still be read. vsock's release sends a RST if the peer is over,
 * and drops what waits without its lock.
 */
static void refuse(struct sock *sk)
{
	struct inner *inner = READ_ONCE(sk->sk_user_data);
	struct vsock_sock *vsk = vsock_sk(sk);
	struct virtio_vsock_sock *trans = vsk->trans;
	struct sk_buff_head unread;

	spin_lock_bh(&inner_lock);
	if (inner->phase == ESTABLISHED)
		fail(inner, ECONNRESET);
	spin_unlock_bh(&inner_lock);
	__skb_queue_head_init(&unread);
	spin_lock_bh(&trans->rx_lock);
	skb_queue_splice_init(&trans->rx_queue, &unread);
	cut(&unread, inner->refused_from - trans->fwd_cnt);
	spin_unlock_bh(&trans->rx_lock);
	WRITE_ONCE(vsk->peer_shutdown, SHUTDOWN_MASK);
	vsk->transport->release(vsk);
	sk->sk_state = TCP_CLOSE;
	spin_lock_bh(&trans->rx_lock);
	skb_queue_splice(&unread, &trans->rx_queue);
	spin_unlock_bh(&trans->rx_lock);
}

/**
 * inner_refuse() - Have bytes that come from here on reset a connection
 * @inner:	It, of which the program has ended both directions
 */
void inner_refuse(struct inner *inner)
{
	struct sock *sk = inner->sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_data_ready != refuse)
		inner->refused_from = received(vsock_sk(sk)->trans);
	WRITE_ONCE(sk->sk_data_ready, refuse);
	write_unlock_bh(&sk->sk_callback_lock);
}

/**
 * inner_adopt() - Have it wake those who wait for the outer socket
 * @inner:	It, neither connected nor listening yet, or just accepted
 * @outer:	Outer socket
 * @outer_sk:	Its sock, which it may get only later
 */
void inner_adopt(struct inner *inner, struct socket *outer,
		 struct sock *outer_sk)
{
	struct sock *sk = inner->sock->sk;

	inner->outer = outer_sk;
	timer_setup(&inner->patience, impatient, 0);
	write_lock_bh(&sk->sk_callback_lock);
	rcu_assign_pointer(sk->sk_wq, &outer->wq);
	sk->sk_uid = outer_sk->sk_uid;
	sk->sk_user_data = inner;
	sk->sk_state_change = changed;
	sk->sk_error_report = failed;
	sk->sk_data_ready = ready;
	sk->sk_write_space = room;
	write_unlock_bh(&sk->sk_callback_lock);
	look(inner);
}

/**
 * inner_connect() - Ask the host for a connection
 * @inner:	It, aimed and adopted
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
	vsk->remote_addr.svm_port = token;
	vsk->sk.sk_state = TCP_SYN_SENT;
	error = vsk->transport->connect(vsk);
	if (error < 0)
		vsk->sk.sk_state = TCP_CLOSE;
	else
		inner->sock->state = SS_CONNECTING;
	release_sock(&vsk->sk);
	return error < 0 ? error : 0;
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
	inner = inner_find(failed->guest_port);
	if (inner && inner->phase == CONNECTING && !inner->failed &&
	    inner->token == failed->token) {
		inner->failed = error && error < MAX_ERRNO ? error : EIO;
		if (error == ESTALE)
			inner->failed = ENETUNREACH;
		settle(inner); /* the RST may have come first */
	}
	spin_unlock_bh(&inner_lock);
}
