// SPDX-License-Identifier: Apache-2.0
/*
 * listens.c - cases: listeners, and what they accept
 *
 * The peer is the client. It dials the address that this program is reached at,
 * and each case has a port of its own.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>

#include "trace.h"

#define GONE_MS 50 /* between tries to reach a listener that is closed */

/* A listener for any address */
static int listening(long port)
{
	int fd = tcp(0);

	set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	TRACE("bind", bind_port(fd, "0.0.0.0", port));
	TRACE("listen", listen(fd, 16));
	return fd;
}

/* Write down whether a name is the client's, or this end of the connection's */
static void trace_name(const char *what, const struct sockaddr_in *name,
		       long port)
{
	trace_text(what, "%d %d %d", name->sin_family,
		   name->sin_addr.s_addr != 0, ntohs(name->sin_port) == port);
}

/* Accept a client that dials now */
static int accepted(int fd, long port)
{
	trace_peer("dial %ld", port);
	return accept(fd, NULL, NULL);
}

static void accept_address(void)
{
	struct sockaddr_in name = {0};
	socklen_t len = sizeof(name);
	int fd = listening(7200), conn;
	char bytes[8];

	trace_peer("dial 7200");
	conn = accept(fd, (struct sockaddr *)&name, &len);
	TRACE("accept", conn < 0 ? -1 : 0);
	trace_text("length", "%d", (int)len);
	trace_name("address", &name, peer("own"));
	TRACE("getpeername", getpeername(conn, (struct sockaddr *)&name, &len));
	trace_name("peer", &name, peer("own"));
	TRACE("getsockname", getsockname(conn, (struct sockaddr *)&name, &len));
	trace_name("name", &name, 7200);
	TRACE("getsockname", getsockname(fd, (struct sockaddr *)&name, &len));
	trace_name("listener", &name, 7200);
	trace_peer("write 5");
	TRACE("read", read(conn, bytes, sizeof(bytes)));
	TRACE("write", write(conn, bytes, 3));
	trace_peer("read 3");
	trace_peer("close");
	TRACE("read", read(conn, bytes, sizeof(bytes)));
}

static void accept_without_address(void)
{
	struct sockaddr_in name = {0};
	socklen_t len = sizeof(name);
	int conn = accepted(listening(7201), 7201);

	TRACE("getpeername", getpeername(conn, (struct sockaddr *)&name, &len));
	trace_name("peer", &name, peer("own"));
}

static void accept_nonblocking(void)
{
	struct sockaddr_in name = {0};
	socklen_t len = sizeof(name);
	int fd = listening(7202), conn;
	char byte;

	set_blocking(fd, false);
	trace_events("nobody", fd, 0);
	TRACE("accept", accept(fd, NULL, NULL));
	TRACE("accept, address", accept(fd, (struct sockaddr *)&name, &len));
	trace_peer("dial 7202");
	trace_events("a client", fd, POLLIN);
	conn = accept4(fd, (struct sockaddr *)&name, &len,
		       SOCK_NONBLOCK | SOCK_CLOEXEC);
	TRACE("read", read(conn, &byte, 1));
	TRACE("O_NONBLOCK", !!(fcntl(conn, F_GETFL) & O_NONBLOCK));
	TRACE("FD_CLOEXEC", fcntl(conn, F_GETFD));
	trace_events("accepted", conn, POLLOUT);
	trace_events("nobody", fd, 0);
}

static void accept_errors(void)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name), negative = (socklen_t)-1;
	int fd = listening(7203);

	TRACE("flags", accept4(fd, NULL, NULL, 0x1000000));
	TRACE("not a listener", accept(tcp(0), (struct sockaddr *)&name, &len));
	TRACE("not a socket", accept(0, (struct sockaddr *)&name, &len));
	trace_peer("dial 7203");
	TRACE("negative", accept(fd, (struct sockaddr *)&name, &negative));
	trace_peer("close");
}

static void accept_waits(void)
{
	struct timeval limit = {.tv_usec = 300000};
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	int fd = listening(7204);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	TRACE("timeout", accept(fd, (struct sockaddr *)&name, &len));
	TRACE("timeout", accept(fd, NULL, NULL));
	limit.tv_usec = 0;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	alarm_in(300, 0);
	TRACE("interrupted", accept(fd, (struct sockaddr *)&name, &len));
}

static void accept_half_close(void)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	int conn = accepted(listening(7205), 7205);
	char bytes[8];

	TRACE("shutdown", shutdown(conn, SHUT_WR));
	trace_peer("readall");
	trace_peer("write 4");
	TRACE("read", read(conn, bytes, sizeof(bytes)));
	TRACE("getpeername", getpeername(conn, (struct sockaddr *)&name, &len));
	trace_name("peer", &name, peer("own"));
	TRACE("getsockname", getsockname(conn, (struct sockaddr *)&name, &len));
	trace_name("name", &name, 7205);
	TRACE("write", send(conn, bytes, 1, MSG_NOSIGNAL));
}

