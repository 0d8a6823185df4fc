// SPDX-License-Identifier: Apache-2.0
/*
 * exchanges.c - checks: datagrams and how they are sent and received
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "udp.h"

#define LARGEST 65507 /* bytes of a datagram over IPv4 */

static char large[LARGEST + 1], back[LARGEST + 1];

static void connected_echo(void)
{
	int fd = connected();
	char buf[8];

	want(send(fd, "ping", 4, 0) == 4);
	want(recv(fd, buf, sizeof(buf), 0) == 4 && !memcmp(buf, "ping", 4));
	want(write(fd, "pong!", 5) == 5);
	want(read(fd, buf, sizeof(buf)) == 5 && !memcmp(buf, "pong!", 5));
	want(send(fd, "again", 5, 0) == 5);
	expect_from(fd, ECHO, "again");
}

static void unconnected_echo(void)
{
	int fd = udp4();

	send_to(fd, ECHO, "one");
	expect_from(fd, ECHO, "one");
	send_to(fd, OTHER, "two");
	expect_from(fd, OTHER, "two");
}

static void names(void)
{
	struct sockaddr_in in, own;
	socklen_t len = sizeof(in);
	const char *pod = getenv("POD_IPV4");
	int fd = udp4();

	want(getpeername(fd, (struct sockaddr *)&in, &len) &&
	     errno == ENOTCONN);
	close(fd);
	fd = connected();
	len = sizeof(in);
	want(!getpeername(fd, (struct sockaddr *)&in, &len));
	want(len == sizeof(in) && ntohs(in.sin_port) == ECHO);
	want(in.sin_addr.s_addr == addr4(host4, 0).sin_addr.s_addr);
	want(!getsockname(fd, (struct sockaddr *)&own, &len) && own.sin_port);
	if (pod)
		want(own.sin_addr.s_addr == addr4(pod, 0).sin_addr.s_addr);
}

static void connected_hears_its_peer_only(void)
{
	int fd = udp4();
	struct sockaddr_in in = addr4(host4, OTHER);

	send_to(fd, ECHO, "early"); /* so that the peer may answer */
	expect_from(fd, ECHO, "early");
	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	send_to(fd, ECHO, "other");
	want(!readable(fd, QUIET_MS));
	want(send(fd, "mine", 4, 0) == 4);
	expect_from(fd, OTHER, "mine");
}

static void disconnect(void)
{
	const struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct sockaddr_in in;
	socklen_t len = sizeof(in);
	int fd = connected();

	want(!connect(fd, &none, sizeof(none)));
	want(getpeername(fd, (struct sockaddr *)&in, &len) &&
	     errno == ENOTCONN);
	want(send(fd, "x", 1, 0) < 0 && errno == EDESTADDRREQ);
	send_to(fd, OTHER, "free");
	expect_from(fd, OTHER, "free");
}

static void boundaries(void)
{
	int fd = connected();
	char buf[16];

	want(send(fd, "abc", 3, 0) == 3);
	want(readable(fd, WAIT_MS));
	want(send(fd, "", 0, 0) == 0);
	want(send(fd, "defgh", 5, 0) == 5);
	want(recv(fd, buf, sizeof(buf), 0) == 3);
	want(recv(fd, buf, sizeof(buf), 0) == 0);
	want(recv(fd, buf, sizeof(buf), 0) == 5 && !memcmp(buf, "defgh", 5));
}

static void more(void)
{
	struct sockaddr_in in = addr4(host4, ECHO);
	int fd = udp4();
	char buf[8];

	want(sendto(fd, "ab", 2, MSG_MORE, (struct sockaddr *)&in,
		    sizeof(in)) == 2);
	want(!readable(fd, QUIET_MS));
	send_to(fd, ECHO, "cd");
	want(recv(fd, buf, sizeof(buf), 0) == 4 && !memcmp(buf, "abcd", 4));
}

static void largest(void)
{
	int fd = connected();
	struct sockaddr_in in = addr4(host4, ECHO);

	for (size_t i = 0; i < LARGEST; i++)
		large[i] = (char)(i * 7);
	want(send(fd, large, LARGEST, 0) == LARGEST);
	want(recv(fd, back, sizeof(back), 0) == LARGEST);
	want(!memcmp(large, back, LARGEST));
	want(send(fd, large, LARGEST + 1, 0) < 0 && errno == EMSGSIZE);
	want(sendto(fd, large, LARGEST + 1, 0, (struct sockaddr *)&in,
		    sizeof(in)) < 0 &&
	     errno == EMSGSIZE);
	want(sendto(fd, large, LARGEST, 0, (struct sockaddr *)&in,
		    sizeof(in)) == LARGEST);
	want(recv(fd, back, sizeof(back), 0) == LARGEST);
}

