// SPDX-License-Identifier: Apache-2.0
/*
 * helpers.c - what checks have in common
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "client.h"

const char *host4, *host6;

struct sockaddr_in in4(const char *host, int port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host, &sa.sin_addr);
	return sa;
}

struct sockaddr_in6 in6(const char *host, int port)
{
	struct sockaddr_in6 sa = {.sin6_family = AF_INET6,
				  .sin6_port = htons((uint16_t)port)};

	inet_pton(AF_INET6, host, &sa.sin6_addr);
	return sa;
}

int connect4(int fd, const char *host, int port)
{
	struct sockaddr_in sa = in4(host, port);

	return connect(fd, (struct sockaddr *)&sa, sizeof(sa));
}

int connect6(int fd, const char *host, int port)
{
	struct sockaddr_in6 sa = in6(host, port);

	return connect(fd, (struct sockaddr *)&sa, sizeof(sa));
}

int tcp(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	want(fd >= 0);
	return fd;
}

int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, level, name, &value, &len) ? -1 : value;
}

int so_error(int fd)
{
	return option(fd, SOL_SOCKET, SO_ERROR);
}

short wait_for(int fd, short events)
{
	struct pollfd state = {.fd = fd, .events = events};

	want(poll(&state, 1, LIMIT_S * 1000) == 1);
	return state.revents;
}

void set_blocking(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	flags = on ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
	want(fcntl(fd, F_SETFL, flags) == 0);
}

/* A blocking socket that is connected to the echo server echoes */
void want_echo(int fd)
{
	char buf[8] = {0};

	want(write(fd, "ping", 4) == 4);
	want(recv(fd, buf, 4, MSG_WAITALL) == 4);
	want(memcmp(buf, "ping", 4) == 0);
}

int echo_socket(void)
{
	int fd = tcp(0);

	want(connect4(fd, host4, ECHO) == 0);
	return fd;
}

int64_t now_ms(void)
{
	struct timeval now;

	gettimeofday(&now, NULL);
	return (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000;
}

static void on_alarm(int signo)
{
	(void)signo;
}

/* SIGALRM after 200 ms; without SA_RESTART again and again until alarm_off(),
 * so that one meets the call */
void alarm_soon(int sa_flags)
{
	struct sigaction action = {.sa_handler = on_alarm,
				   .sa_flags = sa_flags};
	struct itimerval soon = {.it_value.tv_usec = 200000};

	if (!sa_flags)
		soon.it_interval = soon.it_value;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
}

void alarm_off(void)
{
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

int listener(struct sockaddr_in *ret_sa)
{
	struct sockaddr_in sa = in4("127.0.0.1", 0);
	socklen_t len = sizeof(sa);
	int fd = tcp(0);

	want(bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(listen(fd, 16) == 0);
	want(getsockname(fd, (struct sockaddr *)&sa, &len) == 0);
	want(ntohs(sa.sin_port) != 0);
	*ret_sa = sa;
	return fd;
}
