// SPDX-License-Identifier: GPL-2.0-only
/*
 * accept.c - accept() and accept4(): who the client is
 */

#include <linux/fdtable.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/net.h>
#include <net/af_vsock.h>
#include <net/ipv6.h>

#include "tsi.h"

/**
 * show_client() - Write the address of the client that was accepted
 * @num:	Descriptor of the connection
 * @address:	Where to; it has the vsock address now
 * @size:	Where its size goes
 * @room:	How much room there is for it
 *
 * Returns: 0, or -EFAULT
 */
static int show_client(int num, void __user *address, int __user *size,
		       int room)
{
	const struct caller *named;
	struct caller caller = {};
	struct vsock_sock *vsk;
	struct socket *sock;
	u32 port, named_by;
	bool ours, v6;
	int error;

	sock = sockfd_lookup(num, &error);
	if (!sock)
		return 0; /* another thread has closed it */
	ours = kind_of(sock) == LABELLED;
	if (ours) {
		vsk = vsock_sk(sock->sk);
		port = vsk->remote_addr.svm_port;
		v6 = vsk->buffer_max_size & LABEL_V6;
		named_by = port;
		/* of the guest itself, which may bind what it likes */
		if (vsk->remote_addr.svm_cid != VMADDR_CID_HOST &&
		    (port >> 16) - LOCAL_V4 > LOCAL_MAPPED - LOCAL_V4)
			named_by = LOCAL_V4 << 16;
	}
	sockfd_put(sock);
	if (!ours)
		return 0;
	named = shared_caller(named_by);
	if (named) {
		caller = *named;
	} else {
		caller.addr.sin6_family = v6 ? AF_INET6 : AF_INET;
		caller.size = v6 ? sizeof(struct sockaddr_in6)
				 : sizeof(struct sockaddr_in);
		if (v6)
			ipv6_addr_set_v4mapped(0, &caller.addr.sin6_addr);
	}
	caller.addr.sin6_port = htons(port & 0xffff);
	room = min_t(u32, room, min_t(u32, caller.size, sizeof(caller.addr)));
	if (copy_to_user(address, &caller.addr, room) ||
	    put_user((int)caller.size, size))
		return -EFAULT;
	return 0;
}

/**
 * accept_client() - accept() and accept4(): the kernel's, but for the address
 * @call:	The call
 * @sock:	Its socket, LABELLED
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
enum whose accept_client(struct call *call, struct socket *sock,
			 long *ret_answer)
{
	void __user *address = (void __user *)call->args[1];
	int __user *size = (void __user *)call->args[2];
	int room;

	if (!address || get_user(room, size) || room < 0)
		return KERNEL;
	*ret_answer = call->hook->kernels(call->regs);
	if (*ret_answer >= 0 && show_client(*ret_answer, address, size, room)) {
		close_fd(*ret_answer);
		*ret_answer = -EFAULT;
	}
	return OURS;
}
