// SPDX-License-Identifier: Apache-2.0
/*
 * datagrams.c - cases: UDP
 *
 * The peer has a UDP socket, and sends back what it is told to.
 */

#define _GNU_SOURCE
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>

#include "trace.h"

#define LARGE 60000

static char bytes[1 << 16];

static int udp(void)
{
	return socket(AF_INET, SOCK_DGRAM, 0);
}

static struct sockaddr_in peer_name(long port)
{
	struct sockaddr_in name = {.sin_family = AF_INET,
				   .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host4, &name.sin_addr);
	return name;
}

static void trace_name(const char *what, const struct sockaddr_in *name,
		       long port)
{
	struct sockaddr_in want = peer_name(port);

	trace_text(what, "%d %d %d", name->sin_family,
		   name->sin_addr.s_addr == want.sin_addr.s_addr,
		   name->sin_port == want.sin_port);
}

static void udp_connected(void)
{
	struct sockaddr_in name = {0};
	socklen_t len = sizeof(name);
	long port = peer("udp");
	int fd = udp();

	TRACE("connect", connect_port(fd, port));
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
	trace_name("peer", &name, port);
	TRACE("getsockname", getsockname(fd, (struct sockaddr *)&name, &len));
	trace_text("name", "%d %d", name.sin_addr.s_addr != 0,
		   name.sin_port != 0);
	trace_events("nothing", fd, POLLOUT);
	TRACE("send", send(fd, "hello", 5, 0));
	trace_peer("bounce");
	trace_events("answer", fd, POLLIN);
	TRACE("recv", recv(fd, bytes, sizeof(bytes), 0));
	TRACE("write", write(fd, "hello!", 6));
	trace_peer("bounce");
	TRACE("read", read(fd, bytes, sizeof(bytes)));
}

static void udp_unconnected(void)
{
	long port = peer("udp");
	struct sockaddr_in to = peer_name(port), name = {0};
	socklen_t len = sizeof(name);
	int fd = udp();

	TRACE("sendto",
	      sendto(fd, "hello", 5, 0, (struct sockaddr *)&to, sizeof(to)));
	trace_peer("bounce");
	TRACE("recvfrom", recvfrom(fd, bytes, sizeof(bytes), 0,
				   (struct sockaddr *)&name, &len));
	trace_text("length", "%d", (int)len);
	trace_name("from", &name, port);
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
	TRACE("send", send(fd, "x", 1, 0));
	to.sin_port = 0;
	TRACE("port 0",
	      sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof(to)));
}

static void udp_boundaries(void)
{
	long port = peer("udp");
	int fd = udp(), value = -1;

	TRACE("connect", connect_port(fd, port));
	TRACE("send", send(fd, "hello", 5, 0));
	TRACE("send", send(fd, "you", 3, 0));
	TRACE("send nothing", send(fd, "", 0, 0));
	trace_peer("bounce");
	trace_peer("bounce");
	trace_peer("bounce");
	settle();
	TRACE("FIONREAD", ioctl(fd, FIONREAD, &value));
	trace_text("bytes", "%d", value);
	TRACE("peek", recv(fd, bytes, 2, MSG_PEEK));
	TRACE("MSG_TRUNC", recv(fd, bytes, 2, MSG_TRUNC));
	TRACE("recv", recv(fd, bytes, sizeof(bytes), 0));
	TRACE("recv nothing", recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT));
	TRACE("recv", recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT));
}

static void udp_messages(void)
{
	long port = peer("udp");
	struct sockaddr_in to = peer_name(port), from = {0};
	struct iovec parts[] = {{"hel", 3}, {"lo", 2}};
	struct iovec room[] = {{bytes, 2}, {bytes + 2, 2}};
	struct msghdr out = {.msg_name = &to,
			     .msg_namelen = sizeof(to),
			     .msg_iov = parts,
			     .msg_iovlen = 2};
	struct msghdr in = {.msg_name = &from,
			    .msg_namelen = sizeof(from),
			    .msg_iov = room,
			    .msg_iovlen = 2};
	int fd = udp();

	TRACE("sendmsg", sendmsg(fd, &out, 0));
	trace_peer("bounce");
	TRACE("recvmsg", recvmsg(fd, &in, 0));
	trace_text("flags", "%d", in.msg_flags == MSG_TRUNC);
	trace_name("from", &from, port);
}

static void udp_large(void)
{
	long port = peer("udp");
	int fd = udp();

	TRACE("connect", connect_port(fd, port));
	TRACE("send", send(fd, bytes, LARGE, 0));
	trace_peer("bounce");
	TRACE("recv", recv(fd, bytes, sizeof(bytes), 0));
	TRACE("too large", send(fd, bytes, sizeof(bytes), 0));
}

static void udp_waits(void)
{
	struct timeval limit = {.tv_usec = 300000};
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	int fd = udp();

	TRACE("connect", connect_port(fd, peer("udp")));
	TRACE("MSG_DONTWAIT", recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	TRACE("timeout", recv(fd, bytes, sizeof(bytes), 0));
	TRACE("timeout", recvfrom(fd, bytes, sizeof(bytes), 0,
				  (struct sockaddr *)&name, &len));
	limit.tv_usec = 0;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	alarm_in(300, 0);
	TRACE("interrupted", recvfrom(fd, bytes, sizeof(bytes), 0,
				      (struct sockaddr *)&name, &len));
}

static void udp_refused(void)
{
	long port = peer("udp");
	int fd = udp();

	peer("udpclose");
	TRACE("connect", connect_port(fd, port));
	TRACE("send", send(fd, "x", 1, 0));
	trace_events("refused", fd, POLLERR);
	trace_so_error(fd);
	TRACE("send", send(fd, "x", 1, 0));
	trace_events("refused", fd, POLLERR);
	TRACE("recv", recv(fd, bytes, sizeof(bytes), 0));
}

static void udp_reconnected(void)
{
	const struct sockaddr nobody = {.sa_family = AF_UNSPEC};
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	long port = peer("udp");
	int fd = udp();

	TRACE("connect", connect_port(fd, port));
	TRACE("AF_UNSPEC", connect(fd, &nobody, sizeof(nobody)));
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&name, &len));
	TRACE("send", send(fd, "x", 1, 0));
	TRACE("connect", connect_port(fd, port));
	TRACE("send", send(fd, "hello", 5, 0));
	trace_peer("bounce");
	TRACE("recv", recv(fd, bytes, sizeof(bytes), 0));
}

static void udp_bound(void)
{
	long port = peer("udp");
	struct sockaddr_in name;
	socklen_t len = sizeof(name);
	int fd = udp(), own;

	TRACE("bind", bind_port(fd, "0.0.0.0", 0));
	own = local_port(fd);
	TRACE("connect", connect_port(fd, port));
	TRACE("getsockname", getsockname(fd, (struct sockaddr *)&name, &len));
	trace_text("same port", "%d", ntohs(name.sin_port) == own);
	TRACE("send", send(fd, "hello", 5, 0));
	trace_peer("bounce");
	TRACE("recv", recv(fd, bytes, sizeof(bytes), 0));
	trace_text("peer sees the port", "%d", peer("udpport") == own);
}

const struct test_case datagram_cases[] = {
    CASE(udp_connected),  CASE(udp_unconnected),
    CASE(udp_boundaries), CASE(udp_messages),
    CASE(udp_large),	  CASE(udp_waits),
    CASE(udp_refused),	  CASE(udp_reconnected),
    CASE(udp_bound),	  {0},
};
