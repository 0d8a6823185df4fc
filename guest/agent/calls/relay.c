// SPDX-License-Identifier: Apache-2.0
/*
 * relay.c - where programs' UDP sockets send what is meant for outside
 *
 * Theory of operation
 * ===================
 *
 * A program's UDP socket is a UDP socket, and stays one: poll, epoll, dup,
 * fork, options, boundaries, MSG_PEEK, MSG_TRUNC, FIONREAD, timeouts, read()
 * and write() are the kernel's. Only the guest has no way to the peer. So each
 * peer outside has a stand-in: an address of 127.64.0.0/10, all of which the
 * loopback interface has from birth, and the port of the one UDP socket here.
 *
 *	program -- 127.0.0.1:40001 -> 127.64.0.7:R --> relay --> carrier.c, host
 *		<- 127.64.0.7:R -> 127.0.0.1:40001 ---
 *
 * Whom a datagram is for shows in its destination (IP_PKTINFO), and whose an
 * answer is in the source that we give it, so a connected socket hears its peer
 * only, as the kernel sees to that. receive.c shows programs the peer's name
 * in place of the stand-in's.
 *
 * An IPv6 peer has a stand-in of IPv4, too: an AF_INET6 socket reaches it as a
 * v4-mapped address.
 *
 * That a datagram didn't arrive is said as networks say it, by ICMP, which the
 * kernel turns into the error of a connected socket. That takes CAP_NET_RAW; an
 * agent without it leaves programs to their timeouts, as many networks do.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent/datagram.h"
#include "include/wire.h"

#define STAND_IN_NET  0x7f400000U /* 127.64.0.0 */
#define STAND_IN_BITS 22
#define STAND_IN_MASK ((1U << STAND_IN_BITS) - 1)

#define BATCH	     64	       /* datagrams taken at once */
#define BUFFER_BYTES (4 << 20) /* asked for; the kernel's limit is less */
#define ICMP_BLOCKED UINT32_MAX

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif
#ifndef ICMP_FILTER
#define ICMP_FILTER 1
#endif

/**
 * struct bounce - An ICMP message that says "unreachable", as RFC 792 has it
 * @icmp:	Its header
 * @ip:		Header of the datagram that didn't arrive
 * @udp:	Likewise
 */
struct bounce {
	struct icmphdr icmp;
	struct iphdr ip;
	struct udphdr udp;
};
static_assert(sizeof(struct bounce) == 36, "wire layout");

static struct source source;
static int udp = -1;
static int icmp = -1;
static struct datagrams *kept; /* state.c has the memory */
static uint64_t netns;	       /* the kernel's name for ours */

/* ---- stand-ins ---- */

/**
 * stand_in() - The stand-in of a peer
 * @peer:	Its number
 *
 * Returns: IPv4 address and port
 */
static struct sockaddr_in stand_in(uint32_t peer)
{
	return (struct sockaddr_in){
	    .sin_family = AF_INET,
	    .sin_port = kept->port,
	    .sin_addr.s_addr = htonl(STAND_IN_NET | (peer & STAND_IN_MASK)),
	};
}

/**
 * is_stand_in() - Is an address one of a stand-in?
 * @addr:	Network order
 *
 * Returns: true if it is
 */
static bool is_stand_in(in_addr_t addr)
{
	return (ntohl(addr) & ~STAND_IN_MASK) == STAND_IN_NET;
}

/**
 * relay_stand_in() - Find the stand-in of an endpoint outside
 * @dst:	The endpoint
 * @ret_peer:	Its number
 * @ret_sa:	Its stand-in
 *
 * Returns: 0, or an errno
 */
int relay_stand_in(const struct destination *dst, uint32_t *ret_peer,
		   struct sockaddr_in *ret_sa)
{
	int error = relay_start();

	if (!error)
		error = peers_number(dst, ret_peer);
	if (!error)
		*ret_sa = stand_in(*ret_peer);
	return error;
}

/**
 * relay_stands_for() - Who is behind an address that a program's socket shows
 * @sa:		Address, as the kernel gave it
 * @ret_dst:	Who
 *
 * Returns: false if it is no stand-in's, or whose it was is forgotten
 */
bool relay_stands_for(const struct sockaddr_storage *sa,
		      struct destination *ret_dst)
{
	struct destination shown;

