// SPDX-License-Identifier: Apache-2.0
/*
 * probe.c - time connections as an ordinary program sees them
 *
 * Theory of operation
 * ===================
 *
 *	probe ADDRESS PORT connect COUNT	socket() and connect(), each
 *	probe ADDRESS PORT rtt COUNT SIZE	SIZE bytes to an echo and back
 *	probe ADDRESS PORT up BYTES		to a discard, until its end
 *	probe ADDRESS PORT put BYTES		the same without half a close
 *	probe ADDRESS PORT down BYTES		from a chargen
 *	probe ADDRESS PORT echo BYTES		to an echo, both ways at once
 *	probe ADDRESS PORT accept COUNT		of clients that hang up
 *	probe clock				the counter behind the clock
 *
 * ADDRESS is numeric, IPv4 or IPv6 for TCP, or vsock:CID. It is the peer's,
 * but of accept our own; vsock:4294967295 is any.
 *
 * "put" is for devices that have no half-close: its last byte is PUT_END, the
 * others are 0, and the discard ends the connection then.
 *
 * The result is one line of JSON on stdout. Plain sockets and nothing else: the
 * same binary runs over TSI and over the standard paths, so it must not know
 * which it is. Samples go to an array that exists before the first one is
 * taken; nothing is printed while time is taken.
 *
 * Time is CLOCK_MONOTONIC. Where its clocksource is no real counter (jiffies,
 * or refined-jiffies after a guest lost faith in its tsc) the figures would be
 * multiples of a tick, so every line names the clocksource and the reader
 * refuses what it cannot trust; an unreal one ends the probe at once.
 *
 * "clock" measures the frequency of the x86 tsc. The host runs it, too: under
 * TCG the guest's tsc is the host's, and a guest that is told the frequency
 * need not guess it at boot (tsc_early_khz).
 */

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <linux/vm_sockets.h>

#define COUNT_MAX	1000000U
#define SIZE_MAX_BYTES	(1024U * 1024)
#define CHUNK		(64U * 1024) /* of a bulk transfer, bytes */
#define WARM_UP_CONNECT 8U	     /* samples dropped */
#define WARM_UP_RTT	100U
#define PUT_END		'\xff'
#define VSOCK		"vsock:"
#define CLOCK_WINDOW_NS (50 * 1000 * 1000)

static struct sockaddr_storage peer;
static socklen_t peer_len;
static char clocksource[64];

/**
 * fail() - Print one line on stderr and end
 * @fmt:	As for printf(), without a new line
 */
__attribute__((noreturn, format(printf, 1, 2))) static void
fail(const char *fmt, ...)
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
static uint64_t now_ns(void)
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
static uint64_t number(const char *arg, uint64_t max, const char *what)
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
static void read_clocksource(void)
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
static void resolve(const char *address, const char *port)
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
static int dial(void)
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
static void send_all(int s, const char *p, size_t n)
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
static size_t receive_some(int s, char *p, size_t n)
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
static void *allocate(size_t n)
{
	void *p = malloc(n);

	if (!p)
		fail("out of memory");
	memset(p, 'x', n);
	return p;
}

/**
 * print_samples() - Print the line of an operation that has samples
 * @op:		Operation
 * @ns:		Samples
 * @n:		How many
 */
static void print_samples(const char *op, const uint64_t *ns, uint64_t n)
{
	printf("{\"op\":\"%s\",\"clocksource\":\"%s\",\"ns\":[", op,
	       clocksource);
	for (uint64_t i = 0; i < n; i++)
		printf("%s%" PRIu64, i ? "," : "", ns[i]);
	printf("]}\n");
}

/**
 * print_bulk() - Print the line of a bulk transfer
 * @op:		Operation
 * @bytes:	Bytes transferred
 * @ns:		Time that took
 */
static void print_bulk(const char *op, uint64_t bytes, uint64_t ns)
{
	printf("{\"op\":\"%s\",\"clocksource\":\"%s\",\"bytes\":%" PRIu64
	       ",\"ns\":%" PRIu64 "}\n",
	       op, clocksource, bytes, ns);
}

/**
 * time_connect() - Time socket() and connect(); close() is not part of it
 * @count:	Samples
 */
static void time_connect(uint64_t count)
{
	uint64_t *ns = allocate(count * sizeof(*ns));

	for (uint64_t i = 0; i < WARM_UP_CONNECT + count; i++) {
		uint64_t start = now_ns();
		int s = dial();
		uint64_t end = now_ns();

		close(s);
		if (i >= WARM_UP_CONNECT)
			ns[i - WARM_UP_CONNECT] = end - start;
	}
	print_samples("connect", ns, count);
	free(ns);
}

/**
 * time_rtt() - Time round trips on one connection to an echo
 * @count:	Samples
 * @size:	Bytes each way
 */
static void time_rtt(uint64_t count, size_t size)
{
	uint64_t *ns = allocate(count * sizeof(*ns));
	char *buf = allocate(size);
	int s = dial();

	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	for (uint64_t i = 0; i < WARM_UP_RTT + count; i++) {
		uint64_t start = now_ns();

		send_all(s, buf, size);
		for (size_t got = 0; got < size;)
			got += receive_some(s, buf + got, size - got);
		if (i >= WARM_UP_RTT)
			ns[i - WARM_UP_RTT] = now_ns() - start;
	}
	close(s);
	print_samples("rtt", ns, count);
	free(buf);
	free(ns);
}

/**
 * time_up() - Time a transfer to a discard, from the first byte to its EOF
 * @bytes:	How many
 *
 * The discard closes when it has read our end: all has arrived by then.
 */
