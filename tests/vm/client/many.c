// SPDX-License-Identifier: Apache-2.0
/*
 * many.c - checks: many connections
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"

static void many_at_once(void)
{
	enum { COUNT = 300 };
	static struct pollfd fds[COUNT];

	for (int i = 0; i < COUNT; i++) {
		fds[i].fd = tcp(SOCK_NONBLOCK);
		fds[i].events = POLLOUT;
		want_errno(connect4(fds[i].fd, host4, ECHO), EINPROGRESS);
	}
	for (int i = 0; i < COUNT; i++) {
		want(wait_for(fds[i].fd, POLLOUT) == POLLOUT);
		want(so_error(fds[i].fd) == 0);
		set_blocking(fds[i].fd, true);
		want_echo(fds[i].fd);
		close(fds[i].fd);
	}
}

static void one_after_another(void)
{
	for (int i = 0; i < 500; i++) {
		int fd = echo_socket();

		want(fd < 100);
		close(fd);
	}
}

static void more_destinations_than_tokens(void)
{
	enum { COUNT = 1100 }; /* a stream has 1024, of which 64 are good */
	struct sockaddr_in peer, known = in4(host4, ECHO);
	socklen_t len = sizeof(peer);
	char host[INET_ADDRSTRLEN];
	int fd;

	for (int i = 0; i < COUNT; i++) {
		fd = tcp(0);
		snprintf(host, sizeof(host), "169.254.%d.%d", i / 250,
			 1 + i % 250);
		want_errno(connect4(fd, host, 80), ECONNREFUSED);
		close(fd);
	}
	fd = echo_socket();
	want(getpeername(fd, (struct sockaddr *)&peer, &len) == 0);
	want(peer.sin_addr.s_addr == known.sin_addr.s_addr);
}

const struct check many_checks[] = {
    CHECK(many_at_once),
    CHECK(one_after_another),
    SANDBOX(more_destinations_than_tokens),
    {0},
};
