// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_hbone.c - peers that say anything, against tunnels
 *
 * Theory of operation
 * ===================
 *
 * libFuzzer's bytes are a program of small steps of a tunnel's peer and of what
 * is behind its streams: say a frame, good or bad, or bytes that are none; open
 * a connection, answer one that is held, act on the other end of its socket;
 * let time pass, drain, turn the engine. The tunnel is one of a gate, or of a
 * pool. TLS's handshake is left out (fuzz_hbone.h): it is OpenSSL's business.
 * The records are sealed as a peer does, each with what the program says:
 * payload, KeyUpdates and parts of them, alerts, padding, or what is no record
 * at all.
 *
 * What must hold: no sanitizer report, no hang, nothing left once all are gone.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>

#include "engine/engine.h"
#include "hbone_frames.h"
#include "hbone_records.h"
#include "input.h"
#include "pem.h"
#include "tls/tls.h"

#define ENDS   8
#define NAME   "spiffe://a/b"
#define SETTLE 2000

#define SECRET 32

static uint64_t now_us = 1000000;

/**
 * struct world - One tunnel, and what is around it
 * @e:		Engine
 * @gate:	Listener's id
 * @pool:	Pool's id
 * @listener:	Id of one whose clients get streams of the pool
 * @headers:	Id of their headers
 * @gate_addr:	Where the gate listens
 * @client_addr: Where the listener does
 * @server:	What the pool connects to
 * @peer:	The tunnel's other end, or -1
 * @ends:	Other ends of connections, or -1
 * @held:	Connection that waits for an answer, or 0
 * @keys:	What the peer seals with
 */
struct world {
	struct vu_engine *e;
	int gate;
	int pool;
	int listener;
	int headers;
	struct sockaddr_in gate_addr;
	struct sockaddr_in client_addr;
	int server;
	int peer;
	int ends[ENDS];
	uint64_t held;
	struct tls_keys keys;
};

/* ---- what takes the place of TLS and of time ---- */

int fuzz_time(struct timespec *now)
{
	now_us++;
	*now = (struct timespec){.tv_sec = (time_t)(now_us / 1000000),
				 .tv_nsec = (long)(now_us % 1000000 * 1000)};
	return 0;
}

int fuzz_shake(SSL *ssl)
{
	struct tls *t = SSL_get_app_data(ssl);

	t->in.len = t->out.len = SECRET; /* of zeroes, both */
	return 1;
}

void fuzz_alpn(const unsigned char **name, unsigned *len)
{
	*name = (const unsigned char *)"h2";
	*len = 2;
}

/* ---- the world ---- */

static int listening(struct sockaddr_in *addr)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(*addr);

	*addr = (struct sockaddr_in){.sin_family = AF_INET};
	addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(fd, (struct sockaddr *)addr, len) || listen(fd, 64) ||
	    getsockname(fd, (struct sockaddr *)addr, &len))
		abort();
	return fd;
}

static void make_pool(struct world *w, uint32_t tls)
{
	static const char *const names[] = {NAME};
	struct vu_hbone_target ids;
	struct vu_target target = {.kind = VU_TARGET_HBONE,
				   .addr_len = sizeof(ids)};
	struct vu_headers_config hc = {
	    .authority = "a:1", .baggage = "k=v", .forwarded_before = "for=a:"};
	struct vu_pool_config pc = {
	    .tls = tls,
	    .addr_len = sizeof(struct sockaddr_in),
	    .names = names,
	    .n_names = 1,
	    .max_streams = 3,
	    .max_tunnels = 1,
	    .idle_ms = 1000000,
	    .connect_ms = 1000000,
	    .ping_ms = 10000,
	    .silence_ms = 20000,
	};
	struct sockaddr_in addr;

	w->server = listening(&addr);
	memcpy(pc.addr, &addr, sizeof(addr));
	w->pool = vu_pool_add(w->e, &pc);
	w->headers = vu_headers_add(w->e, &hc);
	ids = (struct vu_hbone_target){(uint32_t)w->pool, (uint32_t)w->headers};
	memcpy(target.addr, &ids, sizeof(ids));
	w->listener =
	    vu_listener_add(w->e, listening(&w->client_addr), 0xff, &target);
}

