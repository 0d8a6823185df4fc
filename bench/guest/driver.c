// SPDX-License-Identifier: Apache-2.0
/*
 * driver.c - a guest's virtio-vsock driver in user space, for measurements
 *
 * Theory of operation
 * ===================
 *
 * Plays the driver of Linux 6.1 (net/vmw_vsock/virtio_transport.c), since what
 * a back-end saves or wastes shows in how that driver answers it:
 *
 * - A packet is a header descriptor and a data descriptor, in either ring. RX
 *   buffers are filled up when fewer than half are left, all at once, with one
 *   kick for all (virtio_vsock_rx_fill()).
 * - What a program writes goes to a send queue; a worker moves from there to
 *   the ring whatever fits and then kicks once (send_pkt_work). So loads post()
 *   all that they can and then kick().
 * - Both rings' interrupts are wanted whenever the driver sleeps, and neither
 *   while it works (virtqueue_disable_cb(), virtqueue_enable_cb()): used TX
 *   buffers, too, interrupt the guest.
 * - A socket's buffer is 1 MiB, as tsi-agent makes it: the peer's credit, which
 *   is told when less than 64 KiB of it is left to its knowledge
 *   (virtio_transport_stream_do_dequeue()), and also the most in flight to the
 *   peer, however large its window is (since CVE-2026-23086).
 * - Kicks and interrupts follow EVENT_IDX when it was negotiated.
 *
 * Python has made the rings known to the back-end (vhost_user.frontend); here
 * is only what happens for each packet. A connection's number is its port less
 * PORT0, so that finding it costs nothing. An interrupt costs one epoll_wait():
 * edges of the call eventfds, which are never read.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "driver.h"

#define HDR	  sizeof(struct virtio_vsock_hdr)
#define HDR_ROOM  64U
#define MAX_DATA  65536U
#define BUF_ALLOC (1U << 20)
#define PORT0	  1000U /* an agent's stream, the first, is privileged */
#define HOST_CID  2
#define SPINS	  65536U /* between looks at the clock */

/**
 * now_ns() - Read the clock
 *
 * Returns: CLOCK_MONOTONIC, ns
 */
uint64_t now_ns(void)
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

/**
 * ring_init() - Start with all buffers free
 * @r:		Ring
 * @cfg:	Its configuration
 */
static void ring_init(struct ring *r, const struct guest_ring *cfg)
{
	*r = (struct ring){.cfg = *cfg,
			   .desc = cfg->desc,
			   .avail = cfg->avail,
			   .used = cfg->used};
	for (unsigned i = cfg->num / 2; i-- > 0;)
		r->free[r->n_free++] = (uint16_t)i;
}

/**
 * ring_offer() - Put a buffer on the ring; ring_kick() shows it
 * @g:		Guest
 * @r:		Ring, with a free buffer
 * @hdr:	Header of buffer 0
 * @data:	Payload of buffer 0
 * @room:	Bytes from one buffer's payload to the next one's
 * @len:	Bytes of payload; 0: none
 * @flags:	VRING_DESC_F_WRITE or 0
 * @slot:	Which buffer
 */
static void ring_offer(const struct guest *g, struct ring *r, const char *hdr,
		       const char *data, size_t room, uint32_t len,
		       uint16_t flags, unsigned slot)
{
	struct vring_desc *d = &r->desc[2 * slot];

	d[0] = (struct vring_desc){
	    .addr = to_gpa(g, hdr + slot * HDR_ROOM),
	    .len = HDR,
	    .flags = (uint16_t)(flags | (len ? VRING_DESC_F_NEXT : 0)),
	    .next = (uint16_t)(2 * slot + 1),
	};
	d[1] = (struct vring_desc){
	    .addr = to_gpa(g, data + slot * room), .len = len, .flags = flags};
	r->avail->ring[r->avail_idx++ & (r->cfg.num - 1)] =
	    (uint16_t)(2 * slot);
}

/**
 * ring_kick() - Show what was offered; kick if the device asks for it
 * @g:		Guest
 * @r:		Ring
 */
static void ring_kick(const struct guest *g, struct ring *r)
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
		return; /* the counter is full: the kick is there */
}

static bool ring_used(const struct ring *r)
{
	return __atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE) != r->last_used;
}

