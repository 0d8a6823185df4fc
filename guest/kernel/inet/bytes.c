// SPDX-License-Identifier: GPL-2.0-only
/*
 * bytes.c - what is sent and received
 *
 * Theory of operation
 * ===================
 *
 * Bytes are vsock's; who waits, for how long, and which error is told first are
 * as tcp_sendmsg() and tcp_recvmsg() have it. A plain read waits in vsock, in
 * the same queue; what it returns without bytes, TCP's rules decide. Who sends,
 * or wants a number of bytes, waits here: vsock doesn't say that it waits for
 * room, and would refuse to wait for more than its buffer holds.
 */

#include <linux/sched/signal.h>
#include <linux/splice.h>
#include <linux/uio.h>
#include <net/af_vsock.h>

#include "inet.h"

/* Flags of a call that takes what there is */
#define PLAIN (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC)

/* ---- sending ---- */

/**
 * await_connection() - Wait as long as a socket is connecting
 * @sk:		Outer socket
 * @inner:	Inner one
 * @flags:	Of the call
 *
 * Returns: 0, or a negated errno
 */
static int await_connection(struct sock *sk, struct inner *inner, int flags)
{
	long timeout = sock_sndtimeo(sk, flags & MSG_DONTWAIT);

	if (smp_load_acquire(&inner->phase) != CONNECTING)
		return 0;
	if (!timeout)
		return -EAGAIN;
	timeout = wait_event_interruptible_timeout(
	    *sk_sleep(sk), smp_load_acquire(&inner->phase) != CONNECTING,
	    timeout);
	if (timeout > 0)
		return 0;
	return timeout ? sock_intr_errno(timeout) : -EAGAIN;
}

/**
 * can_give() - Is there nothing to look at before vsock is asked to send?
 * @sk:		Outer socket
 * @inner:	Inner one
 * @flags:	Of the call
 *
 * Returns: true if so
 */
static inline bool can_give(const struct sock *sk, const struct inner *inner,
			    unsigned int flags)
{
	const struct vsock_sock *vsk = vsock_sk(inner->sock->sk);

	return READ_ONCE(inner->phase) == ESTABLISHED && !(flags & ~PLAIN) &&
	       !READ_ONCE(sk->sk_err) &&
	       !(READ_ONCE(sk->sk_shutdown) & SEND_SHUTDOWN) &&
	       !(READ_ONCE(vsk->peer_shutdown) & RCV_SHUTDOWN);
}

/**
 * is_unsendable() - Can nothing more be sent?
 * @sk:		Outer socket
 * @inner:	Inner one
 *
 * Returns: true if so
 */
static bool is_unsendable(const struct sock *sk, const struct inner *inner)
{
	return READ_ONCE(sk->sk_err) || READ_ONCE(inner->phase) == CLOSED ||
	       (held_over(inner) & SEND_SHUTDOWN);
}

/**
 * await_room() - Wait for room
 * @sk:		Outer socket
 * @inner:	Inner one
 * @timeout:	At most so long, jiffies
 *
 * Returns: what is left of @timeout
 */
static long await_room(struct sock *sk, struct inner *inner, long timeout)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);

	add_wait_queue(sk_sleep(sk), &wait);
	while (!inner_has_room(inner) && !is_unsendable(sk, inner) && timeout &&
	       !signal_pending(current))
		timeout = wait_woken(&wait, TASK_INTERRUPTIBLE, timeout);
	remove_wait_queue(sk_sleep(sk), &wait);
	return timeout;
}

/**
 * push() - Have vsock send what it didn't at once
 * @sk:		Outer socket
 * @inner:	Inner one
 * @msg:	What to send
 * @len:	Bytes of it
 * @sent:	What vsock returned
 * @timeout:	To wait for room, jiffies
 *
 * Returns: bytes sent, or a negated errno
 */
static noinline int push(struct sock *sk, struct inner *inner,
			 struct msghdr *msg, size_t len, int sent, long timeout)
{
	size_t done = 0;