static void accept_reset(void)
{
	int conn = accepted(listening(7206), 7206);
	char byte;

	trace_peer("reset");
	trace_events("reset", conn, POLLRDHUP);
	TRACE("read", read(conn, &byte, 1));
}

static void accept_inherits(void)
{
	struct timeval limit = {.tv_sec = 3};
	socklen_t len = sizeof(limit);
	int fd = listening(7207), conn;

	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	set_option(fd, IPPROTO_IP, IP_TOS, 16);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	conn = accepted(fd, 7207);
	TRACE("TCP_NODELAY", get_option(conn, IPPROTO_TCP, TCP_NODELAY));
	TRACE("TCP_KEEPIDLE", get_option(conn, IPPROTO_TCP, TCP_KEEPIDLE));
	TRACE("IP_TOS", get_option(conn, IPPROTO_IP, IP_TOS));
	TRACE("SO_KEEPALIVE", get_option(conn, SOL_SOCKET, SO_KEEPALIVE));
	TRACE("SO_RCVTIMEO",
	      getsockopt(conn, SOL_SOCKET, SO_RCVTIMEO, &limit, &len));
	trace_text("SO_RCVTIMEO", "%ld", (long)limit.tv_sec);
	TRACE("SO_DOMAIN", get_option(conn, SOL_SOCKET, SO_DOMAIN));
	TRACE("SO_PROTOCOL", get_option(conn, SOL_SOCKET, SO_PROTOCOL));
}

static void listener_calls(void)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	struct tcp_info info;
	socklen_t info_len = sizeof(info);
	int fd = listening(7208), bytes;
	char byte = 0;

	TRACE("read", read(fd, &byte, 1));
	TRACE("write", send(fd, &byte, 1, MSG_NOSIGNAL));
	TRACE("connect", connect_port(fd, peer("listen 1")));
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
	TRACE("SO_ACCEPTCONN", get_option(fd, SOL_SOCKET, SO_ACCEPTCONN));
	trace_so_error(fd);
	TRACE("FIONREAD", ioctl(fd, FIONREAD, &bytes));
	TRACE("TCP_INFO",
	      getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &info_len));
	trace_text("state", "%d", info.tcpi_state);
	TRACE("bind", bind_port(fd, "0.0.0.0", 7208));
	TRACE("bind another", bind_port(tcp(0), "0.0.0.0", 7208));
	TRACE("listen again", listen(fd, 4));
	TRACE("accept", accepted(fd, 7208) < 0);
}

/* Have the peer dial a listener that is closed, until nobody reaches it */
static void trace_gone(int port)
{
	for (int ms = 0; ms < WAIT_MS && !peer("dial %d", port);
	     ms += GONE_MS) {
		peer("close");
		pause_ms(GONE_MS);
	}
	trace_peer("dial %d", port);
}

static void listener_closed(void)
{
	int fd = listening(7209);
	int conn = accepted(fd, 7209);
	char byte;

	TRACE("close", close(fd));
	trace_peer("write 1");
	TRACE("read", read(conn, &byte, 1));
	trace_gone(7209);
}

static void listener_shut_down(void)
{
	int fd = listening(7210);

	TRACE("shutdown", shutdown(fd, SHUT_RD));
	TRACE("accept", accept(fd, NULL, NULL));
	trace_gone(7210);
	TRACE("listen", listen(fd, 4));
	TRACE("accept", accepted(fd, 7210) < 0);
}

static void listener_disconnected(void)
{
	const struct sockaddr nobody = {.sa_family = AF_UNSPEC};
	int fd = listening(7211);

	TRACE("AF_UNSPEC", connect(fd, &nobody, sizeof(nobody)));
	TRACE("accept", accept(fd, NULL, NULL));
	trace_gone(7211);
}

static void nobody_listens(void)
{
	int fd = tcp(0);

	TRACE("bind", bind_port(fd, "0.0.0.0", 7212));
	trace_peer("dial 7212");
}

const struct test_case listen_cases[] = {
    CASE(accept_address),     CASE(accept_without_address),
    CASE(accept_nonblocking), CASE(accept_errors),
    CASE(accept_waits),	      CASE(accept_half_close),
    CASE(accept_reset),	      CASE(accept_inherits),
    CASE(listener_calls),     CASE(listener_closed),
    CASE(listener_shut_down), CASE(listener_disconnected),
    CASE(nobody_listens),     {0},
};
