// SPDX-License-Identifier: Apache-2.0
/*
 * receive.c - recvfrom(), recvmsg() and recvmmsg() of UDP sockets
 *
 * Theory of operation
 * ===================
 *
 * Trapped are those that ask for the address: the agent receives from the
 * program's socket into its own memory and copies, with the name of the peer in
 * its stand-in's place. A call that may block waits (blocked.c) until there is
 * something, or SO_RCVTIMEO is over; a datagram is lost if a signal takes the
 * call away in between.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/datagram.h"

static struct blocked_list waiters;

/**
 * tell_name() - Tell the program where a datagram has come from
 * @call:	Its call
 * @v6:		Its socket is of AF_INET6
 * @hdr:	Message as the program has it; its msg_namelen becomes the size
 * @sa:		As the kernel gave it
 * @len:	Bytes of it
 *
 * Returns: 0, or an errno
 */
static int tell_name(const struct call *call, bool v6, struct msghdr *hdr,
		     struct sockaddr_storage *sa, socklen_t len)
{
	bool from = call->nr == SYS_recvfrom;
	struct destination dst;
	int room = (int)hdr->msg_namelen;

	if (!hdr->msg_name)
		return 0;
	if (len && relay_stands_for(sa, &dst))
		len = (socklen_t)address_encode(v6, &dst, sa);
	if (from && target_read(call, call->args[5], &room, sizeof(room)))
		return EFAULT;
	if (room < 0)
		return EINVAL;
	hdr->msg_namelen = len;
	if (target_write(call, (uintptr_t)hdr->msg_name, sa,
			 MIN(len, (socklen_t)room)))
		return EFAULT;
	return from ? target_write(call, call->args[5], &len, sizeof(len)) : 0;
}

/**
 * receive_one() - Receive one message for the program
 * @call:	Its call
 * @fd:		Socket
 * @v6:		Of AF_INET6
 * @hdr:	Message, as the program has it; becomes as it is to be
 * @flags:	MSG_*
 *
 * Returns: what the call is to return, or a negated errno
 */
static int64_t receive_one(const struct call *call, int fd, bool v6,
			   struct msghdr *hdr, int flags)
{
	static uint8_t control[MAX_CONTROL];
	struct sockaddr_storage sa;
	struct iovec iov = {.iov_base = messages_data};
	struct msghdr ours = {
	    .msg_name = &sa,
	    .msg_namelen = sizeof(sa),
	    .msg_iov = &iov,
	    .msg_iovlen = 1,
	    .msg_control = control,
	    .msg_controllen = hdr->msg_control
				  ? MIN(hdr->msg_controllen, sizeof(control))
				  : 0,
	};
	size_t count, copied;
	ssize_t len;
	int error = messages_iov(call, hdr, &count);

	if (error)
		return -error;
	iov.iov_len = messages_room(count);
	len = recvmsg(fd, &ours, flags | MSG_DONTWAIT);
	if (len < 0)
		return -errno;
	error = messages_copy(call, count, MIN((size_t)len, iov.iov_len), true,
			      &copied);
	if (!error)
		error = tell_name(call, v6, hdr, &sa, ours.msg_namelen);
	if (!error)
		error = target_write(call, (uintptr_t)hdr->msg_control, control,
				     ours.msg_controllen);
	hdr->msg_controllen = ours.msg_controllen;
	hdr->msg_flags = ours.msg_flags;
	return error ? -error : len;
}

/**
 * receive_all() - Receive what a call asks for, as far as it is there
 * @call:	The call, with its messages_here in messages_here[]
 * @fd:		Socket
 * @v6:		Of AF_INET6
 * @count:	Messages in messages_here[]
 *
 * recvmmsg() gets what is there and waits for the first only.
 *
 * Returns: what the call is to return, or a negated errno
 */
static int64_t receive_all(const struct call *call, int fd, bool v6,
			   unsigned count)
{
	bool many = call->nr == SYS_recvmmsg;
	bool from = call->nr == SYS_recvfrom;
	int flags = (int)call->args[from || many ? 3 : 2] & ~MSG_WAITFORONE;
	size_t size = many ? sizeof(messages_here[0]) : sizeof(struct msghdr);

	for (unsigned i = 0; i < count; i++) {
		struct mmsghdr *msg = &messages_here[i];
		int64_t len = receive_one(call, fd, v6, &msg->msg_hdr, flags);

		if (len < 0)
			return i ? (int64_t)i : len;
		msg->msg_len = (unsigned)len;
		if (!from &&
		    target_write(call, call->args[1] + i * size, msg, size))
			return -EFAULT;
		if (!many)
			return len;
	}
	return count;
}

/**
 * waiter_ready() - Something came for a waiting call, or another took it
 * @source:	The waiter's
 * @events:	Unused: receiving tells
 */
static void waiter_ready(struct source *source, uint32_t events)
{
	struct blocked *waiter = (struct blocked *)source;
	int64_t got = -EAGAIN;
	unsigned count;
	bool v6;

	(void)events;
	if (notify_valid(waiter->call.id)) {
		count = messages_read(&waiter->call);
		if (!datagram_is_udp(waiter->fd, &v6) || !count)
			got = -EFAULT; /* it is another's memory now */
		else
			got = receive_all(&waiter->call, waiter->fd, v6, count);
		if (got == -EAGAIN)
			return;
		reply_value(waiter->call.id, got);
	}
	blocked_free(waiter);
}

/**
 * receive_trapped() - recvfrom(), recvmsg(), recvmmsg()
 * @call:	The call
 */
void receive_trapped(const struct call *call)
{
	unsigned count = messages_read(call);
	bool v6;
	int fd = count ? datagram_socket(call, &v6) : -1;
	int flags = (int)call->args[call->nr == SYS_recvmsg ? 2 : 3];
	int64_t got;

	if (fd < 0) {
		reply_native(call->id);
		return;
	}
	got = receive_all(call, fd, v6, count);
	if (got == -EAGAIN && !(flags & (MSG_DONTWAIT | MSG_ERRQUEUE)) &&
	    !sock_is_nonblocking(fd)) {
		/* Edges: what stays pending may not be what it is after */
		blocked_add(&waiters, call, fd, EPOLLIN | EPOLLET,
			    waiter_ready);
		return;
	}
	close(fd);
	reply_value(call->id, got);
}

/**
 * receive_drop_stale() - Let go of calls that were interrupted or are over
 *
 * Before a bind(), too: what a process that was killed has left waiting here
 * would keep its port.
 */
void receive_drop_stale(void)
{
	blocked_drop_stale(&waiters);
}

/**
 * receive_tick() - Look at all waiting calls if it is time to
 */
void receive_tick(void)
{
	blocked_tick(&waiters);
}

/**
 * receive_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int receive_timeout_ms(void)
{
	return blocked_timeout_ms(&waiters);
}
