// SPDX-License-Identifier: Apache-2.0
/*
 * calls.c - one handler per trapped system call, and who handles which
 *
 * Theory of operation
 * ===================
 *
 * Every handler looks whether the descriptor is one of our sockets (sock.c)
 * and lets the kernel go on if it isn't, or if anything about it can't be
 * told: a bad descriptor or address gives its errno there.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "agent/datagram.h"
#include "agent/socket/survey.h"
#include "agent/tsi.h"

/**
 * ours() - Is the call about one of our sockets?
 * @call:	Call whose first argument is a descriptor
 * @ret_label:	The socket's label
 *
 * Returns: the socket, the caller's to close; -1 if it isn't
 */
static int ours(const struct call *call, uint64_t *ret_label)
{
	int fd = target_fd(call, (int)call->args[0]);

	if (fd < 0)
		return -1;
	if (notify_valid(call->id) && sock_label(fd, ret_label))
		return fd;
	close(fd);
	return -1;
}

/**
 * socket_trapped() - socket(): hand out a vsock socket
 * @call:	The call
 */
static void socket_trapped(const struct call *call)
{
	int type = (int)call->args[1];
	int fd = sock_create((int)call->args[0], type & SOCK_NONBLOCK);

	if (fd < 0) /* no vsock in this guest: be of no harm */
		reply_native(call->id);
	else
		give(call, fd, type & SOCK_CLOEXEC, 0);
}

/**
 * allow_pod_address() - Let a TCP socket bind to the pod's address
 * @call:	bind(), its socket a TCP socket by now
 *
 * No interface has it where the agent may not give it to one.
 */
static void allow_pod_address(const struct call *call)
{
	size_t len =
	    MIN((size_t)(uint32_t)call->args[2], sizeof(struct sockaddr_in6));
	struct sockaddr_storage sa = {0};
	struct destination to;
	struct in6_addr own;
	bool v4;
	int fd;

	if (target_read(call, call->args[1], &sa, len) ||
	    !address_decode(&sa, len, &to))
		return;
	v4 = IN6_IS_ADDR_V4MAPPED(&to.address);
	own = control_pod_address(v4);
	if (address_is_native(&to) || !IN6_ARE_ADDR_EQUAL(&own, &to.address))
		return;
	fd = target_fd(call, (int)call->args[0]);
	if (fd < 0)
		return;
	setsockopt(fd, SOL_IP, IP_FREEBIND, &(int){1}, sizeof(int));
	close(fd);
}

/**
 * bind_trapped() - bind(): the socket is the guest's own, for now
 * @call:	The call
 */
static void bind_trapped(const struct call *call)
{
	uint64_t label;
	int fd = ours(call, &label);
	int error = 0;

	closings_reap();
	/* One that was connected before: vsock's EINVAL is TCP's, too */
	if (fd >= 0 && sock_local_port(fd) == NO_PORT)
		error = swap_to_inet(call, (int)call->args[0], fd, label);
	if (!error)
		allow_pod_address(call);
	receive_drop_stale();
	later_go_on(call, error);
	if (fd >= 0)
		close(fd);
}

/**
 * local_name() - What getsockname() shows
 * @fd:		One of our sockets
 * @v6:		For an AF_INET6 socket
 * @ret_name:	The pod's address of the peer's family, or nothing yet
 */
static void local_name(int fd, bool v6, struct destination *ret_name)
{
	struct destination name = {0}, peer;
	uint32_t port = sock_local_port(fd);

	if (port != NO_PORT) {
		bool v4 =
		    !v6 || (routes_destination(sock_peer_port(fd), &peer) &&
			    IN6_IS_ADDR_V4MAPPED(&peer.address));

		name.port = (uint16_t)port; /* as the host's access log */
		name.address = control_pod_address(v4);
	}
	*ret_name = name;
}

/**
 * tcp_name() - What getsockname() or getpeername() says of a socket of ours
 * @fd:		Socket
 * @label:	Its label
 * @local:	getsockname()
 * @ret_name:	Address and port
 *
 * Returns: 0, or ENOTCONN
 */
static int tcp_name(int fd, uint64_t label, bool local,
		    struct destination *ret_name)
{
	struct destination names[2];
	struct sockaddr_vm peer;
	int error = listeners_names(fd, label, &names[0], &names[1]);

	if (error != EOPNOTSUPP) {
		*ret_name = names[!local];
		return local ? 0 : error;
	}
	if (local) {
		local_name(fd, label & LABEL_V6, ret_name);
		return 0;
	}
	if (!sock_peer(fd, &peer) && !sock_half_closed_peer(fd, &peer))
		return ENOTCONN;
	return routes_destination(peer.svm_port, ret_name) ? 0 : ENOTCONN;
}

/**
 * name_trapped() - getsockname() and getpeername()
 * @call:	The call
 */
static void name_trapped(const struct call *call)
{
	bool local = call->nr == SYS_getsockname;
	struct destination name;
	uint64_t label;
	int fd = ours(call, &label);
	int error = 0, room;
	bool v6;

	if (fd < 0 && !datagram_name(call, &v6, &name)) {
		reply_native(call->id);
		return;
	}
	if (fd >= 0) {
		v6 = label & LABEL_V6;
		error = tcp_name(fd, label, local, &name);
		close(fd);
	}
	if (!error && target_read(call, call->args[2], &room, sizeof(room)))
		error = EFAULT;
	if (!error)
		error = answer_name(call, room, v6, &name);
	reply_error(call->id, error);
}

