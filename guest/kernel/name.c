// SPDX-License-Identifier: GPL-2.0-only
/*
 * name.c - both ends' addresses, and those in messages
 */

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/net.h>
#include <linux/socket.h>
#include <net/af_vsock.h>
#include <net/ipv6.h>

#include "tsi.h"

/**
 * peer_of() - The other end of a connection between the host and a program
 * @shared:	The agent's memory
 * @vsk:	Socket, LABELLED and connected
 * @ret_peer:	Set to the other end
 *
 * Returns: false if the agent knows better
 */
static bool peer_of(const struct tsi_shared *shared,
		    const struct vsock_sock *vsk, struct tsi_known *ret_peer)
{
	u32 port = vsk->remote_addr.svm_port;
	const struct caller *caller = shared_caller(port);
	const struct sockaddr_in *in;

	if (!(vsk->buffer_max_size & LABEL_INBOUND))
		return shared_read_slot(&shared->named[port % TSI_NAMED],
					ret_peer) == port;
	if (!caller)
		return false;
	ret_peer->port = port & 0xffff;
	in = (const void *)&caller->addr;
	if (in->sin_family == AF_INET)
		ipv6_addr_set_v4mapped(in->sin_addr.s_addr,
				       (struct in6_addr *)ret_peer->address);
	else
		memcpy(ret_peer->address, &caller->addr.sin6_addr,
		       sizeof(ret_peer->address));
	return true;
}

/**
 * name_tell() - getsockname() and getpeername()
 * @call:	The call
 * @sock:	Its socket
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is: ours as long as the connection is whole
 */
enum whose name_tell(struct call *call, struct socket *sock, long *ret_answer)
{
	const struct vsock_sock *vsk = vsock_sk(sock->sk);
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
	struct sockaddr_in in = {.sin_family = AF_INET};
	const struct tsi_shared *shared;
	struct in6_addr *address;
	struct tsi_known name;
	int instance, room, size;
	bool known, v6;

	if (kind_of(sock) != LABELLED || sock->state != SS_CONNECTED ||
	    sock->sk->sk_state != TCP_ESTABLISHED ||
	    vsk->remote_addr.svm_cid != VMADDR_CID_HOST ||
	    get_user(room, (int __user *)call->args[2]) || room < 0)
		return AGENT;
	instance = filter_instance(call);
	rcu_read_lock();
	shared = instance ? shared_of(instance) : NULL;
	known = shared && peer_of(shared, vsk, &name);
	address = (struct in6_addr *)name.address;
	if (known && call->hook->nr == __NR_getsockname) {
		name.port = vsk->local_addr.svm_port & 0xffff;
		memcpy(address, shared->pod[!ipv6_addr_v4mapped(address)],
		       sizeof(*address));
	}
	rcu_read_unlock();
	if (!known)
		return AGENT;

	v6 = vsk->buffer_max_size & LABEL_V6;
	in6.sin6_port = in.sin_port = htons(name.port);
	in6.sin6_addr = *address;
	in.sin_addr.s_addr = address->s6_addr32[3];
	size = v6 ? sizeof(in6) : sizeof(in);
	*ret_answer = 0;
	if (copy_to_user((void __user *)call->args[1],
			 v6 ? (void *)&in6 : (void *)&in, min(room, size)) ||
	    put_user(size, (int __user *)call->args[2]))
		*ret_answer = -EFAULT;
	return OURS;
}

/**
 * name_message() - sendmsg() and recvmsg(): the agent's if an address is to be
 * there
 * @call:	The call
 * @sock:	Its socket
 * @ret_answer:	Unused: it is never ours
 *
 * Returns: whose it is
 */
enum whose name_message(struct call *call, struct socket *sock,
			long *ret_answer)
{
	struct user_msghdr header;
	bool all =
	    call->hook->nr == __NR_recvmsg && (call->args[2] & MSG_WAITALL);

	if (copy_from_user(&header, (void __user *)call->args[1],
			   sizeof(header)))
		return KERNEL;
	if (header.msg_name || (all && kind_of(sock) == LABELLED))
		return AGENT;
	return KERNEL;
}
