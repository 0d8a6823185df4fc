// SPDX-License-Identifier: Apache-2.0
/*
 * connect.c - time connect(), or round trips, and nothing else
 *
 *	connect ADDRESS PORT COUNT	TCP, ADDRESS is IPv4
 *	connect vsock PORT COUNT	AF_VSOCK to the host
 *	connect rtt ADDRESS PORT VSOCK_PORT COUNT
 *
 * The last: 64 bytes to an echo and back over TCP, then over AF_VSOCK, in turns
 * that change their order. Prints a line for each: the samples in ns.
 */

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define WARM_UP	  20
#define MAX_COUNT 100000
#define RTT_BYTES 64

static uint64_t samples[2][MAX_COUNT];

/**
 * union peer - An address; all have one size
 * @any:	Its family
 * @in:		TCP
 * @vm:		AF_VSOCK
 */
union peer {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_vm vm;
};

/**
 * now_ns() - Read the clock
 *
 * Returns: ns
 */
static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/**
 * fail() - Say which call failed and end
 * @what:	Call
 */
static void __attribute__((noreturn)) fail(const char *what)
{
	perror(what);
	exit(1);
}

/**
 * connect_once() - Make a connection
 * @peer:	To whom
 * @ret_ns:	What connect() took
 *
 * Returns: the socket
 */
static int connect_once(const union peer *peer, uint64_t *ret_ns)
{
	int fd = socket(peer->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t before = now_ns();

	if (fd < 0 || connect(fd, &peer->any, sizeof(*peer)))
		fail("connect");
	*ret_ns = now_ns() - before;
	return fd;
}

/**
 * round_trip() - Send bytes to an echo and wait for them
 * @fd:		Connection
 *
 * Returns: what that took, ns
 */
static uint64_t round_trip(int fd)
{
	char bytes[RTT_BYTES] = "";
	uint64_t before = now_ns();

	if (write(fd, bytes, sizeof(bytes)) != (ssize_t)sizeof(bytes))
		fail("write");
	for (size_t done = 0; done < sizeof(bytes);) {
		ssize_t n = read(fd, bytes, sizeof(bytes) - done);

		if (n <= 0)
			fail("read");
		done += (size_t)n;
	}
	return now_ns() - before;
}

/**
 * parse() - Make an address of two arguments
 * @name:	IPv4 address, or "vsock" for the host
 * @port:	Port
 *
 * Returns: the address
 */
static union peer parse(const char *name, const char *port)
{
	unsigned number = (unsigned)strtoul(port, NULL, 10);
	union peer peer = {
	    .in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number)}};

	if (inet_pton(AF_INET, name, &peer.in.sin_addr) != 1)
		peer = (union peer){.vm = {.svm_family = AF_VSOCK,
					   .svm_cid = VMADDR_CID_HOST,
					   .svm_port = number}};
	return peer;
}

/**
 * print() - Print a line of samples
 * @line:	Samples, ns
 * @count:	How many
 */
static void print(const uint64_t *line, long count)
{
	for (long i = 0; i < count; i++)
		printf("%" PRIu64 " ", line[i]);
	puts("");
}

int main(int argc, char **argv)
{
	bool rtt = argc == 6 && !strcmp(argv[1], "rtt");
	union peer peers[2];
	uint64_t ignored;
	long count;
	int fds[2];

	if (!rtt && argc != 4)
		return 2;
	count = strtol(argv[argc - 1], NULL, 10);
	if (count < 1 || count > MAX_COUNT)
		return 2;
	peers[0] = parse(argv[1 + rtt], argv[2 + rtt]);
	if (rtt) {
		peers[1] = parse("vsock", argv[4]);
		for (int i = 0; i < 2; i++)
			fds[i] = connect_once(&peers[i], &ignored);
	}
	for (long i = -WARM_UP; i < count; i++) {
		long at = i < 0 ? 0 : i, first = at % 2;

		if (rtt) {
			samples[first][at] = round_trip(fds[first]);
			samples[!first][at] = round_trip(fds[!first]);
		} else {
			close(connect_once(&peers[0], &samples[0][at]));
		}
	}
	for (int i = 0; i <= rtt; i++)
		print(samples[i], count);
	return 0;
}