static void peek_trunc_fionread(void)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = connected(), waiting = 0;
	char buf[4];

	want(!ioctl(fd, FIONREAD, &waiting) && waiting == 0);
	want(send(fd, "0123456789", 10, 0) == 10);
	want(readable(fd, WAIT_MS));
	want(!ioctl(fd, FIONREAD, &waiting) && waiting == 10);
	want(recv(fd, buf, sizeof(buf), MSG_PEEK) == 4);
	want(recv(fd, buf, sizeof(buf), MSG_PEEK | MSG_TRUNC) == 10);
	want(recvfrom(fd, buf, sizeof(buf), MSG_PEEK | MSG_TRUNC,
		      (struct sockaddr *)&from, &len) == 10);
	want(ntohs(from.sin_port) == ECHO);
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from,
		      &len) == 4);
	want(!memcmp(buf, "0123", 4));
	want(recv(fd, buf, sizeof(buf), MSG_DONTWAIT) < 0 && errno == EAGAIN);
}

static void messages(void)
{
	struct sockaddr_in to = addr4(host4, ECHO), from;
	char a[4] = {0}, b[16] = {0};
	struct iovec out[] = {{.iov_base = "he", .iov_len = 2},
			      {.iov_base = "llo", .iov_len = 3}};
	struct iovec in[] = {{.iov_base = a, .iov_len = 3},
			     {.iov_base = b, .iov_len = sizeof(b)}};
	struct msghdr msg = {.msg_name = &to,
			     .msg_namelen = sizeof(to),
			     .msg_iov = out,
			     .msg_iovlen = 2};
	int fd = udp4();

	want(sendmsg(fd, &msg, 0) == 5);
	msg = (struct msghdr){.msg_name = &from,
			      .msg_namelen = sizeof(from),
			      .msg_iov = in,
			      .msg_iovlen = 2};
	want(recvmsg(fd, &msg, 0) == 5);
	want(!memcmp(a, "hel", 3) && !memcmp(b, "lo", 2));
	want(msg.msg_namelen == sizeof(from) && !msg.msg_flags);
	want(from.sin_port == to.sin_port);
	want(from.sin_addr.s_addr == to.sin_addr.s_addr);

	send_to(fd, ECHO, "too long");
	msg.msg_iovlen = 1;
	want(recvmsg(fd, &msg, 0) == 3 && (msg.msg_flags & MSG_TRUNC));
}

static void many_messages(void)
{
	struct sockaddr_in to[2] = {addr4(host4, ECHO), addr4(host4, OTHER)};
	struct sockaddr_in from[2];
	char text[2][4] = {"aa", "bbb"}, got[2][8];
	struct iovec out[2], in[2];
	struct mmsghdr send[2], receive[2];
	int fd = udp4(), count = 0;
	bool seen[2] = {false, false};

	for (int i = 0; i < 2; i++) {
		out[i] = (struct iovec){.iov_base = text[i],
					.iov_len = strlen(text[i])};
		send[i] =
		    (struct mmsghdr){.msg_hdr = {.msg_name = &to[i],
						 .msg_namelen = sizeof(to[i]),
						 .msg_iov = &out[i],
						 .msg_iovlen = 1}};
	}
	want(sendmmsg(fd, send, 2, 0) == 2);
	want(send[0].msg_len == 2 && send[1].msg_len == 3);
	while (count < 2) {
		int n;

		for (int i = 0; i < 2; i++) {
			in[i] = (struct iovec){.iov_base = got[i],
					       .iov_len = sizeof(got[i])};
			receive[i] = (struct mmsghdr){
			    .msg_hdr = {.msg_name = &from[i],
					.msg_namelen = sizeof(from[i]),
					.msg_iov = &in[i],
					.msg_iovlen = 1}};
		}
		n = recvmmsg(fd, receive, 2, MSG_WAITFORONE, NULL);
		want(n > 0);
		for (int i = 0; i < n; i++) {
			int which = receive[i].msg_len == 3;

			want(from[i].sin_port == to[which].sin_port);
			want(!memcmp(got[i], text[which], receive[i].msg_len));
			want(!seen[which]);
			seen[which] = true;
		}
		count += n;
	}
}

const struct check exchange_checks[] = {
    CHECK(connected_echo),
    CHECK(unconnected_echo),
    CHECK(names),
    CHECK(connected_hears_its_peer_only),
    CHECK(disconnect),
    CHECK(boundaries),
    CHECK(more),
    CHECK(largest),
    CHECK(peek_trunc_fionread),
    CHECK(messages),
    CHECK(many_messages),
    {0},
};
