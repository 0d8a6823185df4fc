// SPDX-License-Identifier: Apache-2.0
/*
 * nonblocking.c - checks: connect() that doesn't wait; poll, select, epoll
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "client.h"

static void nonblocking(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	want(so_error(fd) == 0);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_by_connect(void)
{
	int fd = tcp(0);

	set_blocking(fd, false);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	want(connect4(fd, host4, ECHO) == 0);
	want_errno(connect4(fd, host4, ECHO), EISCONN);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_already(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, SILENT), EINPROGRESS);
	want_errno(connect4(fd, host4, SILENT), EALREADY);
	want(so_error(fd) == 0);
	want(poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 100) == 0);
}

static void nonblocking_refused(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, REFUSING), EINPROGRESS);
	wait_for(fd, POLLOUT);
	want(so_error(fd) == ECONNREFUSED);
	want(so_error(fd) == 0);
	want_errno(connect4(fd, host4, ECHO), ECONNABORTED);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_refused_by_connect(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, REFUSING), EINPROGRESS);
	wait_for(fd, POLLOUT);
	want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
	want(so_error(fd) == 0);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_unreachable(void)
{
	int fd = tcp(SOCK_NONBLOCK);
	int ret = connect4(fd, "198.51.100.1", 80);

	if (getenv("NATIVE"))
		return; /* the route is known at once there */
	want(ret == -1 && errno == EINPROGRESS);
	wait_for(fd, POLLOUT);
	want(so_error(fd) == EHOSTUNREACH);
}

static void closed_while_pending(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, SLOW), EINPROGRESS);
	want(close(fd) == 0);
	usleep(1700000); /* until the host has answered */
	want_echo(echo_socket());
}

static void epoll_finds(int epoll, int data)
{
	struct epoll_event event;

	want(epoll_wait(epoll, &event, 1, LIMIT_S * 1000) == 1);
	want((event.events & EPOLLOUT) && !(event.events & EPOLLERR));
	want(event.data.fd == data);
}

static void epoll_before_connect(void)
{
	struct epoll_event event = {.events = EPOLLOUT | EPOLLET};
	int fd = tcp(SOCK_NONBLOCK), epoll = epoll_create1(0);

	event.data.fd = fd;
	want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
	while (epoll_wait(epoll, &event, 1, 0) == 1)
		; /* an unconnected socket is ready, too */
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	epoll_finds(epoll, fd);
	want(so_error(fd) == 0);
	set_blocking(fd, true);
	want_echo(fd);
}

static void epoll_after_connect(void)
{
	struct epoll_event event = {.events = EPOLLOUT};
	int fd = tcp(SOCK_NONBLOCK), epoll = epoll_create1(0);

	event.data.fd = fd;
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
	epoll_finds(epoll, fd);
	want(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) == 0);
}

static void by_select(void)
{
	struct timeval limit = {.tv_sec = 10};
	int fd = tcp(SOCK_NONBLOCK);
	fd_set set;

	FD_ZERO(&set);
	FD_SET(fd, &set);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(select(fd + 1, NULL, &set, NULL, &limit) == 1);
	want(so_error(fd) == 0);
}

/* A socket in an epoll instance becomes one of the guest's */
static void want_it_survives(int epoll)
{
	struct epoll_event event = {.events = EPOLLOUT};
	struct sockaddr_in sa;
	int server = listener(&sa);
	int fd = tcp(SOCK_NONBLOCK);

	event.data.u64 = 0x1122334455667788;
	want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		want(errno == EINPROGRESS);
	want(accept(server, NULL, NULL) >= 0);
	want(epoll_wait(epoll, &event, 1, 5000) == 1);
	want(event.events == EPOLLOUT);
	want(event.data.u64 == 0x1122334455667788);
	event.events = EPOLLIN;
	want(epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) == 0);
	want(epoll_wait(epoll, &event, 1, 0) == 0);
	want(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) == 0);
	close(server);
	close(fd);
}

static void epoll_survives_a_swap(void)
{
	want_it_survives(epoll_create1(0));
}

/* Who looks for instances once doesn't see those that come later */
static void epolls_made_later_survive_swaps(void)
{
	for (int i = 0; i < 12; i++) {
		int epoll = epoll_create(1);

		want_it_survives(epoll);
		want_it_survives(epoll);
	}
}

static void dup_of_an_epoll_survives_a_swap(void)
{
	int epoll = epoll_create1(0), other;

	want_it_survives(epoll);
	other = dup(epoll);
	close(epoll);
	want_it_survives(other);
}

static void inherited_epoll_survives_a_swap(void)
{
	int epoll = epoll_create1(0), status;
	pid_t pid;

	want_it_survives(epoll);
	pid = fork();
	if (!pid) {
		want_it_survives(epoll);
		_exit(0);
	}
	want(waitpid(pid, &status, 0) == pid && status == 0);
}

const struct check nonblocking_checks[] = {
    CHECK(nonblocking),
    CHECK(nonblocking_by_connect),
    CHECK(nonblocking_already),
    CHECK(nonblocking_refused),
    CHECK(nonblocking_refused_by_connect),
    CHECK(nonblocking_unreachable),
    CHECK(closed_while_pending),
    CHECK(epoll_before_connect),
    CHECK(epoll_after_connect),
    CHECK(by_select),
    CHECK(epoll_survives_a_swap),
    CHECK(epolls_made_later_survive_swaps),
    CHECK(dup_of_an_epoll_survives_a_swap),
    CHECK(inherited_epoll_survives_a_swap),
    {0},
};
