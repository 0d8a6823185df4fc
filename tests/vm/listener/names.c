// SPDX-License-Identifier: Apache-2.0
/*
 * names.c - checks: whose address is what
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "listener.h"

static void names_agree(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1"), conn;
	union name name, want_name = address("127.0.0.1", port);
	union name any = address("0.0.0.0", port), bound = local(fd);

	want(same_name(&bound, &any));
	conn = take(fd, &name);
	want(conn >= 0);
	want_connected(conn, there, &name);
	name = peer(there);
	want(same_name(&name, &want_name));
	want_errno(getpeername(fd, &name.sa, &(socklen_t){sizeof(name)}),
		   ENOTCONN);
}

static void names_without_an_address_in_accept(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1");
	int conn = accept(fd, NULL, NULL);

	want(conn >= 0);
	want_connected(conn, there, NULL);
}

static void ipv6(void)
{
	int fd = listener("::", 0), there = client("::1");
	union name name;
	int conn = take(fd, &name);

	want(name.sa.sa_family == AF_INET6);
	want_connected(conn, there, &name);
}

static void ipv4_client_of_a_dual_stack_listener(void)
{
	int fd = listener("::", 0), there = client("127.0.0.1");
	union name name, from = local(there);
	int conn = take(fd, &name);

	want(conn >= 0 && name.sa.sa_family == AF_INET6);
	want(IN6_IS_ADDR_V4MAPPED(&name.in6.sin6_addr));
	want(name.in6.sin6_addr.s6_addr32[3] == htonl(INADDR_LOOPBACK));
	want(name.in6.sin6_port == from.in.sin_port);
	name = peer(conn);
	want(IN6_IS_ADDR_V4MAPPED(&name.in6.sin6_addr));
}

static void v6only_refuses_ipv4(void)
{
	int fd = tcp("::", 0), there;
	union name name;

	set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	want(!bind_to(fd, "::", port) && !listen(fd, BACKLOG));
	want(refused("127.0.0.1") == ECONNREFUSED);
	there = client("::1");
	want_connected(take(fd, &name), there, &name);
}

static void both_families_on_one_port(void)
{
	int six = tcp("::", 0), four, there;
	union name name;

	set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	want(!bind_to(six, "::", port) && !listen(six, BACKLOG));
	four = listener("0.0.0.0", 0);
	there = client("127.0.0.1");
	want_connected(take(four, &name), there, &name);
	there = client("::1");
	want_connected(take(six, &name), there, &name);
}

static void port_0_is_a_real_port(void)
{
	int fd = tcp("0.0.0.0", 0), there;
	union name name;

	want(!bind_to(fd, "0.0.0.0", 0));
	name = local(fd);
	port = ntohs(name.in.sin_port);
	want(port);
	want(!listen(fd, BACKLOG));
	name = local(fd);
	want(ntohs(name.in.sin_port) == port);
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

static void listen_without_bind(void)
{
	int fd = tcp("0.0.0.0", 0), there;
	union name name;

	want(!listen(fd, BACKLOG));
	name = local(fd);
	port = ntohs(name.in.sin_port);
	want(port);
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

const struct check name_checks[] = {
    CHECK(names_agree),
    CHECK(names_without_an_address_in_accept),
    CHECK(ipv6),
    CHECK(ipv4_client_of_a_dual_stack_listener),
    CHECK(v6only_refuses_ipv4),
    CHECK(both_families_on_one_port),
    CHECK(port_0_is_a_real_port),
    CHECK(listen_without_bind),
    {0},
};
