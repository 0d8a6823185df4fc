// SPDX-License-Identifier: Apache-2.0
/*
 * datagram.c - UDP sockets whose peers are outside the guest
 *
 * Theory of operation
 * ===================
 *
 * A UDP socket is the guest's own; relay.c says how its datagrams get out.
 * Trapped is what names an address, and here the name that the program uses is
 * exchanged for the stand-in's and back:
 *
 * - connect() connects the program's socket to the stand-in. From then on
 *   send(), recv(), read() and write() need nobody.
 * - sendto(), sendmsg() and sendmmsg() with an address: the agent sends the
 *   same data from the program's socket to the stand-in, after the host has
 *   said, once for each peer, that this peer isn't denied.
 * - recvfrom(), recvmsg() and recvmmsg() that ask for the address: the agent
 *   receives from the program's socket into its own memory and copies. A call
 *   that may block waits (blocked.c) until there is something, or SO_RCVTIMEO
 *   is over; a datagram is lost if a signal takes the call away in between.
 * - getpeername() and getsockname() of a connected socket.
 *
 * Addresses inside the guest pass as they are, and sends to them go on
 * natively.
 *
 * A socket of another network namespace reaches nobody outside: its loopback
 * isn't ours. It is exchanged for one of ours when it is first pointed outside.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tsi.h"

#define MAX_DATA      65536 /* no datagram is larger */
#define MAX_CONTROL   4096
#define MAX_NAME      sizeof(struct sockaddr_storage)
#define MAX_MESSAGES  64 /* of one sendmmsg() or recvmmsg() */
#define DNS_PORT      53 /* is carried whatever the policy */
#define SEND_ATTEMPTS 4

static struct blocked_list waiters;
static uint8_t data[MAX_DATA];
static struct mmsghdr messages[MAX_MESSAGES];
static struct iovec iovs[UIO_MAXIOV];

/* ---- sockets ---- */

/**
 * int_option() - An option of SOL_SOCKET
 * @fd:		Any file
 * @name:	Option
 *
 * Returns: its value, -1 if there is none
 */
static int int_option(int fd, int name)
{
	int value;
	socklen_t len = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, name, &value, &len) ? -1 : value;
}

/**
 * is_udp() - Is this a UDP socket?
 * @fd:		Any file
 * @ret_v6:	Of AF_INET6
 *
 * Returns: true if it is
 */
static bool is_udp(int fd, bool *ret_v6)
{
	if (int_option(fd, SO_PROTOCOL) != IPPROTO_UDP)
		return false;
	*ret_v6 = int_option(fd, SO_DOMAIN) == AF_INET6;
	return true;
}

/**
 * udp_of() - Is the call about a UDP socket?
 * @call:	Call whose first argument is a descriptor
 * @ret_v6:	Of AF_INET6
 *
 * Returns: the socket, the caller's to close; -1 if it isn't
 */
static int udp_of(const struct call *call, bool *ret_v6)
{
	int fd = target_fd(call, (int)call->args[0]);

	if (fd < 0)
		return -1;
	if (is_udp(fd, ret_v6) && notify_valid(call->id))
		return fd;
	close(fd);
	return -1;
}

/**
 * has_route() - Would a pod reach this endpoint, as far as families go?
 * @dst:	Endpoint
 *
 * Returns: true if the pod has an address of the family; DNS needs none
 */
static bool has_route(const struct destination *dst)
{
	return dst->port == DNS_PORT ||
	       control_has_family(IN6_IS_ADDR_V4MAPPED(&dst->address));
}

/**
 * point_outside() - Find what to send to instead of an endpoint outside
 * @call:	The call
 * @fd:		In: the program's UDP socket. Out: perhaps another, in its place
 * @v6:		Of AF_INET6
 * @dst:	Endpoint
 * @ret_peer:	Its number
 * @ret_sa:	What to send to
 * @ret_len:	Its size
 *
 * Returns: 0, or an errno
 */
static int point_outside(const struct call *call, int *fd, bool v6,
			 const struct destination *dst, uint32_t *ret_peer,
			 struct sockaddr_storage *ret_sa, socklen_t *ret_len)
{
	const int no = 0;
	struct destination stand_in;
	struct sockaddr_storage sa = {0};
	struct sockaddr_in name;
	int error;

