// SPDX-License-Identifier: GPL-2.0-only
/*
 * datagrams.c - UDP
 *
 * Theory of operation
 * ===================
 *
 * A program's UDP socket is the kernel's own. What it sends out of the guest
 * comes to our interface as packets (interface.c), which one thread takes apart
 * and sends on over a datagram stream; what comes back are packets again, of
 * ICMP where a datagram didn't arrive. docs/tsi-protocol.md, section 9, is the
 * specification. A flow is a local port, and only the pod's own addresses have
 * flows.
 *
 * The thread waits for nobody but this: packets, and news from the stream. The
 * stream is opened for the first packet, and again after its end, at most once
 * a second. What has no room is dropped, as a network would.
 */

#include <linux/icmpv6.h>
#include <linux/kthread.h>
#include <linux/netdevice.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <net/af_vsock.h>
#include <net/icmp.h>

#include "inet.h"

#define RETRY	    (1 * HZ) /* after a stream that could not be opened */
#define QUEUE_BYTES (1U << 20)

/**
 * struct out - What a datagram becomes on the stream
 * @peer_header: PEER, if it is the first to this peer
 * @peer:	Same
 * @header:	DATAGRAM
 * @datagram:	Same
 * @data:	Same
 */
struct out {
	struct tsi_header peer_header;
	struct tsi_peer peer;
	struct tsi_header header;
	struct tsi_datagram datagram;
	u8 data[TSI_MAX_DATAGRAM];
} __packed;

#define MAX_IN                                                                 \
	(sizeof(struct tsi_header) + sizeof(struct tsi_datagram) +             \
	 TSI_MAX_DATAGRAM)

/**
 * struct buffers - The thread's, once there was a stream
 * @out_at:	What of @out has been sent
 * @out_end:	What of it is to be
 * @in_len:	Bytes in @in
 * @out:	A datagram
 * @in:		Start of a message that isn't here in full
 */
struct buffers {
	size_t out_at;
	size_t out_end;
	size_t in_len;
	struct out out;
	u8 in[2 * MAX_IN];
};

static DECLARE_WAIT_QUEUE_HEAD(wake);
static bool news;		  /* for the thread */
static struct sk_buff_head queue; /* packets of programs */
static atomic_t queued;		  /* bytes of them */
static struct net_device *device;
static struct socket *sock; /* the stream, NULL: there is none */
static struct buffers *buffers;
static unsigned long retry;

static void ring(void)
{
	WRITE_ONCE(news, true);
	wake_up(&wake);
}

static void ring_by(struct sock *sk)
{
	ring();
}

/* ---- the interface ---- */

/**
 * refuse() - Say that a packet leads nowhere
 * @skb:	Packet; freed
 */
static void refuse(struct sk_buff *skb)
{
	DEV_STATS_INC(device, tx_dropped);
	if (skb->protocol == htons(ETH_P_IP))
		icmp_ndo_send(skb, ICMP_DEST_UNREACH, ICMP_NET_UNREACH, 0);
	else if (skb->protocol == htons(ETH_P_IPV6))
		icmpv6_ndo_send(skb, ICMPV6_DEST_UNREACH, ICMPV6_NOROUTE, 0);
	kfree_skb(skb);
}

static netdev_tx_t xmit(struct sk_buff *skb, struct net_device *dev)
{
	if (atomic_read(&queued) > QUEUE_BYTES) {
		DEV_STATS_INC(dev, tx_dropped);
		kfree_skb(skb);
		return NETDEV_TX_OK;
	}
	atomic_add(skb->truesize, &queued);
	skb_queue_tail(&queue, skb);
	ring();
	return NETDEV_TX_OK;
}

static const struct net_device_ops device_ops = {.ndo_start_xmit = xmit};

/* ---- the stream ---- */

static void close_stream(const char *why)
{
	pr_warn_ratelimited("tsi: datagram stream: %s\n", why);
	sock_release(sock);
	sock = NULL;
	retry = jiffies + RETRY;
}

/**
 * open_stream() - See to it that there is a stream
 *
 * Returns: true if there is
 */
