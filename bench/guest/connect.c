// SPDX-License-Identifier: Apache-2.0
/*
 * connect.c - time TCP beside AF_VSOCK, one call at a time, and nothing else
 *
 *	connect alone ADDRESS PORT COUNT
 *	connect HOW ADDRESS PORT VSOCK_PORT COUNT
 *
 * The first times socket() and connect(); ADDRESS is IPv4, or "vsock" for the
 * host. The second has TCP to ADDRESS and PORT and AF_VSOCK to VSOCK_PORT take
 * turns, in changing order. HOW says what a turn is:
 *
 *	known	socket() and connect()
 *	new	same, of TCP each time to another port: PORT, PORT + 1...
 *	rtt	64 bytes to an echo and back, over one connection
 *	up	sending 1 MiB to who discards it, over one connection
 *	down	receiving 1 MiB, over one connection
 *
 * Prints a line for each side: the samples in ns.
 */

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
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
#define BULK	  (1 << 20)
#define AT_ONCE	  (1 << 16)

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
 * @ret_ns:	What socket() and connect() took
 *
 * Returns: the socket
 */
static int connect_once(const union peer *peer, uint64_t *ret_ns)
{
	uint64_t before = now_ns();
	int fd = socket(peer->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, &peer->any, sizeof(*peer)))
		fail("connect");
	*ret_ns = now_ns() - before;
	return fd;
}

/**
 * send_all() - Send bytes
 * @fd:		Connection
 * @len:	How many
 */
static void send_all(int fd, size_t len)
{
	static const char bytes[AT_ONCE];

	while (len) {
		size_t most = len < AT_ONCE ? len : AT_ONCE;
		ssize_t n = write(fd, bytes, most);

		if (n <= 0)
			fail("write");
		len -= (size_t)n;
	}
}

/**
 * receive_all() - Receive bytes
 * @fd:		Connection
 * @len:	How many
 */
static void receive_all(int fd, size_t len)
{
	static char bytes[AT_ONCE];

	while (len) {
		size_t most = len < AT_ONCE ? len : AT_ONCE;
		ssize_t n = read(fd, bytes, most);

		if (n <= 0)
			fail("read");
		len -= (size_t)n;
	}
}

/**
 * transfer() - Time bytes over a connection
 * @fd:		It
 * @sent:	How many to send
 * @received:	How many to receive then
 *
 * Returns: ns
 */
static uint64_t transfer(int fd, size_t sent, size_t received)
{
	uint64_t before = now_ns();

	send_all(fd, sent);
	receive_all(fd, received);
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

/**
 * enum how - What a turn is
 */
enum how { KNOWN, NEW, RTT, UP, DOWN, HOWS };

static const char *const names[HOWS] = {"known", "new", "rtt", "up", "down"};

/**
 * turn() - Take a turn
 * @how:	What it is
 * @peer:	To whom to connect
 * @fd:		Connection that there is
 *
 * Returns: ns
 */
static uint64_t turn(enum how how, const union peer *peer, int fd)
{
	uint64_t ns;

	switch (how) {
	case RTT:
		return transfer(fd, RTT_BYTES, RTT_BYTES);
	case UP:
		return transfer(fd, BULK, 0);
	case DOWN:
		return transfer(fd, 0, BULK);
	default:
		close(connect_once(peer, &ns));
		return ns;
	}
}

/**
 * alone() - One side and no other
 * @peer:	To whom to connect
 * @count:	How often
 */
static void alone(const union peer *peer, long count)
{
	for (long i = -WARM_UP; i < count; i++)
		samples[0][i < 0 ? 0 : i] = turn(KNOWN, peer, -1);
	print(samples[0], count);
}

/**
 * turns() - Both sides, in turns
 * @how:	What a turn is
 * @peers:	Both
 * @count:	How often each
 */
static void turns(enum how how, union peer peers[2], long count)
{
	uint64_t ignored;
	int fds[2] = {-1, -1};

	for (int i = 0; i < 2 && how >= RTT; i++)
		fds[i] = connect_once(&peers[i], &ignored);
	for (long i = -WARM_UP; i < count; i++) {
		long at = i < 0 ? 0 : i, first = at % 2;

		for (int side = 0; side < 2; side++) {
			long who = side ^ first;

			samples[who][at] = turn(how, &peers[who], fds[who]);
		}
		if (how == NEW)
			peers[0].in.sin_port =
			    htons((uint16_t)(ntohs(peers[0].in.sin_port) + 1));
	}
	for (int i = 0; i < 2; i++)
		print(samples[i], count);
}

int main(int argc, char **argv)
{
	union peer peers[2];
	long count;
	int how;

	if (argc < 5)
		return 2;
	count = strtol(argv[argc - 1], NULL, 10);
	if (count < 1 || count > MAX_COUNT)
		return 2;
	peers[0] = parse(argv[2], argv[3]);
	if (argc == 5 && !strcmp(argv[1], "alone")) {
		alone(&peers[0], count);
		return 0;
	}
	for (how = 0; how < HOWS && strcmp(argv[1], names[how]); how++)
		;
	if (argc != 6 || how == HOWS)
		return 2;
	peers[1] = parse("vsock", argv[4]);
	turns(how, peers, count);
	return 0;
}
