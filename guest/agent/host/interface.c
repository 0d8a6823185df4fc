// SPDX-License-Identifier: Apache-2.0
/*
 * interface.c - the pod's addresses, on lo
 *
 * Theory of operation
 * ===================
 *
 * Programs look for their own address: servers that announce it, and resolvers,
 * which ask for IPv4 names only where an interface has an IPv4 address that
 * isn't 127.0.0.1 (getaddrinfo() with AI_ADDRCONFIG). Nothing is sent through
 * it: what programs connect to is the agent's business before it is the
 * routes'. A guest that also has a NIC (fastpath compare) keeps it where it is.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <net/if.h>
#include <string.h>
#include <unistd.h>

#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "agent/tsi.h"

/**
 * has() - Does an interface have this address?
 * @address:	Address, v4-mapped if IPv4
 *
 * Returns: true if a socket can be bound to it
 */
static bool has(const struct in6_addr *address)
{
	const struct sockaddr_in6 sa = {.sin6_family = AF_INET6,
					.sin6_addr = *address};
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool bound = fd >= 0 && !bind(fd, (const struct sockaddr *)&sa,
				      (socklen_t)sizeof(sa));

	if (fd >= 0)
		close(fd);
	return bound;
}

/**
 * add() - Give lo an address
 * @address:	Address, v4-mapped if IPv4
 *
 * Returns: 0 or an errno
 */
static int add(const struct in6_addr *address)
{
	bool v4 = IN6_IS_ADDR_V4MAPPED(address);
	size_t size = v4 ? 4 : 16;
	struct {
		struct nlmsghdr header;
		struct ifaddrmsg ifa;
		struct rtattr attr;
		unsigned char address[16];
	} request = {
	    .header = {.nlmsg_type = RTM_NEWADDR,
		       .nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK,
		       .nlmsg_len =
			   (uint32_t)(NLMSG_LENGTH(sizeof(struct ifaddrmsg)) +
				      RTA_LENGTH(size))},
	    .ifa = {.ifa_family = v4 ? AF_INET : AF_INET6,
		    .ifa_prefixlen = (uint8_t)(8 * size),
		    .ifa_flags = IFA_F_NODAD,
		    .ifa_index = if_nametoindex("lo")},
	    .attr = {.rta_type = IFA_LOCAL,
		     .rta_len = (uint16_t)RTA_LENGTH(size)},
	};
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
	} answer;
	ssize_t n;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd < 0)
		return errno;
	memcpy(request.address, address->s6_addr + (16 - size), size);
	if (send(fd, &request, request.header.nlmsg_len, 0) < 0)
		n = -1;
	else
		n = recv(fd, &answer, sizeof(answer), 0);
	close(fd);
	if (n < (ssize_t)sizeof(answer))
		return n < 0 ? errno : EPROTO;
	return -answer.error.error;
}

/**
 * interface_init() - Let the guest have the pod's addresses
 *
 * Without the privilege it goes without: programs that bind to them still can.
 */
void interface_init(void)
{
	for (int v4 = 0; v4 <= 1; v4++) {
		struct in6_addr own = control_pod_address(v4);
		int error = 0;

		if (control_has_family(v4) && !has(&own))
			error = add(&own);
		if (error && error != EPERM)
			complain("lo: the pod's address: %s", strerror(error));
	}
}
