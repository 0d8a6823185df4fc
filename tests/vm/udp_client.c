// SPDX-License-Identifier: Apache-2.0
/*
 * udp_client.c - what programs do with UDP sockets, each with what UDP does
 *
 *	udp_client IPV4 IPV6 [CHECK]...
 *
 * Theory of operation
 * ===================
 *
 * Each check (checks.h) makes calls and states what UDP answers, and passes
 *over native UDP and over TSI. With DENIED=ERRNO those run that are for a
 *sandbox that may not use UDP, and no others.
 *
 * The peer, at both addresses: ports 7007 and 7008 echo, nobody has 8081.
 * 169.254.169.254 is denied.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"

#define ECHO	 7007
#define OTHER	 7008
#define REFUSING 8081

#define LARGEST	 65507		  /* bytes of a datagram over IPv4 */
#define PEERS	 100		  /* of the check with many */
#define WAIT_MS	 (LIMIT_S * 1000) /* for what has to come */
#define QUIET_MS 300		  /* for what must not */

static const char *host4, *host6;
static char large[LARGEST + 1], back[LARGEST + 1];

/* ---- helpers ---- */

/**
 * addr4() - An IPv4 address
 * @host:	In text
 * @port:	Port
 *
 * Returns: the address
 */
static struct sockaddr_in addr4(const char *host, uint16_t port)
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
static struct sockaddr_in6 addr6(const char *host, uint16_t port)
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
static int udp4(void)
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
static int connected(void)
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
static void send_to(int fd, uint16_t port, const char *text)
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
static void expect_from(int fd, uint16_t port, const char *text)
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
static bool readable(int fd, int limit_ms)
{
	struct pollfd state = {.fd = fd, .events = POLLIN};

	return poll(&state, 1, limit_ms) == 1 && (state.revents & POLLIN);
}

/* ---- checks ---- */

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

static void timeouts(void)
{
	const struct timeval limit = {.tv_usec = 200000};
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = connected();
	char buf[4];

	want(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == EAGAIN);
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) <
		 0 &&
	     errno == EAGAIN);
	want(recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT,
		      (struct sockaddr *)&from, &len) < 0 &&
	     errno == EAGAIN);
}

static void on_alarm(int signo)
{
	(void)signo;
}

static void interrupted(void)
{
	const struct sigaction action = {.sa_handler = on_alarm};
	const struct itimerval soon = {.it_value = {.tv_usec = 200000},
				       .it_interval = {.tv_usec = 200000}};
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = connected();
	char buf[4];

	want(!sigaction(SIGALRM, &action, NULL));
	want(!setitimer(ITIMER_REAL, &soon, NULL));
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) <
		 0 &&
	     errno == EINTR);
	want(!setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL));
	send_to(fd, ECHO, "on");
	expect_from(fd, ECHO, "on");
}

static void poll_and_epoll(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	int epoll = epoll_create1(0);
	struct sockaddr_in in = addr4(host4, ECHO);
	struct pollfd state = {.fd = fd, .events = POLLIN | POLLOUT};
	char buf[8];

	want(!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(poll(&state, 1, 0) == 1 && state.revents == POLLOUT);
	want(epoll_wait(epoll, &event, 1, 0) == 0);
	want(send(fd, "x", 1, 0) == 1);
	want(epoll_wait(epoll, &event, 1, WAIT_MS) == 1);
	want(event.events == EPOLLIN);
	want(recv(fd, buf, sizeof(buf), 0) == 1);
	want(epoll_wait(epoll, &event, 1, 0) == 0);
}

static void dup_and_fork(void)
{
	int fd = connected(), copy = dup(fd), status;

	want(send(copy, "dup", 3, 0) == 3);
	expect_from(fd, ECHO, "dup");
	if (fork() == 0) {
		close(fd);
		want(send(copy, "child", 5, 0) == 5);
		expect_from(copy, ECHO, "child");
		_exit(0);
	}
	want(wait(&status) > 0 && status == 0);
	close(copy);
	send_to(fd, ECHO, "still");
	expect_from(fd, ECHO, "still");
}

static void *send_later(void *fd)
{
	usleep(200000);
	send_to(*(int *)fd, OTHER, "late");
	return NULL;
}

static void a_waiting_thread(void)
{
	int fd = udp4();
	pthread_t thread;

	send_to(fd, ECHO, "bind");
	expect_from(fd, ECHO, "bind");
	want(!pthread_create(&thread, NULL, send_later, &fd));
	expect_from(fd, OTHER, "late"); /* waits before that is sent */
	pthread_join(thread, NULL);
}

static void refused(void)
{
	struct sockaddr_in in = addr4(host4, REFUSING);
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	int fd = udp4();
	char buf[4];

	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(send(fd, "x", 1, 0) == 1);
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == ECONNREFUSED);
	want(send(fd, "x", 1, 0) == 1);
	want(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len) <
		 0 &&
	     errno == ECONNREFUSED);
	send_to(fd, ECHO, "fine"); /* unconnected sends go on */
}

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

static void denied_destination(void)
{
	struct sockaddr_in in = addr4("169.254.169.254", 123);
	int fd = udp4();
	char buf[4];

	want(sendto(fd, "x", 1, 0, (struct sockaddr *)&in, sizeof(in)) < 0 &&
	     errno == ECONNREFUSED);
	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(send(fd, "x", 1, 0) == 1);
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == ECONNREFUSED);
}

/* ---- a sandbox without UDP ---- */

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

	want(sendto(fd, "x", 1, 0, (struct sockaddr *)&in, sizeof(in)) < 0 &&
	     errno == expected);
	want(sendmsg(fd, &msg.msg_hdr, 0) < 0 && errno == expected);
	want(sendmmsg(fd, &msg, 1, 0) < 0 && errno == expected);
	want(!connect(fd, (struct sockaddr *)&in, sizeof(in)));
	want(send(fd, "x", 1, 0) == 1);
	want(recv(fd, buf, sizeof(buf), 0) < 0 && errno == later);
}

/* ---- running them ---- */

static const struct check checks[] = {
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
    CHECK(timeouts),
    CHECK(interrupted),
    CHECK(poll_and_epoll),
    CHECK(dup_and_fork),
    CHECK(a_waiting_thread),
    CHECK(refused),
    CHECK(ipv6),
    CHECK(ipv6_only),
    CHECK(v4_mapped),
    CHECK(wrong_families),
    CHECK(bad_memory),
    CHECK(bound_port),
    CHECK(a_killed_server_leaves_its_port),
    CHECK(many_peers),
    CHECK(loopback),
    SANDBOX(denied_destination),
    DENIED(udp_off),
};

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: udp_client IPV4 IPV6 [CHECK]...\n");
		return 2;
	}
	host4 = argv[1];
	host6 = argv[2];
	for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++)
		run_check(&checks[i], argv + 3);
	return sum_up();
}
