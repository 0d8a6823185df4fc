// SPDX-License-Identifier: GPL-2.0-only
/*
 * credit.c - what a connection may hold that nobody has read
 *
 * Theory of operation
 * ===================
 *
 * vsock lets the host send what a socket's buffer holds, however much there is
 * of sockets and however little of memory. So a connection begins with a small
 * buffer, which doubles each time that the program has moved as many bytes, up
 * to vsock's own size: a program that doesn't read keeps the small one.
 *
 * The buffer is charged to the inet socket as bytes that TCP received would be:
 * it counts for tcp_mem and for the cgroup. If that is refused no buffer grows,
 * and new ones are the least. What is charged is sk_forward_alloc, which TCP
 * gives back when the socket ends.
 */

#include <linux/virtio_vsock.h>
#include <net/af_vsock.h>

#include "inet.h"

#define LEAST 4096U /* if nothing can be charged */

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
 * credit_connect() - Charge a socket that is about to connect
 * @sk:		Outer socket, locked
 * @inner:	Inner one
 */
void credit_connect(struct sock *sk, struct inner *inner)
{
	struct vsock_sock *vsk = vsock_sk(inner->sock->sk);
	struct virtio_vsock_sock *trans = vsk->trans;

	inner->credit = charge(sk, CREDIT_FIRST) ? CREDIT_FIRST : LEAST;
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
	WRITE_ONCE(vsock_sk(listener->sock->sk)->buffer_size,
		   charged ? CREDIT_FIRST : LEAST);
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
	u32 next = min(2 * inner->credit, CREDIT_MOST);
	bool grown;

	lock_sock(sk);
	inner->moved = 0;
	grown = inner->credit < next && charge(sk, next);
	if (grown)
		WRITE_ONCE(inner->credit, next);
	release_sock(sk);
	if (grown)
		grow(inner, next);
}