	for (;;) {
		if (sent < 0 && sent != -EAGAIN)
			break;
		if (sent > 0)
			done += sent;
		if (done == len)
			break;
		if (is_unsendable(sk, inner)) {
			sent = -EPIPE;
			break;
		}
		if (!inner_has_room(inner)) {
			sent = timeout ? sock_intr_errno(timeout) : -EAGAIN;
			if (!timeout || signal_pending(current))
				break;
			timeout = await_room(sk, inner, timeout);
		}
		sent = inner->sock->ops->sendmsg(inner->sock, msg, len - done);
	}
	return done ?: sent;
}

/**
 * give() - Have vsock send
 * @sk:		Outer socket
 * @inner:	Inner one
 * @msg:	What to send
 * @len:	Bytes of it
 *
 * Returns: bytes sent, or a negated errno
 */
static inline int give(struct sock *sk, struct inner *inner, struct msghdr *msg,
		       size_t len)
{
	unsigned int flags = msg->msg_flags;
	int sent;

	msg->msg_name = NULL;
	msg->msg_namelen = 0;
	msg->msg_flags =
	    (flags & ~(MSG_ZEROCOPY | MSG_EOR)) | MSG_NOSIGNAL | MSG_DONTWAIT;
	sent = inner->sock->ops->sendmsg(inner->sock, msg, len);
	if (unlikely(sent != (int)len))
		sent = push(sk, inner, msg, len, sent,
			    sock_sndtimeo(sk, flags & MSG_DONTWAIT));
	credit_moved(inner, sent);
	msg->msg_flags = flags;
	return sent == -ENOTCONN || sent == -ECONNRESET ? -EPIPE : sent;
}

/**
 * tell() - Tell a program that asked for MSG_ZEROCOPY that bytes were copied
 * @told:	What tells it, on the socket's error queue; NULL: nothing
 * @sent:	Whether any were
 */
static void tell(struct ubuf_info *told, bool sent)
{
	if (told && sent) {
		uarg_to_msgzc(told)->zerocopy = 0;
		net_zcopy_put(told);
	} else {
		net_zcopy_put_abort(told, true);
	}
}

/**
 * deliver() - sendmsg() of a socket that has an inner one
 * @sk:		Outer socket
 * @inner:	Inner one
 * @msg:	What to send
 * @len:	Bytes of it
 *
 * Returns: bytes sent, or a negated errno
 */
static noinline int deliver(struct sock *sk, struct inner *inner,
			    struct msghdr *msg, size_t len)
{
	unsigned int flags = msg->msg_flags;
	struct ubuf_info *told = NULL;
	int sent = 0;

	if ((flags & MSG_ZEROCOPY) && len && !msg->msg_ubuf &&
	    sock_flag(sk, SOCK_ZEROCOPY)) {
		told = zerocopy_begin(sk, len);
		sent = told ? 0 : -ENOBUFS;
	}
	if (!sent)
		sent = await_connection(sk, inner, flags);
	if (!sent && is_unsendable(sk, inner))
		sent = -EPIPE;
	if (!sent && (flags & MSG_OOB))
		sent = -EOPNOTSUPP;
	if (!sent)
		sent = give(sk, inner, msg, len);
	tell(told, sent > 0);
	return sent;
}

/**
 * tsi_sendmsg() - send(), write(), and all that ends there
 * @sock:	Socket
 * @msg:	What to send; an address in it is ignored, as TCP does
 * @len:	Bytes of it
 *
 * Returns: bytes sent, or a negated errno
 */
int tsi_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	unsigned int flags = msg->msg_flags;
	struct sock *sk = sock->sk;
	struct inner *inner = inner_get(sk);
	int sent;

	if (!inner || inner->phase == LISTENING) {
		inner_put(inner);
		return real_ops(sk)->sendmsg(sock, msg, len);
	}
	sent = likely(can_give(sk, inner, flags))
		   ? give(sk, inner, msg, len)
		   : deliver(sk, inner, msg, len);
	inner_put(inner);
	return sent == -EPIPE ? sk_stream_error(sk, flags, sent) : sent;
}

/* ---- receiving ---- */

