// SPDX-License-Identifier: Apache-2.0
/*
 * ringhop.c - from the engine to another process and back: by rings, by a unix
 * socket; both sides spin
 *
 * Theory of operation
 * ===================
 *
 *	ringhop CPU_ENGINE CPU_PROCESS COUNT
 *
 * The engine's own far sides, its own polling and its own turns, on this
 * thread; the near side is ours and costs nothing. The process is a child,
 * which spins on the library's ring or on recv(). So the difference between the
 * two figures is the hand-off, and nothing else. They take turns, ten times.
 *
 * A message is 64 bytes and begins with the time when it was given to the
 * engine's far side; the child notes how old it is when it is read. Both
 * clocks are one: CLOCK_MONOTONIC.
 *
 * Prints a JSON object: medians of all round trips, and of the one way, ns.
 */

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "engine/engine.h"
#include "side/peer.h"
#include "side/target.h"

#define SIZE	64
#define TURNS	10
#define WARM_UP 500
#define PORT	7

enum way { RING, UNIX, WAYS };

/* What both processes see */
struct shared {
	uint32_t way; /* that the child spins on */
	uint32_t n[WAYS];
	uint32_t one_way_ns[WAYS][1U << 20];
};

static struct shared *shared;
static uint32_t came; /* bytes back, of this message */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static void pin(const char *cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)atoi(cpu), &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static struct sockaddr_un at(const char *what)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(addr.sun_path, sizeof(addr.sun_path), "/tmp/ringhop-%d-%s",
		 (int)getpid(), what);
	return addr;
}

static int listens(const struct sockaddr_un *addr, int kind)
{
	int fd = socket(AF_UNIX, kind, 0);

	if (fd < 0 || bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) ||
	    listen(fd, 1))
		exit(1);
	return fd;
}

/* ---- the child ---- */

static void note(enum way way, const char *message)
{
	uint64_t then;

	memcpy(&then, message, sizeof(then));
	shared->one_way_ns[way][shared->n[way]++] = (uint32_t)(now_ns() - then);
}

static void echo(int ring_listener, int unix_listener)
{
	struct fpring_hello hello;
	struct fpring_link link;
	char buf[SIZE];
	int fd = accept(ring_listener, NULL, NULL), err;

	do
		err = fpring_take(fd, &link, &hello);
	while (err == -EAGAIN);
	if (err || fpring_answer(&link, 0))
		exit(1);
	link.max_us = link.window_us = 1000000;
	fd = accept(unix_listener, NULL, NULL);
	for (;;) {
		if (__atomic_load_n(&shared->way, __ATOMIC_RELAXED) == UNIX) {
			if (recv(fd, buf, SIZE, MSG_DONTWAIT) != SIZE)
				continue;
			note(UNIX, buf);
			if (send(fd, buf, SIZE, 0) != SIZE)
				exit(1);
			continue;
		}
		if (fpring_read(&link, buf, SIZE) != SIZE)
			continue;
		note(RING, buf);
		if (fpring_write(&link, buf, SIZE) != SIZE)
			exit(1);
	}
}

/* ---- the engine ---- */

static ssize_t near_give(struct vu_conn *c, struct side *s,
			 const struct iovec *iov, unsigned n_iov, size_t len,
			 uint32_t flags)
{
	(void)c;
	(void)s;
	(void)iov;
	(void)n_iov;
	(void)flags;
	came += (uint32_t)len;
	return (ssize_t)len;
}

static const struct side_ops near_ops = {.give = near_give, .reset = conn_free};

static void spin(struct vu_engine *e)
{
	e->poller.window_us = e->poller.max_us;
	poll_spin(e, loop_look);
	loop_turn(e);
}

static struct vu_conn *dial(struct vu_engine *e, const struct vu_target *target)
{
	struct vu_conn *c = conn_new(&e->core, outbox_open(1, false));

