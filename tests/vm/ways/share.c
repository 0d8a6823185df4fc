// SPDX-License-Identifier: Apache-2.0
/*
 * share.c - sockets of several threads and processes
 */

#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "ways.h"

#define CHILDREN 3
#define FD	 3 /* of an activated program: sd_listen_fds(3) */

static void pass(int over, int fd)
{
	char byte = 0, space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {&byte, 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = space,
			     .msg_controllen = sizeof(space)};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	want(sendmsg(over, &msg, 0) == 1);
	close(fd);
}

static int take(int over)
{
	char byte, space[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {&byte, 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = space,
			     .msg_controllen = sizeof(space)};
	int fd;

	want(recvmsg(over, &msg, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

/* Wait for a child that wants what it says */
static void reap(pid_t pid)
{
	int status;

	want(waitpid(pid, &status, 0) == pid);
	want(status == 0);
}

static void a_child_uses_its_parents_connection(void)
{
	int fd = connected(), copy = dup(fd);
	pid_t pid = fork();

	if (!pid) {
		close(fd);
		exchange(copy);
		_exit(0);
	}
	reap(pid);
	close(copy);
	exchange(fd);
}

static void a_connection_is_passed(void)
{
	int pair[2];
	pid_t pid;

	want(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid = fork();
	if (!pid) {
		pass(pair[1], connected());
		_exit(0);
	}
	reap(pid); /* its maker is gone */
	exchange(take(pair[0]));
}

static void a_socket_is_connected_where_it_was_passed_to(void)
{
	struct sockaddr_in to = address_of(HOST, ECHO);
	int pair[2], fd = socket(AF_INET, SOCK_STREAM, 0);
	pid_t pid;

	want(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid = fork();
	if (!pid) {
		int there = take(pair[1]);

		want(connect(there, (void *)&to, sizeof(to)) == 0);
		_exit(0);
	}
	pass(pair[0], dup(fd));
	reap(pid);
	exchange(fd);
}

static void a_listener_is_passed(void)
{
	int pair[2], port, fd = listener(&port);
	pid_t pid;

	want(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid = fork();
	if (!pid) {
		close(fd);
		fd = take(pair[1]);
		exchange(accept(fd, NULL, NULL));
		_exit(0);
	}
	pass(pair[0], fd);
	client_from_host(port);
	reap(pid);
}

static void a_bound_socket_listens_where_it_was_passed_to(void)
{
	int pair[2], port, fd = bound(&port);
	pid_t pid;

	want(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid = fork();
	if (!pid) {
		close(fd);
		fd = take(pair[1]);
		want(listen(fd, 8) == 0);
		want(write(pair[1], "", 1) == 1);
		exchange(accept(fd, NULL, NULL));
		_exit(0);
	}
	pass(pair[0], fd);
	want(read(pair[0], &fd, 1) == 1);
	client_from_host(port);
	reap(pid);
}

/* As a server that forks its workers, by accept() or by epoll */
static void serve_by_workers(bool by_epoll)
{
	int port, fd = listener(&port);
	pid_t pids[CHILDREN];

	for (int i = 0; i < CHILDREN; i++) {
		struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE};
		int epoll;

		pids[i] = fork();
		if (pids[i])
			continue;
		epoll = epoll_create1(0);
		want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
		want(fcntl(fd, F_SETFL, by_epoll ? O_NONBLOCK : 0) == 0);
		for (int client = -1; client < 0;) {
			if (by_epoll)
				epoll_wait(epoll, &event, 1, -1);
			client = accept(fd, NULL, NULL);
			if (client >= 0)
				exchange(client);
		}
		_exit(0);
	}
	close(fd);
	for (int i = 0; i < CHILDREN; i++)
		client_from_host(port);
	for (int i = 0; i < CHILDREN; i++)
		reap(pids[i]);
}

static void workers_accept(void)
{
	serve_by_workers(false);
}

static void workers_wait_by_epoll(void)
{
	serve_by_workers(true);
}

int activated(void)
{
	struct pollfd ready = {.fd = FD, .events = POLLIN};
	int on = 0;
	socklen_t len = sizeof(on);

	want(getsockopt(FD, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) == 0 && on);
	want(poll(&ready, 1, -1) == 1);
	exchange(accept(FD, NULL, NULL));
	return 0;
}

static void a_program_inherits_its_listener(void)
{
	int port, fd = listener(&port);
	pid_t pid = fork();

	if (!pid) {
		if (fd != FD)
			dup2(fd, FD);
		fcntl(FD, F_SETFD, 0);
		execl("/proc/self/exe", "tsi_ways", "activated", NULL);
		_exit(1);
	}
	close(fd);
	client_from_host(port);
	reap(pid);
}

static void *with_own_table(void *unused)
{
	int fd;

	(void)unused;
	want(unshare(CLONE_FILES) == 0);
	fd = connected();
	exchange(fd);
	return (void *)(intptr_t)fd;
}

static void a_thread_has_its_own_descriptors(void)
{
	want_errno(fcntl(join(with_own_table, NULL), F_GETFD), EBADF);
}

static void a_connection_is_taken_by_pidfd_getfd(void)
{
	int pair[2], fd, pidfd;
	pid_t pid;

	want(pipe(pair) == 0);
	pid = fork();
	if (!pid) {
		fd = connected();
		want(write(pair[1], &fd, sizeof(fd)) == sizeof(fd));
		pause();
	}
	want(read(pair[0], &fd, sizeof(fd)) == sizeof(fd));
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	want(fd >= 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	exchange(fd);
}

static void the_last_of_several_closes(void)
{
	int port, fd = listener(&port), conn;
	pid_t pid;

	client_from_host(port);
	conn = accept(fd, NULL, NULL);
	pid = fork();
	if (!pid) {
		close(conn);
		close(fd);
		_exit(0);
	}
	reap(pid);
	exchange(conn);
	client_from_host(port);
	exchange(accept(fd, NULL, NULL));
}

const struct check share[] = {
    CHECK(a_child_uses_its_parents_connection),
    CHECK(a_connection_is_passed),
    CHECK(a_socket_is_connected_where_it_was_passed_to),
    CHECK(a_listener_is_passed),
    CHECK(a_bound_socket_listens_where_it_was_passed_to),
    CHECK(workers_accept),
    CHECK(workers_wait_by_epoll),
    CHECK(a_program_inherits_its_listener),
    CHECK(a_thread_has_its_own_descriptors),
    CHECK(a_connection_is_taken_by_pidfd_getfd),
    CHECK(the_last_of_several_closes),
    {0},
};
