// SPDX-License-Identifier: Apache-2.0
/*
 * proxy.c - what connections are handed to: the other proxy, or a server
 *
 * Theory of operation
 * ===================
 *
 *	proxy HEARS ECHO_FD SINK_FD SOURCE_FD
 *
 * serves three listening sockets, each for one thing that a peer can do. HEARS
 * is what comes before a connection's bytes: "plain", nothing; "header", a
 * PROXY protocol v2 header; "socks5", a request, which is granted. So the way
 * to it is measured, and not what a proxy makes of it.
 *
 * One thread, level-triggered epoll. A peer that measures waits for each
 * answer, so what doesn't fit into a socket at once is waited for.
 */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define BUF    (256U * 1024)
#define EVENTS 64
#define WRITES 16

enum hears { PLAIN, HEADER, SOCKS5 };
enum deed { ECHO, SINK, SOURCE };

/**
 * struct sock - A listener or a connection
 * @fd:		Socket, our own
 * @deed:	What it does
 * @listens:	It is a listener
 * @heard:	What comes before its bytes was there
 */
struct sock {
	int fd;
	enum deed deed;
	bool listens;
	bool heard;
};

static char buf[BUF];
static enum hears hears;

/**
 * fail() - Say which call failed and end
 * @what:	Its name
 */
__attribute__((noreturn)) static void fail(const char *what)
{
	fprintf(stderr, "proxy: %s: %s\n", what, strerror(errno));
	exit(1);
}

/**
 * watch() - Serve a socket
 * @ep:		epoll
 * @s:		Socket
 * @op:		EPOLL_CTL_
 * @events:	EPOLL bits
 */
static void watch(int ep, struct sock *s, int op, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = s};

	if (epoll_ctl(ep, op, s->fd, &ev))
		fail("epoll_ctl");
}

/**
 * add() - Serve a new socket
 * @ep:		epoll
 * @sock:	What it is
 */
static void add(int ep, struct sock sock)
{
	struct sock *s = malloc(sizeof(*s));

	if (!s)
		fail("malloc");
	*s = sock;
	watch(ep, s, EPOLL_CTL_ADD,
	      s->heard && s->deed == SOURCE ? EPOLLOUT | EPOLLRDHUP : EPOLLIN);
}

/**
 * take() - Read exactly so many bytes; they come in one piece
 * @s:		Connection
 * @n:		How many
 *
 * Returns: false if they don't
 */
static bool take(const struct sock *s, size_t n)
{
	return recv(s->fd, buf, n, 0) == (ssize_t)n;
}

/**
 * hear() - Take what comes before the bytes
 * @s:		Connection
 *
 * Returns: false if it is something else
 */
static bool hear(const struct sock *s)
{
	static const char granted[] = {5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0};

	if (hears == HEADER)
		return take(s, 16) && take(s, (size_t)((uint8_t)buf[14] << 8 |
						       (uint8_t)buf[15]));
	return take(s, 13) &&
	       send(s->fd, granted, sizeof(granted), 0) == sizeof(granted);
}

/**
 * put() - Write all of some bytes
 * @s:		Connection
 * @n:		How many, of buf
 *
 * Returns: false when it has ended
 */
static bool put(const struct sock *s, size_t n)
{
	for (size_t done = 0; done < n;) {
		struct pollfd wait = {.fd = s->fd, .events = POLLOUT};
		ssize_t got = write(s->fd, buf + done, n - done);

		if (got > 0)
			done += (size_t)got;
		else if (errno != EAGAIN || poll(&wait, 1, -1) < 0)
			return false;
	}
	return true;
}

/**
 * serve() - Do what a connection is for
 * @s:		Connection
 * @events:	What epoll says of it
 *
 * Returns: false when it has ended
 */
static bool serve(const struct sock *s, uint32_t events)
{
	ssize_t n = 0;

	if (s->deed != SOURCE) {
		n = read(s->fd, buf, sizeof(buf));
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		return s->deed == SINK || put(s, (size_t)n);
	}
	if (events & (EPOLLRDHUP | EPOLLHUP))
		return false;
	for (unsigned i = 0; i < WRITES && n >= 0; i++)
		n = write(s->fd, buf, 65536);
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
	const int one = 1;
	bool goes_on;

	if (s->listens) {
		int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK);

		if (fd < 0 && errno != EAGAIN && errno != ECONNABORTED)
			fail("accept4");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (fd >= 0)
			add(ep, (struct sock){.fd = fd,
					      .deed = s->deed,
					      .heard = hears == PLAIN});
		return;
	}
	if (s->heard) {
		goes_on = serve(s, events);
	} else {
		goes_on = s->heard = hear(s);
		if (goes_on && s->deed == SOURCE)
			watch(ep, s, EPOLL_CTL_MOD, EPOLLOUT | EPOLLRDHUP);
	}
	if (!goes_on) {
		close(s->fd);
		free(s);
	}
}

int main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];
	int ep = epoll_create1(0);

	if (argc != 5 || ep < 0) {
		fputs("usage: proxy plain|header|socks5 FD FD FD\n", stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(argv[1], "header"))
		hears = HEADER;
	else if (!strcmp(argv[1], "socks5"))
		hears = SOCKS5;
	memset(buf, 'x', sizeof(buf));
	for (int i = 0; i < 3; i++)
		add(ep, (struct sock){.fd = atoi(argv[i + 2]),
				      .deed = (enum deed)i,
				      .listens = true});
	for (;;) {
		int n = epoll_wait(ep, events, EVENTS, -1);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++)
			turn(ep, events[i].data.ptr, events[i].events);
	}
}
