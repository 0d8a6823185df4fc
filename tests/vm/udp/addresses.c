// SPDX-License-Identifier: Apache-2.0
/*
 * addresses.c - checks: families, ports, and what nobody carries
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "udp.h"

#define OWN   "192.0.2.99"
#define PEERS 100 /* of the check with many */

static void ipv6(void)
{
	struct sockaddr_in6 in6 = addr6(host6, ECHO), from;
	socklen_t len = sizeof(from);
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);
	char buf[8];

	want(sendto(fd, "six", 3, 0, (struct sockaddr *)&in6, sizeof(in6)) ==
	     3);
	want(readable(fd, WAIT_MS));
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from,
		      &len) == 3);
	want(len == sizeof(from) && from.sin6_port == in6.sin6_port);
	want(IN6_ARE_ADDR_EQUAL(&from.sin6_addr, &in6.sin6_addr));
	want(!connect(fd, (struct sockaddr *)&in6, sizeof(in6)));
	want(!getpeername(fd, (struct sockaddr *)&from, &len));
	want(IN6_ARE_ADDR_EQUAL(&from.sin6_addr, &in6.sin6_addr));
	want(send(fd, "more", 4, 0) == 4);
	want(readable(fd, WAIT_MS));
	want(recv(fd, buf, sizeof(buf), 0) == 4);
}

static void ipv6_only(void)
{
	struct sockaddr_in6 in6 = addr6(host6, ECHO);
	const int yes = 1;
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);
	char buf[8];

	want(!setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof(yes)));
	want(!connect(fd, (struct sockaddr *)&in6, sizeof(in6)));
	want(send(fd, "six", 3, 0) == 3);
	want(readable(fd, WAIT_MS));
	want(recv(fd, buf, sizeof(buf), 0) == 3);
}

static void v4_mapped(void)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons(ECHO)};
	struct sockaddr_in in = addr4(host4, ECHO);
	struct sockaddr_in6 from;
	socklen_t len = sizeof(from);
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);
	char buf[8];

	in6.sin6_addr.s6_addr16[5] = 0xffff;
	in6.sin6_addr.s6_addr32[3] = in.sin_addr.s_addr;
	want(sendto(fd, "map", 3, 0, (struct sockaddr *)&in6, sizeof(in6)) ==
	     3);
	want(readable(fd, WAIT_MS));
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from,
		      &len) == 3);
	want(IN6_ARE_ADDR_EQUAL(&from.sin6_addr, &in6.sin6_addr));
}

static void wrong_families(void)
{
	struct sockaddr_in6 in6 = addr6(host6, ECHO);
	struct sockaddr_in in = addr4(host4, 0);
	int fd = udp4();

	want(connect(fd, (struct sockaddr *)&in6, sizeof(in6)) &&
	     errno == EAFNOSUPPORT);
	want(sendto(fd, "x", 1, 0, (struct sockaddr *)&in6, sizeof(in6)) < 0 &&
	     errno == EAFNOSUPPORT);
	want(sendto(fd, "x", 1, 0, (struct sockaddr *)&in, sizeof(in)) < 0 &&
	     errno == EINVAL); /* port 0 */
	want(send(fd, "x", 1, 0) < 0 && errno == EDESTADDRREQ);
}

static void bad_memory(void)
{
	struct sockaddr_in in = addr4(host4, ECHO);
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = udp4();
	char buf[8];

	want(sendto(fd, (void *)1, 4, 0, (struct sockaddr *)&in, sizeof(in)) <
		 0 &&
	     errno == EFAULT);
	want(sendto(fd, "x", 1, 0, (void *)1, sizeof(in)) < 0 &&
	     errno == EFAULT);
	send_to(fd, ECHO, "x");
	want(readable(fd, WAIT_MS));
	len = (socklen_t)-1;
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) <
		 0 &&
	     errno == EINVAL);
}

static void bound_port(void)
{
	struct sockaddr_in any = {.sin_family = AF_INET,
				  .sin_port = htons(5555)};
	struct sockaddr_in own;
	socklen_t len = sizeof(own);
	int fd = udp4();

	want(!bind(fd, (struct sockaddr *)&any, sizeof(any)));
	want(!getsockname(fd, (struct sockaddr *)&own, &len));
	want(own.sin_port == any.sin_port && !own.sin_addr.s_addr);
	send_to(fd, ECHO, "bound");
	expect_from(fd, ECHO, "bound");
}

static void a_killed_server_leaves_its_port(void)
{
	struct sockaddr_in in = addr4("127.0.0.1", 5556);
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	char buf[4], ready;
	int pipes[2], fd;
	pid_t child;

	want(!pipe(pipes));
	child = fork();
	if (child == 0) {
		fd = udp4();
		want(!bind(fd, (struct sockaddr *)&in, sizeof(in)));
		want(write(pipes[1], "", 1) == 1);
		recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from,
			 &len);
		_exit(1);
	}
	want(read(pipes[0], &ready, 1) == 1);
	usleep(100000);
	want(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
	fd = udp4();
	want(!bind(fd, (struct sockaddr *)&in, sizeof(in)));
}