static bool open_stream(void)
{
	struct tsi_grant grant;
	struct sock *sk;
	int error;

	if (sock)
		return true;
	if (retry && time_before(jiffies, retry))
		return false;
	retry = jiffies + RETRY;
	if (!buffers)
		buffers = kvmalloc(sizeof(*buffers), GFP_KERNEL);
	if (!buffers)
		return false;
	error = hello_open(TSI_DATAGRAM_PORT, TSI_GRANT, &grant, sizeof(grant),
			   &sock);
	if (error) {
		pr_warn_ratelimited("tsi: datagram stream: %d\n", error);
		return false;
	}
	if (grant.version != TSI_VERSION || peers_begin(grant.peers)) {
		close_stream("the host grants nothing of use");
		return false;
	}
	buffers->out_at = buffers->out_end = buffers->in_len = 0;
	sk = sock->sk;
	write_lock_bh(&sk->sk_callback_lock);
	sk->sk_data_ready = ring_by;
	sk->sk_write_space = ring_by;
	sk->sk_state_change = ring_by;
	sk->sk_error_report = ring_by;
	write_unlock_bh(&sk->sk_callback_lock);
	ring(); /* something may have come before that */
	return true;
}

/* ---- from programs ---- */

/**
 * fill_peer() - Write down who a peer is
 * @number:	Its number
 * @to:		It
 */
static void fill_peer(u32 number, const struct endpoint *to)
{
	struct out *out = &buffers->out;
	bool v4 = ipv6_addr_v4mapped(&to->address);

	out->peer_header =
	    (struct tsi_header){.type = TSI_PEER, .len = sizeof(out->peer)};
	out->peer = (struct tsi_peer){.peer = number,
				      .family = v4 ? TSI_IPV4 : TSI_IPV6,
				      .port = ntohs(to->port)};
	if (v4)
		memcpy(out->peer.address, &to->address.s6_addr32[3], 4);
	else
		memcpy(out->peer.address, &to->address, 16);
}

/**
 * fill() - Make of a packet what goes to the host
 * @skb:	Packet
 *
 * Returns: false if there is nothing that would
 */
static bool fill(struct sk_buff *skb)
{
	struct out *out = &buffers->out;
	struct datagram datagram;
	u32 number;
	bool new;

	if (!packet_parse(skb, &datagram) ||
	    !address_is_pods(&datagram.from.address))
		return false;
	if (skb_copy_bits(skb, datagram.at, out->data, datagram.len))
		return false;
	number = peers_number(&datagram.to, &new);
	if (new)
		fill_peer(number, &datagram.to);
	buffers->out_at = new ? 0 : offsetof(struct out, header);
	buffers->out_end = offsetof(struct out, data) + datagram.len;
	out->header = (struct tsi_header){
	    .type = TSI_DATAGRAM, .len = sizeof(out->datagram) + datagram.len};
	out->datagram = (struct tsi_datagram){.flow = ntohs(datagram.from.port),
					      .peer = number};
	return true;
}

/**
 * flush() - Send what is written down
 *
 * Returns: false if it has to wait
 */
static bool flush(void)
{
	while (sock && buffers->out_at < buffers->out_end) {
		struct msghdr msg = {.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL};
		struct kvec vec = {
		    .iov_base = (u8 *)&buffers->out + buffers->out_at,
		    .iov_len = buffers->out_end - buffers->out_at};
		int sent = kernel_sendmsg(sock, &msg, &vec, 1, vec.iov_len);

		if (sent == -EAGAIN)
			return false;
		if (sent > 0)
			buffers->out_at += sent;
		else
			close_stream("the host doesn't take it");
	}
	return true;
}

/**
 * send_all() - Send on what programs have sent, as far as there is room
 */
static void send_all(void)
{
	struct sk_buff *skb;

	while (flush() && (skb = skb_dequeue(&queue))) {
		atomic_sub(skb->truesize, &queued);
		if (!open_stream() || !fill(skb)) {
			refuse(skb);
			continue;
		}
		DEV_STATS_INC(device, tx_packets);
		DEV_STATS_ADD(device, tx_bytes, skb->len);
		consume_skb(skb);
	}
}

/* ---- to programs ---- */

/**
 * take() - Have the guest receive a packet
 * @skb:	Packet, or NULL
 */
