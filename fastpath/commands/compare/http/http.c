// SPDX-License-Identifier: Apache-2.0
/*
 * http.c - the HTTP server behind ztunnel, in a comparison
 *
 * Theory of operation
 * ===================
 *
 *	http READY_FD ADDRESS PORT
 *
 * "GET /N" is answered by N bytes, on connections that stay. It does the least
 * that such a server does, so that what a request costs is the way to it: of a
 * request it reads the first line and looks for the empty one; whatever it does
 * not understand ends the connection. Says so by a line on READY_FD when it
 * listens, and serves until a signal.
 *
 * One thread. Each connection is read, or has an answer to be sent; one that
 * asks before it has taken its answer waits.
 *
 * Spec: RFC 9112 (HTTP/1.1), sections 2 to 6.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define EVENTS	    64
#define BACKLOG	    4096
#define REQUEST_MAX 4096
#define SIZE_MAX_B  (1024UL * 1024)
#define GET	    "GET /"
#define END	    "\r\n\r\n"

/**
 * struct conn - A connection
 * @fd:		Socket
 * @in:		The request so far
 * @in_len:	How much that is
 * @out:	An answer; NULL: none is being sent
 * @out_len:	How long it is
 * @sent:	How much of it is sent
 */
struct conn {
	int fd;
	char in[REQUEST_MAX + 1];
	size_t in_len;
	char *out;
	size_t out_len;
	size_t sent;
};

static int epoll_fd;

/**
 * fail() - Say which call failed and end
 * @what:	Its name
 */
__attribute__((noreturn)) static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/**
 * watch() - Wait for a connection
 * @c:		Connection; NULL: the listener
 * @fd:		Its socket
 * @op:		As of epoll_ctl()
 * @events:	What to wait for
 */
static void watch(struct conn *c, int fd, int op, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = c};

	if (epoll_ctl(epoll_fd, op, fd, &ev))
		fail("epoll_ctl");
}

/**
 * finish() - End a connection
 * @c:		Connection, gone then
 */
static void finish(struct conn *c)
{
	close(c->fd);
	free(c->out);
	free(c);
}

/**
 * answer() - Make the answer to a request that is whole
 * @c:		Connection
 *
 * Returns: whether it was one that is understood
 */
static bool answer(struct conn *c)
{
	char *over = strstr(c->in, END), *end;
	unsigned long size;
	size_t used;
	int head;

	if (strncmp(c->in, GET, strlen(GET)))
		return false;
	size = strtoul(c->in + strlen(GET), &end, 10);
	if (*end != ' ' || size > SIZE_MAX_B)
		return false;
	c->out = malloc(size + 128);
	if (!c->out)
		return false;
	head = snprintf(c->out, 128,
			"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
			"Content-Length: %lu\r\n\r\n",
			size);
	memset(c->out + head, 'x', size);
	c->out_len = (size_t)head + size;
	c->sent = 0;
	used = (size_t)(over - c->in) + strlen(END);
	c->in_len -= used;
	memmove(c->in, c->in + used, c->in_len + 1);
	return true;
}

/**
 * send_some() - Send what is left of an answer
 * @c:		Connection
 *
 * Returns: whether it lives
 */
static bool send_some(struct conn *c)
{
	ssize_t n = send(c->fd, c->out + c->sent, c->out_len - c->sent,
			 MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0)
		return errno == EAGAIN;
	c->sent += (size_t)n;
	if (c->sent < c->out_len)
		return true;
	free(c->out);
	c->out = NULL;
	return true;
}

/**
 * serve() - Do what a connection is ready for
 * @c:		Connection
 *
 * Returns: whether it lives
 */
static bool serve(struct conn *c)
{
	if (c->out) {
		if (!send_some(c))
			return false;
	} else {
		ssize_t n =
		    read(c->fd, c->in + c->in_len, REQUEST_MAX - c->in_len);

		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		c->in_len += (size_t)n;
		c->in[c->in_len] = '\0';
	}
	while (!c->out && strstr(c->in, END))
		if (!answer(c) || !send_some(c))
			return false;
	if (!c->out && c->in_len == REQUEST_MAX)
		return false;
	watch(c, c->fd, EPOLL_CTL_MOD, c->out ? EPOLLOUT : EPOLLIN);
	return true;
}

/**
 * take() - Accept a connection
 * @listener:	Socket
 */
static void take(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct conn *c;

	if (fd < 0)
		return;
	c = calloc(1, sizeof(*c));
	if (!c) {
		close(fd);
		return;
	}
	c->fd = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	watch(c, fd, EPOLL_CTL_ADD, EPOLLIN);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	struct epoll_event events[EVENTS];
	int s, ready;

	if (argc != 4 || inet_pton(AF_INET, argv[2], &at.sin_addr) != 1) {
		fputs("usage: http READY_FD ADDRESS PORT\n", stderr);
		return 2;
	}
	ready = atoi(argv[1]);
	at.sin_port = htons((uint16_t)atoi(argv[3]));
	s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (s < 0 || epoll_fd < 0)
		fail("socket");
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(s, (struct sockaddr *)&at, sizeof(at)) || listen(s, BACKLOG))
		fail("listen");
	watch(NULL, s, EPOLL_CTL_ADD, EPOLLIN);
	if (write(ready, "\n", 1) != 1)
		fail("write");
	close(ready);
	for (;;) {
		int n = epoll_wait(epoll_fd, events, EVENTS, -1);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;

			if (!c)
				take(s);
			else if (!serve(c))
				finish(c);
		}
	}
}