static void many_peers(void)
{
	int fds[PEERS];
	char text[16];

	for (int i = 0; i < PEERS; i++) {
		fds[i] = udp4();
		snprintf(text, sizeof(text), "peer %d", i);
		send_to(fds[i], i % 2 ? ECHO : OTHER, text);
	}
	for (int i = 0; i < PEERS; i++) {
		snprintf(text, sizeof(text), "peer %d", i);
		expect_from(fds[i], i % 2 ? ECHO : OTHER, text);
		close(fds[i]);
	}
}

static void loopback(void)
{
	struct sockaddr_in in = addr4("127.0.0.1", 0), from;
	struct sockaddr_in6 in6 = addr6("::1", 0);
	socklen_t len = sizeof(in);
	int server = udp4(), client = udp4();
	int server6 = socket(AF_INET6, SOCK_DGRAM, 0);
	char buf[8];

	want(!bind(server, (struct sockaddr *)&in, sizeof(in)));
	want(!getsockname(server, (struct sockaddr *)&in, &len));
	want(sendto(client, "in", 2, 0, (struct sockaddr *)&in, len) == 2);
	want(recvfrom(server, buf, sizeof(buf), 0, (struct sockaddr *)&from,
		      &len) == 2);
	want(from.sin_addr.s_addr == in.sin_addr.s_addr);
	want(sendto(server, "out", 3, 0, (struct sockaddr *)&from, len) == 3);
	want(recvfrom(client, buf, sizeof(buf), 0, (struct sockaddr *)&from,
		      &len) == 3);
	want(from.sin_port == in.sin_port);

	len = sizeof(in6);
	want(!bind(server6, (struct sockaddr *)&in6, len));
	want(!getsockname(server6, (struct sockaddr *)&in6, &len));
	want(sendto(server6, "me", 2, 0, (struct sockaddr *)&in6, len) == 2);
	want(recv(server6, buf, sizeof(buf), 0) == 2);
}

/* Neither stand-in nor host is asked */
static void own_address(void)
{
	struct sockaddr_in in = addr4(OWN, 0), from;
	socklen_t len = sizeof(in);
	int server = udp4(), client = udp4(), other = udp4();
	char buf[8];

	want(system("ip addr add " OWN "/32 dev lo") == 0);
	want(!bind(server, (struct sockaddr *)&in, sizeof(in)));
	want(!getsockname(server, (struct sockaddr *)&in, &len));
	want(sendto(client, "in", 2, 0, (struct sockaddr *)&in, len) == 2);
	want(readable(server, WAIT_MS));
	want(recvfrom(server, buf, sizeof(buf), 0, (struct sockaddr *)&from,
		      &len) == 2);
	want(!connect(other, (struct sockaddr *)&in, len));
	want(send(other, "on", 2, 0) == 2);
	want(readable(server, WAIT_MS));
	want(recv(server, buf, sizeof(buf), 0) == 2);
	in.sin_port = htons(ECHO); /* nobody has it */
	want(!connect(other, (struct sockaddr *)&in, len));
	want(send(other, "x", 1, 0) == 1);
	want(recv(other, buf, sizeof(buf), 0) < 0 && errno == ECONNREFUSED);
}

static void denied_destination(void)
{
	struct sockaddr_in in = addr4("169.254.169.254", 123);
	int fd = udp4();
	char buf[4];

	if (getenv("AGENT"))
		want(sendto(fd, "x", 1, 0, (struct sockaddr *)&in, sizeof(in)) <
			 0 &&
		     errno == ECONNREFUSED);
	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(send(fd, "x", 1, 0) == 1);
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == ECONNREFUSED);
}

static void udp_off(void)
{
	int expected = atoi(getenv("DENIED"));
	/* ICMP has no word for EACCES */
	int later = expected == EACCES ? EHOSTUNREACH : expected;
	struct sockaddr_in in = addr4(host4, ECHO);
	struct iovec iov = {.iov_base = "x", .iov_len = 1};
	struct mmsghdr msg = {.msg_hdr = {.msg_name = &in,
					  .msg_namelen = sizeof(in),
					  .msg_iov = &iov,
					  .msg_iovlen = 1}};
	int fd = udp4();
	char buf[4];

	if (getenv("AGENT")) {
		want(sendto(fd, "x", 1, 0, (struct sockaddr *)&in, sizeof(in)) <
			 0 &&
		     errno == expected);
		want(sendmsg(fd, &msg.msg_hdr, 0) < 0 && errno == expected);
		want(sendmmsg(fd, &msg, 1, 0) < 0 && errno == expected);
	}
	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(send(fd, "x", 1, 0) == 1);
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == later);
}

const struct check address_checks[] = {
    CHECK(ipv6),
    CHECK(ipv6_only),
    CHECK(v4_mapped),
    CHECK(wrong_families),
    CHECK(bad_memory),
    CHECK(bound_port),
    CHECK(a_killed_server_leaves_its_port),
    CHECK(many_peers),
    CHECK(loopback),
    SANDBOX(own_address),
    SANDBOX(denied_destination),
    DENIED(udp_off),
    {0},
};