	if (!has_route(dst))
		return ENETUNREACH;
	error = relay_stand_in(dst, ret_peer, &name);
	if (!error && !relay_is_here(*fd))
		error = swap_to_our_netns(call, (int)call->args[0], fd);
	if (error)
		return error;
	/* Our stand-ins are of IPv4; a socket that is bound keeps what it has
	 */
	if (v6)
		setsockopt(*fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
	memcpy(&sa, &name, sizeof(name));
	address_decode(&sa, sizeof(name), &stand_in);
	*ret_len = (socklen_t)address_encode(v6, &stand_in, ret_sa);
	return 0;
}

/* ---- connect() and names ---- */

/**
 * datagram_connect() - connect() to an endpoint outside
 * @call:	The call
 * @fd:		Socket, which the caller closes
 * @sa:		Address
 * @dst:	Same
 *
 * Asks nobody: resolvers connect UDP sockets just to see which source address
 * they get (RFC 6724).
 *
 * Returns: false if it is no UDP socket, or not for us: nothing is done
 */
bool datagram_connect(const struct call *call, int fd,
		      const struct sockaddr_storage *sa,
		      const struct destination *dst)
{
	struct sockaddr_storage to;
	socklen_t len;
	uint32_t peer;
	bool v6;
	int error, own;

	if (!is_udp(fd, &v6) || (sa->ss_family == AF_INET6 && !v6))
		return false;
	own = dup(fd);
	error = own < 0 ? errno : 0;
	if (!error)
		error = point_outside(call, &own, v6, dst, &peer, &to, &len);
	if (!error && connect(own, (struct sockaddr *)&to, len))
		error = errno;
	if (own >= 0)
		close(own);
	reply_error(call->id, error);
	return true;
}

/**
 * datagram_name() - getpeername() and getsockname() of a UDP socket
 * @call:	The call
 * @ret_v6:	The socket is of AF_INET6
 * @ret_name:	What is to be shown
 *
 * Returns: false if the kernel shows the right thing
 */
bool datagram_name(const struct call *call, bool *ret_v6,
		   struct destination *ret_name)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	struct destination peer, own;
	int fd = udp_of(call, ret_v6);
	bool outside;

	if (fd < 0)
		return false;
	outside = !getpeername(fd, (struct sockaddr *)&sa, &len) &&
		  relay_stands_for(&sa, &peer);
	if (outside && call->nr == SYS_getsockname) {
		len = sizeof(sa);
		outside = !getsockname(fd, (struct sockaddr *)&sa, &len) &&
			  address_decode(&sa, len, &own);
		if (outside)
			peer = (struct destination){
			    .port = own.port,
			    .address = control_pod_address(
				IN6_IS_ADDR_V4MAPPED(&peer.address)),
			};
	}
	close(fd);
	if (outside)
		*ret_name = peer;
	return outside;
}

/* ---- messages ---- */

/**
 * read_messages() - Copy the messages that a call names
 * @call:	Send or receive call
 *
 * Returns: how many are in messages[]; 0: none that could have an address
 */
static unsigned read_messages(const struct call *call)
{
	unsigned count = 1;
	bool named = false;

	messages[0] = (struct mmsghdr){0};
	switch (call->nr) {
	case SYS_sendmsg:
	case SYS_recvmsg:
		if (target_read(call, call->args[1], &messages[0].msg_hdr,
				sizeof(messages[0].msg_hdr)))
			return 0;
		break;
	case SYS_sendmmsg:
	case SYS_recvmmsg:
		count = MIN((unsigned)call->args[2], MAX_MESSAGES);
		if (target_read(call, call->args[1], messages,
				count * sizeof(messages[0])))
			return 0;
		break;
	case SYS_recvfrom:
		messages[0].msg_hdr.msg_name = (void *)call->args[4];
		break;
	default: /* sendto() */
		messages[0].msg_hdr.msg_name = (void *)call->args[4];
		messages[0].msg_hdr.msg_namelen = (socklen_t)call->args[5];
		break;
	}
	for (unsigned i = 0; i < count; i++)
		named |= messages[i].msg_hdr.msg_name != NULL;
	return named ? count : 0;
}

/**
 * read_iov() - Copy where a message's data is
 * @call:	Send or receive call
 * @hdr:	Message
 * @ret_count:	Entries that are in iovs[]
 *
 * Returns: 0, or an errno
 */
