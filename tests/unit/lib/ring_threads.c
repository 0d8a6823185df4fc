// SPDX-License-Identifier: Apache-2.0
/*
 * ring_threads.c - both ends of a ring in threads of one process, for TSan
 *
 * Theory of operation
 * ===================
 *
 *	ring_threads library BYTES	two threads with the library
 *	ring_threads engine BYTES	the engine's thread, and one that is the
 *					process: a client's bytes come back
 *
 * TSan knows memory by its address, so both ends use one mapping: with the
 * engine it is the engine's, found in /proc/self/maps. Pieces have all sizes,
 * and each end sleeps whenever it finds nothing: a wake-up that is lost hangs.
 * Every byte is looked at.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fastpath_ring.h"
#include "vu.h"

#define RING  FPRING_MIN
#define PIECE 3000

static size_t total;

static void must(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

static char byte_at(size_t i)
{
	return (char)(i * 31 + (i >> 8));
}

static size_t piece(unsigned *seed, size_t left)
{
	size_t n = (size_t)rand_r(seed) % PIECE + 1;

	return n < left ? n : left;
}

/* ---- the library with itself ---- */

/* One end: writes what it has to and reads what comes; both may sleep */
struct end {
	struct fpring ring;
	int bell;  /* that wakes us */
	int other; /* that wakes the other */
};

static void ring_other(const struct end *e)
{
	must(eventfd_write(e->other, 1) == 0, "eventfd");
}

static size_t put(struct end *e, size_t sent, unsigned *seed)
{
	struct iovec iov[2];
	ssize_t room = fpring_room(&e->ring, iov);
	size_t n = piece(seed, total - sent);

	if (room <= 0 || sent == total)
		return 0;
	n = n < (size_t)room ? n : (size_t)room;
	for (size_t i = 0; i < n; i++) {
		const struct iovec *in = &iov[i >= iov[0].iov_len];
		size_t at = i - (in == &iov[1] ? iov[0].iov_len : 0);

		((char *)in->iov_base)[at] = byte_at(sent + i);
	}
	if (fpring_produced(&e->ring, n))
		ring_other(e);
	if (sent + n == total) {
		fpring_end(&e->ring, FPRING_WRITE);
		ring_other(e);
	}
	return n;
}

static size_t get(struct end *e, size_t came, bool *ret_ended)
{
	struct iovec iov[2];
	ssize_t n = fpring_readable(&e->ring, iov);
	size_t i = came;

	*ret_ended = n == 0;
	if (n <= 0)
		return 0;
	for (unsigned k = 0; k < 2; k++) {
		for (size_t at = 0; at < iov[k].iov_len; at++, i++)
			must(((char *)iov[k].iov_base)[at] == byte_at(i),
			     "a byte");
	}
	if (fpring_consumed(&e->ring, (size_t)n))
		ring_other(e);
	return (size_t)n;
}

static void *run_end(void *arg)
{
	struct end *e = arg;
	struct pollfd p = {.fd = e->bell, .events = POLLIN};
	unsigned seed = (unsigned)e->bell, want;
	size_t sent = 0, came = 0;
	bool ended = false;
	eventfd_t unused;

	while (!ended || sent < total) {
		size_t moved = put(e, sent, &seed);

		sent += moved;
		moved = get(e, came, &ended);
		came += moved;
		want = (sent < total ? FPRING_WRITE : 0) |
		       (ended ? 0 : FPRING_READ);
		if (moved || ended || !fpring_sleep(&e->ring, want))
			continue;
		must(poll(&p, 1, 60000) == 1, "no wake-up came");
		eventfd_read(e->bell, &unused);
		fpring_awake(&e->ring);
	}
	must(came == total, "bytes are missing");
	return NULL;
}

static void library(void)
{
	size_t len = fpring_bytes(RING, RING);
	void *mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct end ends[2] = {{.bell = eventfd(0, EFD_NONBLOCK)},
			      {.bell = eventfd(0, EFD_NONBLOCK)}};
	pthread_t threads[2];

	fpring_format(mem, RING, RING);
	for (unsigned i = 0; i < 2; i++) {
		fpring_attach(&ends[i].ring, mem, RING, RING, i == 0);
		ends[i].other = ends[1 - i].bell;
	}
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, run_end, &ends[i]);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

/* ---- the library with the engine ---- */

static struct sockaddr_un at(const char *what)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(addr.sun_path, sizeof(addr.sun_path),
		 "/tmp/ring-threads-%d-%s", (int)getpid(), what);
	return addr;
}

