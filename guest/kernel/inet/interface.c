// SPDX-License-Identifier: GPL-2.0-only
/*
 * interface.c - the guest's network interface, tsi0
 *
 * Theory of operation
 * ===================
 *
 * It has the pod's addresses, and the default routes: what a program finds in a
 * pod. UDP goes through it (datagrams.c); a TCP socket's connection leaves the
 * guest before there is any packet (connect.c). Whatever else comes here is
 * told that it is unreachable.
 *
 * Addresses and routes are set as ip(8) does, by rtnetlink. The socket for that
 * has a file, by whose credentials the kernel judges what comes from it. Where
 * the guest has another interface, its address and its default route go first.
 */

#include <linux/file.h>
#include <linux/if_arp.h>
#include <linux/inetdevice.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <net/addrconf.h>
#include <net/ipv6.h>
#include <net/netlink.h>
#include <net/route.h>

#include "inet.h"

#define MTU                                                                    \
	(0xFFFF +                                                              \
	 sizeof(struct ipv6hdr)) /* no datagram needs to be in fragments */
#define METRIC 0x1000000U	 /* above whatever others have */

static struct net_device *device;

static void setup(struct net_device *dev)
{
	dev->type = ARPHRD_VOID; /* IPv6 gives it no address of its own */
	dev->flags = IFF_POINTOPOINT | IFF_NOARP;
	dev->priv_flags |= IFF_NO_QUEUE;
	dev->mtu = MTU;
	dev->max_mtu = MTU;
	dev->features = NETIF_F_SG | NETIF_F_FRAGLIST | NETIF_F_HW_CSUM;
	netif_keep_dst(dev); /* for what is unreachable */
}

/**
 * interface_begin() - Make it
 * @ops:	Its operations
 * @ret_device:	Set to it
 *
 * Returns: 0, or a negated errno
 */
int __init interface_begin(const struct net_device_ops *ops,
			   struct net_device **ret_device)
{
	int error;

	device = alloc_netdev(0, "tsi0", NET_NAME_PREDICTABLE, setup);
	if (!device)
		return -ENOMEM;
	device->netdev_ops = ops;
	error = register_netdev(device);
	if (error)
		free_netdev(device);
	*ret_device = device;
	return error;
}

/**
 * ask() - Ask rtnetlink for a change
 * @sock:	Its socket
 * @request:	Message; freed
 *
 * Returns: 0, or a negated errno
 */
static int ask(struct socket *sock, struct sk_buff *request)
{
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
	} answer;
	struct msghdr msg = {};
	struct kvec vec = {.iov_base = request->data, .iov_len = request->len};
	int done;

	nlmsg_end(request, nlmsg_hdr(request));
	vec.iov_len = request->len;
	done = kernel_sendmsg(sock, &msg, &vec, 1, vec.iov_len);
	kfree_skb(request);
	if (done < 0)
		return done;
	vec = (struct kvec){.iov_base = &answer, .iov_len = sizeof(answer)};
	done = kernel_recvmsg(sock, &msg, &vec, 1, sizeof(answer), 0);
	if (done < (int)sizeof(answer))
		return done < 0 ? done : -EPROTO;
	return answer.error.error;
}

/**
 * put_address() - Append an address to a message
 * @request:	Message
 * @type:	Attribute
 * @address:	Address
 *
 * Returns: 0, or a negated errno
 */
static int put_address(struct sk_buff *request, int type,
		       const struct in6_addr *address)
{
	if (ipv6_addr_v4mapped(address))
		return nla_put_in_addr(request, type, address->s6_addr32[3]);
	return nla_put_in6_addr(request, type, address);
}

/**
 * add_address() - Give the interface an address
 * @sock:	rtnetlink's
 * @address:	Address
 *
 * Returns: 0, or a negated errno
 */