static int read_iov(const struct call *call, const struct msghdr *hdr,
		    size_t *ret_count)
{
	if (call->nr == SYS_sendto || call->nr == SYS_recvfrom) {
		iovs[0] = (struct iovec){.iov_base = (void *)call->args[1],
					 .iov_len = call->args[2]};
		*ret_count = 1;
		return 0;
	}
	if (hdr->msg_iovlen > UIO_MAXIOV)
		return EMSGSIZE;
	*ret_count = hdr->msg_iovlen;
	return target_read(call, (uintptr_t)hdr->msg_iov, iovs,
			   hdr->msg_iovlen * sizeof(iovs[0]));
}

/**
 * copy() - Copy a message's data from or to the program
 * @call:	Its call
 * @count:	Entries in iovs[]
 * @len:	At most so many bytes
 * @out:	To it
 * @ret_len:	Bytes that were copied
 *
 * Returns: 0, or EFAULT
 */
static int copy(const struct call *call, size_t count, size_t len, bool out,
		size_t *ret_len)
{
	size_t done = 0;
	int error = 0;

	for (size_t i = 0; i < count && done < len && !error; i++) {
		uint64_t addr = (uintptr_t)iovs[i].iov_base;
		size_t part = MIN(iovs[i].iov_len, len - done);

		if (part)
			error =
			    out ? target_write(call, addr, data + done, part)
				: target_read(call, addr, data + done, part);
		done += part;
	}
	*ret_len = done;
	return error;
}

/**
 * room_in() - Bytes that iovs[] names
 * @count:	Entries
 *
 * Returns: bytes, at most MAX_DATA
 */
static size_t room_in(size_t count)
{
	size_t room = 0;

	for (size_t i = 0; i < count; i++)
		room += MIN(iovs[i].iov_len, MAX_DATA - room);
	return room;
}

/* ---- sending ---- */

/**
 * keep_udp() - Drop the control messages that aren't of UDP itself
 * @control:	Control messages
 * @len:	Bytes of them
 *
 * A source address or an interface (IP_PKTINFO) is one of the pod's, which the
 * guest hasn't got.
 *
 * Returns: bytes that are left
 */
static size_t keep_udp(uint8_t *control, size_t len)
{
	size_t kept = 0;
	struct cmsghdr header;

	for (size_t at = 0; len - at >= sizeof(header);) {
		size_t part;

		memcpy(&header, control + at, sizeof(header));
		if (header.cmsg_len < sizeof(header) ||
		    header.cmsg_len > len - at)
			break;
		part = MIN(CMSG_ALIGN(header.cmsg_len), len - at);
		if (header.cmsg_level == SOL_UDP) {
			memmove(control + kept, control + at, part);
			kept += part;
		}
		at += part;
	}
	return kept;
}

/**
 * emit() - Send data[] from the program's socket
 * @fd:		Socket
 * @hdr:	Message, ours
 * @flags:	MSG_*
 *
 * What the program sends counts against its socket until the relay has it, and
 * that is us: so a full socket is emptied here.
 *
 * Returns: bytes, or a negated errno
 */
static int64_t emit(int fd, const struct msghdr *hdr, int flags)
{
	ssize_t sent = -1;

	flags |= MSG_DONTWAIT | MSG_NOSIGNAL;
	for (int i = 0; i < SEND_ATTEMPTS; i++) {
		sent = sendmsg(fd, hdr, flags);
		if (sent >= 0 || errno != EAGAIN)
			break;
		relay_drain();
	}
	return sent < 0 ? -errno : sent;
}

/**
 * send_one() - Send one message of the program's
 * @call:	Its call
 * @fd:		Socket; may become another
 * @v6:		Of AF_INET6
 * @hdr:	Message, as the program has it
 * @flags:	MSG_*
 *
 * Returns: bytes, or a negated errno; -ENOTSUP: the kernel can send it as it is
 */
