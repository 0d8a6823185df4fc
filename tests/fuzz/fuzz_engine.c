// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_engine.c - guests that do anything, against the engine
 *
 * Theory of operation
 * ===================
 *
 * libFuzzer's bytes are a program of small steps: put a packet on the TX ring
 * in any layout, offer RX buffers of any size, scribble over ring memory,
 * answer a held connection, act on the host's end of one, connect to a listener
 * that is the guest's, restart a ring, turn the engine. Two guests, siblings,
 * take such steps. The engine takes its turns here, on this thread, and each of
 * its looks at the clock takes as long as the input says (fuzz_engine.h), so
 * that an input always does the same.
 *
 * Packets are biased towards the few ports and lengths where the protocol
 * happens; every field can still be anything. What must hold: no sanitizer
 * report, no hang, and no connection left when the device is removed.
 *
 * And no byte is dropped and acknowledged: where a connection has a socket
 * whose other half is ours, what fwd_cnt counted at the end was taken by that
 * half, or the guest got a RST or a SHUTDOWN with RCV. So the harness reads its
 * RX ring, by its own notes (engine_guest.h).
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine_packets.h"

static uint64_t now_us = 1000000;
static uint64_t pace_us;

/**
 * fuzz_time() - What time is it to the engine?
 * @now:	Where it goes
 *
 * Returns: 0
 */
int fuzz_time(struct timespec *now)
{
	now_us += pace_us;
	*now = (struct timespec){.tv_sec = (time_t)(now_us / 1000000),
				 .tv_nsec = (long)(now_us % 1000000 * 1000)};
	return 0;
}

/* Answer a held connection with one half of a socket pair */
static struct host_end *answer(struct world *w, const struct vu_event *ev)
{
	struct host_end *end;
	int pair[2];

	if (w->n_ends == MAX_ENDS ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair))
		return NULL;
	end = keep_end(w, pair[1]);
	if (!vu_conn_answer_fd(w->e, ev->conn, pair[0]))
		return end;
	close(pair[0]);
	return NULL;
}

/* A guest's client that the engine doesn't know is Python's: it leaves */
static void take(struct vu_engine *e, const struct vu_event *ev)
{
	int fd = vu_conn_take(e, ev->conn);

	if (fd >= 0)
		close(fd);
}

static void drain_events(struct world *w, struct input *in)
{
	struct vu_event ev[16];
	int n;

	while ((n = vu_engine_events(w->e, ev, 16)) > 0) {
		for (int i = 0; i < n; i++) {
			struct vu_target t = {0};
			struct host_end *end = NULL;
			struct world *of;
			struct flow *f;

			if (ev[i].kind != VU_EV_REQUEST)
				continue;
			if (ev[i].tag) {
				take(w->e, &ev[i]);
				continue;
			}
			t.kind = byte(in) % 8;
			if (t.kind <= VU_TARGET_UNIX ||
			    t.kind == VU_TARGET_DIAL || t.kind > 6) {
				end = answer(w, &ev[i]);
			} else {
				vu_conn_answer(w->e, ev[i].conn, &t);
			}
			of = ev[i].source == w->dev ? w : w->other;
			f = flow_of(of, ev[i].cid, ev[i].port, ev[i].peer_port);
			if (!f)
				continue;
			f->answer = end;
			if (all_heard(of))
				f->left = false;
		}
		if (n < 16)
			break;
	}
}

static void host_step(struct world *w, struct input *in)
{
	static char buf[65536];
	uint8_t op = byte(in);
	struct host_end *end;
	ssize_t n;

	if (op % 8 == 7) {
		int kind = op & 16 ? SOCK_SEQPACKET : SOCK_STREAM, pair[2];
		uint32_t guest_port = 1024 + (op >> 6);
		int64_t conn;

		if (w->n_ends == MAX_ENDS ||
		    socketpair(AF_UNIX, kind | SOCK_NONBLOCK, 0, pair))
			return;
		if (op & 8)
			conn =
			    vu_conn_offer(w->e, w->dev, guest_port,
					  OFFERED | (byte(in) & 15), pair[0]);
		else
			conn = vu_conn_open(w->e, w->dev, guest_port, pair[0],
					    op & 32);
		if (conn < 0)
			close(pair[0]);
		keep_end(w, pair[1]);
		return;
	}
	if (!w->n_ends)
		return;
	end = &w->ends[(op >> 3) % w->n_ends];
	if (end->fd < 0)
		return;
	switch (op % 8) {
	case 0:
	case 1:
		send(end->fd, buf, (size_t)byte(in) << (byte(in) & 8),
		     MSG_NOSIGNAL | MSG_DONTWAIT);
		break;
	case 2:
	case 3:
		n = recv(end->fd, buf, sizeof(buf), MSG_DONTWAIT);
		end->taken += n > 0 ? (uint64_t)n : 0;
		break;
	case 4:
		shutdown(end->fd, SHUT_WR);
		break;
	case 5:
		shutdown(end->fd, SHUT_RD);
		break;
	default:
		close_end(end);
	}
}

