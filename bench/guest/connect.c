// SPDX-License-Identifier: Apache-2.0
/*
 * connect.c - time connect(), and nothing but connect()
 *
 *	connect ADDRESS PORT COUNT	TCP, ADDRESS is IPv4
 *	connect vsock PORT COUNT	AF_VSOCK to the host
 *	connect rtt ADDRESS PORT COUNT	64 bytes to an echo and back, over TCP
 *	connect rtt vsock PORT COUNT
 *
 * Prints one line: the samples in ns.
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

static struct sockaddr_storage peer;
static socklen_t peer_len;
static uint64_t samples[MAX_COUNT];

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
 * @ret_ns:	What connect() took
 *
 * Returns: the socket
 */
static int connect_once(uint64_t *ret_ns)
{
	int fd = socket(peer.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t before = now_ns();

	if (fd < 0 || connect(fd, (struct sockaddr *)&peer, peer_len))
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

int main(int argc, char **argv)
{
	bool rtt = argc == 5 && !strcmp(argv[1], "rtt");
	struct sockaddr_in in = {.sin_family = AF_INET};
	struct sockaddr_vm vm = {.svm_family = AF_VSOCK, .svm_cid = 2};
	long count;
	int fd = -1;

	argv += rtt;
	if (argc != 4 + rtt)
		return 2;
	in.sin_port = htons((uint16_t)atoi(argv[2]));
	vm.svm_port = (unsigned)strtoul(argv[2], NULL, 10);
	count = strtol(argv[3], NULL, 10);
	if (count < 1 || count > MAX_COUNT)
		return 2;
	if (inet_pton(AF_INET, argv[1], &in.sin_addr) == 1) {
		memcpy(&peer, &in, sizeof(in));
		peer_len = sizeof(in);
	} else {
		memcpy(&peer, &vm, sizeof(vm));
		peer_len = sizeof(vm);
	}
	for (long i = -WARM_UP; i < count; i++) {
		uint64_t *sample = &samples[i < 0 ? 0 : i];

		if (!rtt || fd < 0)
			fd = connect_once(sample);
		if (rtt)
			*sample = round_trip(fd);
		else
			close(fd);
	}
	for (long i = 0; i < count; i++)
		printf("%" PRIu64 " ", samples[i]);
	return 0;
}