static int listens(const struct sockaddr_un *addr, int kind)
{
	int fd = socket(AF_UNIX, kind, 0);

	must(fd >= 0 &&
		 !bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) &&
		 !listen(fd, 4),
	     addr->sun_path);
	return fd;
}

/* The engine's mapping of the memory: the one that isn't ours */
static void *engines(const void *ours)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	void *found = NULL;

	must(maps != NULL, "maps");
	while (fgets(line, sizeof(line), maps)) {
		void *start = (void *)strtoul(line, NULL, 16);

		if (strstr(line, "memfd:fastpath-ring") && start != ours)
			found = start;
	}
	fclose(maps);
	must(found != NULL, "the engine's mapping");
	return found;
}

static void *run_process(void *arg)
{
	struct pollfd p = {.events = POLLIN};
	struct fpring_hello hello;
	struct fpring_link l;
	static char buf[PIECE];
	struct fpring own;
	ssize_t n;

	p.fd = accept(*(int *)arg, NULL, NULL);
	must(poll(&p, 1, 60000) == 1, "no hello came");
	must(!fpring_take(p.fd, &l, &hello), "take");
	own = l.ring;
	fpring_attach(&l.ring, engines(l.mem), RING, RING, false);
	must(!fpring_answer(&l, 0), "answer");
	for (;;) {
		n = fpring_read(&l, buf, sizeof(buf));
		if (n == -EAGAIN) {
			must(fpring_wait(&l, FPRING_READ, 60000) > 0, "wait");
			continue;
		}
		must(n >= 0, "read");
		if (!n)
			break;
		for (ssize_t done = 0, m; done < n; done += m) {
			m = fpring_write(&l, buf + done, (size_t)(n - done));
			if (m == -EAGAIN)
				m = fpring_wait(&l, FPRING_WRITE, 60000) > 0
					? 0
					: -1;
			must(m >= 0, "write");
		}
	}
	fpring_shutdown(&l, FPRING_WRITE);
	must(poll(&p, 1, 60000) == 1, "the engine's end");
	l.ring = own;
	fpring_close(&l);
	return NULL;
}

static void *run_engine(void *arg)
{
	vu_engine_run(arg);
	return NULL;
}

static void *run_writer(void *arg)
{
	int fd = *(int *)arg;
	unsigned seed = 1;
	char buf[PIECE];

	for (size_t sent = 0, n; sent < total; sent += n) {
		n = piece(&seed, total - sent);
		for (size_t i = 0; i < n; i++)
			buf[i] = byte_at(sent + i);
		must(send(fd, buf, n, 0) == (ssize_t)n, "send");
	}
	shutdown(fd, SHUT_WR);
	return NULL;
}

static void client(const struct sockaddr_un *listener)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	pthread_t writer;
	char buf[PIECE];
	size_t came = 0;
	ssize_t n;

	must(!connect(fd, (const struct sockaddr *)listener, sizeof(*listener)),
	     "connect");
	pthread_create(&writer, NULL, run_writer, &fd);
	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0) {
		for (ssize_t i = 0; i < n; i++, came++)
			must(buf[i] == byte_at(came), "a byte");
	}
	must(n == 0 && came == total, "bytes are missing");
	pthread_join(writer, NULL);
	close(fd);
}

static void engine(void)
{
	const struct vu_engine_config ec = {
	    .poll_us = 50, .max_conns = 4, .dial_timeout_ms = 60000};
	struct sockaddr_un peer = at("peer"), near = at("near");
	struct vu_peer_config pc = {.ring_bytes = RING};
	struct vu_target target = {.kind = VU_TARGET_RING};
	sa_family_t family = AF_INET;
	struct vu_engine *e = vu_engine_new(&ec);
	int listener = listens(&peer, SOCK_SEQPACKET);
	pthread_t threads[2];

	memcpy(pc.path, peer.sun_path, sizeof(pc.path));
	memcpy(target.addr, &family, sizeof(family));
	target.addr_len = sizeof(struct sockaddr_in);
	target.peer = (uint32_t)vu_peer_add(e, &pc);
	must(vu_listener_add(e, listens(&near, SOCK_STREAM | SOCK_NONBLOCK), 0,
			     &target) >= 0,
	     "listener");
	pthread_create(&threads[0], NULL, run_engine, e);
	pthread_create(&threads[1], NULL, run_process, &listener);
	client(&near);
	pthread_join(threads[1], NULL);
	vu_engine_stop(e);
	pthread_join(threads[0], NULL);
	vu_engine_free(e);
	unlink(peer.sun_path);
	unlink(near.sun_path);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	total = strtoul(argv[2], NULL, 10);
	if (!strcmp(argv[1], "engine"))
		engine();
	else
		library();
	puts("all bytes came");
	return 0;
}
