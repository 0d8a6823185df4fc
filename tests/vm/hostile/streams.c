// SPDX-License-Identifier: Apache-2.0
/*
 * streams.c - who may speak for the guest, and whom accept() shows
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

#include "hostile.h"

#define HOST_CID     2U
#define CONTROL	     21587U
#define DATAGRAMS    21588U
#define LAST_OF_ROOT 1023U
#define FIRST_UPPER  16U /* of published listeners' vsock ports */
#define LAST_UPPER   0x7fffU
#define USUAL	     64U /* so many are theirs */
#define REFUSED	     3
#define WRONG_KEY    5
#define FIRST_PEERS  0x8000U /* upper half of clients' ports */
#define RANGES	     8U

/* In an attacker: the exit status says that it got in */
static void open_stream(void *port)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	_exit(vsock_connect(fd, HOST_CID, *(uint32_t *)port) == 0);
}

static void take_low_port(void *port)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	_exit(vsock_bind(fd, *(uint32_t *)port) != EACCES);
}

static void listen_low(void *port)
{
	struct sockaddr_in own = {.sin_family = AF_INET,
				  .sin_port = htons(*(uint16_t *)port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	_exit(bind(fd, (struct sockaddr *)&own, sizeof(own)) == 0 ||
	      errno != EACCES);
}

static int outcome(void (*attack)(void *), void *context)
{
	int status = -1;

	waitpid(as_nobody(attack, context), &status, 0);
	return status;
}

static void nobody_opens_no_stream(void)
{
	uint32_t control = CONTROL, datagrams = DATAGRAMS;
	uint32_t low = LAST_OF_ROOT;

	want(outcome(open_stream, &control) == 0);
	want(outcome(open_stream, &datagrams) == 0);
	want(outcome(take_low_port, &low) == 0);
}

/* Root in a container, say: it may bind the port, and has no key */
static void who_has_no_key_is_refused(void)
{
	const struct {
		uint16_t type, len;
		uint32_t magic;
		uint16_t first, last;
	} hello = {1, 8, 0x41495354, 1, 1};
	struct {
		uint16_t type, len;
		uint32_t code;
	} answer = {0};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	uint32_t port = LAST_OF_ROOT;

	while (vsock_bind(fd, port) == EADDRINUSE)
		port--;
	want(vsock_connect(fd, HOST_CID, CONTROL) == 0);
	want(send(fd, &hello, sizeof(hello), 0) == sizeof(hello));
	want(recv(fd, &answer, sizeof(answer), MSG_WAITALL) == sizeof(answer));
	want(answer.type == REFUSED);
	want(answer.code == WRONG_KEY);
}

/* It is the agent's, or the module's */
static void the_key_is_for_root_alone(void)
{
	const char *key = "/sys/module/tsi_inet/parameters/key";

	if (access(key, F_OK))
		key = "/run/tsi.key";
	want(access(key, F_OK) == 0);
	want(seteuid(NOBODY) == 0);
	want_errno(open(key, O_RDONLY), EACCES);
}

static void a_low_port_needs_what_tcp_asks_for(void)
{
	uint16_t port = 80;

	want(outcome(listen_low, &port) == 0);
	want(tcp_listener(80) >= 0);
}

const struct check streams[] = {
    SANDBOX(nobody_opens_no_stream),
    SANDBOX(who_has_no_key_is_refused),
    SANDBOX(the_key_is_for_root_alone),
    SANDBOX(a_low_port_needs_what_tcp_asks_for),
    {0},
};

/* ---- with a client of the host's ---- */

static void squat(void *port)
{
	for (uint32_t i = 0; i < USUAL; i++) {
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

		if (vsock_bind(fd, (FIRST_UPPER + i) << 16 | *(uint32_t *)port))
			_exit(1);
		listen(fd, 8);
	}
	write(STDOUT_FILENO, "squatted\n", 9);
	pause();
}

int serve_squatted(int port)
{
	uint32_t low = (uint32_t)port;
	int fd, conn;

	as_nobody(squat, &low);
	sleep(1);
	fd = tcp_listener(port);
	if (fd < 0) {
		printf("listen: %s\n", strerror(errno));
		return 1;
	}
	puts("ready");
	fflush(stdout);
	conn = accept(fd, NULL, NULL);
	return conn < 0 || write(conn, "root's\n", 7) != 7;
}

/* From ranges that the host has named a client by, and those that it may */
static void forge(void *port)
{
	uint32_t upper = FIRST_UPPER, reached = 0;

	for (uint32_t range = 0; range < RANGES; range++) {
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
		uint32_t tries = 0;

		vsock_bind(fd, (FIRST_PEERS + range) << 16 | 4444U);
		while (tries++ < LAST_UPPER &&
		       vsock_connect(fd, VMADDR_CID_LOCAL,
				     upper << 16 | *(uint32_t *)port))
			upper = upper < LAST_UPPER ? upper + 1 : FIRST_UPPER;
		reached += tries <= LAST_UPPER;
	}
	_exit(reached != RANGES);
}

/* Who comes after the host's own client; the module shows nobody */
int serve_forged(int port)
{
	struct pollfd ready = {.events = POLLIN};
	struct sockaddr_in peer;
	socklen_t len = sizeof(peer);
	uint32_t low = (uint32_t)port;
	int fd = tcp_listener(port), conn, status;
	char text[64] = "127.0.0.1";

	puts("ready");
	fflush(stdout);
	conn = accept(fd, NULL, NULL); /* the host names this client */
	waitpid(as_nobody(forge, &low), &status, 0);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	ready.fd = fd;
	while (status == 0 && poll(&ready, 1, 1000) == 1) {
		if (accept(fd, (struct sockaddr *)&peer, &len) < 0)
			continue;
		inet_ntop(AF_INET, &peer.sin_addr, text, sizeof(text) - 1);
		if (strcmp(text, "127.0.0.1") != 0)
			break;
	}
	strcat(text, "\n");
	return status || write(conn, text, strlen(text)) < 0;
}
