// SPDX-License-Identifier: Apache-2.0
/*
 * clients.c - TCP clients of a published port
 *
 * Theory of operation
 * ===================
 *
 *	clients ADDRESS PORT COUNT
 *
 * keeps COUNT connections to an IPv4 address coming until it is killed. Each is
 * half-closed at once and read to its end, then replaced. One that is refused
 * or reset is replaced a little later: nobody listens yet, or any more.
 *
 * They come from many addresses of the host's loopback network by turns: of one
 * alone most ports would soon be in TIME_WAIT, and connect() looks for another
 * for longer than all the rest takes.
 *
 * What it costs is a part of each figure alike, so it does as little as a
 * client can.
 */

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define EVENTS	 256
#define RETRY_MS 5
#define SOURCES	 64 /* addresses */

static struct sockaddr_in server = {.sin_family = AF_INET};
static int epoll_fd;

/**
 * start() - Begin a connection
 *
 * Returns: false if that has to wait
 */
static bool start(void)
{
	static uint32_t turn;
	struct epoll_event ev = {.events = EPOLLOUT | EPOLLONESHOT};
	struct sockaddr_in from = {.sin_family = AF_INET};
	const int one = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + turn++ % SOURCES);
	ev.data.fd = fd;
	if (fd >= 0 &&
	    !setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one,
			sizeof(one)) &&
	    !bind(fd, (struct sockaddr *)&from, sizeof(from)) &&
	    (!connect(fd, (struct sockaddr *)&server, sizeof(server)) ||
	     errno == EINPROGRESS) &&
	    !epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev))
		return true;
	if (fd >= 0)
		close(fd);
	return false;
}

/**
 * step() - Act on what happened to a connection
 * @fd:		Its socket
 * @events:	EPOLL bits
 *
 * Returns: how it ended: 0: not yet; 1: in good order; -1: with an error
 */
static int step(int fd, uint32_t events)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLONESHOT};
	char byte;

	if (events & (EPOLLERR | EPOLLIN))
		return !(events & EPOLLERR) && !read(fd, &byte, 1) ? 1 : -1;
	ev.data.fd = fd;
	return shutdown(fd, SHUT_WR) ||
		       epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &ev)
		   ? -1
		   : 0;
}

int main(int argc, char **argv)
{
	unsigned want, open = 0;

	if (argc != 4 || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) {
		fprintf(stderr, "usage: clients ADDRESS PORT COUNT\n");
		return 2;
	}
	server.sin_port = htons((uint16_t)atoi(argv[2]));
	want = (unsigned)atoi(argv[3]);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	for (bool rest = false;;) {
		struct epoll_event events[EVENTS];
		int n;

		while (!rest && open < want && start())
			open++;
		n = epoll_wait(epoll_fd, events, EVENTS,
			       open < want ? RETRY_MS : -1);
		rest = false;
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			int how = step(fd, events[i].events);

			if (!how)
				continue;
			rest |= how < 0;
			close(fd);
			open--;
		}
	}
}