/**
 * ring_take() - Take the next used buffer
 * @r:		Ring that has one
 *
 * Returns: which buffer
 */
static unsigned ring_take(struct ring *r)
{
	unsigned at = r->last_used++ & (r->cfg.num - 1);
	unsigned slot = r->used->ring[at].id / 2;

	r->free[r->n_free++] = (uint16_t)slot;
	return slot;
}

/**
 * ring_want_calls() - Say whether used buffers shall interrupt us
 * @g:		Guest
 * @r:		Ring
 * @want:	They shall
 */
static void ring_want_calls(const struct guest *g, struct ring *r, bool want)
{
	if (!g->cfg.event_idx)
		r->avail->flags = want ? 0 : VRING_AVAIL_F_NO_INTERRUPT;
	else if (want)
		r->avail->ring[r->cfg.num] = r->last_used;
	/* else: an index that has gone by */
}

/* ---- packets ---- */

/**
 * fill_rx() - Offer every free RX buffer, with one kick
 * @g:		Guest
 */
static void fill_rx(struct guest *g)
{
	while (g->rx.n_free)
		ring_offer(g, &g->rx, g->rx_hdrs, g->rx_data, g->cfg.rx_len,
			   g->cfg.rx_len, VRING_DESC_F_WRITE,
			   g->rx.free[--g->rx.n_free]);
	ring_kick(g, &g->rx);
}

/**
 * took_packet() - Act on a packet from the back-end
 * @g:		Guest
 * @h:		Its header
 */
static void took_packet(struct guest *g, const struct virtio_vsock_hdr *h)
{
	struct conn *c = &g->conns[(h->dst_port - PORT0) % MAX_CONNS];

	c->window = h->buf_alloc < BUF_ALLOC ? h->buf_alloc : BUF_ALLOC;
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
	if (c->state == OPEN && c->rx - c->rx_told > BUF_ALLOC - MAX_DATA)
		post(g, (uint32_t)(c - g->conns), VIRTIO_VSOCK_OP_CREDIT_UPDATE,
		     0, 0);
}

/**
 * take() - Take what the device has used
 * @g:		Guest
 */
static void take(struct guest *g)
{
	struct virtio_vsock_hdr h;

	while (ring_used(&g->tx))
		ring_take(&g->tx);
	while (ring_used(&g->rx)) {
		memcpy(&h, g->rx_hdrs + ring_take(&g->rx) * HDR_ROOM, HDR);
		took_packet(g, &h);
	}
	if (g->rx.n_free > g->rx.cfg.num / 4)
		fill_rx(g);
	kick(g);
}

/**
 * sleep_until_used() - Wait for an interrupt that has to do with a ring
 * @g:		Guest
 *
 * Returns: 0 or -ETIMEDOUT
 */
static int sleep_until_used(struct guest *g)
{
	struct epoll_event events[2];

	for (;;) {
		ring_want_calls(g, &g->rx, true);
		ring_want_calls(g, &g->tx, true);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (ring_used(&g->rx) || ring_used(&g->tx))
			break;
		if (epoll_wait(g->epoll_fd, events, 2, GUEST_TIMEOUT_MS) == 0)
			return -ETIMEDOUT;
	}
	ring_want_calls(g, &g->rx, false);
	ring_want_calls(g, &g->tx, false);
	return 0;
}

/**
 * wait_used() - Wait until the device has used something
 * @g:		Guest
 *
 * Returns: 0 or -ETIMEDOUT
 */
static int wait_used(struct guest *g)
{
	uint64_t end;

	if (ring_used(&g->rx) || ring_used(&g->tx))
		return 0;
	if (!g->cfg.spin)
		return sleep_until_used(g);
	end = now_ns() + GUEST_TIMEOUT_MS * 1000000ULL;
	for (unsigned i = 1; !ring_used(&g->rx) && !ring_used(&g->tx); i++) {
		__builtin_ia32_pause();
		if (i % SPINS == 0 && now_ns() > end)
			return -ETIMEDOUT;
	}
	return 0;
}

/**
 * post() - Put a packet on the TX ring; kick() shows it
 * @g:		Guest
 * @conn:	Connection's number
 * @op:		VIRTIO_VSOCK_OP_*
 * @flags:	Header's flags
 * @len:	Bytes of payload
 *
 * Waits for a free buffer if there is none.
 *
 * Returns: 0 or -ETIMEDOUT
 */