static void make_world(struct world *w)
{
	const struct vu_engine_config ec = {.max_conns = 16,
					    .dial_timeout_ms = 60000};
	char *pem = make_pem();
	struct vu_tls_config tc = {.chain = pem, .key = pem, .roots = pem};
	struct vu_hbone_config gc = {
	    .want = 0xff,
	    .trust_domain = "a",
	    .max_tunnels = 4,
	    .max_shakes = 4,
	    .max_streams = 4,
	    .connect_ms = 1000000,
	    .ping_ms = 10000,
	    .silence_ms = 20000,
	};

	w->e = vu_engine_new(&ec);
	gc.tls = (uint32_t)vu_tls_add(w->e, &tc);
	w->gate = vu_hbone_listen(w->e, listening(&w->gate_addr), &gc);
	make_pool(w, gc.tls);
	if (w->gate < 0 || w->pool < 0 || w->listener < 0)
		abort();
	free(pem);
}

static void turn(struct world *w)
{
	struct vu_event events[16];
	int n;

	pthread_mutex_lock(&w->e->lock);
	timers_run(w->e);
	loop_look(w->e);
	loop_turn(w->e);
	pthread_mutex_unlock(&w->e->lock);
	while ((n = vu_engine_events(w->e, events, 16)) > 0) {
		for (int i = 0; i < n; i++) {
			if (events[i].kind == VU_EV_REQUEST)
				w->held = events[i].conn;
		}
	}
}

static int dial(const struct sockaddr_in *addr)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)))
		abort();
	return fd;
}

static struct vu_hbone_stats stats_of(struct world *w, int source)
{
	struct vu_hbone_stats stats;

	if (vu_hbone_stats(w->e, (uint32_t)source, &stats))
		abort();
	return stats;
}

/* The other thread's part in a handshake takes its time: that doesn't count */
static bool shakes(struct world *w)
{
	return stats_of(w, w->gate).shakes || stats_of(w, w->pool).shakes;
}

static void settle_shakes(struct world *w, int source)
{
	for (unsigned i = 0; i < SETTLE; i += !shakes(w)) {
		turn(w);
		if (stats_of(w, source).tunnels && !shakes(w))
			return;
		poll(NULL, 0, i > 4);
	}
}

static void add_end(struct world *w, int fd)
{
	for (unsigned i = 0; i < ENDS; i++) {
		if (w->ends[i] < 0) {
			w->ends[i] = fd;
			return;
		}
	}
	close(fd);
}

static void say(struct world *w, const void *data, size_t len)
{
	hand_record(w->peer, &w->keys, TLS_TYPE_DATA, data, len);
}

static void begin(struct world *w, bool server)
{
	keys_clear(&w->keys);
	w->keys.len = SECRET;
	if (!keys_start(&w->keys, true))
		abort();
	if (server) {
		w->peer = dial(&w->gate_addr);
		/* the first byte that it says begins the handshake */
		say(w, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
		settle_shakes(w, w->gate);
		return;
	}
	add_end(w, dial(&w->client_addr));
	for (unsigned i = 0; i < SETTLE; i++) {
		turn(w);
		w->peer = accept(w->server, NULL, NULL);
		if (w->peer >= 0)
			break;
		poll(NULL, 0, i > 4);
	}
	settle_shakes(w, w->pool);
}

/* ---- steps ---- */

static void say_frame(struct world *w, uint8_t type, uint8_t flags, uint32_t id,
		      const uint8_t *data, size_t len)
{
	uint8_t head[9] = {(uint8_t)(len >> 16),
			   (uint8_t)(len >> 8),
			   (uint8_t)len,
			   type,
			   flags,
			   (uint8_t)(id >> 24),
			   (uint8_t)(id >> 16),
			   (uint8_t)(id >> 8),
			   (uint8_t)id};

	say(w, head, sizeof(head));
	say(w, data, len);
}

static void frame_step(struct world *w, struct input *in)
{
	static const uint8_t zeroes[16384];
	uint8_t type = byte(in), flags = byte(in), id = byte(in);
	size_t len = byte(in);

	if (type & 0x80) { /* of any length, and what it says is nothing */
		say_frame(w, type & 15, flags, id, zeroes, len * 64);
		return;
	}
	if (len > in->left)
		len = in->left;
	say_frame(w, type, flags, id, in->at, len);
	in->at += len;
	in->left -= len;
}

static void headers_step(struct world *w, struct input *in)
{
	static const uint8_t connect[] = "\x02\x07"
					 "CONNECT\x01\x03"
					 "a:1";
	static const uint8_t ok[] = {0x88};
	uint8_t id = byte(in);

	if (id & 0x80)
		say_frame(w, 1, 4 | (id >> 6 & 1), id & 31, ok, sizeof(ok));
	else
		say_frame(w, 1, 4 | (id >> 6 & 1), id & 31, connect,
			  sizeof(connect) - 1);
}

static void rule_step(struct world *w, struct input *in)
{
	const struct said *f = &frames[byte(in) % FRAMES];
	uint8_t on = byte(in);

	/* mostly on 0 what belongs there */
	if (f->type == SETTINGS || f->type == PING || f->type == GOAWAY)
		on = on & 0x80 ? on : 0;
	say_frame(w, f->type, f->flags, on & 31, f->payload, f->len);
}

static void answer_step(struct world *w, struct input *in)
{
	uint8_t how = byte(in);
	struct vu_target target = {.kind = how % 8};
	struct vu_hbone_decision decision = {.tag = 1, .target = target};
	int pair[2];

	if (how & 0x10) /* who says the same isn't asked about any more */
		vu_hbone_decide(w->e, w->held, &decision);
	if (how & 0x80 &&
	    !socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair)) {
		if (vu_conn_answer_fd(w->e, w->held, pair[0]))
			close(pair[0]);
		add_end(w, pair[1]);
	} else if (how & 0x40) {
		vu_conn_reset(w->e, w->held, ECONNRESET);
	} else {
		target.error = how & 0x20 ? EACCES : 0;
		vu_hbone_respond(w->e, w->held, (uint32_t)w->headers);
		vu_conn_answer(w->e, w->held, &target);
	}
}