	if (udp < 0 || !address_decode(sa, sizeof(*sa), &shown) ||
	    !IN6_IS_ADDR_V4MAPPED(&shown.address) ||
	    !is_stand_in(shown.address.s6_addr32[3]) ||
	    shown.port != ntohs(kept->port))
		return false;
	return peers_destination(ntohl(shown.address.s6_addr32[3]) &
				     STAND_IN_MASK,
				 STAND_IN_MASK, ret_dst);
}

/**
 * relay_is_here() - Is a socket in our network namespace?
 * @fd:		Socket
 *
 * Returns: true if it is
 */
bool relay_is_here(int fd)
{
	uint64_t theirs = 0;
	socklen_t len = sizeof(theirs);

	return !getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &theirs, &len) &&
	       theirs == netns;
}

/* ---- to programs ---- */

/**
 * home() - Where a flow's socket is
 * @flow:	Its port
 *
 * Returns: its address; 127.0.0.1, which a socket that is bound to no address
 *	sends from, while it isn't known
 */
static struct sockaddr_in home(uint16_t flow)
{
	return (struct sockaddr_in){
	    .sin_family = AF_INET,
	    .sin_port = htons(flow),
	    .sin_addr.s_addr =
		kept->homes[flow] ? kept->homes[flow] : htonl(INADDR_LOOPBACK),
	};
}

/**
 * send_as() - Send in the name of a peer
 * @fd:		UDP or ICMP socket
 * @peer:	Its number
 * @flow:	Whom to
 * @data:	What
 * @len:	Bytes of it
 *
 * A full socket drops it: that is the kernel's business, and no news to UDP.
 */
static void send_as(int fd, uint32_t peer, uint16_t flow, const void *data,
		    size_t len)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(struct in_pktinfo))];
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo)),
				.cmsg_level = IPPROTO_IP,
				.cmsg_type = IP_PKTINFO}};
	struct in_pktinfo info = {.ipi_spec_dst = stand_in(peer).sin_addr};
	struct sockaddr_in to = home(flow);
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data,
			    .iov_len = len};
	struct msghdr msg = {.msg_name = &to,
			     .msg_namelen = sizeof(to),
			     .msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};

	if (fd == icmp)
		to.sin_port = 0;
	memcpy(CMSG_DATA(&control.header), &info, sizeof(info));
	if (sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		debug("datagram to port %u: %s", flow, strerror(errno));
}

/**
 * deliver() - A datagram came for a program
 * @flow:	Its socket's port
 * @peer:	Number of the peer that sent it
 * @data:	Data
 * @len:	Bytes of it
 */
static void deliver(uint16_t flow, uint32_t peer, const void *data, size_t len)
{
	send_as(udp, peer, flow, data, len);
}

/**
 * checksum() - The Internet's checksum
 * @data:	Data, of an even length
 * @len:	That length, bytes
 *
 * Returns: checksum, network order
 */
static uint16_t checksum(const void *data, size_t len)
{
	const uint8_t *bytes = data;
	uint32_t sum = 0;
	uint16_t word;

	for (size_t i = 0; i < len; i += sizeof(word)) {
		memcpy(&word, bytes + i, sizeof(word));
		sum += word;
	}
	sum = (sum >> 16) + (sum & 0xffff);
	sum += sum >> 16;
	return (uint16_t)~sum;
}

/**
 * bounce() - A datagram of a program's didn't arrive
 * @flow:	Its socket's port
 * @peer:	Number of the peer that it was for
 * @error:	Why: errno
 */
static void bounce(uint16_t flow, uint32_t peer, int error)
{
	struct sockaddr_in from = home(flow), to = stand_in(peer);
	struct bounce msg = {
	    .icmp = {.type = ICMP_DEST_UNREACH,
		     .code = error == ECONNREFUSED ? ICMP_PORT_UNREACH
						   : ICMP_PKT_FILTERED},
	    .ip = {.version = 4,
		   .ihl = sizeof(msg.ip) / 4,
		   .tot_len = htons(sizeof(msg.ip) + sizeof(msg.udp)),
		   .ttl = 64,
		   .protocol = IPPROTO_UDP,
		   .saddr = from.sin_addr.s_addr,
		   .daddr = to.sin_addr.s_addr},
	    .udp = {.source = from.sin_port,
		    .dest = to.sin_port,
		    .len = htons(sizeof(msg.udp))},
	};

	debug("datagram of port %u: %s", flow, strerror(error));
	if (icmp < 0)
		return;
	msg.icmp.checksum = checksum(&msg, sizeof(msg));
	send_as(icmp, peer, flow, &msg, sizeof(msg));
}

