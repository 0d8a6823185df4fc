// SPDX-License-Identifier: Apache-2.0
/*
 * send.c - sendto(), sendmsg() and sendmmsg() of UDP sockets to outside
 *
 * Theory of operation
 * ===================
 *
 * The agent sends the same data from the program's socket to the stand-in of
 * the address (relay.c), after the host has said, once for each peer, that this
 * peer isn't denied. Until then the call waits (later.c), and nobody else.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/datagram.h"

#define MAX_NAME      sizeof(struct sockaddr_storage)
#define SEND_ATTEMPTS 4
#define VERDICT_MS    1000 /* for the host to judge a peer */

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
 * emit() - Send a message from the program's socket
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
 * may_go() - Is a datagram to a peer carried?
 * @call:	Its call
 * @peer:	Number of the peer
 * @first:	Nothing of the call's was sent yet
 *
 * Returns: 0, or an errno; EINPROGRESS: that isn't known yet, and the call is
 *	made anew when it is
 */
static int may_go(const struct call *call, uint32_t peer, bool first)
{
	int error = peers_verdict(peer, later_is_again(call));

	if (error != EINPROGRESS || !first ||
	    later_keep(call, peer, VERDICT_MS))
		return error;
	return 0; /* a slow host judges what it gets */
}

/**
 * send_one() - Send one message of the program's
 * @call:	Its call
 * @fd:		Socket; may become another
 * @v6:		Of AF_INET6
 * @hdr:	Message, as the program has it
 * @flags:	MSG_*
 * @first:	It is the call's first
 *
 * Returns: bytes, or a negated errno; -ENOTSUP: the kernel can send it as it
 *	is; -EINPROGRESS: see may_go()
 */
static int64_t send_one(const struct call *call, int *fd, bool v6,
			const struct msghdr *hdr, int flags, bool first)
{
	static uint8_t control[MAX_CONTROL];
	struct sockaddr_storage sa = {0}, to;
	struct iovec iov = {.iov_base = messages_data};
	struct msghdr ours = {
	    .msg_name = &to, .msg_iov = &iov, .msg_iovlen = 1};
	size_t len = MIN(hdr->msg_namelen, MAX_NAME), count;
	struct destination dst;
	uint32_t peer;
	int error;

	if (!hdr->msg_name ||
	    target_read(call, (uintptr_t)hdr->msg_name, &sa, len) ||
	    !address_decode(&sa, len, &dst) || !dst.port ||
	    (sa.ss_family == AF_INET6 && !v6) || datagram_is_inside(call, &dst))
		return -ENOTSUP;
	error = messages_iov(call, hdr, &count);
	if (!error)
		error = messages_copy(call, count, sizeof(messages_data), false,
				      &iov.iov_len);
	if (!error && hdr->msg_controllen && hdr->msg_control) {
		len = MIN(hdr->msg_controllen, sizeof(control));
		error = target_read(call, (uintptr_t)hdr->msg_control, control,
				    len);
		ours.msg_control = control;
		ours.msg_controllen = keep_udp(control, len);
	}
	if (!error)
		error = datagram_point_outside(call, fd, v6, &dst, &peer, &to,
					       &ours.msg_namelen);
	if (error == EINPROGRESS &&
	    (!first || !later_keep(call, STREAM_KEY, HELLO_MS)))
		error = ENETUNREACH;
	if (!error && dst.port != DNS_PORT)
		error = may_go(call, peer, first);
	return error ? -error : emit(*fd, &ours, flags);
}

/**
 * send_many() - sendmmsg()
 * @call:	The call
 * @fd:		Socket; may become another
 * @v6:		Of AF_INET6
 * @count:	Messages in messages_here[]
 *
 * Returns: how many were sent, or a negated errno; -ENOTSUP: as send_one()
 */
static int64_t send_many(const struct call *call, int *fd, bool v6,
			 unsigned count)
{
	unsigned i;

	for (i = 0; i < count; i++) {
		const struct msghdr *hdr = &messages_here[i].msg_hdr;
		uint64_t at = call->args[1] + i * sizeof(messages_here[0]) +
			      offsetof(struct mmsghdr, msg_len);
		int64_t sent =
		    send_one(call, fd, v6, hdr, (int)call->args[3], i == 0);

		/* After one for outside, one for inside is the next call's */
		if (sent < 0)
			return i ? (int64_t)i : sent;
		messages_here[i].msg_len = (unsigned)sent;
		if (target_write(call, at, &messages_here[i].msg_len,
				 sizeof(messages_here[i].msg_len)))
			return i ? (int64_t)i : -EFAULT;
	}
	return i;
}

/**
 * send_trapped() - sendto(), sendmsg(), sendmmsg()
 * @call:	The call
 */
void send_trapped(const struct call *call)
{
	unsigned count = messages_read(call);
	int64_t sent = -ENOTSUP;
	bool v6;
	int fd = count ? datagram_socket(call, &v6) : -1;

	if (fd >= 0) {
		int flags = (int)call->args[call->nr == SYS_sendto ? 3 : 2];

		sent = call->nr == SYS_sendmmsg
			   ? send_many(call, &fd, v6, count)
			   : send_one(call, &fd, v6, &messages_here[0].msg_hdr,
				      flags, true);
		close(fd);
	}
	if (sent == -ENOTSUP)
		reply_native(call->id);
	else if (sent != -EINPROGRESS)
		reply_value(call->id, sent);
}