static int64_t send_one(const struct call *call, int *fd, bool v6,
			const struct msghdr *hdr, int flags)
{
	static uint8_t control[MAX_CONTROL];
	struct sockaddr_storage sa = {0}, to;
	struct iovec iov = {.iov_base = data};
	struct msghdr ours = {
	    .msg_name = &to, .msg_iov = &iov, .msg_iovlen = 1};
	size_t len = MIN(hdr->msg_namelen, MAX_NAME), count;
	struct destination dst;
	uint32_t peer;
	int error;

	if (!hdr->msg_name ||
	    target_read(call, (uintptr_t)hdr->msg_name, &sa, len) ||
	    !address_decode(&sa, len, &dst) || address_is_native(&dst) ||
	    !dst.port || (sa.ss_family == AF_INET6 && !v6))
		return -ENOTSUP;
	error = read_iov(call, hdr, &count);
	if (!error)
		error = copy(call, count, sizeof(data), false, &iov.iov_len);
	if (!error && hdr->msg_controllen && hdr->msg_control) {
		len = MIN(hdr->msg_controllen, sizeof(control));
		error = target_read(call, (uintptr_t)hdr->msg_control, control,
				    len);
		ours.msg_control = control;
		ours.msg_controllen = keep_udp(control, len);
	}
	if (!error)
		error = point_outside(call, fd, v6, &dst, &peer, &to,
				      &ours.msg_namelen);
	if (!error && dst.port != DNS_PORT)
		error = peers_verdict(peer);
	return error ? -error : emit(*fd, &ours, flags);
}

/**
 * send_many() - sendmmsg()
 * @call:	The call
 * @fd:		Socket; may become another
 * @v6:		Of AF_INET6
 * @count:	Messages in messages[]
 *
 * Returns: how many were sent, or a negated errno; -ENOTSUP: as send_one()
 */
static int64_t send_many(const struct call *call, int *fd, bool v6,
			 unsigned count)
{
	unsigned i;

	for (i = 0; i < count; i++) {
		const struct msghdr *hdr = &messages[i].msg_hdr;
		uint64_t at = call->args[1] + i * sizeof(messages[0]) +
			      offsetof(struct mmsghdr, msg_len);
		int64_t sent = send_one(call, fd, v6, hdr, (int)call->args[3]);

		/* After one for outside, one for inside is the next call's */
		if (sent < 0)
			return i ? (int64_t)i : sent;
		messages[i].msg_len = (unsigned)sent;
		if (target_write(call, at, &messages[i].msg_len,
				 sizeof(messages[i].msg_len)))
			return i ? (int64_t)i : -EFAULT;
	}
	return i;
}

/**
 * datagram_send_trapped() - sendto(), sendmsg(), sendmmsg()
 * @call:	The call
 */
void datagram_send_trapped(const struct call *call)
{
	unsigned count = read_messages(call);
	int64_t sent = -ENOTSUP;
	bool v6;
	int fd = count ? udp_of(call, &v6) : -1;

	if (fd >= 0) {
		int flags = (int)call->args[call->nr == SYS_sendto ? 3 : 2];

		sent =
		    call->nr == SYS_sendmmsg
			? send_many(call, &fd, v6, count)
			: send_one(call, &fd, v6, &messages[0].msg_hdr, flags);
		close(fd);
	}
	if (sent == -ENOTSUP)
		reply_native(call->id);
	else
		reply_value(call->id, sent);
}

/* ---- receiving ---- */

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
	struct iovec iov = {.iov_base = data};
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
	int error = read_iov(call, hdr, &count);

	if (error)
		return -error;
	iov.iov_len = room_in(count);
	len = recvmsg(fd, &ours, flags | MSG_DONTWAIT);
	if (len < 0)
		return -errno;
	error = copy(call, count, MIN((size_t)len, iov.iov_len), true, &copied);
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
 * @call:	The call, with its messages in messages[]
 * @fd:		Socket
 * @v6:		Of AF_INET6
 * @count:	Messages in messages[]
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
	size_t size = many ? sizeof(messages[0]) : sizeof(struct msghdr);

	for (unsigned i = 0; i < count; i++) {
		struct mmsghdr *msg = &messages[i];
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
		count = read_messages(&waiter->call);
		if (!is_udp(waiter->fd, &v6) || !count)
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
 * datagram_receive_trapped() - recvfrom(), recvmsg(), recvmmsg()
 * @call:	The call
 */
void datagram_receive_trapped(const struct call *call)
{
	unsigned count = read_messages(call);
	bool v6;
	int fd = count ? udp_of(call, &v6) : -1;
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
 * datagram_drop_stale() - Let go of calls that were interrupted or are over
 *
 * Before a bind(), too: what a process that was killed has left waiting here
 * would keep its port.
 */
void datagram_drop_stale(void)
{
	blocked_drop_stale(&waiters);
}

/**
 * datagram_tick() - Look at all waiting calls if it is time to
 */
void datagram_tick(void)
{
	blocked_tick(&waiters);
}

/**
 * datagram_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int datagram_timeout_ms(void)
{
	return blocked_timeout_ms(&waiters);
}
