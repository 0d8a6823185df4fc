// SPDX-License-Identifier: GPL-2.0-only
/*
 * geneve.bpf.c - a Geneve tunnel device for kernels without CONFIG_GENEVE
 *
 * Theory of operation
 * ===================
 *
 * A tunnel end is two programs on two devices of one network namespace:
 *
 *	routes -> istioout (an ifb) -> [encap, clsact egress] -> underlay
 *	routes <- istioout <- [decap, clsact ingress of the underlay] <- wire
 *
 * The ifb gives routes and addresses something to name; it never transmits,
 * because encap takes every frame before the device sees it. Both programs
 * work on whole GSO packets and leave their segments' size alone, so a 64 KiB
 * packet crosses the tunnel as one, as it does with the kernel's device, and
 * the MTU that counts for it is the tunnel device's own.
 *
 * What goes on the wire is RFC 8926 over IPv4: UDP to port 6081, a source port
 * that spreads flows ("UDP Header", section 3.3), no checksum ("UDP Checksum",
 * section 4.3), don't fragment ("IP Fragmentation", section 4.4.1), a Geneve
 * header without options. Not done: options (skipped on receipt, as section
 * 3.5 lets an endpoint do with all but critical ones), copying DSCP and ECN
 * between the two IP headers (section 4.4.2), an IPv6 underlay.
 *
 * Two ways lead out. An IP frame, of either version, is grown by
 * bpf_skb_adjust_room(), which also tells the stack where the inner headers
 * are, and then takes the underlay's route and neighbour like any packet of
 * the host. That helper refuses all others; the only ones here are ARP's, a
 * few in a minute. They are grown blindly and sent to the MAC address of the
 * other end.
 *
 * There are no maps. A program's parameters are undefined symbols: their
 * addresses are its immediates, and the loader writes the values there
 * (fastpath/datapath/bpf/__init__.py).
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#define SEC(name) __attribute__((section(name), used))
#define htons(x)  __builtin_bswap16(x)
#define htonl(x)  __builtin_bswap32(x)
#define ntohl(x)  __builtin_bswap32(x)

#define GENEVE_PORT	    6081
#define GENEVE_VER_MASK	    0xc0
#define GENEVE_OPT_LEN_MASK 0x3f /* 4-byte units */
#define GENEVE_CONTROL	    0x80
#define GENEVE_CRITICAL	    0x40
#define GENEVE_TEB	    0x6558 /* Transparent Ethernet Bridging */
#define GENEVE_VNI_SHIFT    8

#define IP_DONT_FRAGMENT 0x4000
#define IP_FRAGMENT_MASK 0x3fff /* more fragments, offset */
#define IP_VERSION	 4
#define IP_IHL		 5 /* 4-byte units: no options */
#define OUTER_TTL	 64
#define IP_MAX_LEN	 0xffff

#define EPHEMERAL_PORT_BASE 49152
#define EPHEMERAL_PORT_MASK 0x3fff

/* The byte swaps and the parameters are for little-endian hosts only. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "byte order");

/* Parameters. Addresses are in network order, MACs as 6 bytes of a u64. */
extern const char geneve_local[];    /* underlay IPv4 address of this end */
extern const char geneve_remote[];   /* and of the other */
extern const char geneve_vni[];	     /* 24 bits */
extern const char geneve_underlay[]; /* ifindex of the underlay device */
extern const char geneve_tunnel[];   /* ifindex of the tunnel device */
extern const char geneve_local_mac[];
extern const char geneve_remote_mac[];

#define PARAM(name) ((__u64)(unsigned long)(name))

/* Helpers of the kernel, by number: bpf-helpers(7) has the arguments. */
#define HELPER(name) (void *)BPF_FUNC_##name
static long (*const load_bytes)(void *, __u32, void *,
				__u32) = HELPER(skb_load_bytes);
static long (*const store_bytes)(void *, __u32, const void *, __u32,
				 __u64) = HELPER(skb_store_bytes);
static long (*const adjust_room)(void *, __s32, __u32,
				 __u64) = HELPER(skb_adjust_room);
static long (*const change_head)(void *, __u32,
				 __u64) = HELPER(skb_change_head);
static long (*const redirect)(__u32, __u64) = HELPER(redirect);
static long (*const redirect_neigh)(__u32, void *, int,
				    __u64) = HELPER(redirect_neigh);
static __u32 (*const hash_recalc)(void *) = HELPER(get_hash_recalc);

