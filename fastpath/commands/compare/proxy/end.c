// SPDX-License-Identifier: Apache-2.0
/*
 * end.c - one end of a connection: a stream socket, or rings of shared memory
 *
 * Theory of operation
 * ===================
 *
 * epoll tells of edges, and each end is registered once. So a round trip takes
 * one epoll_wait(), one read and one write: a read that gives less than was
 * asked for has emptied the socket, unless its end has come meanwhile, which
 * is an edge of its own or was told with the bytes (epoll(7)).
 *
 * Room is asked for from the first write on that doesn't go in whole. A unix
 * socket tells of it each time that its peer reads, which would be one more
 * turn each round trip.
 */

#include "end.h"

#include <errno.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/socket.h>

static int ask(struct end *e, int op, uint32_t more)
{
	struct epoll_event ev = {
	    .events = EPOLLIN | EPOLLRDHUP | EPOLLET | more, .data.ptr = e};

	return epoll_ctl(e->epoll_fd, op, e->fd, &ev) ? -errno : 0;
}

int end_watch(struct end *e, int epoll_fd, bool room)
{
	e->epoll_fd = epoll_fd;
	e->asks_room = room;
	return ask(e, EPOLL_CTL_ADD, room ? EPOLLOUT : 0);
}

void end_told(struct end *e, uint32_t events)
{
	if (e->ring) {
		fpring_woken(&e->link);
		return;
	}
	e->hung_up |= events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
	e->readable |= e->hung_up || events & EPOLLIN;
}

ssize_t end_read(struct end *e, void *buf, size_t len)
{
	ssize_t n;

	if (e->ring)
		return fpring_read(&e->link, buf, len);
	if (!e->readable)
		return -EAGAIN;
	n = recv(e->fd, buf, len, 0);
	if (n < 0) {
		e->readable = errno != EAGAIN;
		return -errno;
	}
	e->readable = (size_t)n == len || e->hung_up;
	return n;
}

ssize_t end_write(struct end *e, const void *buf, size_t len)
{
	ssize_t n;

	if (e->ring)
		return fpring_write(&e->link, buf, len);
	n = send(e->fd, buf, len, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN)
		return -errno;
	if (n != (ssize_t)len && !e->asks_room) {
		int err = ask(e, EPOLL_CTL_MOD, EPOLLOUT);

		e->asks_room = !err;
		if (err)
			return err;
	}
	return n < 0 ? -EAGAIN : n;
}

void end_shut(struct end *e)
{
	if (e->ring)
		fpring_shutdown(&e->link, FPRING_WRITE);
	else
		shutdown(e->fd, SHUT_WR);
}

void end_close(struct end *e)
{
	if (e->ring)
		fpring_close(&e->link);
	else if (e->fd >= 0)
		close(e->fd);
	e->ring = false;
	e->fd = -1;
}
