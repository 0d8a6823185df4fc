// SPDX-License-Identifier: Apache-2.0
/*
 * waits.c - checks: waiting, and who else has the socket
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "udp.h"

static void timeouts(void)
{
	const struct timeval limit = {.tv_usec = 200000};
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = connected();
	char buf[4];

	want(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == EAGAIN);
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) <
		 0 &&
	     errno == EAGAIN);
	want(recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT,
		      (struct sockaddr *)&from, &len) < 0 &&
	     errno == EAGAIN);
}

static void on_alarm(int signo)
{
	(void)signo;
}

static void interrupted(void)
{
	const struct sigaction action = {.sa_handler = on_alarm};
	const struct itimerval soon = {.it_value = {.tv_usec = 200000},
				       .it_interval = {.tv_usec = 200000}};
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = connected();
	char buf[4];

	want(!sigaction(SIGALRM, &action, NULL));
	want(!setitimer(ITIMER_REAL, &soon, NULL));
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) <
		 0 &&
	     errno == EINTR);
	want(!setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL));
	send_to(fd, ECHO, "on");
	expect_from(fd, ECHO, "on");
}

static void poll_and_epoll(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	int epoll = epoll_create1(0);
	struct sockaddr_in in = addr4(host4, ECHO);
	struct pollfd state = {.fd = fd, .events = POLLIN | POLLOUT};
	char buf[8];

	want(!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(poll(&state, 1, 0) == 1 && state.revents == POLLOUT);
	want(epoll_wait(epoll, &event, 1, 0) == 0);
	want(send(fd, "x", 1, 0) == 1);
	want(epoll_wait(epoll, &event, 1, WAIT_MS) == 1);
	want(event.events == EPOLLIN);
	want(recv(fd, buf, sizeof(buf), 0) == 1);
	want(epoll_wait(epoll, &event, 1, 0) == 0);
}

static void dup_and_fork(void)
{
	int fd = connected(), copy = dup(fd), status;

	want(send(copy, "dup", 3, 0) == 3);
	expect_from(fd, ECHO, "dup");
	if (fork() == 0) {
		close(fd);
		want(send(copy, "child", 5, 0) == 5);
		expect_from(copy, ECHO, "child");
		_exit(0);
	}
	want(wait(&status) > 0 && status == 0);
	close(copy);
	send_to(fd, ECHO, "still");
	expect_from(fd, ECHO, "still");
}

static void *send_later(void *fd)
{
	usleep(200000);
	send_to(*(int *)fd, OTHER, "late");
	return NULL;
}

static void a_waiting_thread(void)
{
	int fd = udp4();
	pthread_t thread;

	send_to(fd, ECHO, "bind");
	expect_from(fd, ECHO, "bind");
	want(!pthread_create(&thread, NULL, send_later, &fd));
	expect_from(fd, OTHER, "late"); /* waits before that is sent */
	pthread_join(thread, NULL);
}

static void refused(void)
{
	struct sockaddr_in in = addr4(host4, REFUSING);
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = udp4();
	char buf[4];

	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(send(fd, "x", 1, 0) == 1);
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == ECONNREFUSED);
	want(send(fd, "x", 1, 0) == 1);
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) <
		 0 &&
	     errno == ECONNREFUSED);
	send_to(fd, ECHO, "fine"); /* unconnected sends go on */
}

const struct check wait_checks[] = {
    CHECK(timeouts),
    CHECK(interrupted),
    CHECK(poll_and_epoll),
    CHECK(dup_and_fork),
    CHECK(a_waiting_thread),
    CHECK(refused),
    {0},
};
