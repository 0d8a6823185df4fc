// SPDX-License-Identifier: Apache-2.0
/*
 * guest.c - a guest's virtio-vsock driver in user space, for measurements
 *
 * Theory of operation
 * ===================
 *
 * Plays Linux 6.1's driver: RX buffers are a header descriptor and a data
 * descriptor; a TX packet is the same with at most 64 KiB of data; credit is
 * 256 KiB a connection, updated when three quarters are used up; kicks and
 * interrupts follow EVENT_IDX. Python has made the rings known to the back-end
 * (vhost_user.frontend); here is only what happens for each packet.
 *
 * One thread. pump() takes what the back-end has used; everything that must
 * wait does so in wait_used(), spinning or asleep on the call eventfds.
 * A connection's number is its port less PORT0, so that finding it costs
 * nothing and what is measured is the back-end.
 */

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

#include "guest.h"

#define HDR	  sizeof(struct virtio_vsock_hdr)
#define MAX_DATA  65536U
#define BUF_ALLOC (256U * 1024)
#define PORT0	  1024U
#define MAX_CONNS (1U << 18)
#define HOST_CID  2

enum state { CLOSED, CONNECTING, OPEN, ENDED };

/**
 * struct ring - A ring and where the driver is in it
 * @cfg:	As configured
 * @avail_idx:	Next available entry
 * @kicked_idx:	@avail_idx when the device was last asked about a kick
 * @last_used:	Next used entry to take
 */
struct ring {
	struct guest_ring cfg;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint16_t avail_idx;
	uint16_t kicked_idx;
	uint16_t last_used;
};

/**
 * struct conn - A connection
 * @peer_port:	The host's port
 * @rx:		Payload received, bytes
 * @rx_told:	@rx as the back-end last heard it
 * @tx:		Payload sent
 * @peer_fwd:	Of it, what the back-end passed on
 * @window:	Its buf_alloc
 */
struct conn {
	uint64_t rx_total;
	uint32_t peer_port;
	uint32_t rx;
	uint32_t rx_told;
	uint32_t tx;
	uint32_t peer_fwd;
	uint32_t window;
	enum state state;
};