static void end_step(struct world *w, struct input *in)
{
	static char scratch[65536];
	uint8_t how = byte(in);
	int *end = &w->ends[how % ENDS];

	switch (how >> 3 & 3) {
	case 0:
		send(*end, scratch, how >> 5 & 1 ? sizeof(scratch) : 7,
		     MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case 1:
		recv(*end, scratch, sizeof(scratch), MSG_DONTWAIT);
		break;
	case 2:
		shutdown(*end, SHUT_WR);
		break;
	default:
		if (*end >= 0)
			close(*end);
		*end = -1;
	}
}

static void step(struct world *w, struct input *in)
{
	static char scratch[1 << 16];
	uint8_t what = byte(in);
	size_t len = what >> 4;

	switch (what & 15) {
	case 0:
	case 1:
	case 2:
		frame_step(w, in);
		break;
	case 3:
	case 4:
		headers_step(w, in);
		break;
	case 5:
		len = len < in->left ? len : in->left;
		say(w, in->at, len);
		in->at += len;
		in->left -= len;
		break;
	case 6:
		answer_step(w, in);
		break;
	case 7:
	case 8:
		end_step(w, in);
		break;
	case 9:
		recv(w->peer, scratch, sizeof(scratch), MSG_DONTWAIT);
		break;
	case 10:
		if (w->ends[ENDS - 1] < 0) { /* the backlog has room for them */
			add_end(w, dial(&w->client_addr));
			turn(w);
		}
		break;
	case 11:
		now_us += 1000000ULL << (len & 3);
		break;
	case 12:
		if (len == 15)
			vu_hbone_drain(w->e, (uint32_t)w->pool, 5000);
		else if (len == 14)
			vu_hbone_forget(w->e, (uint32_t)w->gate);
		break;
	case 13:
		rule_step(w, in);
		break;
	case 14:
		hand_step(w->peer, &w->keys, in, len);
		break;
	default:
		turn(w);
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
	static struct world w; /* once: making one costs more */
	struct input in = {.at = data, .left = size};
	struct vu_engine_stats stats = {.conns = 1};

	if (!w.e)
		make_world(&w);
	memset(w.ends, 0xff, sizeof(w.ends));
	w.held = 0;
	vu_hbone_forget(w.e, (uint32_t)w.gate); /* the last input's */
	begin(&w, byte(&in) & 1);
	while (in.left)
		step(&w, &in);
	turn(&w);
	if (w.peer >= 0)
		close(w.peer);
	for (unsigned i = 0; i < ENDS; i++) {
		if (w.ends[i] >= 0)
			close(w.ends[i]);
	}
	for (unsigned i = 0; i < SETTLE && stats.conns; i += !shakes(&w)) {
		int fd = accept(w.server, NULL, NULL); /* a retry's tunnel */

		if (fd >= 0)
			close(fd);
		if (w.held)
			vu_conn_reset(w.e, w.held, ECONNRESET);
		turn(&w);
		vu_engine_stats(w.e, &stats);
		stats.conns +=
		    stats_of(&w, w.gate).tunnels + stats_of(&w, w.pool).tunnels;
		poll(NULL, 0, i > 20);
	}
	if (stats.conns) {
		fprintf(stderr, "left: %llu, tunnels %llu %llu\n",
			(unsigned long long)stats.conns,
			(unsigned long long)stats_of(&w, w.gate).tunnels,
			(unsigned long long)stats_of(&w, w.pool).tunnels);
		abort();
	}
	return 0;
}
