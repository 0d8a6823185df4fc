// SPDX-License-Identifier: Apache-2.0
/*
 * net.c - what each measurement of probe needs: clock, sockets, its line
 *
 * Theory of operation
 * ===================
 *
 * Time is CLOCK_MONOTONIC. Where its clocksource is no real counter (jiffies,
 * or refined-jiffies after a guest lost faith in its tsc) the figures would be
 * multiples of a tick, so every line names the clocksource and the reader
 * refuses what it cannot trust; an unreal one ends the probe at once.
 */

#include "probe/probe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define VSOCK "vsock:"

struct sockaddr_storage peer;
socklen_t peer_len;
char clocksource[64];

/**
 * fail() - Print one line on stderr and end
 * @fmt:	As for printf(), without a new line
 */
void fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("probe: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

/**
 * now_ns() - Read the clock
 *
 * Returns: CLOCK_MONOTONIC, ns
 */
uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/**
 * number() - Parse an argument
 * @arg:	Decimal number
 * @max:	Largest that is accepted, as is 1
 * @what:	Its name, for the error
 *
 * Returns: the number
 */
uint64_t number(const char *arg, uint64_t max, const char *what)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(arg, &end, 10);
	if (errno || *end || *arg == '-' || v < 1 || v > max)
		fail("%s must be 1 to %" PRIu64 ", not \"%s\"", what, max, arg);
	return v;
}

/**
 * read_clocksource() - Find the clocksource, and refuse one that only ticks
 *
 * It is unknown ("") where sysfs is not mounted or hides it.
 */
void read_clocksource(void)
{
	FILE *f = fopen("/sys/devices/system/clocksource/clocksource0/"
			"current_clocksource",
			"re");

	if (f) {
		if (!fgets(clocksource, sizeof(clocksource), f))
			clocksource[0] = '\0';
		fclose(f);
	}
	clocksource[strcspn(clocksource, "\n\"\\")] = '\0';
	if (strstr(clocksource, "jiffies"))
		fail("clocksource %s is not a counter", clocksource);
}

/**
 * resolve() - Turn the address and the port into @peer
 * @address:	Numeric IPv4 or IPv6 address, or "vsock:CID"
 * @port:	Number
 */
void resolve(const char *address, const char *port)
{
	struct sockaddr_vm *vm = (struct sockaddr_vm *)&peer;
	struct sockaddr_in *v4 = (struct sockaddr_in *)&peer;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&peer;
	uint16_t number_be = htons((uint16_t)number(port, UINT16_MAX, "PORT"));

	if (!strncmp(address, VSOCK, strlen(VSOCK))) {
		vm->svm_family = AF_VSOCK;
		vm->svm_cid = (uint32_t)number(address + strlen(VSOCK),
					       UINT32_MAX, "CID");
		vm->svm_port = ntohs(number_be);
		peer_len = sizeof(*vm);
	} else if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = number_be;
		peer_len = sizeof(*v4);
	} else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = number_be;
		peer_len = sizeof(*v6);
	} else {
		fail("\"%s\" is neither an IP address nor vsock:CID", address);
	}
}

/**
 * dial() - Connect to @peer
 *
 * Returns: socket
 */
int dial(void)
{
	int s = socket(peer.ss_family, SOCK_STREAM, 0);

	if (s < 0)
		fail("socket: %s", strerror(errno));
	if (connect(s, (struct sockaddr *)&peer, peer_len))
		fail("connect: %s", strerror(errno));
	return s;
}

/**
 * send_all() - Send bytes, all of them
 * @s:		Socket
 * @p:		Bytes
 * @n:		How many
 */
void send_all(int s, const char *p, size_t n)
{
	while (n) {
		ssize_t sent = write(s, p, n);

		if (sent < 0)
			fail("write: %s", strerror(errno));
		p += sent;
		n -= (size_t)sent;
	}
}

/**
 * receive_some() - Receive at least one byte
 * @s:		Socket
 * @p:		Where to
 * @n:		Room, bytes
 *
 * Returns: bytes received
 */
size_t receive_some(int s, char *p, size_t n)
{
	ssize_t got = read(s, p, n);

	if (got < 0)
		fail("read: %s", strerror(errno));
	if (got == 0)
		fail("the peer closed the connection too early");
	return (size_t)got;
}

/**
 * allocate() - Get memory that is there: written to, not just promised
 * @n:		Bytes
 *
 * Returns: memory
 */
void *allocate(size_t n)
{
	void *p = malloc(n);

	if (!p)
		fail("out of memory");
	memset(p, 'x', n);
	return p;
}

/**
 * print_list() - Print samples, and the end of their line
 * @ns:		Samples
 * @n:		How many
 */
static void print_list(const uint64_t *ns, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		printf("%s%" PRIu64, i ? "," : "", ns[i]);
	printf("]}\n");
}

/**
 * print_samples() - Print the line of an operation that has samples
 * @op:		Operation
 * @ns:		Samples
 * @n:		How many
 */
void print_samples(const char *op, const uint64_t *ns, uint64_t n)
{
	printf("{\"op\":\"%s\",\"clocksource\":\"%s\",\"ns\":[", op,
	       clocksource);
	print_list(ns, n);
}

/**
 * print_bulk() - Print the line of a bulk transfer
 * @op:		Operation
 * @bytes:	Bytes transferred
 * @ns:		Time that took
 */
void print_bulk(const char *op, uint64_t bytes, uint64_t ns)
{
	printf("{\"op\":\"%s\",\"clocksource\":\"%s\",\"bytes\":%" PRIu64
	       ",\"ns\":%" PRIu64 "}\n",
	       op, clocksource, bytes, ns);
}

/**
 * print_load() - Print the line of transactions that overlapped
 * @op:		Operation
 * @ns:		How long each took
 * @n:		How many
 * @all_ns:	How long all of them took
 */
void print_load(const char *op, const uint64_t *ns, uint64_t n, uint64_t all_ns)
{
	printf("{\"op\":\"%s\",\"clocksource\":\"%s\",\"elapsed_ns\":%" PRIu64
	       ",\"ns\":[",
	       op, clocksource, all_ns);
	print_list(ns, n);
}