struct guest {
	struct guest_config cfg;
	struct ring rx;
	struct ring tx;
	unsigned tx_free[512];
	unsigned n_tx_free;
	char *rx_hdrs, *rx_data, *tx_hdrs, *tx_data;
	uint32_t next_conn;
	uint32_t changes; /* packets that changed a connection's state */
	uint32_t resets;
	struct conn *conns;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static uint64_t to_gpa(const struct guest *g, const void *va)
{
	return g->cfg.gpa + (uint64_t)((const char *)va - (char *)g->cfg.ram);
}

/* ---- rings ---- */

static void ring_init(struct ring *r, const struct guest_ring *cfg)
{
	*r = (struct ring){.cfg = *cfg,
			   .desc = cfg->desc,
			   .avail = cfg->avail,
			   .used = cfg->used};
}

static void ring_offer(struct ring *r, uint16_t head)
{
	r->avail->ring[r->avail_idx++ & (r->cfg.num - 1)] = head;
}

/* Publish what was offered; kick if the device asks for it */
static void ring_publish(struct guest *g, struct ring *r)
{
	const uint64_t one = 1;
	uint16_t event, fresh = (uint16_t)(r->avail_idx - r->kicked_idx);
	bool kick;

	if (!fresh)
		return;
	__atomic_store_n(&r->avail->idx, r->avail_idx, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (g->cfg.event_idx) {
		event = __atomic_load_n(
		    (uint16_t *)(void *)&r->used->ring[r->cfg.num],
		    __ATOMIC_RELAXED);
		kick = (uint16_t)(r->avail_idx - event - 1) < fresh;
	} else {
		kick = !(__atomic_load_n(&r->used->flags, __ATOMIC_RELAXED) &
			 VRING_USED_F_NO_NOTIFY);
	}
	r->kicked_idx = r->avail_idx;
	if (kick && write(r->cfg.kick_fd, &one, sizeof(one)) < 0)
		return;
}

static bool ring_used(const struct ring *r)
{
	return __atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) != r->last_used;
}

static void ring_want_calls(struct guest *g, struct ring *r, bool want)
{
	if (g->cfg.event_idx) {
		if (want)
			r->avail->ring[r->cfg.num] = r->last_used;
	} else {
		r->avail->flags = want ? 0 : VRING_AVAIL_F_NO_INTERRUPT;
	}
}

/* ---- set-up ---- */

static void offer_rx(struct guest *g, unsigned slot)
{
	struct vring_desc *d = &g->rx.desc[2 * slot];

	d[0] = (struct vring_desc){
	    .addr = to_gpa(g, g->rx_hdrs + slot * 64),
	    .len = HDR,
	    .flags = VRING_DESC_F_WRITE | VRING_DESC_F_NEXT,
	    .next = (uint16_t)(2 * slot + 1),
	};
	d[1] = (struct vring_desc){
	    .addr = to_gpa(g, g->rx_data + (size_t)slot * g->cfg.rx_len),
	    .len = g->cfg.rx_len,
	    .flags = VRING_DESC_F_WRITE,
	};
	ring_offer(&g->rx, (uint16_t)(2 * slot));
}

/**
 * guest_new() - Lay out buffers and offer the RX ones
 * @cfg:	Configuration, copied; what it points to outlives the guest
 *
 * Returns: the guest; NULL with errno, ENOSPC if ram is too small
 */
struct guest *guest_new(const struct guest_config *cfg)
{
	unsigned n_rx = cfg->rx.num / 2, n_tx = cfg->tx.num / 2;
	size_t need =
	    (size_t)n_rx * (64 + cfg->rx_len) + (size_t)n_tx * (64 + MAX_DATA);
	struct guest *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->conns = calloc(MAX_CONNS, sizeof(*g->conns));
	if (!g->conns || need > cfg->size || n_tx > 512) {
		errno = g->conns ? ENOSPC : ENOMEM;
		guest_free(g);
		return NULL;
	}
	g->cfg = *cfg;
	ring_init(&g->rx, &cfg->rx);
	ring_init(&g->tx, &cfg->tx);
	g->rx_hdrs = cfg->ram;
	g->tx_hdrs = g->rx_hdrs + (size_t)n_rx * 64;
	g->rx_data = g->tx_hdrs + (size_t)n_tx * 64;
	g->tx_data = g->rx_data + (size_t)n_rx * cfg->rx_len;
	memset(g->tx_data, 'x', (size_t)n_tx * MAX_DATA);
	for (unsigned i = 0; i < n_rx; i++)
		offer_rx(g, i);
	for (unsigned i = n_tx; i-- > 0;)
		g->tx_free[g->n_tx_free++] = i;
	ring_want_calls(g, &g->tx, false);
	ring_publish(g, &g->rx);
	return g;
}

/**
 * guest_free() - Free a guest; the rings stay as they are
 * @g:		Guest, or NULL
 */
void guest_free(struct guest *g)
{
	if (g)
		free(g->conns);
	free(g);
}

/* ---- packets ---- */

static int post(struct guest *g, uint32_t conn, uint16_t op, uint32_t flags,
		uint32_t len);

static void took_packet(struct guest *g, const struct virtio_vsock_hdr *h)
{
	struct conn *c = &g->conns[(h->dst_port - PORT0) % MAX_CONNS];

	c->window = h->buf_alloc;
	c->peer_fwd = h->fwd_cnt;
	switch (h->op) {
	case VIRTIO_VSOCK_OP_RW:
		c->rx += h->len;
		c->rx_total += h->len;
		break;
	case VIRTIO_VSOCK_OP_RESPONSE:
		c->state = OPEN;
		g->changes++;
		break;
	case VIRTIO_VSOCK_OP_RST:
		c->state = ENDED;
		g->resets++;
		g->changes++;
		break;
	default:
		break;
	}
	if (c->state == OPEN && c->rx - c->rx_told > BUF_ALLOC / 4 * 3)
		post(g, (uint32_t)(c - g->conns), VIRTIO_VSOCK_OP_CREDIT_UPDATE,
		     0, 0);
}

/* Take what the device has used */
static void pump(struct guest *g)
{
	while (ring_used(&g->tx)) {
		unsigned at = g->tx.last_used++ & (g->tx.cfg.num - 1);

		g->tx_free[g->n_tx_free++] = g->tx.used->ring[at].id / 2;
	}
	while (ring_used(&g->rx)) {
		unsigned at = g->rx.last_used++ & (g->rx.cfg.num - 1);
		unsigned slot = g->rx.used->ring[at].id / 2;
		struct virtio_vsock_hdr h;

		memcpy(&h, g->rx_hdrs + slot * 64, HDR);
		took_packet(g, &h);
		offer_rx(g, slot);
	}
	ring_publish(g, &g->rx);
	ring_publish(g, &g->tx);
}

/* Wait until the device has used something; 0 or -ETIMEDOUT */
static int wait_used(struct guest *g, bool for_tx)
{
	struct pollfd p[2] = {{.fd = g->rx.cfg.call_fd, .events = POLLIN},
			      {.fd = g->tx.cfg.call_fd, .events = POLLIN}};
	uint64_t end = now_ns() + GUEST_TIMEOUT_MS * 1000000ULL, drained;
	int n = 1;

	ring_publish(g, &g->tx);
	if (g->cfg.spin) {
		for (unsigned i = 1; !ring_used(&g->rx) && !ring_used(&g->tx);
		     i++) {
			__builtin_ia32_pause();
			if (i % 65536 == 0 && now_ns() > end)
				return -ETIMEDOUT;
		}
		return 0;
	}
	ring_want_calls(g, &g->rx, true);
	if (for_tx)
		ring_want_calls(g, &g->tx, true);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!ring_used(&g->rx) && !(for_tx && ring_used(&g->tx)))
		n = poll(p, for_tx ? 2 : 1, GUEST_TIMEOUT_MS);
	for (unsigned i = 0; i < 2; i++) {
		if (p[i].revents &&
		    read(p[i].fd, &drained, sizeof(drained)) < 0)
			errno = 0; /* somebody was faster */
	}
	ring_want_calls(g, &g->rx, false);
	if (for_tx)
		ring_want_calls(g, &g->tx, false);
	return n > 0 ? 0 : -ETIMEDOUT;
}

