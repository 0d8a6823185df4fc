// SPDX-License-Identifier: Apache-2.0
/*
 * crowd.c - many transactions at once: a second, and how long each took
 *
 * Theory of operation
 * ===================
 *
 * FLIGHT places, each with a connection or none, and one thread that waits for
 * all of them by epoll. A transaction begins when its place is free and ends
 * with the last byte of the answer; the next one begins in the same place until
 * COUNT are done. So FLIGHT are always under way: a closed loop, whose rate is
 * what the path makes of it.
 *
 *	DIALING	  connect() has not answered
 *	ASKING	  a part of the request is not sent
 *	HEARING	  a part of the answer is not here
 *
 * An answer is as long as the request (an echo), or an HTTP response: its head
 * up to an empty line, then as many bytes as were asked for. Of the head only
 * the status line and Content-Length are looked at.
 *
 * Spec: RFC 9112 (HTTP/1.1), sections 3 to 6.
 */

#define _GNU_SOURCE /* strcasestr() */

#include "probe/probe.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS	    64
#define HEAD_MAX    4096U
#define HTTP_OK	    "HTTP/1.1 200 "
#define LENGTH	    "\r\ncontent-length:"
#define END_OF_HEAD "\r\n\r\n"

enum place_state { DIALING, ASKING, HEARING };

/**
 * struct place - One of those that are under way
 * @fd:		Its connection; -1: none
 * @state:	What it waits for
 * @start:	When its transaction began, ns
 * @sent:	Bytes of the request that are sent
 * @got:	Bytes of the answer that are here; of HTTP without its head
 * @head:	HTTP's head so far
 * @head_len:	How much that is
 */
struct place {
	int fd;
	enum place_state state;
	uint64_t start;
	size_t sent;
	size_t got;
	char head[HEAD_MAX];
	size_t head_len;
};

/**
 * struct crowd - All of them
 * @http:	Answers are HTTP's, and connections stay
 * @request:	What each sends
 * @request_len:	Bytes of that
 * @answer_len:	Bytes of an answer, without HTTP's head
 * @count:	Transactions to be done
 * @begun:	Those that have begun
 * @done:	Those that have ended
 * @ns:		How long each took
 * @epoll:	Waits for all places
 */
struct crowd {
	int http;
	char *request;
	size_t request_len;
	size_t answer_len;
	uint64_t count;
	uint64_t begun;
	uint64_t done;
	uint64_t *ns;
	int epoll;
};

/**
 * wait_for() - Say what a place waits for
 * @c:		Crowd
 * @p:		Place
 * @events:	As of epoll
 */
static void wait_for(const struct crowd *c, struct place *p, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = p};

	if (epoll_ctl(c->epoll, EPOLL_CTL_MOD, p->fd, &ev))
		fail("epoll_ctl: %s", strerror(errno));
}

/**
 * begin() - Begin the next transaction in a place, if there is one left
 * @c:		Crowd
 * @p:		Place, free
 */
