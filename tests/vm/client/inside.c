// SPDX-License-Identifier: Apache-2.0
/*
 * inside.c - checks: what stays in the guest, and mistakes
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "client.h"

static void loopback(void)
{
	struct sockaddr_in sa, name;
	socklen_t len = sizeof(name);
	int server = listener(&sa), fd = tcp(0), peer;

	want(connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	peer = accept(server, (struct sockaddr *)&name, &len);
	want(peer >= 0 && ntohl(name.sin_addr.s_addr) == INADDR_LOOPBACK);
	want(write(fd, "x", 1) == 1 && read(peer, &(char){0}, 1) == 1);
}

static void loopback_refused(void)
{
	want_errno(connect4(tcp(0), "127.0.0.1", 1), ECONNREFUSED);
	want_errno(connect4(tcp(0), "0.0.0.0", 1), ECONNREFUSED);
	want_errno(connect6(socket(AF_INET6, SOCK_STREAM, 0), "::1", 1),
		   ECONNREFUSED);
}

static void loopback_then_elsewhere(void)
{
	int fd = tcp(0);

	want_errno(connect4(fd, "127.0.0.1", 1), ECONNREFUSED);
	want(connect4(fd, host4, ECHO) == 0);
	want_echo(fd);
}

static void bound_then_elsewhere(void)
{
	struct sockaddr_in any = {.sin_family = AF_INET};
	int fd = tcp(0);

	want(bind(fd, (struct sockaddr *)&any, sizeof(any)) == 0);
	want(connect4(fd, host4, ECHO) == 0);
	want_echo(fd);
}

static void udp(void)
{
	struct sockaddr_in sa = in4("127.0.0.1", 0);
	socklen_t len = sizeof(sa);
	int server = socket(AF_INET, SOCK_DGRAM, 0);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	want(bind(server, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(getsockname(server, (struct sockaddr *)&sa, &len) == 0);
	want(connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(send(fd, "x", 1, 0) == 1);
	want(recv(server, &(char){0}, 1, 0) == 1);
	want(option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_UDP);
	want(so_error(fd) == 0);
}

static void unix_socket(void)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX, .sun_path = "\0tsi"};
	socklen_t len = sizeof(sa.sun_family) + 20; /* 16 or more is trapped */
	int server = socket(AF_UNIX, SOCK_STREAM, 0);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	want(bind(server, (struct sockaddr *)&sa, len) == 0);
	want(listen(server, 1) == 0);
	want(connect(fd, (struct sockaddr *)&sa, len) == 0);
}

/* With the module it is the kernel's, and fails for want of parameters */
static void io_uring(void)
{
	bool agent = !strcmp(getenv("SOCKETS"), "agent");

	want_errno(syscall(SYS_io_uring_setup, 1, NULL),
		   agent ? ENOSYS : EFAULT);
}

static void bad_arguments(void)
{
	struct sockaddr_in sa = in4(host4, ECHO);
	int fd = tcp(0), file = open("/", O_RDONLY);
	void *bad = (void *)16;

	want_errno(connect4(-1, host4, ECHO), EBADF);
	want_errno(connect4(file, host4, ECHO), ENOTSOCK);
	want_errno(connect(fd, bad, sizeof(sa)), EFAULT);
	want_errno(connect(fd, (struct sockaddr *)&sa, 4), EINVAL);
	want_errno(connect6(fd, host6, ECHO), EAFNOSUPPORT);
	want_errno(getsockopt(fd, SOL_SOCKET, SO_ERROR, bad,
			      &(socklen_t){sizeof(int)}),
		   EFAULT);
	want_errno(getpeername(echo_socket(), bad, &(socklen_t){16}), EFAULT);
	want(connect4(fd, host4, ECHO) == 0);
}

const struct check inside_checks[] = {
    CHECK(loopback),
    CHECK(loopback_refused),
    CHECK(loopback_then_elsewhere),
    CHECK(bound_then_elsewhere),
    CHECK(udp),
    CHECK(unix_socket),
    SANDBOX(io_uring),
    CHECK(bad_arguments),
    {0},
};
