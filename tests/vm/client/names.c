// SPDX-License-Identifier: Apache-2.0
/*
 * names.c - checks: names and options
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "client.h"

/* Linux's net.ipv4.ip_local_port_range, unless it was changed */
#define FIRST_EPHEMERAL 32768
#define LAST_EPHEMERAL	60999

#define IPV6_FREEBIND_ 78 /* not in every netinet/in.h */

static void names(void)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	int fd = tcp(0);

	want(getsockname(fd, (struct sockaddr *)&name, &len) == 0);
	want(name.sin_family == AF_INET && len == sizeof(name));
	want(name.sin_port == 0 && name.sin_addr.s_addr == 0);
	want_errno(getpeername(fd, (struct sockaddr *)&name, &len), ENOTCONN);
	want(connect4(fd, host4, ECHO) == 0);
	want(getpeername(fd, (struct sockaddr *)&name, &len) == 0);
	want(ntohs(name.sin_port) == ECHO && len == sizeof(name));
	want(name.sin_addr.s_addr == in4(host4, 0).sin_addr.s_addr);
	want(getsockname(fd, (struct sockaddr *)&name, &len) == 0);
	want(name.sin_addr.s_addr != 0);
	if (getenv("POD_IPV4"))
		want(name.sin_addr.s_addr ==
		     in4(getenv("POD_IPV4"), 0).sin_addr.s_addr);
}

/* One in 64 was privileged, and half of them no port that TCP chooses */
static void own_port(void)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name);

	for (int i = 0; i < 64; i++) {
		int fd = tcp(0);

		want(connect4(fd, host4, ECHO) == 0);
		want(getsockname(fd, (struct sockaddr *)&name, &len) == 0);
		want(ntohs(name.sin_port) >= FIRST_EPHEMERAL);
		want(ntohs(name.sin_port) <= LAST_EPHEMERAL);
		close(fd);
	}
}

static void names_ipv6(void)
{
	struct sockaddr_in6 name, peer = in6(host6, ECHO);
	socklen_t len = sizeof(name);
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	want(connect6(fd, host6, ECHO) == 0);
	want(getpeername(fd, (struct sockaddr *)&name, &len) == 0);
	want(memcmp(&name, &peer, sizeof(peer)) == 0);
	want(getsockname(fd, (struct sockaddr *)&name, &len) == 0);
	want(name.sin6_family == AF_INET6 && len == sizeof(name));
}

static void short_name_buffer(void)
{
	struct sockaddr_in name = {0};
	socklen_t len = 4;
	int fd = echo_socket();

	want(getpeername(fd, (struct sockaddr *)&name, &len) == 0);
	want(len == sizeof(name) && name.sin_addr.s_addr == 0);
	want(ntohs(name.sin_port) == ECHO);
	len = (socklen_t)-1;
	want_errno(getpeername(fd, (struct sockaddr *)&name, &len), EINVAL);
}

static void kind_options(void)
{
	int fd = tcp(0);
	int six = socket(AF_INET6, SOCK_STREAM, 0);

	want(option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM);
	want(option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET);
	want(option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP);
	want(option(fd, SOL_SOCKET, SO_ACCEPTCONN) == 0);
	want(option(six, SOL_SOCKET, SO_DOMAIN) == AF_INET6);
}

static void round_trip(int fd, int level, int name, int value)
{
	want(!setsockopt(fd, level, name, &value, sizeof(value)));
	want(option(fd, level, name) == value);
}

static void tcp_options(void)
{
	int fd = tcp(0), on = 1;

	want(option(fd, IPPROTO_TCP, TCP_NODELAY) == 0);
	want(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 7200);
	round_trip(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	round_trip(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
	round_trip(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
	round_trip(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
	round_trip(fd, IPPROTO_IP, IP_TOS, 0x10);
	round_trip(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	round_trip(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	round_trip(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	want(connect4(fd, host4, ECHO) == 0);
	want(option(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
	want(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 60);
	want_errno(setsockopt(fd, IPPROTO_TCP, 9999, &on, sizeof(on)),
		   ENOPROTOOPT);
	want_errno(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, 1), EINVAL);
	want_echo(fd);
}

static void tcp_info_state(void)
{
	struct tcp_info info;
	socklen_t len = sizeof(info);
	int fd = tcp(0);

	want(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_CLOSE);
	want(connect4(fd, host4, ECHO) == 0);
	want(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_ESTABLISHED);
}

static void options_follow_a_swap(void)
{
	struct sockaddr_in sa = in4("127.0.0.1", 0);
	int fd = tcp(0);

	round_trip(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	round_trip(fd, IPPROTO_TCP, TCP_KEEPIDLE, 61);
	round_trip(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	round_trip(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	want(bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(option(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
	want(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 61);
	want(option(fd, SOL_SOCKET, SO_REUSEADDR) == 1);
	want(option(fd, SOL_SOCKET, SO_REUSEPORT) == 1);
}

static void options_before_bind(void)
{
	static const struct {
		int family, level, name;
	} rows[] = {
	    {AF_INET, IPPROTO_IP, IP_FREEBIND},
	    {AF_INET, IPPROTO_IP, IP_TRANSPARENT},
	    {AF_INET, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
	    {AF_INET, IPPROTO_TCP, TCP_SAVE_SYN},
	    {AF_INET6, IPPROTO_IPV6, IPV6_FREEBIND_},
	    {AF_INET6, IPPROTO_IPV6, IPV6_RECVPKTINFO},
	    {AF_INET6, IPPROTO_IPV6, IPV6_RECVTCLASS},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int fd = socket(rows[i].family, SOCK_STREAM, 0);

		round_trip(fd, rows[i].level, rows[i].name, 1);
		if (rows[i].family == AF_INET) {
			want(connect4(fd, host4, ECHO) == 0);
			want_echo(fd);
		}
		close(fd);
	}
}

const struct check name_checks[] = {
    CHECK(names),
    CHECK(own_port),
    CHECK(names_ipv6),
    CHECK(short_name_buffer),
    CHECK(kind_options),
    CHECK(tcp_options),
    CHECK(tcp_info_state),
    CHECK(options_follow_a_swap),
    CHECK(options_before_bind),
    {0},
};
