// SPDX-License-Identifier: Apache-2.0
/*
 * options.c - cases: options, names, ioctl()
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "trace.h"

#define FULL (8L << 20) /* more than fits between a writer and a reader */

/* Set an option, and read it back */
static void round_trip(const char *name, int fd, int level, int option,
		       int value)
{
	char what[64];

	snprintf(what, sizeof(what), "set %s", name);
	TRACE(what, set_option(fd, level, option, value));
	snprintf(what, sizeof(what), "get %s", name);
	TRACE(what, get_option(fd, level, option));
}

#define ROUND_TRIP(fd, level, option, value)                                   \
	round_trip(#option, fd, level, option, value)
#define GET(fd, level, option)                                                 \
	TRACE("get " #option, get_option(fd, level, option))

static void kinds(void)
{
	int fd = tcp(0);

	GET(fd, SOL_SOCKET, SO_TYPE);
	GET(fd, SOL_SOCKET, SO_DOMAIN);
	GET(fd, SOL_SOCKET, SO_PROTOCOL);
	GET(fd, SOL_SOCKET, SO_ACCEPTCONN);
	GET(tcp6(), SOL_SOCKET, SO_DOMAIN);
	TRACE("FD_CLOEXEC", fcntl(tcp(SOCK_CLOEXEC), F_GETFD));
	TRACE("FD_CLOEXEC", fcntl(fd, F_GETFD));
	TRACE("O_NONBLOCK",
	      !!(fcntl(tcp(SOCK_NONBLOCK), F_GETFL) & O_NONBLOCK));
}

static void defaults(void)
{
	int fd = connected();

	GET(fd, SOL_SOCKET, SO_KEEPALIVE);
	GET(fd, SOL_SOCKET, SO_REUSEADDR);
	GET(fd, SOL_SOCKET, SO_REUSEPORT);
	GET(fd, SOL_SOCKET, SO_RCVLOWAT);
	GET(fd, IPPROTO_TCP, TCP_NODELAY);
	GET(fd, IPPROTO_TCP, TCP_CORK);
	GET(fd, IPPROTO_TCP, TCP_KEEPIDLE);
	GET(fd, IPPROTO_TCP, TCP_KEEPINTVL);
	GET(fd, IPPROTO_TCP, TCP_KEEPCNT);
	GET(fd, IPPROTO_TCP, TCP_SYNCNT);
	GET(fd, IPPROTO_TCP, TCP_USER_TIMEOUT);
	GET(fd, IPPROTO_IP, IP_TOS);
	GET(fd, IPPROTO_IP, IP_TTL);
}

static void keep_alive(void)
{
	int fd = tcp(0);

	ROUND_TRIP(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_KEEPIDLE, 0);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 5000);
	TRACE("connect", connect_port(fd, peer("listen 16")));
	GET(fd, SOL_SOCKET, SO_KEEPALIVE);
	GET(fd, IPPROTO_TCP, TCP_KEEPIDLE);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
}

static void no_delay(void)
{
	int fd = tcp(0);

	ROUND_TRIP(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	TRACE("connect", connect_port(fd, peer("listen 16")));
	GET(fd, IPPROTO_TCP, TCP_NODELAY);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_NODELAY, 0);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_CORK, 1);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_QUICKACK, 1);
	ROUND_TRIP(fd, IPPROTO_IP, IP_TOS, 0x10);
	TRACE("short value",
	      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(char){1}, 1));
	TRACE("no memory",
	      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, (void *)16, 4));
	TRACE("no such option", set_option(fd, IPPROTO_TCP, 9999, 1));
	TRACE("no such level", set_option(fd, 9999, 1, 1));
}

