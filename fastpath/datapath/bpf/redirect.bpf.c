// SPDX-License-Identifier: GPL-2.0-only
/*
 * redirect.bpf.c - a pod's packets to ztunnel and back, past the node's routes
 *
 * Theory of operation
 * ===================
 *
 * Four programs, each on one device's clsact qdisc:
 *
 *	pod's veth, ingress	app_out		to ztunnel
 *	pod's veth, egress	app_in		to ztunnel
 *	ztunnel's veth, ingress	from_ztunnel	to the pod
 *	ztunnel's eth0, ingress	to_ztunnel	to one of its sockets
 *
 * A word of the packet's control block goes with it from one to the next, and
 * says which way it is: out of a pod, into one, or from ztunnel, which app_in
 * lets pass. to_ztunnel gives the packet to the socket of its connection, or to
 * the listener of its way. The mark that it sets leads to a local route.
 *
 * It is IPv4 only. UDP to ztunnel meets no socket there, as no listener takes
 * it; DNS passes by.
 *
 * Parameters are undefined symbols, as in geneve.bpf.c; what Istio keeps in
 * maps, one pod's address, is among them.
 *
 * Spec: istio 1.20, cni/pkg/ebpf; bpf-helpers(7).
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#define SEC(name) __attribute__((section(name), used))
#define htons(x)  __builtin_bswap16(x)

#define WAY	   4 /* word of the control block */
#define WAY_OUT	   0x11
#define WAY_IN	   0x22
#define WAY_BYPASS 0x33

#define DNS_PORT      53
#define OUTBOUND_PORT 15001
#define INBOUND_PORT  15006
#define HBONE_PORT    15008
#define ZTUNNELS_MARK 0x400
#define CURRENT_NETNS (-1L)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "byte order");

/* Parameters. Addresses are in network order, MACs as 6 bytes of a u64. */
extern const char node_ip[];
extern const char pod_ip[];
extern const char pod_device[]; /* ifindex of its veth on the node */
extern const char pod_mac[];
extern const char ztunnel_device[];
extern const char ztunnel_mac[];

#define PARAM(name) ((__u64)(unsigned long)(name))

/* Helpers of the kernel, by number: bpf-helpers(7) has the arguments. */
#define HELPER(name) (void *)BPF_FUNC_##name
static long (*const store_bytes)(void *, __u32, const void *, __u32,
				 __u64) = HELPER(skb_store_bytes);
static long (*const redirect)(__u32, __u64) = HELPER(redirect);
static struct bpf_sock *(*const lookup_tcp)(void *, struct bpf_sock_tuple *,
					    __u32, __u64,
					    __u64) = HELPER(skc_lookup_tcp);
static long (*const assign)(void *, void *, __u64) = HELPER(sk_assign);
static long (*const release)(void *) = HELPER(sk_release);

/**
 * struct packet - The start of an IPv4 packet without options
 * @eth:	Its frame's header
 * @ip:		Its own
 * @source:	TCP's and UDP's ports
 * @dest:	The other
 */
struct packet {
	struct ethhdr eth;
	struct iphdr ip;
	__be16 source;
	__be16 dest;
} __attribute__((packed));

/**
 * packet_of() - The headers of TCP or UDP over IPv4
 * @skb:	Packet
 *
 * Returns: them, or NULL: it is something else
 */
static __always_inline struct packet *packet_of(struct __sk_buff *skb)
{
	struct packet *p = (void *)(unsigned long)skb->data;

	if ((void *)(p + 1) > (void *)(unsigned long)skb->data_end ||
	    p->eth.h_proto != htons(ETH_P_IP))
		return (void *)0;
	if (p->ip.protocol != IPPROTO_TCP && p->ip.protocol != IPPROTO_UDP)
		return (void *)0;
	return p;
}

/**
 * pass_on() - Send a frame out of another device of the node
 * @skb:	Packet
 * @device:	Index of the device
 * @mac:	Of who is behind it
 * @way:	WAY_
 *
 * Returns: the verdict
 */
