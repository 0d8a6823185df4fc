// SPDX-License-Identifier: Apache-2.0
/*
 * accepts.c - checks: accept(), and what waits for it
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "listener.h"

static void epoll_before_bind(void)
{
	int fd = tcp("0.0.0.0", SOCK_NONBLOCK), poll_fd = epoll_create1(0),
	    there;
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
	union name name;

	want(!epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event));
	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, BACKLOG));
	while (epoll_wait(poll_fd, &event, 1, 0) == 1) /* EPOLLHUP of before */
		want(take(fd, &name) == -1 && errno == EAGAIN);
	there = client("127.0.0.1");
	want(epoll_wait(poll_fd, &event, 1, 5000) == 1);
	want(event.data.u64 == 7 && (event.events & EPOLLIN));
	want_connected(take(fd, &name), there, &name);
	want(epoll_wait(poll_fd, &event, 1, 0) == 0);
}

static void edge_triggered(void)
{
	int fd = listener("0.0.0.0", SOCK_NONBLOCK);
	int poll_fd = epoll_create1(0), there[3], count = 0, conn;
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	union name name;

	want(!epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event));
	for (int i = 0; i < 3; i++)
		there[i] = client("127.0.0.1");
	while (count < 3) {
		want(epoll_wait(poll_fd, &event, 1, 5000) == 1);
		while ((conn = take(fd, &name)) >= 0)
			want_connected(conn, there[count++], &name);
		want(errno == EAGAIN);
	}
	want(epoll_wait(poll_fd, &event, 1, 0) == 0);
}

static void nobody_there(void)
{
	int fd = listener("0.0.0.0", SOCK_NONBLOCK);
	union name name;

	want_errno(take(fd, &name), EAGAIN);
	want_errno(accept(fd, NULL, NULL), EAGAIN);
	want(!wait_for(fd, POLLIN, 0));
}

static void accept4_flags(void)
{
	int fd = listener("0.0.0.0", 0), conn;
	union name name;
	socklen_t len = sizeof(name);

	client("127.0.0.1");
	conn = accept4(fd, &name.sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
	want(fcntl(conn, F_GETFL) & O_NONBLOCK);
	want(fcntl(conn, F_GETFD) & FD_CLOEXEC);
	client("127.0.0.1");
	len = sizeof(name);
	conn = accept4(fd, &name.sa, &len, 0);
	want(conn >= 0 && !(fcntl(conn, F_GETFL) & O_NONBLOCK));
	want(!(fcntl(conn, F_GETFD) & FD_CLOEXEC));
	want_errno(accept4(fd, &name.sa, &len, 1 << 20), EINVAL);
}

static void errors_of_accept(void)
{
	int fd = listener("0.0.0.0", SOCK_NONBLOCK), other = tcp("0.0.0.0", 0);
	int pipes[2], conn;
	union name name;

	want(!pipe(pipes));
	want_errno(take(pipes[0], &name), ENOTSOCK);
	want_errno(take(1000, &name), EBADF);
	want_errno(take(other, &name), EINVAL);
	want(!bind_to(other, "0.0.0.0", 0));
	want_errno(take(other, &name), EINVAL);
	client("127.0.0.1");
	want(wait_for(fd, POLLIN, 5000));
	conn = take(fd, &name);
	want_errno(take(conn, &name), EINVAL);
}

static void short_room_for_the_address(void)
{
	int fd = listener("0.0.0.0", 0), conn;
	unsigned char room[16];
	socklen_t len = 4;

	memset(room, 0xee, sizeof(room));
	client("127.0.0.1");
	conn = accept(fd, (struct sockaddr *)room, &len);
	want(conn >= 0 && len == sizeof(struct sockaddr_in));
	want(room[0] == AF_INET && room[4] == 0xee);
}

static void listener_connects(void)
{
	int fd = listener("0.0.0.0", 0);
	union name name = address("127.0.0.1", port);

	want_errno(connect(fd, &name.sa, size_of(&name)), EISCONN);
}

static void receive_timeout(void)
{
	int fd = listener("0.0.0.0", 0);
	struct timeval limit = {.tv_usec = 100000};
	union name name;

	want(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	want_errno(take(fd, &name), EAGAIN);
}

static void nothing(int signo)
{
	(void)signo;
}

static void signal_interrupts(void)
{
	struct itimerval soon = {.it_value.tv_usec = 100000,
				 .it_interval.tv_usec = 100000};
	struct sigaction action = {.sa_handler = nothing};
	int fd = listener("0.0.0.0", 0);
	union name name;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	want_errno(take(fd, &name), EINTR);
}

static void signal_restarts(void)
{
	struct itimerval soon = {.it_value.tv_usec = 100000};
	struct sigaction action = {.sa_handler = nothing,
				   .sa_flags = SA_RESTART};
	int fd = listener("0.0.0.0", 0);
	union name name;
	int conn;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	if (fork() == 0) {
		usleep(400000);
		_exit(recv(client("127.0.0.1"), &name, 1, 0) != 0);
	}
	conn = take(fd, &name);
	want(conn >= 0);
	close(conn);
}

static void backlog_holds_clients(void)
{
	int fd = tcp("0.0.0.0", 0), there[4], conn;
	char byte;

	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, 3));
	for (int i = 0; i < 4; i++) {
		there[i] = client("127.0.0.1");
		byte = (char)('a' + i);
		want(send(there[i], &byte, 1, 0) == 1);
	}
	for (int i = 0; i < 4; i++) {
		conn = accept(fd, NULL, NULL);
		want(recv(conn, &byte, 1, 0) == 1 && byte == 'a' + i);
	}
}

static void options_are_inherited(void)
{
	int fd = tcp("0.0.0.0", 0), conn;
	union name name;

	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, BACKLOG));
	client("127.0.0.1");
	conn = take(fd, &name);
	want(get(conn, IPPROTO_TCP, TCP_NODELAY) == 1);
	want(get(conn, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
	want(get(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1);
	want(get(conn, SOL_SOCKET, SO_ACCEPTCONN) == 0);
	want(get(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET);
	want(get(conn, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP);
}

const struct check accept_checks[] = {
    CHECK(epoll_before_bind),
    CHECK(edge_triggered),
    CHECK(nobody_there),
    CHECK(accept4_flags),
    CHECK(errors_of_accept),
    CHECK(short_room_for_the_address),
    CHECK(listener_connects),
    CHECK(receive_timeout),
    CHECK(signal_interrupts),
    CHECK(signal_restarts),
    CHECK(backlog_holds_clients),
    CHECK(options_are_inherited),
    {0},
};