static void follow_a_swap(void)
{
	int fd = tcp(0);

	ROUND_TRIP(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_KEEPIDLE, 61);
	ROUND_TRIP(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	ROUND_TRIP(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	TRACE("bind", bind_port(fd, "127.0.0.1", 0));
	GET(fd, IPPROTO_TCP, TCP_NODELAY);
	GET(fd, IPPROTO_TCP, TCP_KEEPIDLE);
	GET(fd, SOL_SOCKET, SO_KEEPALIVE);
	GET(fd, SOL_SOCKET, SO_REUSEADDR);
	close(fd);
	fd = tcp(0);
	TRACE("bind", bind_port(fd, "0.0.0.0", 0));
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	ROUND_TRIP(fd, IPPROTO_TCP, TCP_KEEPIDLE, 61);
	ROUND_TRIP(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	TRACE("connect", connect_port(fd, peer("listen 16")));
	GET(fd, IPPROTO_TCP, TCP_NODELAY);
	GET(fd, IPPROTO_TCP, TCP_KEEPIDLE);
	GET(fd, SOL_SOCKET, SO_KEEPALIVE);
}

static void congestion(void)
{
	char name[16] = "";
	socklen_t len = sizeof(name);
	int fd = tcp(0);

	TRACE("TCP_CONGESTION",
	      getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
}

static void zero_copy(void)
{
	TRACE("SO_ZEROCOPY", set_option(tcp(0), SOL_SOCKET, SO_ZEROCOPY, 1));
}

static void buffers(void)
{
	int fd = tcp(0), value;

	TRACE("SO_SNDBUF", set_option(fd, SOL_SOCKET, SO_SNDBUF, 65536));
	GET(fd, SOL_SOCKET, SO_SNDBUF);
	TRACE("SO_RCVBUF", set_option(fd, SOL_SOCKET, SO_RCVBUF, 65536));
	GET(fd, SOL_SOCKET, SO_RCVBUF);
	value = get_option(tcp(0), SOL_SOCKET, SO_SNDBUF);
	trace_text("default SO_SNDBUF", "%d", value);
}

static void info_state(const char *what, int fd)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);
	char call[64];

	TRACE("TCP_INFO", getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
	snprintf(call, sizeof(call), "tcpi_state, %s", what);
	trace_text(call, "%d", info.tcpi_state);
}

static void info(void)
{
	int fd = tcp(0);

	info_state("new", fd);
	TRACE("connect", connect_port(fd, peer("listen 16")));
	trace_peer("accept");
	info_state("connected", fd);
	trace_peer("shut");
	trace_events("end of the peer", fd, POLLRDHUP);
	info_state("end of the peer", fd);
	TRACE("shutdown", shutdown(fd, SHUT_WR));
	trace_peer("readall");
	settle();
	info_state("both closed", fd);
}

static void info_half_closed(void)
{
	int fd = connected();

	TRACE("shutdown", shutdown(fd, SHUT_WR));
	trace_peer("readall");
	settle();
	info_state("own end closed", fd);
}

static void info_refused(void)
{
	int fd = tcp(0);

	TRACE("connect", connect_port(fd, peer("refuse")));
	info_state("refused", fd);
}

static void waiting_bytes(void)
{
	int fd = connected(), count = -1;

	TRACE("FIONREAD", ioctl(fd, FIONREAD, &count));
	trace_text("bytes", "%d", count);
	trace_peer("write 5");
	trace_events("to be read", fd, POLLIN);
	TRACE("FIONREAD", ioctl(fd, FIONREAD, &count));
	trace_text("bytes", "%d", count);
	TRACE("no memory", ioctl(fd, FIONREAD, 16));
	TRACE("unconnected", ioctl(tcp(0), FIONREAD, &count));
	trace_text("bytes", "%d", count);
}

static void unsent_bytes(void)
{
	int fd = connected(), count = -1;

	TRACE("SIOCOUTQ", ioctl(fd, SIOCOUTQ, &count));
	trace_text("bytes", "%d", count);
	TRACE("write", write(fd, "12345", 5));
	trace_peer("read 5");
	settle();
	TRACE("SIOCOUTQ", ioctl(fd, SIOCOUTQ, &count));
	trace_text("bytes", "%d", count);
	TRACE("SIOCOUTQNSD", ioctl(fd, SIOCOUTQNSD, &count));
	trace_text("bytes", "%d", count);
	TRACE("no memory", ioctl(fd, SIOCOUTQ, 16));
	TRACE("unconnected", ioctl(tcp(0), SIOCOUTQ, &count));
	trace_text("bytes", "%d", count);
}

static void unsent_bytes_full(void)
{
	static char bytes[FULL];
	int fd = connected(), count = -1;

	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		pause_ms(10);
	TRACE("SIOCOUTQ", ioctl(fd, SIOCOUTQ, &count));
	trace_text("some", "%d", count > 0);
	close(fd);
}

static void at_mark(void)
{
	int fd = connected(), value = -1;

	TRACE("SIOCATMARK", ioctl(fd, SIOCATMARK, &value));
	trace_text("value", "%d", value);
}

static void interfaces(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = tcp(0);

	TRACE("SIOCGIFINDEX", ioctl(fd, SIOCGIFINDEX, &request));
	TRACE("SIOCGIFADDR", ioctl(fd, SIOCGIFADDR, &request));
	TRACE("connect", connect_port(fd, peer("listen 16")));
}

static void names(void)
{
	struct sockaddr_in name, host;
	socklen_t len = sizeof(name);
	long port = peer("listen 16");
	int fd = tcp(0);

	inet_pton(AF_INET, host4, &host.sin_addr);
	TRACE("getsockname", getsockname(fd, (struct sockaddr *)&name, &len));
	trace_text("name", "%d %d %d", name.sin_family,
		   name.sin_addr.s_addr == 0, name.sin_port);
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
	TRACE("connect", connect_port(fd, port));
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
	trace_text("name", "%d %d %d", name.sin_family,
		   name.sin_addr.s_addr == host.sin_addr.s_addr,
		   ntohs(name.sin_port) == port);
	TRACE("getsockname", getsockname(fd, (struct sockaddr *)&name, &len));
	trace_text("name", "%d %d", name.sin_addr.s_addr != 0,
		   name.sin_port != 0);
	len = 4;
	TRACE("short", getpeername(fd, (struct sockaddr *)&name, &len));
	trace_text("length", "%d", (int)len);
	len = (socklen_t)-1;
	TRACE("negative", getpeername(fd, (struct sockaddr *)&name, &len));
	len = sizeof(name);
	TRACE("no memory", getpeername(fd, (struct sockaddr *)16, &len));
	trace_peer("accept");
	trace_text("peer sees the port", "%d", peer("port") == local_port(fd));
}

static void names_half_closed(void)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	int fd = connected();

	TRACE("shutdown", shutdown(fd, SHUT_WR));
	TRACE("getsockname", getsockname(fd, (struct sockaddr *)&name, &len));
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
}

static void names_after_the_end(void)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	int fd = connected();

	trace_peer("close");
	trace_events("end of the peer", fd, POLLRDHUP);
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
	TRACE("shutdown", shutdown(fd, SHUT_RDWR));
	settle();
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
}

const struct test_case option_cases[] = {
    CASE(kinds),
    CASE(defaults),
    CASE(keep_alive),
    CASE(no_delay),
    CASE(follow_a_swap),
    CASE(congestion),
    CASE(zero_copy),
    CASE(buffers),
    CASE(info),
    CASE(info_half_closed),
    CASE(info_refused),
    CASE(waiting_bytes),
    CASE(unsent_bytes),
    CASE(unsent_bytes_full),
    CASE(at_mark),
    CASE(interfaces),
    CASE(names),
    CASE(names_half_closed),
    CASE(names_after_the_end),
    {0},
};
