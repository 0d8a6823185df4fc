// SPDX-License-Identifier: Apache-2.0
/*
 * ringserver.c - an echo for connections by rings: ringserver PATH
 *
 * Theory of operation
 * ===================
 *
 * What server.c is for sockets: one thread, level-triggered epoll, each
 * connection registered once. It prints "ready" and serves until it is killed.
 */

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fastpath_ring.h"

#define EVENTS	256
#define BACKLOG 4096

/* A connection; no memory: its hello has yet to come */
struct conn {
	int fd;
	bool taken;
	struct fpring_link link;
};

static char buf[65536];

static void drop(struct conn *c)
{
	if (c->taken)
		fpring_close(&c->link);
	else
		close(c->fd);
	free(c);
}

/* Give back what there is; false: it has ended */
static bool echo(struct fpring_link *l)
{
	struct iovec unused[2];
	ssize_t room, n;

	do {
		room = fpring_room(&l->ring, unused);
		if (room == -EAGAIN)
			continue;
		if (room < 0)
			return false;
		n = fpring_read(l, buf,
				(size_t)room < sizeof(buf) ? (size_t)room
							   : sizeof(buf));
		if (n == -EAGAIN)
			continue;
		if (n <= 0)
			return false;
		fpring_write(l, buf, (size_t)n);
	} while (!fpring_rest(l, fpring_ready(&l->ring, FPRING_WRITE)
				     ? FPRING_READ
				     : FPRING_WRITE) &&
		 !l->gone);
	return !l->gone;
}

static bool serve(struct conn *c)
{
	struct fpring_hello hello;
	int err;

	if (!c->taken) {
		err = fpring_take(c->fd, &c->link, &hello);
		if (err)
			return err == -EAGAIN;
		c->taken = true;
		if (fpring_answer(&c->link, 0))
			return false;
	} else {
		fpring_woken(&c->link);
	}
	return echo(&c->link);
}

static void take_in(int listener, int epoll_fd)
{
	struct epoll_event ev = {.events = EPOLLIN};
	struct conn *c = calloc(1, sizeof(*c));

	if (!c)
		return;
	c->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	ev.data.ptr = c;
	if (c->fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &ev)) {
		if (c->fd >= 0)
			close(c->fd);
		free(c);
	}
}

int main(int argc, char **argv)
{
	struct epoll_event evs[EVENTS], ev = {.events = EPOLLIN};
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
	int epoll_fd = epoll_create1(0);

	if (argc != 2)
		return 2;
	strncpy(addr.sun_path, argv[1], sizeof(addr.sun_path) - 1);
	if (bind(listener, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(listener, BACKLOG) ||
	    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &ev))
		return 1;
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll_fd, evs, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			struct conn *c = evs[i].data.ptr;

			if (!c)
				take_in(listener, epoll_fd);
			else if (!serve(c))
				drop(c);
		}
	}
}