static __always_inline int pass_on(struct __sk_buff *skb, __u32 device,
				   __u64 mac, __u32 way)
{
	store_bytes(skb, 0, &mac, ETH_ALEN, 0);
	skb->cb[WAY] = way;
	return (int)redirect(device, 0);
}

/**
 * app_out() - What a pod sends: its veth on the node, ingress
 * @skb:	Packet
 *
 * Returns: the verdict
 */
SEC("tc/app_out")
int app_out(struct __sk_buff *skb)
{
	const struct packet *p = packet_of(skb);

	if (!p || p->ip.daddr == (__be32)PARAM(node_ip))
		return TC_ACT_OK;
	if (p->ip.protocol == IPPROTO_UDP && p->dest == htons(DNS_PORT))
		return TC_ACT_OK;
	return pass_on(skb, (__u32)PARAM(ztunnel_device), PARAM(ztunnel_mac),
		       WAY_OUT);
}

/**
 * app_in() - What a pod is sent: its veth on the node, egress
 * @skb:	Packet
 *
 * Returns: the verdict
 */
SEC("tc/app_in")
int app_in(struct __sk_buff *skb)
{
	const struct packet *p = packet_of(skb);

	if (skb->cb[WAY] == WAY_BYPASS || !p ||
	    p->ip.saddr == (__be32)PARAM(node_ip))
		return TC_ACT_OK;
	if (p->ip.protocol == IPPROTO_UDP && p->source == htons(DNS_PORT))
		return TC_ACT_OK;
	return pass_on(skb, (__u32)PARAM(ztunnel_device), PARAM(ztunnel_mac),
		       WAY_IN);
}

/**
 * from_ztunnel() - What ztunnel sends: its veth on the node, ingress
 * @skb:	Packet
 *
 * Returns: the verdict
 */
SEC("tc/from_ztunnel")
int from_ztunnel(struct __sk_buff *skb)
{
	const struct packet *p = packet_of(skb);

	if (!p || p->ip.daddr != (__be32)PARAM(pod_ip))
		return TC_ACT_OK;
	return pass_on(skb, (__u32)PARAM(pod_device), PARAM(pod_mac),
		       WAY_BYPASS);
}

/**
 * to_ztunnel() - What is led to ztunnel: its eth0, ingress
 * @skb:	Packet
 *
 * Returns: the verdict
 */
SEC("tc/to_ztunnel")
int to_ztunnel(struct __sk_buff *skb)
{
	const struct packet *p = packet_of(skb);
	const __u32 way = skb->cb[WAY];
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__be16 port = htons(OUTBOUND_PORT);
	long refused;

	if ((way != WAY_OUT && way != WAY_IN) || !p ||
	    p->ip.protocol != IPPROTO_TCP)
		return TC_ACT_OK;
	tuple.ipv4.saddr = p->ip.saddr;
	tuple.ipv4.daddr = p->ip.daddr;
	tuple.ipv4.sport = p->source;
	tuple.ipv4.dport = p->dest;
	if (way == WAY_IN)
		port = p->dest == htons(HBONE_PORT) ? htons(HBONE_PORT)
						    : htons(INBOUND_PORT);

	sk = lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), (__u64)CURRENT_NETNS,
			0);
	if (sk && sk->state == BPF_TCP_LISTEN) {
		release(sk);
		sk = (void *)0;
	}
	if (!sk) { /* no connection yet: the listener of its way */
		tuple = (struct bpf_sock_tuple){.ipv4.dport = port};
		sk = lookup_tcp(skb, &tuple, sizeof(tuple.ipv4),
				(__u64)CURRENT_NETNS, 0);
	}
	if (!sk)
		return TC_ACT_OK;
	refused = assign(skb, sk, 0);
	release(sk);
	skb->mark = ZTUNNELS_MARK;
	return refused ? TC_ACT_SHOT : TC_ACT_OK;
}
