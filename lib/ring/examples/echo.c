// SPDX-License-Identifier: Apache-2.0
/*
 * echo.c - an echo server for hand-off `ring`: ./echo PATH
 *
 * A thread for each connection, which spins while there is work. docs/ring.md
 * says how to build it.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/socket.h>
#include <sys/un.h>

#include "fastpath_ring.h"

/* Say whose connection it is */
static void announce(const struct fpring_hello *hello)
{
	const struct fpring_address *dst = &hello->dst;
	char ip[INET6_ADDRSTRLEN] = "?";

	inet_ntop(dst->family == 6 ? AF_INET6 : AF_INET, dst->ip, ip,
		  sizeof(ip));
	printf("%s:%u for %.*s\n", ip, dst->port, (int)hello->identity_len,
	       hello->identity);
	fflush(stdout);
}

/* Write all of it; 0 or -errno */
static ssize_t write_all(struct fpring_link *l, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = fpring_write(l, buf, len);

		if (n == -EAGAIN)
			n = fpring_wait(l, FPRING_WRITE, -1) < 0 ? -EINTR : 0;
		if (n < 0 && n != -EINTR)
			return n;
		if (n > 0) {
			buf += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* Give back what comes, until it ends */
static void echo(struct fpring_link *l)
{
	static _Thread_local char buf[65536];

	for (;;) {
		ssize_t n = fpring_read(l, buf, sizeof(buf));

		if (n == -EAGAIN) {
			fpring_wait(l, FPRING_READ, -1);
			continue;
		}
		if (n <= 0 || write_all(l, buf, (size_t)n))
			return;
	}
}

static void *serve(void *arg)
{
	struct pollfd p = {.fd = (int)(intptr_t)arg, .events = POLLIN};
	struct fpring_hello hello;
	struct fpring_link link;
	int err = -EAGAIN;

	if (poll(&p, 1, 10000) == 1)
		err = fpring_take(p.fd, &link, &hello);
	if (err) {
		fprintf(stderr, "echo: no connection: %s\n", strerror(-err));
		close(p.fd);
		return NULL;
	}
	announce(&hello);
	if (!fpring_answer(&link, 0))
		echo(&link);
	fpring_close(&link);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0), fd;
	pthread_t thread;

	if (argc != 2 || strlen(argv[1]) >= sizeof(addr.sun_path)) {
		fputs("usage: echo PATH\n", stderr);
		return 2;
	}
	strcpy(addr.sun_path, argv[1]);
	if (bind(listener, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(listener, 1024)) {
		perror(argv[1]);
		return 1;
	}
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd))
			close(fd);
		else
			pthread_detach(thread);
	}
	perror("accept");
	return 1;
}