/**
 * struct genevehdr - RFC 8926, "Tunnel Header Fields", section 3.4
 * @ver_opt_len: Version, 2 bits; length of the options, 4-byte units, 6 bits
 * @flags:	Control and critical-options bits; the rest is reserved
 * @protocol:	Ethertype of what follows
 * @vni:	Virtual network identifier, 24 bits, and a reserved byte
 */
struct genevehdr {
	__u8 ver_opt_len;
	__u8 flags;
	__be16 protocol;
	__be32 vni;
} __attribute__((packed));

/**
 * struct outer - All that encapsulation puts before the inner frame
 * @eth:	Ethernet header of the underlay
 * @ip:		IPv4 header without options
 * @udp:	UDP header
 * @geneve:	Geneve header without options
 */
struct outer {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	struct genevehdr geneve;
} __attribute__((packed, aligned(2)));

/**
 * struct headers - The start of an encapsulated frame
 * @outer:	What we add
 * @inner:	The frame's own Ethernet header, which the room moves
 */
struct headers {
	struct outer outer;
	struct ethhdr inner;
} __attribute__((packed, aligned(2)));

_Static_assert(sizeof(struct genevehdr) == 8, "RFC 8926, section 3.4");
_Static_assert(sizeof(struct outer) == 50, "14 + 20 + 8 + 8");

#define OUTER_IP_LEN  (sizeof(struct outer) - sizeof(struct ethhdr))
#define OUTER_UDP_LEN (OUTER_IP_LEN - sizeof(struct iphdr))

/**
 * ip_checksum() - Checksum of the outer IPv4 header
 * @outer:	Headers, the checksum field 0
 *
 * Returns: the checksum, as it is stored
 */
static __always_inline __sum16 ip_checksum(const struct outer *outer)
{
	const __u16 *words = (const void *)(&outer->eth + 1);
	__u32 sum = 0;

#pragma unroll
	for (unsigned i = 0; i < sizeof(outer->ip) / sizeof(*words); i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

/**
 * fill_outer() - Write the headers of the underlay, but for MAC addresses
 * @outer:	Headers to write
 * @frame_len:	Length of the inner frame, bytes; with OUTER_IP_LEN not above
 *		IP_MAX_LEN
 * @flow_hash:	The same for all packets of one inner connection
 */
static __always_inline void fill_outer(struct outer *outer, __u32 frame_len,
				       __u32 flow_hash)
{
	__u16 port = (flow_hash ^ (flow_hash >> 16)) & EPHEMERAL_PORT_MASK;

	*outer = (struct outer){
	    .eth.h_proto = htons(ETH_P_IP),
	    .ip =
		{
		    .version = IP_VERSION,
		    .ihl = IP_IHL,
		    .tot_len = htons((__u16)(frame_len + OUTER_IP_LEN)),
		    .frag_off = htons(IP_DONT_FRAGMENT),
		    .ttl = OUTER_TTL,
		    .protocol = IPPROTO_UDP,
		    .saddr = (__be32)PARAM(geneve_local),
		    .daddr = (__be32)PARAM(geneve_remote),
		},
	    .udp =
		{
		    .source = htons((__u16)(EPHEMERAL_PORT_BASE + port)),
		    .dest = htons(GENEVE_PORT),
		    .len = htons((__u16)(frame_len + OUTER_UDP_LEN)),
		},
	    .geneve =
		{
		    .protocol = htons(GENEVE_TEB),
		    .vni = htonl((__u32)PARAM(geneve_vni) << GENEVE_VNI_SHIFT),
		},
	};
	outer->ip.check = ip_checksum(outer);
}

/**
 * send_ip() - Encapsulate an IP frame and route it on the underlay
 * @skb:	Frame
 * @h:		Outer headers and a copy of the frame's own Ethernet header
 *
 * The room opens behind the Ethernet header, whose old place becomes the
 * start of the outer one: both are written, together with what is between.
 *
 * Returns: a tc verdict
 */
static __always_inline int send_ip(struct __sk_buff *skb,
				   const struct headers *h)
{
	const __u64 flags =
	    BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
	    BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
	    BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr));

	if (adjust_room(skb, sizeof(struct outer), BPF_ADJ_ROOM_MAC, flags))
		return TC_ACT_SHOT;
	if (store_bytes(skb, 0, h, sizeof(*h), BPF_F_INVALIDATE_HASH))
		return TC_ACT_SHOT;
	return (int)redirect_neigh((__u32)PARAM(geneve_underlay), 0, 0, 0);
}

