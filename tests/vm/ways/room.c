// SPDX-License-Identifier: Apache-2.0
/*
 * room.c - who hears that there is room to send
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <sys/epoll.h>

#include "ways.h"

#define TRIPS 20
#define BULK  (4 << 20) /* more than any window */

static char bytes[1 << 16];

/* An epoll with edges of room on a socket, which has told of what there is */
static int edges(int fd)
{
	struct epoll_event event = {.events = EPOLLOUT | EPOLLET};
	int epoll = epoll_create1(0);

	want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
	want(epoll_wait(epoll, &event, 1, -1) == 1);
	return epoll;
}

static void writes_that_have_room_are_no_edges(void)
{
	struct epoll_event event;
	int fd = connected(), epoll = edges(fd);

	for (int i = 0; i < TRIPS; i++) {
		exchange(fd);
		want(epoll_wait(epoll, &event, 1, 0) == 0);
	}
}

/* Send until there is no room */
static size_t fill(int fd)
{
	size_t sent = 0;
	ssize_t more;

	while ((more = send(fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
		sent += (size_t)more;
	want_errno(more, EAGAIN);
	return sent;
}

static void receive(int fd, size_t len)
{
	while (len) {
		size_t some = len < sizeof(bytes) ? len : sizeof(bytes);
		ssize_t got = recv(fd, bytes, some, 0);

		want(got > 0);
		len -= (size_t)got;
	}
}

static void room_after_none_is_an_edge(void)
{
	struct epoll_event event;
	int fd = connected(), epoll = edges(fd);

	for (int i = 0; i < 3; i++) {
		size_t sent = fill(fd);

		receive(fd, sent);
		want(epoll_wait(epoll, &event, 1, -1) == 1);
		want(event.events == EPOLLOUT);
	}
}

static void *drain(void *context)
{
	receive(*(int *)context, BULK);
	return NULL;
}

static void *send_half(void *context)
{
	for (size_t sent = 0; sent < BULK / 2; sent += sizeof(bytes))
		want(send(*(int *)context, bytes, sizeof(bytes), 0) ==
		     sizeof(bytes));
	return NULL;
}

static void all_who_wait_for_room_get_it(void)
{
	pthread_t reader, sender;
	int fd = connected();

	want(pthread_create(&reader, NULL, drain, &fd) == 0);
	want(pthread_create(&sender, NULL, send_half, &fd) == 0);
	send_half(&fd);
	want(pthread_join(sender, NULL) == 0);
	want(pthread_join(reader, NULL) == 0);
}

const struct check room[] = {
    CHECK(writes_that_have_room_are_no_edges),
    CHECK(room_after_none_is_an_edge),
    CHECK(all_who_wait_for_room_get_it),
    {0},
};
