// SPDX-License-Identifier: GPL-2.0-only
/*
 * packet.c - datagrams in the form of IP packets, and back
 *
 * Theory of operation
 * ===================
 *
 * Packets are made and taken apart inside one kernel, which is told not to look
 * at their checksums.
 */

#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/skbuff.h>
#include <linux/udp.h>
#include <net/ip.h>
#include <net/ipv6.h>

#include "inet.h"

#define TTL 64

/**
 * read_v4() - Look at an IPv4 packet
 * @skb:	Packet
 * @ret:	What it is
 *
 * Returns: offset of its UDP header; 0 if it is no whole datagram
 */
static unsigned int read_v4(struct sk_buff *skb, struct datagram *ret)
{
	const struct iphdr *ip;

	if (!pskb_network_may_pull(skb, sizeof(*ip)))
		return 0;
	ip = ip_hdr(skb);
	if (ip->protocol != IPPROTO_UDP || ip_is_fragment(ip) || ip->ihl < 5)
		return 0;
	ipv6_addr_set_v4mapped(ip->saddr, &ret->from.address);
	ipv6_addr_set_v4mapped(ip->daddr, &ret->to.address);
	return skb_network_offset(skb) + 4 * ip->ihl;
}

/**
 * read_v6() - Look at an IPv6 packet
 * @skb:	Packet
 * @ret:	What it is
 *
 * Returns: offset of its UDP header; 0 if it is no whole datagram
 */
static unsigned int read_v6(struct sk_buff *skb, struct datagram *ret)
{
	const struct ipv6hdr *ip;
	__be16 fragment = 0;
	u8 next;
	int at;

	if (!pskb_network_may_pull(skb, sizeof(*ip)))
		return 0;
	ip = ipv6_hdr(skb);
	next = ip->nexthdr;
	at = ipv6_skip_exthdr(skb, skb_network_offset(skb) + sizeof(*ip), &next,
			      &fragment);
	if (at < 0 || next != IPPROTO_UDP || fragment)
		return 0;
	ip = ipv6_hdr(skb);
	ret->from.address = ip->saddr;
	ret->to.address = ip->daddr;
	return at;
}

/**
 * packet_parse() - Take a packet for a datagram
 * @skb:	Packet, whose headers may be moved
 * @ret:	Set to what it is
 *
 * Returns: false if it isn't UDP, or not all of a datagram
 */
bool packet_parse(struct sk_buff *skb, struct datagram *ret)
{
	unsigned int at = 0, len;
	const struct udphdr *udp;

	if (skb->protocol == htons(ETH_P_IP))
		at = read_v4(skb, ret);
	else if (skb->protocol == htons(ETH_P_IPV6))
		at = read_v6(skb, ret);
	if (!at || !pskb_may_pull(skb, at + sizeof(*udp)))
		return false;
	udp = (const void *)(skb->data + at);
	len = ntohs(udp->len);
	if (len < sizeof(*udp) || len > skb->len - at)
		return false;
	ret->from.port = udp->source;
	ret->to.port = udp->dest;
	ret->at = at + sizeof(*udp);
	ret->len = len - sizeof(*udp);
	return ret->len <= TSI_MAX_DATAGRAM;
}

/**
 * put_ip() - Append an IP header
 * @skb:	Packet
 * @from:	Source
 * @to:		Destination
 * @protocol:	What follows
 * @len:	How many bytes of that
 */
static void put_ip(struct sk_buff *skb, const struct in6_addr *from,
		   const struct in6_addr *to, u8 protocol, size_t len)
{
	if (ipv6_addr_v4mapped(from)) {
		struct iphdr *ip = skb_put_zero(skb, sizeof(*ip));

		*ip = (struct iphdr){.version = 4,
				     .ihl = sizeof(*ip) / 4,
				     .tot_len = htons(sizeof(*ip) + len),
				     .ttl = TTL,
				     .protocol = protocol,
				     .saddr = from->s6_addr32[3],
				     .daddr = to->s6_addr32[3]};
		ip_send_check(ip);
	} else {
		struct ipv6hdr *ip = skb_put_zero(skb, sizeof(*ip));

		*ip = (struct ipv6hdr){.version = 6,
				       .payload_len = htons(len),
				       .nexthdr = protocol,
				       .hop_limit = TTL,
				       .saddr = *from,
				       .daddr = *to};
	}
}

