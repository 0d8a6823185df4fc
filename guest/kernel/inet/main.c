// SPDX-License-Identifier: GPL-2.0-only
/*
 * main.c - sockets that are TCP to the program and vsock underneath
 *
 * Theory of operation
 * ===================
 *
 * A TCP socket that a program makes is the kernel's own: its options, its port,
 * its connections inside the guest. It has our struct proto_ops in place of
 * inet_stream_ops; each of ours is the kernel's until connect() or listen()
 * leads out of the guest. Then a vsock socket is made beneath (inner.c), and
 * bytes are its. No descriptor is replaced and no system call is trapped, so
 * that it doesn't matter who calls, in what way, from which thread.
 *
 *	program ---- struct socket, tsi_ops ---- inet sock: options, port, guest
 *				|
 *				+--------------- vsock sock: bytes, host
 *
 * New sockets are found where struct proto has a function for just that, init,
 * which is called for each sock of a kind that a program or the kernel makes.
 * Ours calls the one that was there. Children of a TCP listener are no new
 * socks; they have their listener's operations. No function is called by an
 * address that was not taken to be called: all are pointers that the kernel
 * keeps for it.
 *
 * The module stays: a socket may be in the middle of init.
 */

#include <linux/module.h>
#include <linux/nsproxy.h>
#include <net/inet_common.h>
#include <net/net_namespace.h>
#include <net/tcp.h>

#include "inet.h"

static bool begun;
static bool enabled;

/**
 * set_enabled() - Write the parameter
 * @text:	What is written
 * @parameter:	It
 *
 * Who turns it on hears whether there is a way to the host.
 *
 * Returns: 0, or a negated errno
 */
static int set_enabled(const char *text, const struct kernel_param *parameter)
{
	int error = param_set_bool(text, parameter);

	if (!error && enabled && begun)
		error = control_open();
	return error;
}

static const struct kernel_param_ops enabled_ops = {
    .flags = KERNEL_PARAM_OPS_FL_NOARG,
    .set = set_enabled,
    .get = param_get_bool,
};
module_param_cb(enabled, &enabled_ops, &enabled, 0644);
MODULE_PARM_DESC(enabled, "whether new TCP sockets are ours");

static bool namespaces;
module_param(namespaces, bool, 0644);
MODULE_PARM_DESC(namespaces, "same, in network namespaces but the first");

/**
 * struct kind - TCP over IPv4, or over IPv6
 * @prot:	The kernel's
 * @real:	Its sockets' operations
 * @ops:	Ours
 * @init:	The kernel's function for a new sock
 */
struct kind {
	struct proto *prot;
	const struct proto_ops *real;
	struct proto_ops ops;
	int (*init)(struct sock *sk);
};

static struct kind v4, v6;

/**
 * real_ops() - The kernel's operations for a socket of ours
 * @sk:		Its sock
 *
 * Returns: the operations
 */
const struct proto_ops *real_ops(const struct sock *sk)
{
	return sk->sk_family == AF_INET6 ? v6.real : v4.real;
}

/**
 * begin() - A sock is made
 * @kind:	Its kind
 * @sk:		It
 *
 * Returns: 0, or a negated errno
 */
static int begin(const struct kind *kind, struct sock *sk)
{
	struct socket *sock = sk->sk_socket;
	int error = kind->init(sk);

	if (!error && READ_ONCE(enabled) && sock && sock->ops == kind->real &&
	    sk->sk_net_refcnt && sk->sk_protocol == IPPROTO_TCP &&
	    (READ_ONCE(namespaces) || net_eq(sock_net(sk), &init_net)))
		sock->ops = &kind->ops;
	return error;
}

static int begin_v4(struct sock *sk)
{
	return begin(&v4, sk);
}

static int begin_v6(struct sock *sk)
{
	return begin(&v6, sk);
}

/**
 * learn() - Learn of a kind, and have its socks begin with us
 * @kind:	Kind
 * @family:	AF_INET or AF_INET6
 * @init:	Ours
 *
 * Returns: 0, or a negated errno
 */
static int __init learn(struct kind *kind, int family,
			int (*init)(struct sock *sk))
{
	struct proto_ops *ops = &kind->ops;
	struct socket *sock;
	int error = sock_create_kern(&init_net, family, SOCK_STREAM,
				     IPPROTO_TCP, &sock);

	if (error)
		return error;
	kind->real = sock->ops;
	kind->prot = sock->sk->sk_prot;
	kind->init = kind->prot->init;
	sock_release(sock);

	*ops = *kind->real;
	ops->owner = THIS_MODULE;
	ops->release = tsi_release;
	ops->bind = tsi_bind;
	ops->connect = tsi_connect;
	ops->accept = tsi_accept;
	ops->getname = tsi_getname;
	ops->poll = tsi_poll;
	ops->ioctl = tsi_ioctl;
#ifdef CONFIG_COMPAT
	ops->compat_ioctl = tsi_compat_ioctl;
#endif
	ops->listen = tsi_listen;
	ops->shutdown = tsi_shutdown;
	ops->setsockopt = tsi_setsockopt;
	ops->getsockopt = tsi_getsockopt;
	ops->sendmsg = tsi_sendmsg;
	ops->recvmsg = tsi_recvmsg;
	ops->splice_read = tsi_splice_read;
#if !SINCE(6, 5)
	ops->sendpage = sock_no_sendpage;
#endif
	WRITE_ONCE(kind->prot->init, init);
	return 0;
}

static int __init tsi_init(void)
{
	int error = callers_begin();

	if (!error)
		error = inner_prepare();
	if (!error)
		error = datagrams_begin();
	if (!error)
		error = control_begin();
	if (!error)
		error = learn(&v4, AF_INET, begin_v4);
	if (!error && learn(&v6, AF_INET6, begin_v6))
		pr_info("tsi: no IPv6\n");
	begun = !error;
	return error;
}
module_init(tsi_init);

MODULE_DESCRIPTION("TCP sockets that are vsock underneath");
MODULE_LICENSE("GPL");
MODULE_SOFTDEP("pre: vmw_vsock_virtio_transport");