static void begin(struct crowd *c, struct place *p)
{
	struct epoll_event ev = {.events = EPOLLOUT, .data.ptr = p};

	if (c->begun == c->count)
		return;
	c->begun++;
	p->sent = p->got = p->head_len = 0;
	p->start = now_ns();
	if (p->fd >= 0) {
		p->state = ASKING;
		wait_for(c, p, EPOLLOUT);
		return;
	}
	p->fd = socket(peer.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (p->fd < 0)
		fail("socket: %s", strerror(errno));
	if (connect(p->fd, (struct sockaddr *)&peer, peer_len) &&
	    errno != EINPROGRESS)
		fail("connect: %s", strerror(errno));
	p->state = DIALING;
	if (epoll_ctl(c->epoll, EPOLL_CTL_ADD, p->fd, &ev))
		fail("epoll_ctl: %s", strerror(errno));
}

/**
 * end() - Note that a place's transaction is done, and begin the next one
 * @c:		Crowd
 * @p:		Place
 */
static void end(struct crowd *c, struct place *p)
{
	c->ns[c->done++] = now_ns() - p->start;
	if (!c->http || c->begun == c->count) {
		close(p->fd);
		p->fd = -1;
	}
	begin(c, p);
}

/**
 * take_head() - Look for the end of HTTP's head in what has come
 * @c:		Crowd
 * @p:		Place; @got counts what has come behind the head
 * @buf:	Bytes
 * @n:		How many
 */
static void take_head(const struct crowd *c, struct place *p, const char *buf,
		      size_t n)
{
	size_t had = p->head_len, room = HEAD_MAX - 1 - had;
	size_t part = n < room ? n : room;
	char *over, *length;

	memcpy(p->head + had, buf, part);
	p->head_len += part;
	p->head[p->head_len] = '\0';
	over = strstr(p->head, END_OF_HEAD);
	if (!over) {
		if (p->head_len == HEAD_MAX - 1)
			fail("the answer's head has no end");
		return;
	}
	over[2] = '\0'; /* the last line's own end stays */
	length = strcasestr(p->head, LENGTH);
	if (strncmp(p->head, HTTP_OK, strlen(HTTP_OK)) || !length ||
	    strtoull(length + strlen(LENGTH), NULL, 10) != c->answer_len)
		fail("the answer is no %zu bytes of HTTP: %.60s", c->answer_len,
		     p->head);
	p->got = had + n - (size_t)(over + strlen(END_OF_HEAD) - p->head);
	p->head_len = HEAD_MAX; /* it was there */
}

/**
 * hear() - Take what has come of an answer
 * @c:		Crowd
 * @p:		Place
 */
static void hear(struct crowd *c, struct place *p)
{
	static char buf[HEAD_MAX - 1];
	ssize_t n = read(p->fd, buf, sizeof(buf));

	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		fail("read: %s", strerror(errno));
	if (n == 0)
		fail("the peer closed the connection too early");
	if (c->http && p->head_len < HEAD_MAX)
		take_head(c, p, buf, (size_t)n);
	else
		p->got += (size_t)n;
	if (p->got > c->answer_len)
		fail("the answer is too long");
	if (p->got == c->answer_len && (!c->http || p->head_len == HEAD_MAX))
		end(c, p);
}

/**
 * ask() - Send what is left of a request
 * @c:		Crowd
 * @p:		Place
 */
static void ask(struct crowd *c, struct place *p)
{
	ssize_t n = send(p->fd, c->request + p->sent, c->request_len - p->sent,
			 MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		fail("send: %s", strerror(errno));
	p->sent += (size_t)n;
	if (p->sent < c->request_len)
		return;
	p->state = HEARING;
	wait_for(c, p, EPOLLIN);
}

/**
 * dialed() - Find out what became of connect()
 * @c:		Crowd
 * @p:		Place
 */
static void dialed(struct crowd *c, struct place *p)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &len))
		fail("getsockopt: %s", strerror(errno));
	if (error)
		fail("connect: %s", strerror(error));
	if (!c->request_len) {
		end(c, p);
		return;
	}
	setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	p->state = ASKING;
	ask(c, p);
}

/**
 * run() - Do all transactions and print the line
 * @c:		Crowd; all but @ns and @epoll is set
 * @op:		Operation
 * @flight:	How many at once
 */
static void run(struct crowd *c, const char *op, unsigned flight)
{
	struct place *places = allocate(flight * sizeof(*places));
	struct epoll_event events[EVENTS];
	uint64_t start;

	c->ns = allocate(c->count * sizeof(*c->ns));
	c->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (c->epoll < 0)
		fail("epoll_create1: %s", strerror(errno));
	start = now_ns();
	for (unsigned i = 0; i < flight; i++) {
		places[i].fd = -1;
		begin(c, &places[i]);
	}
	while (c->done < c->count) {
		int n = epoll_wait(c->epoll, events, EVENTS, -1);

		if (n < 0)
			fail("epoll_wait: %s", strerror(errno));
		for (int i = 0; i < n; i++) {
			struct place *p = events[i].data.ptr;

			if (p->state == DIALING)
				dialed(c, p);
			else if (p->state == ASKING)
				ask(c, p);
			else
				hear(c, p);
		}
	}
	print_load(op, c->ns, c->count, now_ns() - start);
	close(c->epoll);
	free(c->ns);
	free(places);
}

/**
 * time_crr() - Time connections with a request and its echo each
 * @count:	Transactions
 * @size:	Bytes each way; 0: the connection is all
 * @flight:	How many at once
 */
void time_crr(uint64_t count, size_t size, unsigned flight)
{
	struct crowd c = {
	    .request = allocate(size + 1),
	    .request_len = size,
	    .answer_len = size,
	    .count = count,
	};

	run(&c, size ? "crr" : "rate", flight);
	free(c.request);
}

/**
 * time_http() - Time requests of HTTP/1.1 on connections that stay
 * @count:	Requests
 * @size:	Bytes of each answer
 * @flight:	Connections
 */
void time_http(uint64_t count, size_t size, unsigned flight)
{
	char request[128];
	int len = snprintf(request, sizeof(request),
			   "GET /%zu HTTP/1.1\r\nHost: server\r\n\r\n", size);
	struct crowd c = {
	    .http = 1,
	    .request = request,
	    .request_len = (size_t)len,
	    .answer_len = size,
	    .count = count,
	};

	run(&c, "http", flight);
}
