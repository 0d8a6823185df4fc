/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_guest.h - a guest of fuzz_engine.c: its memory and rings, the host's
 * ends of its connections, and its notes of them
 *
 * The notes are of connections to a socket whose other half is ours: what
 * fwd_cnt counted, against what that half took. Once the fuzzer has scribbled
 * over a ring they can't be kept any more.
 */
#ifndef ENGINE_GUEST_H
#define ENGINE_GUEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>
#include <netinet/in.h>

#include "engine/engine.h"

#define NUM	 64
#define RAM	 (1U << 20)
#define GPA	 0x100000U
#define UVA	 0x7f0000000000ULL
#define DESC(q)	 ((q) * 0x4000U)
#define AVAIL(q) (DESC(q) + 0x2000U)
#define USED(q)	 (DESC(q) + 0x3000U)
#define DATA	 0x10000U
#define BUFFERS	 0xa0000U /* of the RX ring, each BUFFER apart */
#define BUFFER	 0x1000U
#define TABLES	 0xf0000U /* an indirect table for each head of both rings */
#define CID	 3
#define MAX_ENDS 16
#define PORTS	 8	     /* of the host, from 0 */
#define CALLERS	 4	     /* ports of a guest, from FIRST */
#define FIRST	 1024	     /* first of them */
#define OPENED	 (1U << 30)  /* first port of vu_conn_open() on our side */
#define OFFERED	 0x80010000U /* first port of those that are offered */

/* Off while the engine drops and acknowledges (E15): the fuzzer finds that at
 * once */
#define ACKNOWLEDGED_IS_TAKEN true

/* Our half of a host socket */
struct host_end {
	int fd;		/* -1: closed */
	uint64_t taken; /* bytes read; once closed, and those that were not */
};

/* A connection from a guest to a host socket, between one pair of ports */
struct flow {
	struct host_end *answer; /* what its REQUEST was answered with */
	struct host_end *sink;	 /* that, once its RESPONSE came */
	uint64_t acknowledged;
	uint32_t fwd_cnt;
	uint32_t said; /* fwd_cnt of the guest's own last packet */
	bool told;     /* or it was the guest that ended it */
	bool left; /* the guest ends it, once the engine comes to that packet */
};

struct world {
	struct vu_engine *e;
	struct vu_mem *mem;
	char *ram;
	uint32_t dev;
	uint32_t cid;  /* CID or CID + 1 */
	uint32_t door; /* the listener that is the guest's; 0: none */
	struct sockaddr_in door_at;
	uint16_t avail[2];
	uint16_t desc[2];
	uint32_t data;
	struct host_end ends[MAX_ENDS];
	unsigned n_ends;
	uint64_t features;
	struct world *other; /* the sibling */
	struct flow flows[CALLERS][PORTS];
	uint32_t rx_off[NUM]; /* where the buffer of each head is */
	uint32_t rx_next;     /* buffers offered */
	uint16_t rx_seen;     /* used entries that were read */
	bool fed;	      /* there are RX buffers in each turn */
	bool blind;	      /* a ring's memory is not what the notes say */
};

static struct host_end *keep_end(struct world *w, int fd)
{
	w->ends[w->n_ends] = (struct host_end){.fd = fd};
	return &w->ends[w->n_ends++];
}

static uint64_t taken(const struct host_end *end)
{
	int unread = 0;

	if (end->fd >= 0)
		ioctl(end->fd, FIONREAD, &unread);
	return end->taken + (uint64_t)unread;
}

static void close_end(struct host_end *end)
{
	end->taken = taken(end);
	close(end->fd);
	end->fd = -1;
}

static struct flow *flow_of(struct world *w, uint64_t cid, uint32_t host_port,
			    uint32_t guest_port)
{
	if (cid != 2 || host_port >= PORTS || guest_port < FIRST ||
	    guest_port >= FIRST + CALLERS)
		return NULL;
	return &w->flows[guest_port - FIRST][host_port];
}

static void forget_flows(struct world *w)
{
	memset(w->flows, 0, sizeof(w->flows));
}

/* Note what a packet to the guest says of its connection */
static void note(struct world *w, const struct virtio_vsock_hdr *h)
{
	struct flow *f = flow_of(w, h->src_cid, h->src_port, h->dst_port);

	if (!f)
		return;
	if (h->op == VIRTIO_VSOCK_OP_RESPONSE)
		*f = (struct flow){.sink = f->answer,
				   .said = f->said,
				   .told = f->left,
				   .left = f->left};
	if (h->op == VIRTIO_VSOCK_OP_RST ||
	    (h->op == VIRTIO_VSOCK_OP_SHUTDOWN &&
	     h->flags & VIRTIO_VSOCK_SHUTDOWN_RCV))
		f->told = true;
	if (h->op != VIRTIO_VSOCK_OP_RST) {
		f->acknowledged += h->fwd_cnt - f->fwd_cnt;
		f->fwd_cnt = h->fwd_cnt;
	}
}

