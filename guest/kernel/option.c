// SPDX-License-Identifier: GPL-2.0-only
/*
 * option.c - getsockopt() and setsockopt(): what programs use at every
 * connection
 */

#include <linux/in.h>
#include <linux/net.h>
#include <linux/tcp.h>
#include <linux/uaccess.h>
#include <net/af_vsock.h>

#include "tsi.h"

/**
 * option_get() - getsockopt(): an SO_ERROR that is 0 is most of them
 * @call:	The call
 * @sock:	Its socket, LABELLED
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
enum whose option_get(struct call *call, struct socket *sock, long *ret_answer)
{
	int __user *value = (void __user *)call->args[3];
	int __user *size = (void __user *)call->args[4];
	int room;

	if ((int)call->args[1] != SOL_SOCKET ||
	    (int)call->args[2] != SO_ERROR || READ_ONCE(sock->sk->sk_err))
		return AGENT;
	if (get_user(room, size) || room < (int)sizeof(*value))
		return AGENT;
	*ret_answer = 0;
	if (put_user(0, value) || put_user((int)sizeof(*value), size))
		*ret_answer = -EFAULT;
	return OURS;
}

/**
 * option_set() - setsockopt(): what TCP's clients and servers set is kept
 * @call:	The call
 * @sock:	Its socket, LABELLED
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
enum whose option_set(struct call *call, struct socket *sock, long *ret_answer)
{
	static const struct {
		int name, shift, bits, least;
	} options[] = {
#define ROW(name, shift, bits, usual, least) {name, shift, bits, least},
	    TSI_TCP_OPTIONS(ROW)
#undef ROW
	};
	struct vsock_sock *vsk = vsock_sk(sock->sk);
	int value, i;
	u64 mask;

	if ((int)call->args[1] != IPPROTO_TCP ||
	    (u32)call->args[4] < sizeof(value))
		return AGENT;
	for (i = 0; (int)call->args[2] != options[i].name; i++)
		if (i == ARRAY_SIZE(options) - 1)
			return AGENT;
	if (get_user(value, (int __user *)call->args[3]))
		return AGENT;
	if (options[i].bits == 1)
		value = !!value;
	else if (value < options[i].least || value >> options[i].bits)
		return AGENT; /* it knows the errno */
	mask = ((1ULL << options[i].bits) - 1) << options[i].shift;
	lock_sock(sock->sk);
	vsk->buffer_max_size &= ~mask;
	vsk->buffer_max_size |= (u64)value << options[i].shift;
	release_sock(sock->sk);
	*ret_answer = 0;
	return OURS;
}