	if (!c)
		exit(1);
	c->near.ops = &near_ops;
	c->port = PORT;
	target_reach(c, target);
	while (c->state == CONN_DIALING)
		spin(e);
	if (c->state != CONN_OPEN)
		exit(1);
	return c;
}

static uint32_t round_trip(struct vu_engine *e, struct vu_conn *c)
{
	char message[SIZE] = {0};
	const struct iovec iov = {.iov_base = message, .iov_len = SIZE};
	uint64_t start = now_ns();

	memcpy(message, &start, sizeof(start));
	came = 0;
	pipe_put(c, &c->up, &iov, 1, SIZE, 0);
	while (came < SIZE)
		spin(e);
	return (uint32_t)(now_ns() - start);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static uint32_t median(uint32_t *values, size_t n)
{
	qsort(values, n, sizeof(*values), by_value);
	return values[n / 2];
}

static struct vu_target ring_target(struct vu_engine *e,
				    const struct sockaddr_un *addr)
{
	struct vu_target t = {.kind = VU_TARGET_RING,
			      .addr_len = sizeof(struct sockaddr_in)};
	struct vu_peer_config cfg = {.ring_bytes = 256 * 1024};
	sa_family_t family = AF_INET;

	memcpy(cfg.path, addr->sun_path, sizeof(cfg.path));
	memcpy(t.addr, &family, sizeof(family));
	t.peer = (uint32_t)vu_peer_add(e, &cfg);
	return t;
}

static void measure(struct vu_engine *e, struct vu_conn *conns[WAYS],
		    uint32_t count)
{
	static uint32_t rtt_ns[WAYS][1U << 20];
	uint32_t n[WAYS] = {0};

	for (unsigned i = 0; i < TURNS * WAYS; i++) {
		enum way way = (i + i / WAYS) % WAYS;

		__atomic_store_n(&shared->way, way, __ATOMIC_RELAXED);
		for (unsigned j = 0; j < WARM_UP; j++)
			round_trip(e, conns[way]);
		shared->n[way] = n[way];
		for (unsigned j = 0; j < count / TURNS; j++)
			rtt_ns[way][n[way]++] = round_trip(e, conns[way]);
	}
	printf("{\"ring_rtt_ns\": %u, \"unix_rtt_ns\": %u, "
	       "\"ring_one_way_ns\": %u, \"unix_one_way_ns\": %u}\n",
	       median(rtt_ns[RING], n[RING]), median(rtt_ns[UNIX], n[UNIX]),
	       median(shared->one_way_ns[RING], n[RING]),
	       median(shared->one_way_ns[UNIX], n[UNIX]));
}

int main(int argc, char **argv)
{
	const struct vu_engine_config cfg = {
	    .poll_us = 1000000, .max_conns = 16, .dial_timeout_ms = 10000};
	struct sockaddr_un ring_at = at("ring"), unix_at = at("unix_7");
	struct vu_target target = {.kind = VU_TARGET_UNIX};
	struct vu_engine *e = vu_engine_new(&cfg);
	struct vu_conn *conns[WAYS];
	int listeners[WAYS];
	pid_t child;

	if (argc != 4 || !e)
		return 2;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	listeners[RING] = listens(&ring_at, SOCK_SEQPACKET);
	listeners[UNIX] = listens(&unix_at, SOCK_STREAM);
	child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin(argv[2]);
		echo(listeners[RING], listeners[UNIX]);
	}
	pin(argv[1]);
	pthread_mutex_lock(&e->lock);
	target.addr_len = (uint32_t)strlen(unix_at.sun_path) - 2;
	memcpy(target.addr, unix_at.sun_path, target.addr_len);
	pthread_mutex_unlock(&e->lock);
	const struct vu_target ring = ring_target(e, &ring_at);
	pthread_mutex_lock(&e->lock);
	conns[RING] = dial(e, &ring);
	conns[UNIX] = dial(e, &target);
	unlink(ring_at.sun_path);
	unlink(unix_at.sun_path);
	measure(e, conns, (uint32_t)atoi(argv[3]));
	kill(child, SIGKILL);
	return 0;
}