/* Put a packet on the TX ring; ring_publish() shows it */
static int post(struct guest *g, uint32_t conn, uint16_t op, uint32_t flags,
		uint32_t len)
{
	struct conn *c = &g->conns[conn];
	struct vring_desc *d;
	unsigned slot;

	while (!g->n_tx_free) {
		if (wait_used(g, true))
			return -ETIMEDOUT;
		while (ring_used(&g->tx)) { /* not pump(): it posts */
			unsigned at = g->tx.last_used++ & (g->tx.cfg.num - 1);

			g->tx_free[g->n_tx_free++] =
			    g->tx.used->ring[at].id / 2;
		}
	}
	slot = g->tx_free[--g->n_tx_free];
	d = &g->tx.desc[2 * slot];
	*(struct virtio_vsock_hdr *)(void *)(g->tx_hdrs + slot * 64) =
	    (struct virtio_vsock_hdr){
		.src_cid = g->cfg.cid,
		.dst_cid = HOST_CID,
		.src_port = PORT0 + conn,
		.dst_port = c->peer_port,
		.len = len,
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.op = op,
		.flags = flags,
		.buf_alloc = BUF_ALLOC,
		.fwd_cnt = c->rx,
	    };
	c->rx_told = c->rx;
	c->tx += len;
	d[0] = (struct vring_desc){
	    .addr = to_gpa(g, g->tx_hdrs + slot * 64),
	    .len = HDR,
	    .flags = len ? VRING_DESC_F_NEXT : 0,
	    .next = (uint16_t)(2 * slot + 1),
	};
	d[1] = (struct vring_desc){
	    .addr = to_gpa(g, g->tx_data + (size_t)slot * MAX_DATA),
	    .len = len,
	};
	ring_offer(&g->tx, (uint16_t)(2 * slot));
	return 0;
}

static uint32_t credit(const struct conn *c)
{
	return c->window - (c->tx - c->peer_fwd);
}

/* ---- what is measured ---- */

static uint32_t request(struct guest *g, uint32_t host_port)
{
	uint32_t conn = g->next_conn++ % MAX_CONNS;

	g->conns[conn] =
	    (struct conn){.peer_port = host_port, .state = CONNECTING};
	post(g, conn, VIRTIO_VSOCK_OP_REQUEST, 0, 0);
	return conn;
}

/**
 * guest_connect() - Open connections, one after the other
 * @g:		Guest
 * @host_port:	Host port
 * @count:	How many
 *
 * Returns: the first one's number, the others follow; or a negated errno
 */
int guest_connect(struct guest *g, uint32_t host_port, uint32_t count)
{
	uint32_t first = g->next_conn % MAX_CONNS;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t conn = request(g, host_port);

		while (g->conns[conn].state == CONNECTING) {
			if (wait_used(g, false))
				return -ETIMEDOUT;
			pump(g);
		}
		if (g->conns[conn].state != OPEN)
			return -ECONNRESET;
	}
	return (int)first;
}

/**
 * guest_close() - Close a connection and wait for the RST
 * @g:		Guest
 * @conn:	Number
 *
 * Returns: 0, or a negated errno
 */
int guest_close(struct guest *g, uint32_t conn)
{
	post(g, conn, VIRTIO_VSOCK_OP_SHUTDOWN,
	     VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND, 0);
	while (g->conns[conn].state == OPEN) {
		if (wait_used(g, false))
			return -ETIMEDOUT;
		pump(g);
	}
	return 0;
}

/**
 * guest_rtt() - Ping-pong with an echo, over connections in turn
 * @g:		Guest
 * @first_conn:	First connection's number
 * @n_conns:	How many
 * @size:	Bytes each way, at most 64 KiB
 * @count:	Round trips
 * @ret_ns:	Their times, ns
 *
 * Returns: 0, or a negated errno
 */
