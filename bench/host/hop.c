// SPDX-License-Identifier: Apache-2.0
/*
 * hop.c - what a connection reaches in a pod's namespace, and a proxy before it
 *
 * Theory of operation
 * ===================
 *
 *	hop echo|sink|source|relay FD
 *
 * FD is a TCP listener. Each connection has a process, which does the least
 * that can be done: blocking calls, one buffer. A relay connects to where its
 * client wanted to go before netfilter's REDIRECT, as a transparent proxy does,
 * with the mark by which Istio's rules let a proxy pass, and copies both ways:
 * the cost of a hop, without what a real proxy does besides.
 */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define BUF		 (256U * 1024)
#define SO_ORIGINAL_DST_ 80 /* linux/netfilter_ipv4.h, which needs more */
#define PROXY_MARK	 0x539

static char buf[BUF];

/**
 * put() - Write all of a buffer
 * @fd:		Where
 * @len:	Bytes of buf
 *
 * Returns: false if nobody takes it
 */
static bool put(int fd, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(fd, buf + done, len - done);

		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

/**
 * pass() - Copy what there is from one socket to another
 * @from:	Where from
 * @to:		Where to; -1: nowhere
 *
 * Returns: false at the end
 */
static bool pass(int from, int to)
{
	ssize_t n = read(from, buf, sizeof(buf));

	return n > 0 && (to < 0 || put(to, (size_t)n));
}

/**
 * relay() - Copy between a client and where it wanted to go, until one ends
 * @client:	Its socket
 */
static void relay(int client)
{
	const int one = 1, mark = PROXY_MARK;
	struct sockaddr_in to;
	socklen_t len = sizeof(to);
	int far = socket(AF_INET, SOCK_STREAM, 0);
	struct pollfd both[] = {{.fd = client, .events = POLLIN},
				{.fd = far, .events = POLLIN}};

	if (getsockopt(client, SOL_IP, SO_ORIGINAL_DST_, &to, &len) ||
	    setsockopt(far, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) ||
	    setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    connect(far, (struct sockaddr *)&to, len)) {
		fprintf(stderr, "hop: %s\n", strerror(errno));
		return;
	}
	while (poll(both, 2, -1) > 0) {
		if (both[0].revents && !pass(client, far))
			return;
		if (both[1].revents && !pass(far, client))
			return;
	}
}

/**
 * serve() - Serve a connection until it ends
 * @what:	What to do
 * @fd:		Its socket
 */
static void serve(const char *what, int fd)
{
	const int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (!strcmp(what, "relay"))
		relay(fd);
	else if (!strcmp(what, "source"))
		while (put(fd, sizeof(buf)))
			;
	else
		while (pass(fd, strcmp(what, "echo") ? -1 : fd))
			;
}

int main(int argc, char **argv)
{
	int listener, fd;

	if (argc != 3) {
		fputs("usage: hop echo|sink|source|relay FD\n", stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN); /* nobody waits for them */
	listener = (int)strtol(argv[2], NULL, 10);
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(listener);
			serve(argv[1], fd);
			return 0;
		}
		close(fd);
	}
	return 1;
}
