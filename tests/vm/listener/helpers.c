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

#include "listener.h"

int port;

union name address(const char *host, int at)
{
	union name name = {0};

	if (strchr(host, ':')) {
		name.in6.sin6_family = AF_INET6;
		name.in6.sin6_port = htons((uint16_t)at);
		inet_pton(AF_INET6, host, &name.in6.sin6_addr);
	} else {
		name.in.sin_family = AF_INET;
		name.in.sin_port = htons((uint16_t)at);
		inet_pton(AF_INET, host, &name.in.sin_addr);
	}
	return name;
}

socklen_t size_of(const union name *name)
{
	return name->sa.sa_family == AF_INET6 ? sizeof(name->in6)
					      : sizeof(name->in);
}

int tcp(const char *host, int flags)
{
	int fd = socket(strchr(host, ':') ? AF_INET6 : AF_INET,
			SOCK_STREAM | flags, 0);

	want(fd >= 0);
	return fd;
}

int bind_to(int fd, const char *host, int at)
{
	union name name = address(host, at);

	return bind(fd, &name.sa, size_of(&name));
}

void set(int fd, int level, int option, int value)
{
	want(!setsockopt(fd, level, option, &value, sizeof(value)));
}

int get(int fd, int level, int option)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, level, option, &value, &len) ? -1 : value;
}

int listener(const char *host, int flags)
{
	int fd = tcp(host, flags);

	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	want(!bind_to(fd, host, port));
	want(!listen(fd, BACKLOG));
	return fd;
}

int client(const char *host)
{
	int fd = tcp(host, 0);
	union name name = address(host, port);

	want(!connect(fd, &name.sa, size_of(&name)));
	return fd;
}

int refused(const char *host)
{
	int fd = tcp(host, 0);
	union name name = address(host, port);
	int ret = connect(fd, &name.sa, size_of(&name));

	return ret ? errno : 0;
}

bool same_name(const union name *a, const union name *b)
{
	if (a->sa.sa_family != b->sa.sa_family)
		return false;
	if (a->sa.sa_family == AF_INET6)
		return a->in6.sin6_port == b->in6.sin6_port &&
		       IN6_ARE_ADDR_EQUAL(&a->in6.sin6_addr, &b->in6.sin6_addr);
	return a->in.sin_port == b->in.sin_port &&
	       a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
}

union name local(int fd)
{
	union name name = {0};
	socklen_t len = sizeof(name);

	want(!getsockname(fd, &name.sa, &len) && len == size_of(&name));
	return name;
}

union name peer(int fd)
{
	union name name = {0};
	socklen_t len = sizeof(name);

	want(!getpeername(fd, &name.sa, &len) && len == size_of(&name));
	return name;
}

int take(int fd, union name *ret_name)
{
	socklen_t len = sizeof(*ret_name);
	int conn = accept(fd, &ret_name->sa, &len);

	want(conn < 0 || len == size_of(ret_name));
	return conn;
}

/* Both ends of a connection agree on its names, and bytes pass */
void want_connected(int conn, int there, const union name *accepted)
{
	union name a = peer(conn), b = local(there);
	union name c = local(conn), d = peer(there);
	char byte = 0;

	want(same_name(&a, &b));
	want(same_name(&c, &d));
	want(!accepted || same_name(accepted, &b));
	want(send(there, "x", 1, 0) == 1 && recv(conn, &byte, 1, 0) == 1);
	want(send(conn, "y", 1, 0) == 1 && recv(there, &byte, 1, 0) == 1);
	want(byte == 'y');
}

short wait_for(int fd, short events, int limit_ms)
{
	struct pollfd state = {.fd = fd, .events = events};

	return poll(&state, 1, limit_ms) == 1 ? state.revents : 0;
}