/* ---- from programs ---- */

/**
 * receive() - Take a datagram that a program sent
 * @buf:	Where to
 * @size:	Room there
 * @ret_from:	Which socket's it is
 * @ret_to:	Stand-in that it is for
 *
 * Returns: bytes, -1 if there is none
 */
static ssize_t receive(void *buf, size_t size, struct sockaddr_in *ret_from,
		       struct in_addr *ret_to)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(struct in_pktinfo))];
	} control;
	struct iovec iov = {.iov_base = buf, .iov_len = size};
	struct msghdr msg = {.msg_name = ret_from,
			     .msg_namelen = sizeof(*ret_from),
			     .msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	ssize_t len = recvmsg(udp, &msg, MSG_DONTWAIT);
	struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
	struct in_pktinfo info = {0};

	if (len >= 0 && header && header->cmsg_type == IP_PKTINFO)
		memcpy(&info, CMSG_DATA(header), sizeof(info));
	*ret_to = info.ipi_addr;
	return len;
}

/**
 * relay_drain() - Send on what programs have sent
 */
void relay_drain(void)
{
	static uint8_t data[TSI_MAX_DATAGRAM];
	struct sockaddr_in from;
	struct in_addr to;

	for (int i = 0; i < BATCH; i++) {
		ssize_t len = receive(data, sizeof(data), &from, &to);
		uint16_t flow = ntohs(from.sin_port);
		uint32_t peer;
		int error;

		if (len < 0)
			return;
		if (!is_stand_in(to.s_addr))
			continue;
		kept->homes[flow] = from.sin_addr.s_addr;
		peer = ntohl(to.s_addr) & STAND_IN_MASK;
		error =
		    peers_send(flow, &peer, STAND_IN_MASK, data, (size_t)len);
		if (error)
			bounce(flow, peer, error);
	}
}

/**
 * relay_ready() - Programs have sent something
 * @unused:	There is one relay
 * @events:	Unused: receiving tells
 */
static void relay_ready(struct source *unused, uint32_t events)
{
	(void)unused;
	(void)events;
	relay_drain();
}

/* ---- setting up ---- */

/**
 * open_icmp() - A socket to say "unreachable" with, if we may
 */
static void open_icmp(void)
{
	const uint32_t blocked = ICMP_BLOCKED; /* it is for sending */

	icmp = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
	if (icmp >= 0)
		setsockopt(icmp, SOL_RAW, ICMP_FILTER, &blocked,
			   sizeof(blocked));
}

static const struct delivery ours = {.deliver = deliver, .bounce = bounce};

/**
 * relay_start() - Make the sockets, unless they are there
 *
 * Returns: 0, or an errno
 */
int relay_start(void)
{
	const int yes = 1, size = BUFFER_BYTES;
	struct sockaddr_in name = {.sin_family = AF_INET};
	socklen_t len = sizeof(name);
	int fd;

	if (udp >= 0)
		return 0;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return errno;
	kept = state_datagrams();
	name.sin_port = kept->port;
	if (name.sin_port && bind(fd, (struct sockaddr *)&name, sizeof(name)))
		name.sin_port = 0; /* those that are connected get errors */
	if (setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &yes, sizeof(yes)) ||
	    (!name.sin_port &&
	     bind(fd, (struct sockaddr *)&name, sizeof(name))) ||
	    getsockname(fd, (struct sockaddr *)&name, &len)) {
		int error = errno;

		close(fd);
		return error;
	}
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	len = sizeof(netns);
	getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &netns, &len);
	kept->port = name.sin_port;
	udp = fd;
	open_icmp();
	peers_start(&ours);
	source.ready = relay_ready;
	loop_add(&source, udp, EPOLLIN);
	return 0;
}

/**
 * relay_adopt() - Stand where the agent before this one stood
 *
 * What programs sent in between came back to them as ECONNREFUSED, or is lost.
 */
void relay_adopt(void)
{
	if (state_datagrams()->port && relay_start())
		complain("datagrams: %s", strerror(errno));
}
