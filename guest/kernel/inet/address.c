// SPDX-License-Identifier: GPL-2.0-only
/*
 * address.c - where a destination is, and whose an address
 *
 * Theory of operation
 * ===================
 *
 * What the guest itself would refuse, or deliver to itself, is TCP's: such a
 * call goes on as if we were not there, and has TCP's own result. Addresses of
 * the guest's interfaces are the guest's, and so are those of its loopback.
 */

#include <linux/inetdevice.h>
#include <net/addrconf.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include <net/route.h>

#include "inet.h"

/**
 * leaves_v4() - Does an IPv4 address lead out of the guest?
 * @sk:		Socket
 * @address:	Address
 *
 * In a network namespace that has had no address yet, there is no table to look
 * in, and the kernel takes each for a broadcast one.
 *
 * Returns: true if so
 */
static bool leaves_v4(const struct sock *sk, __be32 address)
{
	struct net *net = sock_net(sk);
	unsigned int type;

	if (ipv4_is_loopback(address) || ipv4_is_zeronet(address) ||
	    ipv4_is_lbcast(address) || ipv4_is_multicast(address))
		return false;
	type = inet_addr_type(net, address);
	if (type == RTN_BROADCAST)
		return inet_addr_type(net, htonl(INADDR_LOOPBACK)) == type;
	return type == RTN_UNICAST;
}

/**
 * address_leaves() - Is an address outside of the guest, and TCP's?
 * @sk:		Socket that connects to it
 * @address:	Address
 * @len:	Bytes of it
 * @ret_to:	Set to the destination
 *
 * Returns: true if so
 */
bool address_leaves(const struct sock *sk, const struct sockaddr *address,
		    int len, struct endpoint *ret_to)
{
	const struct sockaddr_in *in = (const void *)address;
	const struct sockaddr_in6 *in6 = (const void *)address;
	int type;

	if (sk->sk_family == AF_INET) {
		if (len < (int)sizeof(*in) || in->sin_family != AF_INET)
			return false;
		ipv6_addr_set_v4mapped(in->sin_addr.s_addr, &ret_to->address);
		ret_to->port = in->sin_port;
		return leaves_v4(sk, in->sin_addr.s_addr);
	}
	if (len < SIN6_LEN_RFC2133 || in6->sin6_family != AF_INET6)
		return false;
	ret_to->address = in6->sin6_addr;
	ret_to->port = in6->sin6_port;
	if (ipv6_addr_v4mapped(&in6->sin6_addr))
		return !ipv6_only_sock(sk) &&
		       leaves_v4(sk, in6->sin6_addr.s6_addr32[3]);
	type = ipv6_addr_type(&in6->sin6_addr);
	return (type & IPV6_ADDR_UNICAST) &&
	       !(type & (IPV6_ADDR_LOOPBACK | IPV6_ADDR_LINKLOCAL)) &&
	       !ipv6_chk_addr(sock_net(sk), &in6->sin6_addr, NULL, 0);
}

/**
 * address_pods() - The pod's address
 * @v4:		The IPv4 one
 * @ret_address: Set to it; unspecified if it has none
 */
void address_pods(bool v4, struct in6_addr *ret_address)
{
	struct tsi_welcome welcome;

	stream_welcome(&welcome);
	if (v4)
		ipv6_addr_set_v4mapped(*(__be32 *)welcome.ipv4, ret_address);
	else
		memcpy(ret_address, welcome.ipv6, sizeof(*ret_address));
}

/**
 * address_is_pods() - Is it the pod's own?
 * @address:	Address
 *
 * Returns: true if so
 */
bool address_is_pods(const struct in6_addr *address)
{
	bool v4 = ipv6_addr_v4mapped(address);
	struct in6_addr own;

	if (v4 ? !address->s6_addr32[3] : ipv6_addr_any(address))
		return false;
	address_pods(v4, &own);
	return ipv6_addr_equal(&own, address);
}

/**
 * address_can_reach() - Has the pod an address of a destination's family?
 * @address:	The destination's
 *
 * Returns: true if so
 */
bool address_can_reach(const struct in6_addr *address)
{
	bool v4 = ipv6_addr_v4mapped(address);
	struct in6_addr own;

	address_pods(v4, &own);
	return v4 ? own.s6_addr32[3] : !ipv6_addr_any(&own);
}

/**
 * address_bound() - What an inet socket is bound to
 * @sk:		Socket
 * @ret_bound:	Set to it
 */
void address_bound(const struct sock *sk, struct endpoint *ret_bound)
{
	ret_bound->port = htons(inet_sk(sk)->inet_num);
	if (sk->sk_family == AF_INET6)
		ret_bound->address = sk->sk_v6_rcv_saddr;
	else
		ipv6_addr_set_v4mapped(sk->sk_rcv_saddr, &ret_bound->address);
}

/**
 * address_own() - What a connection's own end is called
 * @sk:		Socket
 * @peer:	Address of the other end
 * @port:	vsock port of ours
 * @ret_own:	Set to the name
 */
void address_own(const struct sock *sk, const struct in6_addr *peer, u32 port,
		 struct endpoint *ret_own)
{
	bool v4 = ipv6_addr_v4mapped(peer);

	address_bound(sk, ret_own);
	if (!ret_own->port)
		ret_own->port = htons((u16)port);
	if (ipv6_addr_any(&ret_own->address) ||
	    (ipv6_addr_v4mapped(&ret_own->address) &&
	     !ret_own->address.s6_addr32[3]))
		address_pods(v4, &ret_own->address);
}

/**
 * address_show() - Write a name as programs expect it
 * @sk:		Their socket
 * @from:	Name
 * @ret_address: Where to
 *
 * Returns: bytes written
 */
int address_show(const struct sock *sk, const struct endpoint *from,
		 struct sockaddr *ret_address)
{
	struct sockaddr_in *in = (void *)ret_address;
	struct sockaddr_in6 *in6 = (void *)ret_address;

	if (sk->sk_family == AF_INET6) {
		*in6 = (struct sockaddr_in6){.sin6_family = AF_INET6,
					     .sin6_port = from->port,
					     .sin6_addr = from->address};
		return sizeof(*in6);
	}
	*in =
	    (struct sockaddr_in){.sin_family = AF_INET, .sin_port = from->port};
	in->sin_addr.s_addr = from->address.s6_addr32[3];
	return sizeof(*in);
}
