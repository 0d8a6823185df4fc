// SPDX-License-Identifier: Apache-2.0
/*
 * server.c - what the benchmarks' connections reach on the host
 *
 * Theory of operation
 * ===================
 *
 *	server PATH
 *
 * listens on the unix sockets PATH_7 (echo), PATH_9 (sink) and PATH_18, _19,
 * _20 (sources that write 64 B, 4 KiB and 64 KiB at a time), prints "ready"
 * and serves until it is killed.
 *
 * What it costs is a part of each back-end's figure alike, and so hides how
 * they differ: it does as little as a server can. One thread, level-triggered
 * epoll, each socket registered once; a connection gets one read, or a few
 * writes, a turn, so that many share it fairly. Only an echo that could not
 * write everything owns memory: the rest, and until it is written it reads
 * nothing.
 */

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define ECHO	7
#define SINK	9
#define SOURCES 18 /* and the two ports after it */
#define BUF	(256U * 1024)
#define EVENTS	256
#define ACCEPTS 16 /* a turn */
#define WRITES	16
#define BACKLOG 4096

/**
 * struct sock - A listener or a connection
 * @fd:		Socket, our own
 * @port:	What it does
 * @listens:	It is a listener
 * @rest:	Echo: bytes that could not be written yet
 * @rest_len:	How many
 */
struct sock {
	int fd;
	int port;
	bool listens;
	char *rest;
	size_t rest_len;
};

static char buf[BUF];

/**
 * fail() - Say which call failed and end
 * @what:	Its name
 */
__attribute__((noreturn)) static void fail(const char *what)
{
	fprintf(stderr, "server: %s: %s\n", what, strerror(errno));
	exit(1);
}

/**
 * watch() - Have epoll report a socket
 * @ep:		epoll
 * @op:		EPOLL_CTL_*
 * @s:		Socket
 * @events:	EPOLL bits
 */
static void watch(int ep, int op, struct sock *s, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = s};

	if (epoll_ctl(ep, op, s->fd, &ev))
		fail("epoll_ctl");
}

/**
 * add() - Serve a socket
 * @ep:		epoll
 * @fd:		Socket, ours from now on
 * @port:	What to do with it
 * @listens:	It is a listener
 */
static void add(int ep, int fd, int port, bool listens)
{
	struct sock *s = calloc(1, sizeof(*s));

	if (!s)
		fail("calloc");
	*s = (struct sock){.fd = fd, .port = port, .listens = listens};
	watch(ep, EPOLL_CTL_ADD, s,
	      !listens && port >= SOURCES ? EPOLLOUT | EPOLLRDHUP : EPOLLIN);
}

/**
 * listen_on() - Make a listener
 * @ep:		epoll
 * @path:	Start of its path
 * @port:	End of its path
 */
static void listen_on(int ep, const char *path, int port)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s_%d", path, port);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(fd, BACKLOG))
		fail(addr.sun_path);
	add(ep, fd, port, true);
}

/**
 * echo() - Write back what is there
 * @ep:		epoll
 * @s:		Connection
 *
 * Returns: false when it has ended
 */
static bool echo(int ep, struct sock *s)
{
	char *from = s->rest ? s->rest : buf;
	ssize_t n = (ssize_t)s->rest_len, done;
	bool had = s->rest;

	if (!had && (n = read(s->fd, buf, sizeof(buf))) <= 0)
		return n < 0 && errno == EAGAIN;
	done = write(s->fd, from, (size_t)n);
	if (done < 0 && errno != EAGAIN)
		return false;
	done = done < 0 ? 0 : done;
	s->rest_len = (size_t)(n - done);
	if (s->rest_len && !had && !(s->rest = malloc(s->rest_len)))
		fail("malloc");
	if (s->rest_len)
		memmove(s->rest, from + done, s->rest_len);
	if (had && !s->rest_len) {
		free(s->rest);
		s->rest = NULL;
	}
	if (had != (s->rest != NULL))
		watch(ep, EPOLL_CTL_MOD, s, s->rest ? EPOLLOUT : EPOLLIN);
	return true;
}

/**
 * sink() - Drop what is there
 * @s:		Connection
 *
 * Returns: false when it has ended
 */
static bool sink(const struct sock *s)
{
	ssize_t n = read(s->fd, buf, sizeof(buf));

	return n > 0 || (n < 0 && errno == EAGAIN);
}

/**
 * source() - Write as long as there is room
 * @s:		Connection
 *
 * Returns: false when it has ended
 */
static bool source(const struct sock *s)
{
	static const size_t sizes[] = {64, 4096, 65536};
	ssize_t n = 0;

	for (unsigned i = 0; i < WRITES && n >= 0; i++)
		n = write(s->fd, buf, sizes[s->port - SOURCES]);
	return n >= 0 || errno == EAGAIN;
}

/**
 * turn() - Serve a socket that has something to do
 * @ep:		epoll
 * @s:		Socket
 * @events:	What epoll says of it
 */
static void turn(int ep, struct sock *s, uint32_t events)
{
	bool goes_on;

	if (s->listens) {
		for (unsigned i = 0; i < ACCEPTS; i++) {
			int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK);

			if (fd < 0 && errno == EAGAIN)
				return;
			if (fd < 0)
				fail("accept4");
			add(ep, fd, s->port, false);
		}
		return;
	}
	if (s->port == ECHO)
		goes_on = echo(ep, s);
	else if (s->port == SINK)
		goes_on = sink(s);
	else
		goes_on = !(events & (EPOLLRDHUP | EPOLLHUP)) && source(s);
	if (!goes_on) {
		close(s->fd);
		free(s->rest);
		free(s);
	}
}

int main(int argc, char **argv)
{
	static const int ports[] = {ECHO, SINK, SOURCES, SOURCES + 1,
				    SOURCES + 2};
	struct epoll_event events[EVENTS];
	int ep = epoll_create1(0);

	if (argc != 2 || ep < 0) {
		fputs("usage: server PATH\n", stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < sizeof(ports) / sizeof(*ports); i++)
		listen_on(ep, argv[1], ports[i]);
	memset(buf, 'x', sizeof(buf));
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(ep, events, EVENTS, -1);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++)
			turn(ep, events[i].data.ptr, events[i].events);
	}
}
