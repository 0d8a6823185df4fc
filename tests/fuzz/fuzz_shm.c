// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_shm.c - processes at the other end of a ring that do anything
 *
 * Theory of operation
 * ===================
 *
 * libFuzzer's bytes are a program of small steps, of a client that connects to
 * a listener of the engine, and of the process that the connection is offered
 * to: take it by the library, answer with anything, read, write, end, wake or
 * flood with wake-ups, write any word into the memory's first page, close. The
 * engine takes its turns here, on this thread.
 *
 * Behind a load of the first page, by the engine or the library, the word that
 * was loaded may change, as often as the input says (fuzz_shm.h): whatever is
 * loaded twice is found. Lines of both sides are written over, so that the
 * library meets a hostile engine, too.
 *
 * What must hold: no sanitizer report, no hang, no connection left at the end;
 * and as long as nobody has broken a rule, the bytes are those that were sent,
 * in their order.
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <fastpath_ring.h>
#include <netinet/in.h>

#include "engine/engine.h"
#include "input.h"
#include "side/peer.h"

#define WORDS 160 /* of all lines */
#define PIECE 700

/* What one direction carried: byte i is i * 7 + salt */
struct flow {
	uint32_t sent;
	uint32_t came;
	uint8_t salt;
};

struct world {
	struct vu_engine *e;
	struct sockaddr_un at;	 /* of the listener */
	struct sockaddr_un peer; /* of the process */
	int listener;		 /* the process's */
	int client;		 /* -1: none */
	int asked; /* the process's socket; -1: none, or it is in link */
	bool taken;
	bool honest;
	struct fpring_link link;
	struct flow up;
	struct flow down;
};

static uint64_t now_us = 1000000;
static struct world *current;
static uint32_t changes; /* words that may still change as they are loaded */
static uint32_t change;	 /* to what, mixed */

int fuzz_time(struct timespec *now)
{
	now_us += 7;
	*now = (struct timespec){.tv_sec = (time_t)(now_us / 1000000),
				 .tv_nsec = (long)(now_us % 1000000 * 1000)};
	return 0;
}

/* Is it in memory of a ring? The engine has a mapping of its own */
__attribute__((no_sanitize("address"))) static bool shared(uintptr_t at)
{
	const char *page = (const char *)(at & ~(uintptr_t)(FPRING_DATA - 1));
	const char *magic = FPRING_MAGIC;

	for (unsigned i = 0; i < 8; i++) {
		if (page[i] != magic[i])
			return false;
	}
	return true;
}

void loaded(const volatile void *at)
{
	volatile uint32_t *here = (volatile uint32_t *)(uintptr_t)at;

	if (!changes || !current || !current->taken || !shared((uintptr_t)at))
		return;
	changes--;
	current->honest = false;
	change = change * 1664525U + 1013904223U;
	*here = change & 1U << 30 ? change >> 8 : *here + 1;
}

/* A connection that waits for its process is looked at, or will be woken */
static void check_sleep(const struct core *core)
{
	for (unsigned i = 0; core->n_slabs && i < 64; i++) {
		const struct vu_conn *c = &core->slabs[0][i];
		const struct shm *m = c->far.ops == &ring_ops ? c->shm : NULL;

		/* a client's socket that holds little is full soon */
		if (m)
			setsockopt(c->near.fd, SOL_SOCKET, SO_SNDBUF, &(int){1},
				   sizeof(int));
		if (m && conn_flows(c) && !c->closed && !m->stuck && !m->gone &&
		    c->down.state == PIPE_FLOWS && list_empty(&m->awake) &&
		    !(m->ring.in.sleep & 1))
			abort();
	}
}

