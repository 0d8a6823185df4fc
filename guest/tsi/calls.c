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
#include <string.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tsi.h"

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
 * handle_socket() - socket(): hand out a vsock socket
 * @call:	The call
 */
static void handle_socket(const struct call *call)
{
	int type = (int)call->args[1];
	int fd = sock_create((int)call->args[0], type & SOCK_NONBLOCK);
	int error;

	if (fd < 0) { /* no vsock in this guest: be of no harm */
		reply_native(call->id);
		return;
	}
	error = reply_fd(call->id, fd, type & SOCK_CLOEXEC);
	close(fd);
	if (error)
		reply_error(call->id, error);
}

/**
 * handle_bind() - bind() and listen(): the socket is the guest's own
 * @call:	The call
 */
static void handle_bind(const struct call *call)
{
	uint64_t label;
	int fd = ours(call, &label);
	int error = 0;

	/* One that was connected before: vsock's EINVAL is TCP's, too */
	if (fd >= 0 && sock_local_port(fd) == NO_PORT)
		error = swap_to_inet(call, (int)call->args[0], fd, label);
	datagram_drop_stale();
	if (error)
		reply_error(call->id, error);
	else
		reply_native(call->id);
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
		    !v6 || (control_destination(sock_peer_port(fd), &peer) &&
			    IN6_IS_ADDR_V4MAPPED(&peer.address));

		name.port = (uint16_t)port; /* as the host's access log */
		name.address = control_pod_address(v4);
	}
	*ret_name = name;
}

/**
 * handle_name() - getsockname() and getpeername()
 * @call:	The call
 */
static void handle_name(const struct call *call)
{
	struct sockaddr_storage sa;
	struct destination name;
	uint64_t label;
	int fd = ours(call, &label);
	int error = 0, room;
	uint32_t token;
	size_t size;
	bool v6;

	if (fd < 0 && !datagram_name(call, &v6, &name)) {
		reply_native(call->id);
		return;
	}
	if (fd >= 0) {
		v6 = label & LABEL_V6;
		if (call->nr == SYS_getsockname) {
			local_name(fd, v6, &name);
		} else {
			token = sock_peer_port(fd);
			if (token == NO_PORT ||
			    !control_destination(token, &name))
				error = ENOTCONN;
		}
		close(fd);
	}
	if (!error && target_read(call, call->args[2], &room, sizeof(room)))
		error = EFAULT;
	if (!error && room < 0)
		error = EINVAL;
	if (!error) {
		size = address_encode(v6, &name, &sa);
		if (target_write(call, call->args[1], &sa,
				 MIN(size, (size_t)room)) ||
		    target_write(call, call->args[2], &(int){(int)size},
				 sizeof(int)))
			error = EFAULT;
	}
	reply_error(call->id, error);
}

/**
 * handle_ioctl() - ioctl(FIONREAD): how much could be read
 * @call:	The call
 *
 * A kernel that can't tell is asked with MSG_PEEK.
 */
static void handle_ioctl(const struct call *call)
{
	static char peeked[SOCK_BUFFER_BYTES];
	uint64_t label;
	int fd = ours(call, &label);
	ssize_t len;
	int value;

	if (fd < 0) {
		reply_native(call->id);
		return;
	}
	if (ioctl(fd, FIONREAD, &value)) {
		len = recv(fd, peeked, sizeof(peeked), MSG_PEEK | MSG_DONTWAIT);
		value = len > 0 ? (int)len : 0;
	}
	close(fd);
	reply_error(call->id,
		    target_write(call, call->args[2], &value, sizeof(value)));
}

/**
 * call_dispatch() - Answer a trapped call, now or later
 * @call:	The call
 */
void call_dispatch(const struct call *call)
{
	switch (call->nr) {
	case SYS_socket:
		handle_socket(call);
		break;
	case SYS_connect:
		connect_trapped(call);
		break;
	case SYS_bind:
	case SYS_listen:
		handle_bind(call);
		break;
	case SYS_getsockname:
	case SYS_getpeername:
		handle_name(call);
		break;
	case SYS_setsockopt:
		setsockopt_trapped(call);
		break;
	case SYS_getsockopt:
		getsockopt_trapped(call);
		break;
	case SYS_ioctl:
		handle_ioctl(call);
		break;
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
		datagram_send_trapped(call);
		break;
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
		datagram_receive_trapped(call);
		break;
	default: /* filter.c traps something that isn't handled here */
		reply_native(call->id);
		break;
	}
}
