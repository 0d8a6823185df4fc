// SPDX-License-Identifier: GPL-2.0-only
/*
 * stock.c - an inner socket that is made before it is needed
 *
 * Theory of operation
 * ===================
 *
 * To make one takes a fifth of what connect() takes, before the host is asked.
 * So who closes a connection makes one for the next, which is there already
 * when it is wanted. There is one for each CPU, bound to a port that was chosen
 * for it; sockets that are bound themselves get one made for them.
 */

#include <linux/percpu.h>
#include <net/inet_sock.h>
#include <net/ip.h>
#include <net/net_namespace.h>

#include "inet.h"

static DEFINE_PER_CPU(struct inner *, stock);

/**
 * low_half() - A port to show for a socket that isn't bound
 * @net:	Whose range of ports
 *
 * Returns: one that TCP would choose, in turn
 */
static u16 low_half(struct net *net)
{
	static atomic_t next;
	int low, high;

	inet_get_local_port_range(net, &low, &high);
	return low + (u32)atomic_inc_return(&next) % (high - low + 1);
}

/**
 * make() - Make one that only has to be told where to connect to
 * @low:	Lower half of its port
 * @ret_inner:	Set to it
 *
 * Returns: 0, or a negated errno
 */
static int make(u16 low, struct inner **ret_inner)
{
	struct inner *inner;
	int error = inner_make(&inner);

	if (error)
		return error;
	error = inner_bind(inner, low);
	if (!error)
		error = inner_aim(inner);
	if (error)
		inner_put(inner);
	else
		*ret_inner = inner;
	return error;
}

/**
 * stock_take() - Get one that only has to be told where to connect to
 * @sk:		The inet socket that it is for
 * @ret_inner:	Set to it; whoever holds it puts it
 *
 * Returns: 0, or a negated errno
 */
int stock_take(const struct sock *sk, struct inner **ret_inner)
{
	u16 port = inet_sk(sk)->inet_num;

	if (!port && net_eq(sock_net(sk), &init_net)) {
		*ret_inner = this_cpu_xchg(stock, NULL);
		if (*ret_inner)
			return 0;
	}
	return make(port ?: low_half(sock_net(sk)), ret_inner);
}

/**
 * stock_fill() - Make the next one
 */
void stock_fill(void)
{
	struct inner *inner;

	if (this_cpu_read(stock) || make(low_half(&init_net), &inner))
		return;
	inner_put(this_cpu_xchg(stock, inner)); /* of who was faster */
}