int guest_rtt(struct guest *g, uint32_t first_conn, uint32_t n_conns,
	      uint32_t size, uint32_t count, uint64_t *ret_ns)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t conn = first_conn + i % n_conns;
		struct conn *c = &g->conns[conn];
		uint64_t start = now_ns(), goal = c->rx_total + size;

		post(g, conn, VIRTIO_VSOCK_OP_RW, 0, size);
		ring_publish(g, &g->tx);
		while (c->rx_total < goal) {
			if (c->state != OPEN)
				return -ECONNRESET;
			if (!ring_used(&g->rx) && wait_used(g, false))
				return -ETIMEDOUT;
			pump(g);
		}
		ret_ns[i] = now_ns() - start;
		if (c->rx_total != goal)
			return -EPROTO;
	}
	return 0;
}

/**
 * guest_send() - Stream bytes to the host until they have left the back-end
 * @g:		Guest
 * @conn:	Number
 * @size:	Bytes a write, at most 64 KiB
 * @bytes:	Bytes in all
 *
 * Returns: ns it took, or a negated errno
 */
int64_t guest_send(struct guest *g, uint32_t conn, uint32_t size,
		   uint64_t bytes)
{
	struct conn *c = &g->conns[conn];
	uint64_t start = now_ns(), left = bytes;

	while (left || c->tx != c->peer_fwd) {
		uint32_t window = credit(c);
		uint32_t n = size < left ? size : (uint32_t)left;

		if (c->state != OPEN)
			return -ECONNRESET;
		if (n && window) {
			n = n < window ? n : window;
			if (!g->n_tx_free)
				pump(g);
			if (post(g, conn, VIRTIO_VSOCK_OP_RW, 0, n))
				return -ETIMEDOUT;
			ring_publish(g, &g->tx);
			left -= n;
			continue;
		}
		if (!n && c->tx != c->peer_fwd)
			post(g, conn, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, 0);
		if (wait_used(g, false))
			return -ETIMEDOUT;
		pump(g);
	}
	return (int64_t)(now_ns() - start);
}

/**
 * guest_receive() - Take bytes that the host streams
 * @g:		Guest
 * @conn:	Number
 * @bytes:	Bytes to take
 *
 * Returns: ns it took, or a negated errno
 */
int64_t guest_receive(struct guest *g, uint32_t conn, uint64_t bytes)
{
	struct conn *c = &g->conns[conn];
	uint64_t start = now_ns(), goal = c->rx_total + bytes;

	while (c->rx_total < goal) {
		if (c->state != OPEN)
			return -ECONNRESET;
		if (!ring_used(&g->rx) && wait_used(g, false))
			return -ETIMEDOUT;
		pump(g);
	}
	return (int64_t)(now_ns() - start);
}

/**
 * churn_step() - Close what is open, count what is gone
 * @g:		Guest
 * @live:	Connections asked for
 * @n_live:	How many; those that were closed leave
 */
static void churn_step(struct guest *g, uint32_t *live, uint32_t *n_live)
{
	for (uint32_t i = 0; i < *n_live;) {
		struct conn *c = &g->conns[live[i]];

		if (c->state == CONNECTING) {
			i++;
			continue;
		}
		if (c->state == OPEN)
			post(g, live[i], VIRTIO_VSOCK_OP_SHUTDOWN,
			     VIRTIO_VSOCK_SHUTDOWN_RCV |
				 VIRTIO_VSOCK_SHUTDOWN_SEND,
			     0);
		c->state = CLOSED; /* the RST comes whenever it comes */
		live[i] = live[--*n_live];
	}
}

/**
 * guest_churn() - Connect and close, several at a time
 * @g:		Guest
 * @host_port:	Host port
 * @in_flight:	Connections at a time
 * @count:	Connections in all
 *
 * As for a program, close() doesn't wait for the RST that answers it; the
 * last of all has to be here before the clock stops.
 *
 * Returns: ns it took, or a negated errno
 */
int64_t guest_churn(struct guest *g, uint32_t host_port, uint32_t in_flight,
		    uint32_t count)
{
	uint32_t live[256], n_live = 0, begun = 0, first = g->resets;
	uint64_t start = now_ns();

	if (in_flight > 256)
		return -EINVAL;
	while (g->resets - first < count) {
		uint32_t seen;

		while (n_live < in_flight && begun < count) {
			live[n_live++] = request(g, host_port);
			begun++;
		}
		ring_publish(g, &g->tx);
		seen = g->changes;
		while (seen == g->changes) {
			if (!ring_used(&g->rx) && wait_used(g, false))
				return -ETIMEDOUT;
			pump(g);
		}
		churn_step(g, live, &n_live);
	}
	return (int64_t)(now_ns() - start);
}