static int add_address(struct socket *sock, const struct in6_addr *address)
{
	bool v4 = ipv6_addr_v4mapped(address);
	struct sk_buff *request = nlmsg_new(NLMSG_GOODSIZE, GFP_KERNEL);
	struct nlmsghdr *header;
	struct ifaddrmsg *body;

	if (!request)
		return -ENOMEM;
	header = nlmsg_put(request, 0, 0, RTM_NEWADDR, sizeof(*body),
			   NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE);
	body = nlmsg_data(header);
	*body = (struct ifaddrmsg){.ifa_family = v4 ? AF_INET : AF_INET6,
				   .ifa_prefixlen = v4 ? 32 : 128,
				   .ifa_flags = IFA_F_NODAD,
				   .ifa_index = device->ifindex};
	if (put_address(request, IFA_LOCAL, address)) {
		kfree_skb(request);
		return -EMSGSIZE;
	}
	return ask(sock, request);
}

/**
 * add_route() - Have what leads nowhere else lead here
 * @sock:	rtnetlink's
 * @own:	From this address
 *
 * Returns: 0, or a negated errno
 */
static int add_route(struct socket *sock, const struct in6_addr *own)
{
	bool v4 = ipv6_addr_v4mapped(own);
	struct sk_buff *request = nlmsg_new(NLMSG_GOODSIZE, GFP_KERNEL);
	struct nlmsghdr *header;
	struct rtmsg *body;

	if (!request)
		return -ENOMEM;
	header =
	    nlmsg_put(request, 0, 0, RTM_NEWROUTE, sizeof(*body),
		      NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
	body = nlmsg_data(header);
	*body =
	    (struct rtmsg){.rtm_family = v4 ? AF_INET : AF_INET6,
			   .rtm_table = RT_TABLE_MAIN,
			   .rtm_protocol = RTPROT_BOOT,
			   .rtm_scope = v4 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE,
			   .rtm_type = RTN_UNICAST};
	if (nla_put_u32(request, RTA_OIF, device->ifindex) ||
	    nla_put_u32(request, RTA_PRIORITY, METRIC) ||
	    put_address(request, RTA_PREFSRC, own)) {
		kfree_skb(request);
		return -EMSGSIZE;
	}
	return ask(sock, request);
}

/**
 * interface_serves() - May a socket's packets go through the interface?
 * @sk:		Socket
 *
 * Returns: false if it is bound to another device
 */
bool interface_serves(const struct sock *sk)
{
	int bound = READ_ONCE(sk->sk_bound_dev_if);

	return !bound || (bound == READ_ONCE(device->ifindex) &&
			  net_eq(sock_net(sk), dev_net(device)));
}

static bool is_there(const struct in6_addr *address)
{
	if (ipv6_addr_v4mapped(address))
		return inet_addr_type(&init_net, address->s6_addr32[3]) ==
		       RTN_LOCAL;
	return ipv6_chk_addr(&init_net, address, NULL, 0);
}

/**
 * interface_show() - Let the guest have the pod's addresses
 *
 * Again with each stream: they don't change but by what root does.
 */
void interface_show(void)
{
	struct in6_addr own;
	struct socket *sock;
	struct file *file;
	int error, v4;

	rtnl_lock();
	error = dev_open(device, NULL);
	rtnl_unlock();
	if (!error)
		error = sock_create_kern(&init_net, AF_NETLINK, SOCK_RAW,
					 NETLINK_ROUTE, &sock);
	if (error)
		goto out;
	file = sock_alloc_file(sock, 0, NULL);
	if (IS_ERR(file)) { /* it has released the socket */
		error = PTR_ERR(file);
		goto out;
	}
	for (v4 = 0; v4 <= 1 && !error; v4++) {
		address_pods(v4, &own);
		if (!address_can_reach(&own))
			continue;
		if (!is_there(&own))
			error = add_address(sock, &own);
		if (!error)
			error = add_route(sock, &own);
	}
	fput(file);
out:
	if (error)
		pr_warn("tsi: the pod's addresses: %d\n", error);
}