static void take(struct sk_buff *skb)
{
	if (!skb) {
		DEV_STATS_INC(device, rx_dropped);
		return;
	}
	skb->dev = device;
	DEV_STATS_INC(device, rx_packets);
	DEV_STATS_ADD(device, rx_bytes, skb->len);
	netif_rx(skb);
}

/**
 * own() - The end of a flow that is in the guest
 * @flow:	Its number
 * @peer:	The other end
 *
 * Returns: endpoint
 */
static struct endpoint own(u16 flow, const struct endpoint *peer)
{
	struct endpoint own = {.port = htons(flow)};

	address_pods(ipv6_addr_v4mapped(&peer->address), &own.address);
	return own;
}

static void take_datagram(const struct tsi_datagram *datagram, const void *data,
			  size_t len)
{
	const struct endpoint *peer = peers_find(datagram->peer);
	struct endpoint to;

	if (!peer)
		return;
	to = own(datagram->flow, peer);
	take(packet_datagram(peer, &to, data, len));
}

static void take_unreachable(const struct tsi_unreachable *message)
{
	const struct endpoint *peer = peers_find(message->peer);
	struct endpoint from;

	if (!peer)
		return;
	from = own(message->flow, peer);
	take(packet_unreachable(&from, peer, message->error));
}

/**
 * handle() - Handle a message; verdicts follow as UNREACHABLE, too
 * @header:	Its header
 * @payload:	Payload
 *
 * Returns: false if the host should not have sent it
 */
static bool handle(const struct tsi_header *header, const u8 *payload)
{
	struct tsi_unreachable unreachable;
	struct tsi_datagram datagram;

	switch (header->type) {
	case TSI_DATAGRAM:
		if (header->len < sizeof(datagram))
			return false;
		memcpy(&datagram, payload, sizeof(datagram));
		take_datagram(&datagram, payload + sizeof(datagram),
			      header->len - sizeof(datagram));
		return true;
	case TSI_UNREACHABLE:
		if (header->len != sizeof(unreachable))
			return false;
		memcpy(&unreachable, payload, sizeof(unreachable));
		take_unreachable(&unreachable);
		return true;
	case TSI_VERDICT:
		return header->len == sizeof(struct tsi_verdict);
	default:
		return false;
	}
}

/**
 * parse() - Handle the complete messages that are here
 *
 * Returns: false if the host should not have sent one
 */
static bool parse(void)
{
	struct tsi_header header;
	const u8 *in = buffers->in;
	size_t at = 0;

	while (buffers->in_len - at >= sizeof(header)) {
		memcpy(&header, in + at, sizeof(header));
		if (header.len > MAX_IN - sizeof(header))
			return false;
		if (buffers->in_len - at < sizeof(header) + header.len)
			break;
		if (!handle(&header, in + at + sizeof(header)))
			return false;
		at += sizeof(header) + header.len;
	}
	buffers->in_len -= at;
	memmove(buffers->in, buffers->in + at, buffers->in_len);
	return true;
}

/**
 * receive_all() - Take what has come from the host
 */
static void receive_all(void)
{
	while (sock) {
		struct msghdr msg = {};
		struct kvec vec = {.iov_base = buffers->in + buffers->in_len,
				   .iov_len =
				       sizeof(buffers->in) - buffers->in_len};
		int got = kernel_recvmsg(sock, &msg, &vec, 1, vec.iov_len,
					 MSG_DONTWAIT);

		if (got == -EAGAIN)
			return;
		if (got <= 0) {
			close_stream("the host closed it");
			return;
		}
		buffers->in_len += got;
		if (!parse())
			close_stream("the host sent what it should not");
		cond_resched();
	}
}

static int run(void *unused)
{
	for (;;) {
		wait_event_idle(wake, READ_ONCE(news));
		WRITE_ONCE(news, false);
		smp_mb(); /* what is news from here on rings again */
		receive_all();
		send_all();
	}
	return 0;
}

/**
 * datagrams_begin() - Make the interface, and start the thread
 *
 * Returns: 0, or a negated errno
 */
int __init datagrams_begin(void)
{
	int error;

	skb_queue_head_init(&queue);
	error = interface_begin(&device_ops, &device);
	return error
		   ?: PTR_ERR_OR_ZERO(kthread_run(run, NULL, "tsi-datagrams"));
}
