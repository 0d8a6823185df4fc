// SPDX-License-Identifier: GPL-2.0-only
/*
 * socket.c - socket(): vsock sockets that the agent would make
 */

#include <linux/file.h>
#include <linux/in.h>
#include <linux/net.h>
#include <net/af_vsock.h>

#include "tsi.h"

/**
 * socket_make() - socket(): make what the agent would make
 * @call:	The call
 * @unused:	There is no socket yet
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
enum whose socket_make(struct call *call, struct socket *unused,
		       long *ret_answer)
{
	int family = call->args[0], type = call->args[1];
	int protocol = call->args[2];
	int flags = type & (SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct tsi_shared *shared;
	struct vsock_sock *vsk;
	struct socket *sock;
	struct file *file;
	u32 timeout_s = 0;
	int fd;

	if ((family != AF_INET && family != AF_INET6) ||
	    (type ^ flags) != SOCK_STREAM ||
	    (protocol && protocol != IPPROTO_TCP))
		return KERNEL;
	fd = filter_instance(call);
	if (!fd)
		return KERNEL;
	rcu_read_lock();
	shared = shared_of(fd);
	if (shared)
		timeout_s = READ_ONCE(shared->connect_timeout_s);
	rcu_read_unlock();
	if (!timeout_s)
		return AGENT;

	if (__sock_create(&init_net, AF_VSOCK, SOCK_STREAM, 0, &sock, 0))
		return AGENT;
	vsk = vsock_sk(sock->sk);
	vsk->connect_timeout = min_t(u64, (u64)timeout_s * HZ, INT_MAX);
	vsk->buffer_max_size = LABEL_MARK | (family == AF_INET6 ? LABEL_V6 : 0);
	vsk->buffer_size = SOCK_BUFFER_BYTES;

	*ret_answer = fd = get_unused_fd_flags(flags & SOCK_CLOEXEC);
	if (fd < 0) {
		sock_release(sock);
		return OURS;
	}
	file = sock_alloc_file(sock, flags & SOCK_NONBLOCK, NULL);
	if (IS_ERR(file)) { /* the socket is released */
		put_unused_fd(fd);
		*ret_answer = PTR_ERR(file);
		return OURS;
	}
	fd_install(fd, file);
	return OURS;
}
