/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * compat.h - what differs among the kernels that tsi_inet is built for
 */
#ifndef INET_COMPAT_H
#define INET_COMPAT_H

#include <linux/bpf-cgroup.h>
#include <linux/net.h>
#include <linux/skbuff.h>
#include <linux/timer.h>
#include <linux/version.h>
#include <linux/virtio_vsock.h>
#include <net/inet_sock.h>

#if __has_include(<linux/hex.h>) /* from 6.8 on, and at first in kernel.h, too \
				  */
#include <linux/hex.h>
#endif

#if __has_include(<net/proto_memory.h>) /* in sock.h before 6.10 */
#include <net/proto_memory.h>
#endif

#define SINCE(major, minor)                                                    \
	(LINUX_VERSION_CODE >= KERNEL_VERSION(major, minor, 0))

/* What bind() and connect() take: of no size from 6.19 on */
#if SINCE(6, 19)
typedef struct sockaddr_unsized any_sockaddr;
#else
typedef struct sockaddr any_sockaddr;
#endif

/* accept()'s arguments */
#if SINCE(6, 10)
#define ACCEPT_ARGS    struct proto_accept_arg *arg
#define ACCEPT_PASS    arg
#define ACCEPT_FLAGS() (arg->flags)
#else
#define ACCEPT_ARGS    int flags, bool kern
#define ACCEPT_PASS    flags, kern
#define ACCEPT_FLAGS() (flags)
#endif

#if SINCE(6, 2)
#define del_timer      timer_delete
#define del_timer_sync timer_delete_sync
#endif

/**
 * real_accept() - accept(), as the kernel's own code wants to be called
 * @ops:	Whose
 * @sock:	Listener
 * @newsock:	Socket without a sock, for the connection
 * @nonblock:	Whether to fail in place of waiting
 *
 * Returns: 0, or a negated errno
 */
static inline int real_accept(const struct proto_ops *ops, struct socket *sock,
			      struct socket *newsock, bool nonblock)
{
	int flags = nonblock ? O_NONBLOCK : 0;
#if SINCE(6, 10)
	struct proto_accept_arg arg = {.flags = flags};

	return ops->accept(sock, newsock, &arg);
#else
	return ops->accept(sock, newsock, flags, false);
#endif
}

#if SINCE(6, 5)
#define real_splice_read copy_splice_read
#else
#define real_splice_read generic_file_splice_read
#endif

/**
 * packet_read() - How much of a packet of vsock's was read
 * @skb:	It
 *
 * Returns: bytes of its length; older kernels shorten it
 */
static inline size_t packet_read(const struct sk_buff *skb)
{
#if SINCE(6, 7)
	return VIRTIO_VSOCK_SKB_CB(skb)->offset;
#else
	return 0;
#endif
}

/**
 * free_bind() - Let a socket be bound to an address that no interface has
 * @sk:		Socket, locked
 * @on:		Whether to
 *
 * Returns: what was set before
 */
static inline bool free_bind(struct sock *sk, bool on)
{
#if SINCE(6, 6)
	bool was = inet_test_bit(FREEBIND, sk);

	inet_assign_bit(FREEBIND, sk, on);
#else
	bool was = inet_sk(sk)->freebind;

	inet_sk(sk)->freebind = on;
#endif
	return was;
}

/**
 * is_deferred() - Has a connect() left its work to the first bytes?
 * @sk:		Socket, locked
 *
 * Returns: true if so (TCP_FASTOPEN_CONNECT)
 */
static inline bool is_deferred(const struct sock *sk)
{
#if SINCE(6, 6)
	return inet_test_bit(DEFER_CONNECT, sk);
#else
	return inet_sk(sk)->defer_connect;
#endif
}

/* Ask the cgroup's programs for another name */
#if SINCE(6, 7)
#define ask_name(sk, address, len, hook)                                       \
	BPF_CGROUP_RUN_SA_PROG(sk, address, &(len), hook)
#else
#define ask_name(sk, address, len, hook)                                       \
	BPF_CGROUP_RUN_SA_PROG(sk, address, hook)
#endif

/**
 * zerocopy_begin() - What will tell that bytes were sent
 * @sk:		Socket
 * @len:	Bytes
 *
 * Returns: it; NULL if there is no memory
 */
static inline struct ubuf_info *zerocopy_begin(struct sock *sk, size_t len)
{
#if SINCE(6, 16)
	return msg_zerocopy_realloc(sk, len, NULL, false);
#else
	return msg_zerocopy_realloc(sk, len, NULL);
#endif
}

#endif /* INET_COMPAT_H */
