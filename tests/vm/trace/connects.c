// SPDX-License-Identifier: Apache-2.0
/*
 * connects.c - cases: connect(), and what is learnt of its outcome
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "trace.h"

#define UNREACHABLE "198.51.100.1"

/**
 * silent_port() - Have the peer listen and answer nobody until "free"
 *
 * A listener whose queue is full answers no SYN, on any network: that is how a
 * connect() is kept pending, and how it is let go ("free" of peer.c). TCP then
 * tries again after a second.
 *
 * Returns: the port
 */
long silent_port(void)
{
	long port = peer("listen 0");

	peer("fill");
	return port;
}

/**
 * trace_echo() - Bytes go both ways on a connection that the peer has accepted
 * @fd:		Connection
 */
void trace_echo(int fd)
{
	char buf[8];

	TRACE("write", write(fd, "ping", 4));
	trace_peer("echo 4");
	TRACE("recv", recv(fd, buf, 4, MSG_WAITALL));
}

static void blocking(void)
{
	long port = peer("listen 16");
	int fd = tcp(0);

	TRACE("connect", connect_port(fd, port));
	trace_peer("accept");
	trace_so_error(fd);
	trace_events("connected", fd, POLLOUT);
	trace_echo(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("close", close(fd));
	trace_peer("readall");
}

static void ipv6(void)
{
	int fd = tcp6();

	TRACE("connect", connect_to(fd, host6, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void v4_mapped(void)
{
	char mapped[64];
	int fd = tcp6();

	snprintf(mapped, sizeof(mapped), "::ffff:%s", host4);
	TRACE("connect", connect_to(fd, mapped, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void v4_mapped_v6only(void)
{
	char mapped[64];
	int fd = tcp6();

	snprintf(mapped, sizeof(mapped), "::ffff:%s", host4);
	TRACE("IPV6_V6ONLY", set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
	TRACE("connect", connect_to(fd, mapped, peer("listen 16")));
}

static void wrong_address(void)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(9)};
	int fd = tcp(0);

	TRACE("connect, IPv6", connect_to(fd, host6, 9));
	TRACE("connect, short",
	      connect(fd, (struct sockaddr *)&sa, sizeof(sa) - 1));
	TRACE("connect, 4 bytes", connect(fd, (struct sockaddr *)&sa, 4));
	TRACE("connect, no memory",
	      connect(fd, (struct sockaddr *)16, sizeof(sa)));
	TRACE("connect, IPv4 on IPv6",
	      connect(tcp6(), (struct sockaddr *)&sa, sizeof(sa)));
	TRACE("connect, no descriptor", connect_port(-1, 9));
}

static void refused(void)
{
	long port = peer("refuse");
	int fd = tcp(0);

	TRACE("connect", connect_port(fd, port));
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void refused_then_poll(void)
{
	int fd = tcp(0);

	TRACE("connect", connect_port(fd, peer("refuse")));
	trace_events("refused", fd, 0);
}

static void unreachable(void)
{
	TRACE("connect", connect_to(tcp(0), UNREACHABLE, 9));
}

static void nonblocking(void)
{
	long port = peer("listen 16");
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("connected", fd, POLLOUT);
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
	trace_peer("accept");
	set_blocking(fd, true);
	trace_echo(fd);
}

static void nonblocking_pending(void)
{
	long port = silent_port();
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("pending", fd, 0);
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("write", write(fd, "x", 1));
	TRACE("read", read(fd, &(char){0}, 1));
	peer("free 0");
	trace_events("connected", fd, POLLOUT);
	TRACE("connect at last", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
}

static void nonblocking_refused(void)
{
	long port = peer("refuse");
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("refused", fd, POLLERR);
	trace_so_error(fd);
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
}

static void nonblocking_refused_connect(void)
{
	long port = peer("refuse");
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("refused", fd, POLLERR);
	TRACE("connect again", connect_port(fd, port));
	trace_so_error(fd);
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
	trace_events("connected", fd, POLLOUT);
	trace_so_error(fd);
}

static void nonblocking_refused_read(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, peer("refuse")));
	trace_events("refused", fd, POLLERR);
	TRACE("read", read(fd, &(char){0}, 1));
	TRACE("read again", read(fd, &(char){0}, 1));
}

static void nonblocking_refused_write(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, peer("refuse")));
	trace_events("refused", fd, POLLERR);
	TRACE("write", write(fd, "x", 1));
	TRACE("write again", write(fd, "x", 1));
}

static void nonblocking_unreachable(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_to(fd, UNREACHABLE, 9));
	poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, WAIT_MS);
	trace_so_error(fd);
}

static void timeout(void)
{
	struct timeval limit = {.tv_usec = 200000};
	long port = silent_port();
	int fd = tcp(0);

	TRACE("SO_SNDTIMEO",
	      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	TRACE("connect", connect_port(fd, port));
	set_blocking(fd, false);
	TRACE("connect again", connect_port(fd, port));
	peer("free 0");
	trace_events("connected", fd, POLLOUT);
	TRACE("connect at last", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
}

static void interrupted(void)
{
	long port = silent_port();
	int fd = tcp(0);

	alarm_in(200, 0);
	TRACE("connect", connect_port(fd, port));
	alarm_off();
	set_blocking(fd, false);
	TRACE("connect again", connect_port(fd, port));
	set_blocking(fd, true);
	peer("free 0");
	TRACE("connect, waiting", connect_port(fd, port));
	trace_so_error(fd);
	TRACE("once more", connect_port(fd, port));
}

static void restarted(void)
{
	long port = silent_port();
	int fd = tcp(0);

	peer("free 500");
	alarm_in(200, SA_RESTART);
	TRACE("connect", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
	trace_peer("accept");
	trace_echo(fd);
}

static void killed_while_pending(void)
{
	long port = silent_port();
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		connect_port(tcp(0), port);
		_exit(0);
	}
	await_call(child, SYS_connect);
	kill(child, SIGKILL);
	TRACE("waitpid", waitpid(child, &status, 0) == child);
	trace_text("killed by", "%d", WTERMSIG(status));
}

static void closed_while_pending(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, silent_port()));
	TRACE("close", close(fd));
	fd = tcp(0);
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
}

const struct test_case connect_cases[] = {
    CASE(blocking),
    CASE(ipv6),
    CASE(v4_mapped),
    CASE(v4_mapped_v6only),
    CASE(wrong_address),
    CASE(refused),
    CASE(refused_then_poll),
    CASE(unreachable),
    CASE(nonblocking),
    CASE(nonblocking_pending),
    CASE(nonblocking_refused),
    CASE(nonblocking_refused_connect),
    CASE(nonblocking_refused_read),
    CASE(nonblocking_refused_write),
    CASE(nonblocking_unreachable),
    CASE(timeout),
    CASE(interrupted),
    CASE(restarted),
    CASE(killed_while_pending),
    CASE(closed_while_pending),
    {0},
};