/**
 * send_other() - Encapsulate a frame that isn't IP and send it to the peer
 * @skb:	Frame
 * @outer:	Outer headers; the MAC addresses are written here
 *
 * Returns: a tc verdict
 */
static __always_inline int send_other(struct __sk_buff *skb,
				      struct outer *outer)
{
	__u64 local = PARAM(geneve_local_mac);
	__u64 remote = PARAM(geneve_remote_mac);

	__builtin_memcpy(outer->eth.h_source, &local, ETH_ALEN);
	__builtin_memcpy(outer->eth.h_dest, &remote, ETH_ALEN);
	if (change_head(skb, sizeof(*outer), 0))
		return TC_ACT_SHOT;
	if (store_bytes(skb, 0, outer, sizeof(*outer), 0))
		return TC_ACT_SHOT;
	return (int)redirect((__u32)PARAM(geneve_underlay), 0);
}

/**
 * encap() - Send a frame through the tunnel: clsact egress of the tunnel device
 * @skb:	Frame
 *
 * Returns: TC_ACT_REDIRECT; TC_ACT_SHOT, if the frame doesn't fit an IPv4
 *	packet or there is no memory for its headers
 */
SEC("tc/encap") int encap(struct __sk_buff *skb)
{
	__u32 hash = hash_recalc(skb);
	struct headers h;

	if (skb->len > IP_MAX_LEN - OUTER_IP_LEN)
		return TC_ACT_SHOT;
	if (load_bytes(skb, 0, &h.inner, sizeof(h.inner)))
		return TC_ACT_SHOT;

	fill_outer(&h.outer, skb->len, hash);
	if (h.inner.h_proto == htons(ETH_P_IP) ||
	    h.inner.h_proto == htons(ETH_P_IPV6))
		return send_ip(skb, &h);
	return send_other(skb, &h.outer);
}

/**
 * is_ours() - Whether a packet is Geneve between the tunnel's two ends
 * @outer:	Start of the packet
 *
 * Returns: 1 if it is, whatever its network and options; 0 if it isn't
 */
static __always_inline int is_ours(const struct outer *outer)
{
	return outer->eth.h_proto == htons(ETH_P_IP) &&
	       outer->ip.version == IP_VERSION && outer->ip.ihl == IP_IHL &&
	       outer->ip.protocol == IPPROTO_UDP &&
	       !(outer->ip.frag_off & htons(IP_FRAGMENT_MASK)) &&
	       outer->ip.saddr == (__be32)PARAM(geneve_remote) &&
	       outer->ip.daddr == (__be32)PARAM(geneve_local) &&
	       outer->udp.dest == htons(GENEVE_PORT);
}

/**
 * decap() - Receive from the tunnel: clsact ingress of the underlay device
 * @skb:	Any packet of the underlay
 *
 * Returns: TC_ACT_UNSPEC, if it isn't the tunnel's: the host's as ever;
 *	TC_ACT_REDIRECT, to the tunnel device;
 *	TC_ACT_SHOT, if it is of another network, of a version or with a
 *	critical option that we don't know ("Tunnel Header Fields"), or short
 */
SEC("tc/decap") int decap(struct __sk_buff *skb)
{
	const __u8 refused = GENEVE_CONTROL | GENEVE_CRITICAL;
	struct ethhdr inner;
	struct outer outer;
	__u32 len;

	if (load_bytes(skb, 0, &outer, sizeof(outer)) || !is_ours(&outer))
		return TC_ACT_UNSPEC;
	if (outer.geneve.ver_opt_len & GENEVE_VER_MASK ||
	    outer.geneve.flags & refused ||
	    outer.geneve.protocol != htons(GENEVE_TEB) ||
	    ntohl(outer.geneve.vni) >> GENEVE_VNI_SHIFT !=
		(__u32)PARAM(geneve_vni))
		return TC_ACT_SHOT;

	len = sizeof(outer) +
	      4 * (outer.geneve.ver_opt_len & GENEVE_OPT_LEN_MASK);
	if (load_bytes(skb, len, &inner, sizeof(inner)))
		return TC_ACT_SHOT;
	if (adjust_room(skb, -(__s32)len, BPF_ADJ_ROOM_MAC,
			BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
	if (store_bytes(skb, 0, &inner, sizeof(inner), BPF_F_INVALIDATE_HASH))
		return TC_ACT_SHOT;
	return (int)redirect((__u32)PARAM(geneve_tunnel), BPF_F_INGRESS);
}

/* For whoever reads the object; the loader tells the kernel the same. */
char geneve_license[] SEC("license") = "GPL";