static void turn(struct world *w)
{
	struct vu_event ev[16];

	pthread_mutex_lock(&w->e->lock);
	for (unsigned i = 0; i < 3; i++) {
		loop_look(w->e);
		loop_turn(w->e);
		timers_run(w->e);
	}
	poll_pending(w->e);
	ring_rest(&w->e->core);
	check_sleep(&w->e->core);
	pthread_mutex_unlock(&w->e->lock);
	while (vu_engine_events(w->e, ev, 16) == 16)
		;
}

static size_t fill(const struct flow *f, char *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (char)((f->sent + i) * 7 + f->salt);
	return len;
}

static void check(struct world *w, struct flow *f, const char *buf, size_t len)
{
	for (size_t i = 0; i < len && w->honest; i++) {
		if (buf[i] != (char)((f->came + i) * 7 + f->salt))
			abort(); /* not what was sent */
	}
	f->came += (uint32_t)len;
	if (w->honest && f->came > f->sent)
		abort();
}

/* The process gives up what it has of a connection */
static void leave(struct world *w, bool crash)
{
	if (w->asked >= 0)
		close(w->asked);
	w->asked = -1;
	if (!w->taken)
		return;
	w->taken = false;
	if (crash) {
		close(w->link.fd);
		w->link.fd = -1;
	}
	fpring_close(&w->link);
}

/* The client goes, and all that is left of its connection */
static void hang_up(struct world *w)
{
	int fd;

	changes = 0;
	if (w->client >= 0)
		close(w->client);
	w->client = -1;
	for (unsigned i = 0; i < 4; i++) {
		turn(w);
		while ((fd = accept(w->listener, NULL, NULL)) >= 0)
			close(fd);
		leave(w, i & 1);
	}
}

static void client_step(struct world *w, uint8_t op)
{
	char buf[PIECE * 8];
	size_t len = (size_t)(op >> 4) * PIECE / 2 + 1;
	ssize_t n;

	if (w->client < 0) {
		w->client = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		w->up = (struct flow){.salt = 1};
		w->down = (struct flow){.salt = 2};
		w->honest = true;
		if (connect(w->client, (struct sockaddr *)&w->at,
			    sizeof(w->at)))
			abort();
		return;
	}
	switch (op & 7) {
	case 0:
	case 1:
	case 2:
		n = send(w->client, buf, fill(&w->up, buf, len),
			 MSG_NOSIGNAL | MSG_DONTWAIT);
		w->up.sent += n > 0 ? (uint32_t)n : 0;
		break;
	case 3:
	case 4:
	case 5:
		n = recv(w->client, buf, len, MSG_DONTWAIT);
		check(w, &w->down, buf, n > 0 ? (size_t)n : 0);
		break;
	case 6:
		shutdown(w->client, op & 8 ? SHUT_WR : SHUT_RD);
		break;
	default:
		hang_up(w);
	}
}

static void accept_step(struct world *w, struct input *in)
{
	struct fpring_hello hello;
	uint8_t op = byte(in);

	if (w->asked < 0)
		w->asked = accept4(w->listener, NULL, NULL, SOCK_NONBLOCK);
	if (w->asked < 0)
		return;
	if (op & 1 &&
	    !(op & 14)) { /* an answer of any kind, and nothing else */
		char junk[24];

		for (size_t i = 0; i < sizeof(junk); i++)
			junk[i] = (char)byte(in);
		send(w->asked, junk, op >> 4, MSG_NOSIGNAL | MSG_DONTWAIT);
		leave(w, true);
		return;
	}
	if (fpring_take(w->asked, &w->link, &hello)) {
		leave(w, true);
		return;
	}
	w->asked = -1;
	w->taken = true;
	w->link.max_us = 0;
	if (hello.up_bytes != FPRING_MIN || hello.dst.port != 80)
		abort();
	if (fpring_answer(&w->link, op & 1 ? byte(in) : 0) || op & 1)
		leave(w, false);
}