/* Read what came on the RX ring */
static void read_rx(struct world *w)
{
	const struct vring_used *used = (void *)(w->ram + USED(QUEUE_RX));

	for (; !w->blind && w->rx_seen != used->idx; w->rx_seen++) {
		const struct vring_used_elem *e = &used->ring[w->rx_seen % NUM];
		struct virtio_vsock_hdr h;

		if (e->id >= NUM || e->len < sizeof(h))
			continue; /* given back unused, or what a reset left */
		memcpy(&h, w->ram + w->rx_off[e->id], sizeof(h));
		note(w, &h);
	}
}

/* Has the engine come to each packet that the guest sent? */
static bool all_heard(const struct world *w)
{
	const struct vu_dev *d = dev_by_id(w->e, w->dev);

	return !d || !d->rings[QUEUE_TX] ||
	       !vu_ring_pending(d->rings[QUEUE_TX]);
}

/* The end of an input: were the bytes that fwd_cnt counted taken? */
static void check_flows(struct world *w)
{
	for (unsigned i = 0; i < CALLERS * PORTS; i++) {
		const struct flow *f = &w->flows[i / PORTS][i % PORTS];

		if (ACKNOWLEDGED_IS_TAKEN && f->sink && !f->told &&
		    f->acknowledged > taken(f->sink)) {
			fprintf(stderr,
				"guest port %u, host port %u: %llu bytes "
				"acknowledged, %llu taken\n",
				FIRST + i / PORTS, i % PORTS,
				(unsigned long long)f->acknowledged,
				(unsigned long long)taken(f->sink));
			abort();
		}
	}
}

static void start(struct world *w, uint32_t q)
{
	struct vu_ring_config cfg = {
	    .desc_uva = UVA + DESC(q),
	    .avail_uva = UVA + AVAIL(q),
	    .used_uva = UVA + USED(q),
	    .features = w->features,
	    .num = NUM,
	    .base = w->avail[q],
	    .kick_fd = -1,
	    .call_fd = -1,
	};

	vu_dev_start_ring(w->e, w->dev, q, &cfg);
}

/* Offer a chain of up to three descriptors over @len bytes at @off */
static void offer(struct world *w, uint32_t q, uint32_t off, uint32_t len,
		  uint8_t cut, bool indirect)
{
	struct vring_avail *avail = (void *)(w->ram + AVAIL(q));
	struct vring_desc *ring = (void *)(w->ram + DESC(q)), *d = ring;
	uint16_t head = w->desc[q], flags = q ? 0 : VRING_DESC_F_WRITE;
	uint32_t first = cut < len ? cut : len;

	if (q == QUEUE_RX) {
		const struct vring_used *used = (void *)(w->ram + USED(q));

		read_rx(w); /* while the notes of used heads are theirs */
		/* it may write over descriptors of chains that wait */
		if ((uint16_t)(w->avail[q] - used->idx) >= NUM / 2)
			w->blind = true;
		w->rx_off[head] = off;
	}
	if (indirect) {
		uint32_t table = TABLES + (q * NUM + head) * 32;

		d = (void *)(w->ram + table);
		ring[head] = (struct vring_desc){
		    .addr = GPA + table,
		    .len = 32,
		    .flags = VRING_DESC_F_INDIRECT,
		};
		d[0] = (struct vring_desc){.addr = GPA + off,
					   .len = first,
					   .flags = flags | VRING_DESC_F_NEXT,
					   .next = 1};
		d[1] = (struct vring_desc){.addr = GPA + off + first,
					   .len = len - first,
					   .flags = flags};
		w->desc[q] = (uint16_t)((head + 1) % NUM);
	} else {
		uint16_t next = (uint16_t)((head + 1) % NUM);

		d[head] =
		    (struct vring_desc){.addr = GPA + off,
					.len = first,
					.flags = flags | VRING_DESC_F_NEXT,
					.next = next};
		d[next] = (struct vring_desc){.addr = GPA + off + first,
					      .len = len - first,
					      .flags = flags};
		w->desc[q] = (uint16_t)((head + 2) % NUM);
	}
	avail->ring[w->avail[q]++ % NUM] = head;
	__atomic_store_n(&avail->idx, w->avail[q], __ATOMIC_RELEASE);
}

/* Offer an RX buffer where no other one is */
static void offer_rx(struct world *w, uint32_t len, uint8_t cut, bool indirect)
{
	uint32_t off = BUFFERS + w->rx_next++ % NUM * BUFFER;

	/* what an earlier input left there is no packet of this one */
	memset(w->ram + off, 0, sizeof(struct virtio_vsock_hdr));
	offer(w, QUEUE_RX, off, len, cut, indirect);
}

/* See that eight RX buffers wait */
static void feed(struct world *w)
{
	const struct vring_used *used = (void *)(w->ram + USED(QUEUE_RX));

	while (!w->blind && (uint16_t)(w->avail[QUEUE_RX] - used->idx) < 8)
		offer_rx(w, 0x100, 0, false);
}

#endif /* ENGINE_GUEST_H */