int post(struct guest *g, uint32_t conn, uint16_t op, uint32_t flags,
	 uint32_t len)
{
	struct conn *c = &g->conns[conn];
	unsigned slot;

	while (!g->tx.n_free) {
		kick(g);
		if (wait_used(g))
			return -ETIMEDOUT;
		while (ring_used(&g->tx)) /* not pump(): it posts */
			ring_take(&g->tx);
	}
	slot = g->tx.free[--g->tx.n_free];
	*(struct virtio_vsock_hdr *)(void *)(g->tx_hdrs + slot * HDR_ROOM) =
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
	ring_offer(g, &g->tx, g->tx_hdrs, g->tx_data, MAX_DATA, len, 0, slot);
	return 0;
}

/**
 * next_payload() - Where are the bytes of the next packet?
 * @g:		Guest with a free TX buffer
 *
 * Returns: MAX_DATA bytes, which keep what is put there
 */
void *next_payload(struct guest *g)
{
	return g->tx_data + (size_t)g->tx.free[g->tx.n_free - 1] * MAX_DATA;
}

/**
 * kick() - Show the device what was posted
 * @g:		Guest
 */
void kick(struct guest *g)
{
	ring_kick(g, &g->tx);
}

/**
 * pump() - Wait until the device has used something, and take it
 * @g:		Guest
 *
 * Returns: 0 or -ETIMEDOUT
 */
int pump(struct guest *g)
{
	int err;

	kick(g);
	err = wait_used(g);
	if (!err)
		take(g);
	return err;
}

/**
 * request() - Ask for a connection
 * @g:		Guest
 * @host_port:	Host port
 *
 * Returns: its number
 */
uint32_t request(struct guest *g, uint32_t host_port)
{
	uint32_t conn = g->next_conn++ % MAX_CONNS;

	g->conns[conn] =
	    (struct conn){.peer_port = host_port, .state = CONNECTING};
	post(g, conn, VIRTIO_VSOCK_OP_REQUEST, 0, 0);
	return conn;
}

/* ---- set-up ---- */

/**
 * watch_calls() - Have both rings' interrupts reported
 * @g:		Guest
 *
 * Returns: 0, or -1 with errno
 */
static int watch_calls(struct guest *g)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET};

	g->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (g->epoll_fd < 0 ||
	    epoll_ctl(g->epoll_fd, EPOLL_CTL_ADD, g->rx.cfg.call_fd, &ev))
		return -1;
	return epoll_ctl(g->epoll_fd, EPOLL_CTL_ADD, g->tx.cfg.call_fd, &ev);
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
	size_t need = (size_t)n_rx * (HDR_ROOM + cfg->rx_len) +
		      (size_t)n_tx * (HDR_ROOM + MAX_DATA);
	struct guest *g;

	if (need > cfg->size || n_tx > MAX_SLOTS || n_rx > MAX_SLOTS) {
		errno = ENOSPC;
		return NULL;
	}
	g = calloc(1, sizeof(*g));
	if (!g)
		return NULL;
	g->cfg = *cfg;
	ring_init(&g->rx, &cfg->rx);
	ring_init(&g->tx, &cfg->tx);
	g->conns = calloc(MAX_CONNS, sizeof(*g->conns));
	if (!g->conns || watch_calls(g)) {
		guest_free(g);
		return NULL;
	}
	g->rx_hdrs = cfg->ram;
	g->tx_hdrs = g->rx_hdrs + (size_t)n_rx * HDR_ROOM;
	g->rx_data = g->tx_hdrs + (size_t)n_tx * HDR_ROOM;
	g->tx_data = g->rx_data + (size_t)n_rx * cfg->rx_len;
	memset(g->tx_data, 'x', (size_t)n_tx * MAX_DATA);
	fill_rx(g);
	return g;
}

/**
 * guest_free() - Free a guest; the rings stay as they are
 * @g:		Guest, or NULL
 */
void guest_free(struct guest *g)
{
	if (!g)
		return;
	if (g->epoll_fd > 0)
		close(g->epoll_fd);
	free(g->conns);
	free(g);
}