/**
 * dequeue() - Take bytes although the program has ended this direction
 * @inner:	Connection
 * @msg:	Where to
 * @len:	How many at most
 * @flags:	Of the call
 *
 * Returns: how many, or a negated errno
 */
static int dequeue(struct inner *inner, struct msghdr *msg, size_t len,
		   int flags)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);
	int got = 0;

	lock_sock(&vsk->sk);
	if (vsk->transport)
		got = vsk->transport->stream_dequeue(vsk, msg, len,
						     flags & MSG_PEEK);
	release_sock(&vsk->sk);
	return got;
}

/**
 * discard() - Take bytes that nobody wants
 * @inner:	Connection
 * @len:	How many at most
 *
 * Returns: how many, or a negated errno
 */
static int discard(struct inner *inner, size_t len)
{
	struct msghdr msg = {};

	iov_iter_discard(&msg.msg_iter, READ, len);
	if (inner->outer->sk_shutdown & RCV_SHUTDOWN)
		return dequeue(inner, &msg, len, 0);
	return inner->sock->ops->recvmsg(inner->sock, &msg, len, MSG_DONTWAIT);
}

/**
 * pull() - Take bytes that are there
 * @inner:	Connection
 * @msg:	Where to
 * @len:	How many at most
 * @flags:	Of the call
 *
 * Returns: how many; 0: another thread was faster; or a negated errno
 */
static int pull(struct inner *inner, struct msghdr *msg, size_t len, int flags)
{
	int got;

	if ((flags & MSG_TRUNC) && (flags & MSG_PEEK))
		return min(len, held_bytes(inner, len));
	if (flags & MSG_TRUNC)
		got = discard(inner, len);
	else if (inner->outer->sk_shutdown & RCV_SHUTDOWN)
		got = dequeue(inner, msg, len, flags);
	else
		got = inner->sock->ops->recvmsg(
		    inner->sock, msg, len, (flags & MSG_PEEK) | MSG_DONTWAIT);
	return got == -EAGAIN || got == -ENOTCONN ? 0 : got;
}

/**
 * is_over() - Will nothing more come?
 * @sk:		Outer socket
 * @inner:	Inner one
 *
 * Returns: true if so
 */
static bool is_over(const struct sock *sk, const struct inner *inner)
{
	return READ_ONCE(sk->sk_err) || (held_over(inner) & RCV_SHUTDOWN) ||
	       READ_ONCE(inner->phase) == CLOSED;
}

/**
 * await_bytes() - Wait for bytes
 * @sk:		Outer socket
 * @inner:	Inner one
 * @want:	So many
 * @timeout:	At most so long, jiffies
 *
 * Returns: what is left of @timeout
 */
static long await_bytes(struct sock *sk, struct inner *inner, size_t want,
			long timeout)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);

	add_wait_queue(sk_sleep(sk), &wait);
	while (held_bytes(inner, want) < want && !is_over(sk, inner) &&
	       timeout && !signal_pending(current))
		timeout = wait_woken(&wait, TASK_INTERRUPTIBLE, timeout);
	remove_wait_queue(sk_sleep(sk), &wait);
	return timeout;
}

/**
 * end_of() - What a read without bytes returns
 * @sk:		Outer socket
 * @inner:	Inner one
 * @timeout:	What is left of it, jiffies
 *
 * Returns: 0: it is the end; or a negated errno
 */
static int end_of(struct sock *sk, const struct inner *inner, long timeout)
{
	int error = READ_ONCE(inner->ended) ? 0 : sock_error(sk);

	if (error || (held_over(inner) & RCV_SHUTDOWN))
		return error;
	if (READ_ONCE(inner->phase) == CLOSED)
		return -ENOTCONN;
	return timeout && signal_pending(current) ? sock_intr_errno(timeout)
						  : -EAGAIN;
}

/**
 * is_plain() - Does a call want what there is, and vsock say all of it?
 * @sk:		Outer socket
 * @inner:	Inner one
 * @len:	Bytes at most
 * @flags:	Of the call
 *
 * Returns: true if so
 */
