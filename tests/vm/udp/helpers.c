// SPDX-License-Identifier: Apache-2.0
/*
 * helpers.c - what checks have in common
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "udp.h"

const char *host4, *host6;

/**
 * addr4() - An IPv4 address
 * @host:	In text
 * @port:	Port
 *
 * Returns: the address
 */
struct sockaddr_in addr4(const char *host, uint16_t port)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons(port)};

	want(inet_pton(AF_INET, host, &in.sin_addr) == 1);
	return in;
}

/**
 * addr6() - An IPv6 address
 * @host:	In text
 * @port:	Port
 *
 * Returns: the address
 */
struct sockaddr_in6 addr6(const char *host, uint16_t port)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons(port)};

	want(inet_pton(AF_INET6, host, &in6.sin6_addr) == 1);
	return in6;
}

/**
 * udp4() - A socket of AF_INET with a bound on waiting
 *
 * Returns: the socket
 */
int udp4(void)
{
	const struct timeval limit = {.tv_sec = WAIT_MS / 1000};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	want(fd >= 0);
	want(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	return fd;
}

/**
 * connected() - A socket that is connected to the echo
 *
 * Returns: the socket
 */
int connected(void)
{
	struct sockaddr_in in = addr4(host4, ECHO);
	int fd = udp4();

	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	return fd;
}

/**
 * send_to() - sendto() of a text to a port of the peer
 * @fd:		Socket
 * @port:	Port
 * @text:	Text
 */
void send_to(int fd, uint16_t port, const char *text)
{
	struct sockaddr_in in = addr4(host4, port);
	size_t len = strlen(text);

	want(sendto(fd, text, len, 0, (struct sockaddr *)&in, sizeof(in)) ==
	     (ssize_t)len);
}

/**
 * expect_from() - recvfrom() of a text from a port of the peer
 * @fd:		Socket
 * @port:	Port
 * @text:	Text
 */
void expect_from(int fd, uint16_t port, const char *text)
{
	struct sockaddr_in from, in = addr4(host4, port);
	socklen_t len = sizeof(from);
	char buf[256];
	ssize_t n =
	    recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len);

	want(n == (ssize_t)strlen(text) && !memcmp(buf, text, (size_t)n));
	want(len == sizeof(in) && from.sin_family == AF_INET);
	want(from.sin_port == in.sin_port);
	want(from.sin_addr.s_addr == in.sin_addr.s_addr);
}

/**
 * readable() - Wait until a socket can be read
 * @fd:		Socket
 * @limit_ms:	At most so long
 *
 * Returns: true if it can
 */
bool readable(int fd, int limit_ms)
{
	struct pollfd state = {.fd = fd, .events = POLLIN};

	return poll(&state, 1, limit_ms) == 1 && (state.revents & POLLIN);
}