/* Over IPv6 there has to be a checksum, if only for its looks */
static void put_udp(struct sk_buff *skb, __be16 from, __be16 to, size_t len)
{
	struct udphdr *udp = skb_put_zero(skb, sizeof(*udp));

	*udp = (struct udphdr){.source = from,
			       .dest = to,
			       .len = htons(sizeof(*udp) + len),
			       .check = CSUM_MANGLED_0};
}

/**
 * make() - Make a packet that has a header only
 * @from:	Source
 * @to:		Destination, of the same family
 * @protocol:	What follows
 * @len:	How many bytes of that
 *
 * Returns: it, with room for @len bytes; NULL if out of memory
 */
static struct sk_buff *make(const struct in6_addr *from,
			    const struct in6_addr *to, u8 protocol, size_t len)
{
	struct sk_buff *skb =
	    alloc_skb(sizeof(struct ipv6hdr) + len, GFP_KERNEL | __GFP_NOWARN);

	if (!skb)
		return NULL;
	skb->protocol = htons(ipv6_addr_v4mapped(from) ? ETH_P_IP : ETH_P_IPV6);
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	skb_reset_mac_header(skb);
	skb_reset_network_header(skb);
	put_ip(skb, from, to, protocol, len);
	return skb;
}

/**
 * packet_datagram() - Make the packet of a datagram
 * @from:	Who sent it
 * @to:		Whom it is for, of the same family
 * @data:	What it says
 * @len:	Bytes of that
 *
 * Returns: the packet; NULL if out of memory
 */
struct sk_buff *packet_datagram(const struct endpoint *from,
				const struct endpoint *to, const void *data,
				size_t len)
{
	struct sk_buff *skb = make(&from->address, &to->address, IPPROTO_UDP,
				   sizeof(struct udphdr) + len);

	if (skb) {
		put_udp(skb, from->port, to->port, len);
		skb_put_data(skb, data, len);
	}
	return skb;
}

static u8 code_v4(int error)
{
	return error == ECONNREFUSED ? ICMP_PORT_UNREACH : ICMP_PKT_FILTERED;
}

static u8 code_v6(int error)
{
	return error == ECONNREFUSED ? ICMPV6_PORT_UNREACH
				     : ICMPV6_ADM_PROHIBITED;
}

/**
 * packet_unreachable() - Make the packet that says that one didn't arrive
 * @from:	Who had sent it
 * @to:		Whom it was for, of the same family
 * @error:	Why, an errno
 *
 * Returns: the packet; NULL if out of memory
 */
struct sk_buff *packet_unreachable(const struct endpoint *from,
				   const struct endpoint *to, int error)
{
	bool v4 = ipv6_addr_v4mapped(&from->address);
	size_t inside = sizeof(struct udphdr) +
			(v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	struct sk_buff *skb;

	static_assert(sizeof(struct icmphdr) == sizeof(struct icmp6hdr));
	skb = make(&to->address, &from->address,
		   v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6,
		   sizeof(struct icmphdr) + inside);
	if (!skb)
		return NULL;
	if (v4) {
		struct icmphdr *icmp = skb_put_zero(skb, sizeof(*icmp));

		icmp->type = ICMP_DEST_UNREACH;
		icmp->code = code_v4(error);
	} else {
		struct icmp6hdr *icmp = skb_put_zero(skb, sizeof(*icmp));

		icmp->icmp6_type = ICMPV6_DEST_UNREACH;
		icmp->icmp6_code = code_v6(error);
	}
	put_ip(skb, &from->address, &to->address, IPPROTO_UDP,
	       sizeof(struct udphdr));
	put_udp(skb, from->port, to->port, 0);
	return skb;
}
