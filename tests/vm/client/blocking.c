// SPDX-License-Identifier: Apache-2.0
/*
 * blocking.c - checks: connect() that waits
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"

static void blocking(void)
{
	want_echo(echo_socket());
}

static void blocking_ipv6(void)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	want(connect6(fd, host6, ECHO) == 0);
	want_echo(fd);
}

static void blocking_v4_mapped(void)
{
	struct sockaddr_in6 name = {0};
	socklen_t len = sizeof(name);
	char mapped[64];
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	snprintf(mapped, sizeof(mapped), "::ffff:%s", host4);
	want(connect6(fd, mapped, ECHO) == 0);
	want_echo(fd);
	want(getpeername(fd, (struct sockaddr *)&name, &len) == 0);
	want(IN6_IS_ADDR_V4MAPPED(&name.sin6_addr) && len == sizeof(name));
	want(ntohs(name.sin6_port) == ECHO);
}

static void v6only_refuses_v4_mapped(void)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0), on = 1;

	want(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) == 0);
	want_errno(connect6(fd, "::ffff:192.0.2.1", ECHO), ENETUNREACH);
}

static void refused(void)
{
	int fd = tcp(0);

	want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
	want(so_error(fd) == 0);
	want_errno(getpeername(fd, (struct sockaddr *)&(struct sockaddr_in){0},
			       &(socklen_t){sizeof(struct sockaddr_in)}),
		   ENOTCONN);
}

static void unreachable(void)
{
	want_errno(connect4(tcp(0), "198.51.100.1", 80), EHOSTUNREACH);
}

static void denied(void)
{
	want_errno(connect4(tcp(0), "169.254.169.254", 80), ECONNREFUSED);
}

static void again_after_refused(void)
{
	int fd = tcp(0);

	for (int i = 0; i < 3; i++)
		want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
	want(connect4(fd, host4, ECHO) == 0);
	want_echo(fd);
}

static void connected_twice(void)
{
	int fd = echo_socket();

	want_errno(connect4(fd, host4, ECHO), EISCONN);
	want_echo(fd);
}

static void slow(void)
{
	int64_t before = now_ms();
	int fd = tcp(0);

	want(connect4(fd, host4, SLOW) == 0);
	want(getenv("NATIVE") || now_ms() - before >= 400);
	want_echo(fd);
}

static void send_timeout(void)
{
	struct timeval limit = {.tv_usec = 300000};
	int64_t before = now_ms();
	int fd = tcp(0);

	want(!setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	want_errno(connect4(fd, host4, SILENT), EINPROGRESS);
	want(now_ms() - before >= 290);
	set_blocking(fd, false);
	want_errno(connect4(fd, host4, SILENT), EALREADY);
}

static void interrupted(void)
{
	int fd = tcp(0);

	alarm_soon(0);
	want_errno(connect4(fd, host4, SILENT), EINTR);
	alarm_off();
	set_blocking(fd, false);
	want_errno(connect4(fd, host4, SILENT), EALREADY);
}

static void interrupted_goes_on(void)
{
	int fd = tcp(0);

	if (getenv("NATIVE"))
		return; /* nothing is slow there */
	alarm_soon(0);
	want_errno(connect4(fd, host4, SLOW), EINTR);
	alarm_off();
	want(wait_for(fd, POLLOUT) == POLLOUT);
	want(so_error(fd) == 0);
	want(connect4(fd, host4, SLOW) == 0);
	want_errno(connect4(fd, host4, SLOW), EISCONN);
	want_echo(fd);
}

static void restarted(void)
{
	int fd = tcp(0);

	alarm_soon(SA_RESTART);
	want(connect4(fd, host4, SLOW) == 0);
	alarm_off();
	want_errno(connect4(fd, host4, SLOW), EISCONN);
	want_echo(fd);
}

/* The restarted call may come before the answer to the first could have */
static void restarted_at_once(void)
{
	const struct itimerval soon = {.it_value.tv_usec = 300};

	alarm_soon(SA_RESTART);
	alarm_off();
	for (int i = 0; i < 100; i++) {
		int fd = tcp(0);

		setitimer(ITIMER_REAL, &soon, NULL);
		want(connect4(fd, host4, ECHO) == 0);
		close(fd);
	}
}

static void killed_while_pending(void)
{
	struct pollfd earlier = {.fd = tcp(SOCK_NONBLOCK), .events = POLLOUT};
	pid_t child;

	want_errno(connect4(earlier.fd, host4, SILENT), EINPROGRESS);
	child = fork();
	if (child == 0) {
		connect4(tcp(0), host4, SILENT);
		_exit(0);
	}
	await_call(child, SYS_connect);
	kill(child, SIGKILL);
	want(waitpid(child, NULL, 0) == child);
	want(poll(&earlier, 1, 0) == 0); /* it wasn't its own end */
	usleep(400000);
	blocking();
}

const struct check blocking_checks[] = {
    CHECK(blocking),
    CHECK(blocking_ipv6),
    CHECK(blocking_v4_mapped),
    CHECK(v6only_refuses_v4_mapped),
    CHECK(refused),
    CHECK(unreachable),
    SANDBOX(denied),
    CHECK(again_after_refused),
    CHECK(connected_twice),
    CHECK(slow),
    CHECK(send_timeout),
    CHECK(interrupted),
    CHECK(interrupted_goes_on),
    CHECK(restarted),
    CHECK(restarted_at_once),
    CHECK(killed_while_pending),
    {0},
};