static inline bool is_plain(const struct sock *sk, const struct inner *inner,
			    size_t len, int flags)
{
	return READ_ONCE(inner->phase) == ESTABLISHED && !(flags & ~PLAIN) &&
	       len && READ_ONCE(sk->sk_rcvlowat) <= 1 &&
	       !(READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN);
}

/**
 * plain() - A call that wants what there is
 * @sk:		Outer socket
 * @inner:	Inner one
 * @msg:	Where to
 * @len:	Bytes at most
 * @flags:	Of the call
 *
 * Returns: bytes received; 0: the end of one of the two; or a negated errno
 */
static inline int plain(const struct sock *sk, struct inner *inner,
			struct msghdr *msg, size_t len, int flags)
{
	struct sock *under = inner->sock->sk;

	if (READ_ONCE(under->sk_rcvtimeo) != sk->sk_rcvtimeo)
		WRITE_ONCE(under->sk_rcvtimeo, sk->sk_rcvtimeo);
	return inner->sock->ops->recvmsg(inner->sock, msg, len,
					 flags & MSG_DONTWAIT);
}

/**
 * receive() - recvmsg() of a socket that has an inner one
 * @sk:		Outer socket
 * @inner:	Inner one
 * @msg:	Where to
 * @len:	Bytes at most
 * @flags:	Of the call
 *
 * Returns: bytes received, or a negated errno
 */
static noinline int receive(struct sock *sk, struct inner *inner,
			    struct msghdr *msg, size_t len, int flags)
{
	long timeout = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	size_t target = sock_rcvlowat(sk, flags & MSG_WAITALL, len);
	size_t done = 0, want = flags & MSG_PEEK ? target : 1;
	int got;

	if (flags & MSG_OOB)
		return -EINVAL;
	for (;;) {
		size_t ready = held_bytes(inner, want);
		bool last =
		    is_over(sk, inner) || !timeout || signal_pending(current);

		if (ready && (ready >= want || last)) {
			got = pull(inner, msg, len - done, flags);
			if (got < 0)
				return done ?: got;
			done += got;
			if (done >= target || (flags & MSG_PEEK) || !len)
				return done;
			if (got)
				continue;
			last = is_over(sk, inner) || !timeout;
		}
		if (last)
			return done ?: end_of(sk, inner, timeout);
		timeout = await_bytes(sk, inner, want, timeout);
		if (!len)
			return 0; /* as TCP, whatever has ended the wait */
	}
}

/**
 * tsi_recvmsg() - recv(), read(), and all that ends there
 * @sock:	Socket
 * @msg:	Where to
 * @len:	Bytes at most
 * @flags:	Of the call
 *
 * Returns: bytes received, or a negated errno
 */
int tsi_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	struct sock *sk = sock->sk;
	struct inner *inner = inner_get(sk);
	int done = 0;

	if (!inner || inner->phase == LISTENING || (flags & MSG_ERRQUEUE)) {
		inner_put(inner);
		return real_ops(sk)->recvmsg(sock, msg, len, flags);
	}
	if (likely(is_plain(sk, inner, len, flags)))
		done = plain(sk, inner, msg, len, flags);
	if (!done || done == -ENOTCONN || (done < 0 && READ_ONCE(sk->sk_err)))
		done = receive(sk, inner, msg, len, flags);
	if (done >= 0)
		msg->msg_namelen = 0;
	if (!(flags & MSG_PEEK))
		credit_moved(inner, done);
	inner_put(inner);
	return done;
}

/**
 * tsi_splice_read() - splice() to a pipe
 * @sock:	Socket
 * @at:		Unused
 * @pipe:	Pipe
 * @len:	Bytes at most
 * @flags:	Of the call
 *
 * Returns: bytes, or a negated errno
 */
ssize_t tsi_splice_read(struct socket *sock, loff_t *at,
			struct pipe_inode_info *pipe, size_t len,
			unsigned int flags)
{
	struct inner *inner = inner_get(sock->sk);

	inner_put(inner);
	return inner ? real_splice_read(sock->file, at, pipe, len, flags)
		     : real_ops(sock->sk)->splice_read(sock, at, pipe, len,
						       flags);
}