/* Have a TCP socket on the loopback network, or -1 */
static int tcp(uint16_t port)
{
	const struct linger reset = {.l_onoff = 1};
	struct sockaddr_in at = {
	    .sin_family = AF_INET,
	    .sin_port = htons(port),
	    .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	if (!bind(fd, (struct sockaddr *)&at, sizeof(at)))
		return fd;
	close(fd);
	return -1;
}

/* Publish a port of the guest, once */
static void open_door(struct world *w)
{
	int fd = w->door ? -1 : tcp(0), ret = -1;

	if (fd < 0)
		return;
	if (!listen(fd, 4) && !getsockname(fd, (struct sockaddr *)&w->door_at,
					   &(socklen_t){sizeof(w->door_at)}))
		ret = vu_listener_guest(w->e, fd, 4, w->dev, 1);
	if (ret < 0)
		close(fd);
	else
		w->door = (uint32_t)ret;
}

/* Act on the listener that is the guest's, and on those who connect to it */
static void door_step(struct world *w, struct input *in)
{
	uint8_t op = byte(in);
	struct vu_caller caller = {
	    .ip = {127, 0, 0, 1},
	    .version = 4,
	    .guest_port = FIRST + (op >> 6),
	    .first_port = op & 8 ? 0 : OFFERED,
	};
	int fd;

	open_door(w);
	switch (op & 7) {
	case 0:
	case 1:
	case 2: /* the guest can only name the low ports: root's */
		fd = w->n_ends < MAX_ENDS ? tcp(1 + (op >> 4 & 3)) : -1;
		if (fd < 0)
			break;
		connect(fd, (struct sockaddr *)&w->door_at, sizeof(w->door_at));
		keep_end(w, fd);
		break;
	case 3:
	case 4:
		vu_listener_caller(w->e, w->door, &caller);
		break;
	case 5:
		vu_listener_pause(w->e, w->door, op & 8);
		break;
	case 6:
		if (op & 8)
			vu_listener_forget(w->e, w->door);
		else
			vu_listener_backlog(w->e, w->door, op >> 4);
		break;
	default:
		if (vu_dev_conns_from(w->e, w->dev, OFFERED) > 8)
			abort(); /* more than max_conns */
		if (op & 8)
			return;
		vu_listener_del(w->e, w->door);
		w->door = 0;
	}
}

static void engine_step(struct world *w)
{
	pthread_mutex_lock(&w->e->lock);
	for (unsigned i = 0; i < 4; i++) {
		loop_look(w->e);
		loop_turn(w->e);
	}
	pthread_mutex_unlock(&w->e->lock);
}

static void step(struct world *w, struct input *in)
{
	uint8_t op = byte(in);
	uint32_t q = op >> 7, n;

	switch (op & 7) {
	case 0:
		packet_step(w, in);
		break;
	case 1:
		talk_step(w, in);
		break;
	case 2:
		for (n = byte(in) & 15; n; n--)
			offer_rx(w, (uint32_t)byte(in) * 16, byte(in), op & 64);
		break;
	case 3:
		host_step(w, in);
		break;
	case 4: /* scribble over descriptors and indices */
		w->blind = true;
		n = (DESC(q) + word(in) % 0x4000U) & ~1U;
		memcpy(w->ram + n, &(uint16_t){(uint16_t)word(in)}, 2);
		break;
	case 5:
		n = (uint32_t)vu_dev_stop_ring(w->e, w->dev, q);
		if (op & 64) {
			vu_dev_reset(w->e, w->dev);
			read_rx(w);
			forget_flows(w);
		}
		if ((int32_t)n < 0)
			w->blind = true; /* it was broken, and starts anew */
		w->avail[q] = (uint16_t)n;
		((struct vring_avail *)(void *)(w->ram + AVAIL(q)))->idx =
		    (uint16_t)n;
		start(w, q);
		break;
	case 6:
		door_step(w, in);
		break;
	default:
		if (w->fed)
			feed(w);
		engine_step(w);
		read_rx(w);
		read_rx(w->other);
		drain_events(w, in);
	}
}

static void routes(struct world *w)
{
	static const uint8_t kinds[8] = {
	    VU_TARGET_ASK,     VU_TARGET_ECHO, VU_TARGET_DISCARD,
	    VU_TARGET_CHARGEN, VU_TARGET_ASK,  VU_TARGET_RESET,
	    VU_TARGET_UNIX,    VU_TARGET_ASK,
	};

	for (uint32_t port = 0; port < 8; port++) {
		struct vu_target t = {.kind = kinds[port]};

		if (t.kind == VU_TARGET_UNIX) {
			memcpy(t.addr, "/nowhere", 8);
			t.addr_len = 8;
		}
		vu_dev_route(w->e, w->dev, port, &t);
	}
}

static void guest_start(struct world *w, char *ram, uint32_t cid)
{
	const struct vu_dev_config dc = {
	    .guest_cid = cid,
	    .buf_alloc = 8192,
	    .max_conns = 8,
	    .max_queued_bytes = 32 * 1024,
	    .want = VU_WANT_OPENED | VU_WANT_FAILED | VU_WANT_CLOSED};

	memset(ram, 0, DATA);
	w->ram = ram;
	w->cid = cid;
	w->mem = vu_mem_new();
	vu_mem_add(w->mem, GPA, UVA, RAM / 2, ram);
	vu_mem_add(w->mem, GPA + RAM / 2, UVA + RAM / 2, RAM / 2,
		   ram + RAM / 2);
	w->dev = (uint32_t)vu_dev_add(w->e, &dc);
	vu_dev_set_mem(w->e, w->dev, w->mem);
	routes(w);
	start(w, QUEUE_RX);
	start(w, QUEUE_TX);
}

static void guest_end(struct world *w, struct input *in)
{
	if (w->door)
		vu_listener_del(w->e, w->door);
	vu_dev_del(w->e, w->dev);
	drain_events(w, in);
	vu_mem_free(w->mem);
	for (unsigned i = 0; i < w->n_ends; i++) {
		if (w->ends[i].fd >= 0)
			close(w->ends[i].fd);
	}
}

/* Let both guests hear what is due, and check what they know then */
static void settle(struct world *w)
{
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned i = 0; i < 2; i++) {
			feed(&w[i]);
			if (round == 2 && !w[i].blind)
				ask_credit(&w[i]);
		}
		/* a turn ends by time, too */
		engine_step(&w[0]);
		engine_step(&w[0]);
	}
	for (unsigned i = 0; i < 2; i++) {
		struct vring_avail *avail =
		    (void *)(w[i].ram + AVAIL(QUEUE_RX));
		int base;

		read_rx(&w[i]);
		base = vu_dev_stop_ring(w[i].e, w[i].dev, QUEUE_RX);
		/* buffers are left: nothing waits for one */
		if (!w[i].blind && base >= 0 && (uint16_t)base != avail->idx)
			check_flows(&w[i]);
	}
}