/**
 * count_bytes() - FIONREAD, and what is 0 if the kernel doesn't know
 * @fd:		One of our sockets
 * @request:	ioctl()
 *
 * A kernel that can't tell how much could be read is asked with MSG_PEEK. How
 * much is on its way to the host no kernel before 6.16 tells.
 *
 * Returns: the value
 */
static int count_bytes(int fd, uint32_t request)
{
	static char peeked[SOCK_BUFFER_BYTES];
	ssize_t len = 0;
	int value;

	if (ioctl(fd, request, &value) == 0)
		return value;
	if (request == FIONREAD)
		len = recv(fd, peeked, sizeof(peeked), MSG_PEEK | MSG_DONTWAIT);
	return len > 0 ? (int)len : 0;
}

/**
 * ioctl_trapped() - ioctl() about bytes, or about interfaces
 * @call:	The call
 *
 * A socket that asks about interfaces becomes one that can.
 */
static void ioctl_trapped(const struct call *call)
{
	uint32_t request = (uint32_t)call->args[1];
	uint64_t label;
	int fd = ours(call, &label);
	int value, error = 0;

	if (fd < 0) {
		reply_native(call->id);
		return;
	}
	switch (request) {
	case FIONREAD:
	case SIOCOUTQ:
	case SIOCOUTQNSD:
	case SIOCATMARK:
		value = count_bytes(fd, request);
		error = request != SIOCATMARK && sock_is_listening(fd)
			    ? EINVAL
			    : target_write(call, call->args[2], &value,
					   sizeof(value));
		reply_error(call->id, error);
		break;
	default:
		if (request >= SIOCADDRT && sock_local_port(fd) == NO_PORT)
			error =
			    swap_to_inet(call, (int)call->args[0], fd, label);
		later_go_on(call, error);
		break;
	}
	close(fd);
}

/**
 * epoll_create_trapped() - epoll_create() and epoll_create1()
 * @call:	The call
 */
static void epoll_create_trapped(const struct call *call)
{
	survey_expect_epoll(call);
	reply_native(call->id);
}

/**
 * wanted_bytes() - How much a recvfrom() or recvmsg() waits for
 * @call:	The call
 *
 * Returns: bytes; 0 if that can't be read
 */
static uint64_t wanted_bytes(const struct call *call)
{
	struct iovec parts[IOV_MAX];
	struct msghdr msg;
	uint64_t sum = 0;

	if (call->nr == SYS_recvfrom)
		return call->args[2];
	if (target_read(call, call->args[1], &msg, sizeof(msg)) ||
	    msg.msg_iovlen > IOV_MAX ||
	    target_read(call, (uintptr_t)msg.msg_iov, parts,
			msg.msg_iovlen * sizeof(parts[0])))
		return 0;
	for (size_t i = 0; i < msg.msg_iovlen; i++)
		sum += MIN(parts[i].iov_len, (size_t)UINT32_MAX);
	return sum;
}

/**
 * recv_trapped() - recv(MSG_WAITALL), or a datagram and its address
 * @call:	The call
 */
static void recv_trapped(const struct call *call)
{
	uint64_t flags = call->args[call->nr == SYS_recvmsg ? 2 : 3];
	uint64_t label, len = 0;
	int fd = -1;

	if (call->nr != SYS_recvmmsg && (flags & MSG_WAITALL))
		len = wanted_bytes(call);
	if (len >= LEAST_BYTES)
		fd = ours(call, &label);
	if (fd >= 0) {
		room_for(fd, len);
		close(fd);
		reply_native(call->id);
	} else {
		receive_trapped(call);
	}
}

/* What filter.c traps, and what answers it */
static void (*const handlers[])(const struct call *call) = {
    [SYS_socket] = socket_trapped,
    [SYS_connect] = connect_trapped,
    [SYS_accept] = accept_trapped,
    [SYS_accept4] = accept_trapped,
    [SYS_bind] = bind_trapped,
    [SYS_listen] = listen_trapped,
    [SYS_shutdown] = shutdown_trapped,
    [SYS_getsockname] = name_trapped,
    [SYS_getpeername] = name_trapped,
    [SYS_setsockopt] = setsockopt_trapped,
    [SYS_getsockopt] = getsockopt_trapped,
    [SYS_ioctl] = ioctl_trapped,
    [SYS_sendto] = send_trapped,
    [SYS_sendmsg] = send_trapped,
    [SYS_sendmmsg] = send_trapped,
    [SYS_recvfrom] = recv_trapped,
    [SYS_recvmsg] = recv_trapped,
    [SYS_recvmmsg] = recv_trapped,
    [SYS_epoll_create1] = epoll_create_trapped,
#ifdef SYS_epoll_create
    [SYS_epoll_create] = epoll_create_trapped,
#endif
};

/**
 * call_dispatch() - Answer a trapped call, now or later
 * @call:	The call
 */
void call_dispatch(const struct call *call)
{
	size_t nr = (size_t)call->nr;

	state_begin(call);
	give_before(call);
	if (nr < sizeof(handlers) / sizeof(handlers[0]) && handlers[nr])
		handlers[nr](call);
	else /* filter.c traps something that isn't handled here */
		reply_native(call->id);
	state_end();
}

/**
 * call_resume() - Handle a call that waited in the agent before this one
 * @call:	The call
 */
void call_resume(const struct call *call)
{
	wait_was_pending(call);
	call_dispatch(call);
}
