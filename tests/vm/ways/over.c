// SPDX-License-Identifier: Apache-2.0
/*
 * over.c - attempts that were refused, connections whose peer is gone
 */

#include <poll.h>
#include <sys/ioctl.h>

#include <linux/sockios.h>

#include "ways.h"

#define HTTP   8080 /* on the host: answers, and closes */
#define NOBODY 9    /* there */

static const char request[] = "GET / HTTP/1.0\r\n\r\n";

static int so_error(int fd)
{
	socklen_t len = sizeof(int);
	int error = -1;

	want(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0);
	return error;
}

static int connect_to(int fd, int port)
{
	struct sockaddr_in to = address_of(HOST, port);

	return connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static void shutdown_of_a_refused_attempt_ends_it_until_af_unspec(void)
{
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct pollfd refused = {.fd = fd};
	int unsent;

	want_errno(connect_to(fd, NOBODY), EINPROGRESS);
	want(poll(&refused, 1, -1) == 1);
	want(ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent == 1); /* SYN */
	want_errno(shutdown(fd, SHUT_WR), ENOTCONN);
	want_errno(connect_to(fd, ECHO), EINVAL);
	want(so_error(fd) == ECONNREFUSED);
	want_errno(connect_to(fd, ECHO), EINVAL);
	want(connect(fd, &none, sizeof(none)) == 0);
	want(fcntl(fd, F_SETFL, 0) == 0);
	want(connect_to(fd, ECHO) == 0);
	exchange(fd);
}

static void a_reset_after_the_peers_end_is_epipe_for_who_sends(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct pollfd over = {.fd = fd};
	char text[256];
	ssize_t got;

	want(connect_to(fd, HTTP) == 0);
	want(send(fd, request, strlen(request), 0) == (ssize_t)strlen(request));
	while ((got = recv(fd, text, sizeof(text), 0)) > 0)
		;
	want(got == 0);
	want(send(fd, "x", 1, 0) == 1); /* nobody is there any more */
	want(poll(&over, 1, -1) == 1);
	want(over.revents == (POLLERR | POLLHUP));
	want(recv(fd, text, 1, 0) == 0);
	want(so_error(fd) == EPIPE);
	want(so_error(fd) == 0);
	want_errno(send(fd, "x", 1, MSG_NOSIGNAL), EPIPE);
	want_errno(shutdown(fd, SHUT_WR), ENOTCONN);
}

const struct check over[] = {
    CHECK(shutdown_of_a_refused_attempt_ends_it_until_af_unspec),
    CHECK(a_reset_after_the_peers_end_is_epipe_for_who_sends),
    {0},
};