/**
 * LLVMFuzzerTestOneInput() - Run one program of steps
 * @data:	The program
 * @size:	Its size, bytes
 *
 * Returns: 0
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct vu_engine_config ec = {.max_conns = 64,
					    .dial_timeout_ms = 60000};
	static const uint16_t paces_us[8] = {0, 1, 5, 20, 60, 90, 500, 3000};
	static struct vu_engine *engine; /* once: making one costs more */
	static char ram[2][RAM];
	struct input in = {.at = data, .left = size};
	uint64_t bits = byte(&in);
	uint64_t features = (bits & 3) << VIRTIO_RING_F_INDIRECT_DESC |
			    (bits >> 2 & 1) << VIRTIO_VSOCK_F_SEQPACKET;
	struct world w[2];
	struct vu_engine_stats stats;

	pace_us = paces_us[bits >> 3 & 7];
	if (!engine)
		engine = vu_engine_new(&ec);
	for (uint32_t i = 0; i < 2; i++) {
		w[i] = (struct world){.e = engine,
				      .features = features,
				      .other = &w[1 - i],
				      .fed = bits >> 6 & 1};
		guest_start(&w[i], ram[i], CID + i);
	}
	for (uint32_t i = 0; i < 2; i++)
		vu_dev_join(engine, w[i].dev, 0);
	while (in.left)
		step(&w[*in.at >> 3 & 1], &in);
	engine_step(&w[0]);
	drain_events(&w[0], &in);
	settle(w);
	guest_end(&w[0], &in);
	guest_end(&w[1], &in);
	vu_engine_stats(engine, &stats);
	if (stats.conns)
		abort();
	return 0;
}
