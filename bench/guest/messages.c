// SPDX-License-Identifier: Apache-2.0
/*
 * messages.c - what sendmsg() and recvmsg() cost beside write() and read()
 *
 * Usage: messages COUNT ROUNDS [HOST PORT]
 *
 * Round trips of one byte, each way of calling in turn within a round, on
 *
 * - a unix socket pair, both ends of it ours: one call of each kind a trip,
 * - a TCP connection to an echo server, if one is named: the same.
 *
 * Prints a line a round: microseconds a round trip with write/read and with
 * sendmsg/recvmsg, on the pair and then on the connection. Exit status 1: a
 * call failed, and the last line says which.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/**
 * die() - End with status 1
 * @what:	What failed; errno says how
 */
static _Noreturn void die(const char *what)
{
	perror(what);
	exit(1);
}

/**
 * now_us() - A clock
 *
 * Returns: microseconds since some time
 */
static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/**
 * trip() - Measure round trips
 * @to:		Where a byte goes in
 * @from:	Where it comes out
 * @messages:	By sendmsg() and recvmsg(), else by write() and read()
 * @count:	How many
 *
 * Returns: microseconds for each
 */
static double trip(int to, int from, bool messages, long count)
{
	char byte = 'x';
	struct iovec iov = {.iov_base = &byte, .iov_len = 1};
	double start = now_us();

	for (long i = 0; i < count; i++) {
		struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};

		if ((messages ? sendmsg(to, &hdr, 0) : write(to, &byte, 1)) !=
		    1)
			die("send");
		if ((messages ? recvmsg(from, &hdr, 0)
			      : read(from, &byte, 1)) != 1)
			die("receive");
	}
	return (now_us() - start) / (double)count;
}

/**
 * reach() - Connect to the echo server
 * @host:	IPv4 address
 * @port:	Port
 *
 * Returns: the socket
 */
static int reach(const char *host, const char *port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)atoi(port))};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int one = 1;

	if (inet_pton(AF_INET, host, &sa.sin_addr) != 1 ||
	    connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

int main(int argc, char **argv)
{
	int pair[2], tcp = -1;
	long count;

	if (argc != 3 && argc != 5)
		return 2;
	count = atol(argv[1]);
	if (argc == 5)
		tcp = reach(argv[3], argv[4]);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("socketpair");
	for (long i = atol(argv[2]); i > 0; i--) {
		printf("%.1f %.1f", trip(pair[0], pair[1], false, count),
		       trip(pair[0], pair[1], true, count));
		if (tcp >= 0)
			printf(" %.1f %.1f", trip(tcp, tcp, false, count),
			       trip(tcp, tcp, true, count));
		printf("\n");
	}
	return 0;
}
