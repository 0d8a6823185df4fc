// SPDX-License-Identifier: GPL-2.0-only
/*
 * credit.c - what a connection may hold that nobody has read
 *
 * Theory of operation
 * ===================
 *
 * vsock lets the host send what a socket's buffer holds, however much there is
 * of sockets and however little of memory. Buffers share memory as ports of a
 * switch do, by a dynamic threshold: each may have a part of what is left. So
 * the first connections have vsock's own buffer, for which vsock sends the
 * fewest packets (below 64 KiB there is one for each read), and many that
 * nobody reads have a small one. It doubles each time that the program has
 * moved as many bytes. Clients that nobody has accepted have the small one, and
 * their part with the first bytes.
 *
 * The buffer is charged to the inet socket as bytes that TCP received would be:
 * it counts for tcp_mem and for the cgroup. What is left is what tcp_mem has
 * before TCP saves memory. Where it does no buffer grows; where a charge is
 * refused new ones are the least. What is charged is sk_forward_alloc, which
 * TCP gives back when the socket ends.
 */

#include <linux/virtio_vsock.h>
#include <net/af_vsock.h>

#include "inet.h"

#define LEAST 4096U /* if nothing can be charged */
#define PARTS 32    /* of what is left, one is a connection's */

/**
 * charge() - Charge an inet socket with a buffer
 * @sk:		Socket, locked
 * @bytes:	The buffer's
 *
 * Returns: false if there is no memory for it
 */
static bool charge(struct sock *sk, int bytes)
{
	int more = bytes - sk->sk_forward_alloc;

	return more <= 0 || __sk_mem_schedule(sk, more, SK_MEM_RECV);
}

/**
 * part() - What a connection may hold
 * @sk:		Socket
 *
 * Returns: bytes
 */
static u32 part(const struct sock *sk)
{
	long left = sk_prot_mem_limits(sk, 0) - sk_memory_allocated(sk);

	return clamp(left * (long)PAGE_SIZE / PARTS, (long)CREDIT_SMALL,
		     (long)CREDIT_MOST);
}

/**
 * credit_connect() - Charge a socket that is about to connect
 * @sk:		Outer socket, locked
 * @inner:	Inner one
 */
void credit_connect(struct sock *sk, struct inner *inner)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);
	struct virtio_vsock_sock *trans = vsk->trans;
	u32 bytes = part(sk);

	inner->credit = charge(sk, bytes) ? bytes : LEAST;
	vsk->buffer_size = inner->credit;
	trans->buf_alloc = inner->credit;
}

/**
 * credit_accept() - Charge a connection that was accepted
 * @sk:		Outer socket, nobody else's yet
 * @inner:	Inner one
 * @listener:	Where it came
 *
 * The host knows what this one holds, and may have sent it. The next ones hold
 * what there is memory for.
 */
void credit_accept(struct sock *sk, struct inner *inner, struct inner *listener)
{
	bool charged;

	inner->credit = vsock_sk(inner->sock->sk)->buffer_size;
	charged = charge(sk, inner->credit);
	inner->moved = inner->credit; /* grows with the first bytes */
	WRITE_ONCE(vsock_sk(listener->sock->sk)->buffer_size,
		   charged ? CREDIT_SMALL : LEAST);
}

/**
 * grow() - Let the host send more
 * @inner:	Connection
 * @bytes:	So many
 */
static void grow(struct inner *inner, u64 bytes)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);

	lock_sock(&vsk->sk);
	vsk->buffer_size = bytes;
	if (vsk->transport)
		vsk->transport->notify_buffer_size(vsk, &bytes);
	release_sock(&vsk->sk);
}

/**
 * credit_grow() - A program has moved as many bytes as its buffer holds
 * @inner:	Connection
 */
void credit_grow(struct inner *inner)
{
	struct sock *sk = inner->outer;
	u32 next = min(max(2 * inner->credit, part(sk)), CREDIT_MOST);
	bool grown;

	lock_sock(sk);
	inner->moved = 0;
	grown = inner->credit < next &&
		sk_memory_allocated(sk) < sk_prot_mem_limits(sk, 1) &&
		charge(sk, next);
	if (grown)
		WRITE_ONCE(inner->credit, next);
	release_sock(sk);
	if (grown)
		grow(inner, next);
}
