// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - every way in which a program's calls reach a socket
 *
 *	tsi_ways [CHECK]...
 *	tsi_ways activated
 *
 * Each check holds natively, too. Servers on the host take part: one that
 * sends back what it gets, and one that connects to a port of ours.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>

#include "ways.h"

#define FIRST_PORT 7230 /* published ones */
#define PORTS	   60

struct sockaddr_in address_of(const char *host, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host, &address.sin_addr);
	return address;
}

/* A socket that is connected to the echo */
int connected(void)
{
	struct sockaddr_in to = address_of(HOST, ECHO);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	want(connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0);
	return fd;
}

/* A socket that is bound to a port that the host publishes, all addresses */
int bound(int *ret_port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	for (int i = 0; i < PORTS; i++) {
		struct sockaddr_in own = address_of("0.0.0.0", FIRST_PORT + i);

		*ret_port = FIRST_PORT + i;
		if (!bind(fd, (struct sockaddr *)&own, sizeof(own)))
			return fd;
	}
	broken(__LINE__, "no port is free");
}

int listener(int *ret_port)
{
	int fd = bound(ret_port);

	want(listen(fd, 8) == 0);
	return fd;
}

/* Have the host connect to a port of ours; it is an echo as long as we hold
 * what is returned */
int client_from_host(int port)
{
	struct sockaddr_in to = address_of(HOST, BACK);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	want(connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0);
	want(dprintf(fd, "%d\n", port) > 0);
	return fd;
}

/* Bytes there and back */
void exchange(int fd)
{
	char text[8] = "";

	want(send(fd, "hello", 5, 0) == 5);
	want(recv(fd, text, 5, MSG_WAITALL) == 5);
	want(!memcmp(text, "hello", 5));
}

/* Run a thread to its end */
int join(void *(*start)(void *), void *context)
{
	pthread_t thread;
	void *result;

	want(pthread_create(&thread, NULL, start, context) == 0);
	want(pthread_join(thread, &result) == 0);
	return (int)(intptr_t)result;
}

int main(int argc, char **argv)
{
	static const struct check *const tables[] = {
	    compat, uring, share, supervise, pipes, room, over, confine};

	if (argc == 2 && !strcmp(argv[1], "activated"))
		return activated();
	for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++)
		run_checks(tables[i], argv + 1);
	return sum_up();
}