static void time_up(uint64_t bytes, bool half_close)
{
	char *buf = allocate(CHUNK);
	int s = dial();
	uint64_t start = now_ns();
	ssize_t got;

	for (uint64_t left = bytes; left;) {
		size_t n = left < CHUNK ? (size_t)left : CHUNK;

		if (n == left && !half_close)
			buf[n - 1] = PUT_END;
		send_all(s, buf, n);
		left -= n;
	}
	if (half_close && shutdown(s, SHUT_WR))
		fail("shutdown: %s", strerror(errno));
	while ((got = read(s, buf, CHUNK)) > 0)
		;
	if (got < 0)
		fail("read: %s", strerror(errno));
	print_bulk(half_close ? "up" : "put", bytes, now_ns() - start);
	close(s);
	free(buf);
}

/**
 * time_down() - Time a transfer from a chargen, from its first byte on
 * @bytes:	How many
 *
 * The connection's set-up is no part of it: the clock starts when the first
 * byte is here, and that piece does not count.
 */
static void time_down(uint64_t bytes)
{
	char *buf = allocate(CHUNK);
	int s = dial();
	uint64_t got = 0, start;

	receive_some(s, buf, CHUNK);
	start = now_ns();
	while (got < bytes)
		got += receive_some(s, buf, CHUNK);
	print_bulk("down", got, now_ns() - start);
	close(s);
	free(buf);
}

/**
 * time_echo() - Time a transfer to an echo and back, both ways at once
 * @bytes:	How many each way
 *
 * One thread that does whatever its socket is ready for, so that neither
 * direction waits for the other.
 */
static void time_echo(uint64_t bytes)
{
	char *out = allocate(CHUNK), *in = allocate(CHUNK);
	int s = dial();
	struct pollfd p = {.fd = s, .events = POLLIN | POLLOUT};
	uint64_t start = now_ns(), sent = 0, got = 0;

	while (got < bytes) {
		size_t n =
		    bytes - sent < CHUNK ? (size_t)(bytes - sent) : CHUNK;
		ssize_t did;

		if (poll(&p, 1, -1) < 0)
			fail("poll: %s", strerror(errno));
		if (p.revents & POLLOUT) {
			did = send(s, out, n, MSG_DONTWAIT);
			if (did < 0 && errno != EAGAIN)
				fail("send: %s", strerror(errno));
			sent += did < 0 ? 0 : (uint64_t)did;
			if (sent == bytes)
				p.events = POLLIN;
		}
		if (p.revents & (POLLIN | POLLHUP | POLLERR))
			got += receive_some(s, in, CHUNK);
	}
	print_bulk("echo", bytes, now_ns() - start);
	close(s);
	free(in);
	free(out);
}

/**
 * time_accept() - Time accepting, from the first connection on
 * @count:	How many more
 *
 * Each is closed when its client has hung up, as a server of short requests
 * does it.
 */
static void time_accept(uint64_t count)
{
	int s = socket(peer.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_storage addr;
	uint64_t start = 0;
	socklen_t len;
	char byte;

	if (s < 0 || bind(s, (struct sockaddr *)&peer, peer_len) ||
	    listen(s, SOMAXCONN))
		fail("listen: %s", strerror(errno));
	for (uint64_t i = 0; i <= count; i++) {
		int conn;

		len = sizeof(addr);
		conn = accept(s, (struct sockaddr *)&addr, &len);
		if (conn < 0)
			fail("accept: %s", strerror(errno));
		if (i == 0)
			start = now_ns();
		while (read(conn, &byte, 1) > 0)
			;
		close(conn);
	}
	print_bulk("accept", count, now_ns() - start);
	close(s);
}

/**
 * time_clock() - Measure the frequency of the tsc
 */
static void time_clock(void)
{
	uint64_t start = now_ns(), ticks = __rdtsc(), end;

	do
		end = now_ns();
	while (end - start < CLOCK_WINDOW_NS);
	ticks = __rdtsc() - ticks;
	printf("{\"op\":\"clock\",\"clocksource\":\"%s\",\"tsc_khz\":%" PRIu64
	       "}\n",
	       clocksource, ticks * 1000000 / (end - start));
}

int main(int argc, char **argv)
{
	const char *op = argc > 3 ? argv[3] : "";

	signal(SIGPIPE, SIG_IGN);
	read_clocksource();
	if (argc == 2 && !strcmp(argv[1], "clock")) {
		time_clock();
		return 0;
	}
	if (argc > 3)
		resolve(argv[1], argv[2]);
	if (argc == 5 && !strcmp(op, "connect"))
		time_connect(number(argv[4], COUNT_MAX, "COUNT"));
	else if (argc == 6 && !strcmp(op, "rtt"))
		time_rtt(number(argv[4], COUNT_MAX, "COUNT"),
			 number(argv[5], SIZE_MAX_BYTES, "SIZE"));
	else if (argc == 5 && !strcmp(op, "up"))
		time_up(number(argv[4], UINT64_MAX, "BYTES"), true);
	else if (argc == 5 && !strcmp(op, "put"))
		time_up(number(argv[4], UINT64_MAX, "BYTES"), false);
	else if (argc == 5 && !strcmp(op, "down"))
		time_down(number(argv[4], UINT64_MAX, "BYTES"));
	else if (argc == 5 && !strcmp(op, "echo"))
		time_echo(number(argv[4], UINT64_MAX, "BYTES"));
	else if (argc == 5 && !strcmp(op, "accept"))
		time_accept(number(argv[4], COUNT_MAX, "COUNT"));
	else
		fail("usage: probe ADDRESS PORT connect COUNT | rtt COUNT SIZE"
		     " | up BYTES | put BYTES | down BYTES | echo BYTES | "
		     "accept COUNT;"
		     " or: probe clock");
	return 0;
}
