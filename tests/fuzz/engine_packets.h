/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_packets.h - what a guest of fuzz_engine.c sends: anything, or what one
 * would that keeps the rules of credit
 */
#ifndef ENGINE_PACKETS_H
#define ENGINE_PACKETS_H

#include "engine_guest.h"
#include "input.h"

/* Put a packet with @room bytes of payload on the TX ring */
static void send_packet(struct world *w, const struct virtio_vsock_hdr *h,
			uint32_t room, uint8_t cut, bool indirect)
{
	struct flow *f = flow_of(w, h->dst_cid, h->dst_port, h->src_port);
	uint32_t off = DATA + w->data % 0x80000U;

	memcpy(w->ram + off, h, sizeof(*h));
	if (f)
		f->said = h->fwd_cnt;
	if (f &&
	    (h->op == VIRTIO_VSOCK_OP_RST || h->op == VIRTIO_VSOCK_OP_REQUEST))
		f->told = f->left = true; /* it ends what is there itself */
	offer(w, QUEUE_TX, off, (uint32_t)sizeof(*h) + room, cut, indirect);
	w->data += 0x1000;
}

/* Ask what each connection has acknowledged: CREDIT_UPDATEs come seldom */
static void ask_credit(struct world *w)
{
	for (uint32_t i = 0; i < CALLERS * PORTS; i++) {
		const struct flow *f = &w->flows[i / PORTS][i % PORTS];
		const struct virtio_vsock_hdr h = {
		    .src_cid = w->cid,
		    .dst_cid = 2,
		    .src_port = FIRST + i / PORTS,
		    .dst_port = i % PORTS,
		    .type = VIRTIO_VSOCK_TYPE_STREAM,
		    .op = VIRTIO_VSOCK_OP_CREDIT_REQUEST,
		    .buf_alloc = 0x10000,
		    .fwd_cnt = f->said,
		};

		if (f->sink && !f->told)
			send_packet(w, &h, 0, 0, false);
	}
}

static void packet_step(struct world *w, struct input *in)
{
	uint8_t shape = byte(in), ports = byte(in);
	static const uint32_t first[4] = {0, 0, OPENED, OFFERED};
	struct virtio_vsock_hdr h = {
	    .src_cid = w->cid,
	    .dst_cid = 2,
	    .src_port = FIRST + (ports & 3),
	    .dst_port = first[ports >> 6] + (byte(in) & 7),
	    .type = VIRTIO_VSOCK_TYPE_STREAM,
	    .op = byte(in) % 9,
	    .flags = byte(in) & 3,
	    .buf_alloc = 1U << (byte(in) & 31),
	    .fwd_cnt = byte(in),
	};
	uint32_t room = (uint32_t)byte(in) << (shape & 7);

	h.len = room;
	if (shape & 128)
		h.dst_cid = 2 * CID + 1 - w->cid;
	if (shape & 128 && w->cid != CID) { /* ports as the other has them */
		uint32_t port = h.src_port;

		h.src_port = h.dst_port;
		h.dst_port = port;
	}
	if (shape & 8)
		h.fwd_cnt = word(in);
	if (shape & 16)
		h.len = word(in);
	if (shape & 32) {
		h.type = (uint16_t)word(in);
		h.dst_cid = word(in) & 7;
	}
	if (shape & 128)
		h.type = VIRTIO_VSOCK_TYPE_SEQPACKET;
	send_packet(w, &h, room, byte(in), shape & 64);
}

/* Go on with a connection as a guest does that keeps the rules of credit */
static void talk_step(struct world *w, struct input *in)
{
	static const uint8_t ops[8] = {
	    VIRTIO_VSOCK_OP_RW,
	    VIRTIO_VSOCK_OP_RW,
	    VIRTIO_VSOCK_OP_RW,
	    VIRTIO_VSOCK_OP_RW,
	    VIRTIO_VSOCK_OP_CREDIT_UPDATE,
	    VIRTIO_VSOCK_OP_CREDIT_REQUEST,
	    VIRTIO_VSOCK_OP_SHUTDOWN,
	    VIRTIO_VSOCK_OP_RST,
	};
	uint8_t which = byte(in), how = byte(in);
	uint32_t host_port = which & 7, guest_port = FIRST + (which >> 3 & 3);
	struct flow *f = flow_of(w, 2, host_port, guest_port);
	struct virtio_vsock_hdr h = {
	    .src_cid = w->cid,
	    .dst_cid = 2,
	    .src_port = guest_port,
	    .dst_port = host_port,
	    .type = VIRTIO_VSOCK_TYPE_STREAM,
	    .op = f->sink && !f->told ? ops[how & 7] : VIRTIO_VSOCK_OP_REQUEST,
	    .buf_alloc = 0x10000,
	    .fwd_cnt = f->said,
	};

	if (h.op == VIRTIO_VSOCK_OP_RW)
		h.len = (uint32_t)byte(in) << (how >> 3 & 7);
	if (h.op == VIRTIO_VSOCK_OP_SHUTDOWN)
		h.flags = how >> 3 & 3;
	send_packet(w, &h, h.len, byte(in), which >> 5 & 1);
}

#endif /* ENGINE_PACKETS_H */
