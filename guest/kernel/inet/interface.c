// SPDX-License-Identifier: GPL-2.0-only
/*
 * interface.c - the pod's addresses, on lo
 *
 * Theory of operation
 * ===================
 *
 * A pod's own address is the guest's: what connects to it stays inside, and
 * programs may bind to it. So it is an address of lo, as any local one, and no
 * call of a program's needs to know. Asked for by rtnetlink, the one way that
 * the kernel has for its own code, too. A guest whose NIC has the address
 * (fastpath compare) keeps it there.
 */

#include <linux/inetdevice.h>
#include <linux/netdevice.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/addrconf.h>
#include <net/route.h>

#include "inet.h"

/**
 * struct request - RTM_NEWADDR
 * @header:	Its header
 * @ifa:	Which interface, and what kind of address
 * @attr:	Of @address
 * @address:	IPv4 or IPv6 address
 */
struct request {
	struct nlmsghdr header;
	struct ifaddrmsg ifa;
	struct nlattr attr;
	u8 address[16];
};

/**
 * ask() - Have the kernel do what a request says
 * @request:	Request
 *
 * Returns: 0, or a negated errno; not whether it was done
 */
static int ask(struct request *request)
{
	/* Named, so that it counts as the kernel's own: it has no file */
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	struct msghdr msg = {.msg_name = &kernel,
			     .msg_namelen = sizeof(kernel)};
	struct kvec vec = {.iov_base = request,
			   .iov_len = request->header.nlmsg_len};
	struct socket *sock;
	int error = sock_create_kern(&init_net, AF_NETLINK, SOCK_RAW,
				     NETLINK_ROUTE, &sock);

	if (error)
		return error;
	error = kernel_sendmsg(sock, &msg, &vec, 1, vec.iov_len);
	sock_release(sock);
	return min(error, 0);
}

/**
 * has() - Has the guest an address?
 * @address:	Address
 *
 * Returns: true if so
 */
static bool has(const struct in6_addr *address)
{
	if (ipv6_addr_v4mapped(address))
		return inet_addr_type(&init_net, address->s6_addr32[3]) ==
		       RTN_LOCAL;
	return ipv6_chk_addr(&init_net, address, NULL, 0);
}

/**
 * add() - Let the guest have one of the pod's addresses
 * @address:	Address
 */
static void add(const struct in6_addr *address)
{
	bool v4 = ipv6_addr_v4mapped(address);
	size_t size = v4 ? 4 : 16;
	struct request request = {
	    .header = {.nlmsg_type = RTM_NEWADDR,
		       .nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE,
		       .nlmsg_len = offsetof(struct request, address) + size},
	    .ifa = {.ifa_family = v4 ? AF_INET : AF_INET6,
		    .ifa_prefixlen = 8 * size,
		    .ifa_flags = IFA_F_NODAD,
		    .ifa_index = LOOPBACK_IFINDEX},
	    .attr = {.nla_type = IFA_LOCAL, .nla_len = NLA_HDRLEN + size},
	};

	memcpy(request.address, address->s6_addr + (16 - size), size);
	if (!has(address) && (ask(&request) || !has(address)))
		pr_warn("tsi: %pI6c is not on lo\n", address);
}

/**
 * interface_begin() - Let the guest have the addresses that the host has named
 */
void interface_begin(void)
{
	struct tsi_welcome welcome;
	struct in6_addr address;

	stream_welcome(&welcome);
	ipv6_addr_set_v4mapped(*(__be32 *)welcome.ipv4, &address);
	if (address.s6_addr32[3])
		add(&address);
	memcpy(&address, welcome.ipv6, sizeof(address));
	if (!ipv6_addr_any(&address))
		add(&address);
}