static void process_step(struct world *w, struct input *in)
{
	char buf[PIECE * 8];
	uint8_t op = byte(in);
	size_t len = (size_t)(op >> 4) * PIECE / 2 + 1;
	uint32_t at;
	ssize_t n;

	if (!w->taken) {
		accept_step(w, in);
		return;
	}
	switch (op & 15) {
	case 0:
	case 1:
	case 2:
		n = fpring_read(&w->link, buf, len);
		check(w, &w->up, buf, n > 0 ? (size_t)n : 0);
		break;
	case 3:
	case 4:
	case 5:
		n = fpring_write(&w->link, buf, fill(&w->down, buf, len));
		w->down.sent += n > 0 ? (uint32_t)n : 0;
		break;
	case 6:
		fpring_shutdown(&w->link, op >> 4 & 3);
		break;
	case 7:
		fpring_reset(&w->link, op >> 4);
		break;
	case 8:
		fpring_rest(&w->link, op >> 4 & 3);
		break;
	case 9:
		fpring_woken(&w->link);
		break;
	case 10:
		for (unsigned i = 0; i < (unsigned)(op >> 4); i++)
			fpring_ring(&w->link);
		break;
	case 11:
		send(w->link.fd, buf, fill(&w->down, buf, len),
		     MSG_NOSIGNAL | MSG_DONTWAIT);
		break;
	case 12:
		leave(w, op & 16);
		break;
	case 13:
	case 14: /* any word of the lines, of both sides */
		w->honest = false;
		at = 32 + byte(in) % (WORDS - 32);
		((volatile uint32_t *)w->link.mem)[at] =
		    op & 16 ? word(in) : byte(in);
		break;
	default:
		changes = byte(in) & 7;
		change = word(in);
	}
}

static struct sockaddr_un address(const char *what)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};

	snprintf(at.sun_path, sizeof(at.sun_path), "/tmp/fuzz-shm-%d-%s",
		 (int)getpid(), what);
	unlink(at.sun_path);
	return at;
}

static int listens(const struct sockaddr_un *at, int kind)
{
	int fd = socket(AF_UNIX, kind | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (const struct sockaddr *)at, sizeof(*at)) ||
	    listen(fd, 16))
		abort();
	return fd;
}

static void clean(void)
{
	if (current)
		unlink(current->peer.sun_path);
	if (current)
		unlink(current->at.sun_path);
}

static void start(struct world *w)
{
	const struct vu_engine_config ec = {.max_conns = 64,
					    .dial_timeout_ms = 60000};
	struct vu_peer_config pc = {.ring_bytes = FPRING_MIN};
	struct vu_target target = {.kind = VU_TARGET_RING};
	struct sockaddr_in dst = {.sin_family = AF_INET, .sin_port = htons(80)};
	int ret;

	*w = (struct world){.client = -1, .asked = -1};
	w->e = vu_engine_new(&ec);
	w->at = address("listen");
	w->peer = address("peer");
	w->listener = listens(&w->peer, SOCK_SEQPACKET);
	memcpy(pc.path, w->peer.sun_path, sizeof(pc.path));
	ret = vu_peer_add(w->e, &pc);
	target.peer = (uint32_t)ret;
	target.addr_len = sizeof(dst);
	memcpy(target.addr, &dst, sizeof(dst));
	if (ret <= 0 || vu_listener_add(w->e, listens(&w->at, SOCK_STREAM),
					VU_WANT_CLOSED, &target) < 0)
		abort();
	atexit(clean);
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
	static struct world w; /* once: making an engine costs more */
	struct input in = {.at = data, .left = size};
	struct vu_engine_stats stats;

	if (!w.e)
		start(&w);
	current = &w;
	while (in.left) {
		uint8_t op = byte(&in);

		if (op & 1)
			client_step(&w, op >> 1 | (uint8_t)(op << 7));
		else if (op & 2)
			process_step(&w, &in);
		else
			turn(&w);
	}
	hang_up(&w);
	vu_engine_stats(w.e, &stats);
	if (stats.conns)
		abort();
	return 0;
}
