// SPDX-License-Identifier: Apache-2.0
/*
 * connects.c - cases: connect(), and what is learnt of its outcome
 *
 * A listener whose queue is full answers no SYN, on any network: that is how a
 * connect() is kept pending, and how it is let go ("free" of peer.c). TCP then
 * tries again after a second.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "trace.h"

#define UNREACHABLE "198.51.100.1"
#define MANY	    10000
#define THREADS	    8

#ifndef TCP_FASTOPEN_CONNECT
#define TCP_FASTOPEN_CONNECT 30
#endif

/* A port whose listener answers nobody until "free" */
static long silent_port(void)
{
	long port = peer("listen 0");

	peer("fill");
	return port;
}

/* Bytes go both ways on a connection that the peer has accepted */
static void trace_echo(int fd)
{
	char buf[8];

	TRACE("write", write(fd, "ping", 4));
	trace_peer("echo 4");
	TRACE("recv", recv(fd, buf, 4, MSG_WAITALL));
}

static int connect_unspec(int fd, socklen_t len)
{
	struct sockaddr_storage sa = {.ss_family = AF_UNSPEC};

	return connect(fd, (struct sockaddr *)&sa, len);
}

static void blocking(void)
{
	long port = peer("listen 16");
	int fd = tcp(0);

	TRACE("connect", connect_port(fd, port));
	trace_peer("accept");
	trace_so_error(fd);
	trace_events("connected", fd, POLLOUT);
	trace_echo(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("close", close(fd));
	trace_peer("readall");
}

static void ipv6(void)
{
	int fd = tcp6();

	TRACE("connect", connect_to(fd, host6, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void v4_mapped(void)
{
	char mapped[64];
	int fd = tcp6();

	snprintf(mapped, sizeof(mapped), "::ffff:%s", host4);
	TRACE("connect", connect_to(fd, mapped, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void v4_mapped_v6only(void)
{
	char mapped[64];
	int fd = tcp6();

	snprintf(mapped, sizeof(mapped), "::ffff:%s", host4);
	TRACE("IPV6_V6ONLY", set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
	TRACE("connect", connect_to(fd, mapped, peer("listen 16")));
}

static void wrong_address(void)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(9)};
	int fd = tcp(0);

	TRACE("connect, IPv6", connect_to(fd, host6, 9));
	TRACE("connect, short",
	      connect(fd, (struct sockaddr *)&sa, sizeof(sa) - 1));
	TRACE("connect, 4 bytes", connect(fd, (struct sockaddr *)&sa, 4));
	TRACE("connect, no memory",
	      connect(fd, (struct sockaddr *)16, sizeof(sa)));
	TRACE("connect, IPv4 on IPv6",
	      connect(tcp6(), (struct sockaddr *)&sa, sizeof(sa)));
	TRACE("connect, no descriptor", connect_port(-1, 9));
}

static void refused(void)
{
	long port = peer("refuse");
	int fd = tcp(0);

	TRACE("connect", connect_port(fd, port));
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void refused_then_poll(void)
{
	int fd = tcp(0);

	TRACE("connect", connect_port(fd, peer("refuse")));
	trace_events("refused", fd, 0);
}

static void unreachable(void)
{
	TRACE("connect", connect_to(tcp(0), UNREACHABLE, 9));
}

static void nonblocking(void)
{
	long port = peer("listen 16");
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("connected", fd, POLLOUT);
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
	trace_peer("accept");
	set_blocking(fd, true);
	trace_echo(fd);
}

static void nonblocking_pending(void)
{
	long port = silent_port();
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("pending", fd, 0);
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("write", write(fd, "x", 1));
	TRACE("read", read(fd, &(char){0}, 1));
	peer("free 0");
	trace_events("connected", fd, POLLOUT);
	TRACE("connect at last", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
}

static void nonblocking_refused(void)
{
	long port = peer("refuse");
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("refused", fd, POLLERR);
	trace_so_error(fd);
	trace_so_error(fd);
	TRACE("connect again", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
}

static void nonblocking_refused_connect(void)
{
	long port = peer("refuse");
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, port));
	trace_events("refused", fd, POLLERR);
	TRACE("connect again", connect_port(fd, port));
	trace_so_error(fd);
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
	trace_events("connected", fd, POLLOUT);
	trace_so_error(fd);
}

static void nonblocking_refused_read(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, peer("refuse")));
	trace_events("refused", fd, POLLERR);
	TRACE("read", read(fd, &(char){0}, 1));
	TRACE("read again", read(fd, &(char){0}, 1));
}

static void nonblocking_refused_write(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, peer("refuse")));
	trace_events("refused", fd, POLLERR);
	TRACE("write", write(fd, "x", 1));
	TRACE("write again", write(fd, "x", 1));
}

static void nonblocking_unreachable(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_to(fd, UNREACHABLE, 9));
	poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, WAIT_MS);
	trace_so_error(fd);
}

static void timeout(void)
{
	struct timeval limit = {.tv_usec = 200000};
	long port = silent_port();
	int fd = tcp(0);

	TRACE("SO_SNDTIMEO",
	      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	TRACE("connect", connect_port(fd, port));
	set_blocking(fd, false);
	TRACE("connect again", connect_port(fd, port));
	peer("free 0");
	trace_events("connected", fd, POLLOUT);
	TRACE("connect at last", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
}

static void interrupted(void)
{
	long port = silent_port();
	int fd = tcp(0);

	alarm_in(200, 0);
	TRACE("connect", connect_port(fd, port));
	alarm_off();
	set_blocking(fd, false);
	TRACE("connect again", connect_port(fd, port));
	set_blocking(fd, true);
	peer("free 0");
	TRACE("connect, waiting", connect_port(fd, port));
	trace_so_error(fd);
	TRACE("once more", connect_port(fd, port));
}

static void restarted(void)
{
	long port = silent_port();
	int fd = tcp(0);

	peer("free 500");
	alarm_in(200, SA_RESTART);
	TRACE("connect", connect_port(fd, port));
	TRACE("once more", connect_port(fd, port));
	trace_peer("accept");
	trace_echo(fd);
}

static void killed_while_pending(void)
{
	long port = silent_port();
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		connect_port(tcp(0), port);
		_exit(0);
	}
	await_call(child, SYS_connect);
	kill(child, SIGKILL);
	TRACE("waitpid", waitpid(child, &status, 0) == child);
	trace_text("killed by", "%d", WTERMSIG(status));
}

static void closed_while_pending(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, silent_port()));
	TRACE("close", close(fd));
	fd = tcp(0);
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
}

static void *thread_main(void *arg)
{
	long *port = arg;
	int fd = tcp(0);

	*port = connect_port(fd, *port) ? errno : 0;
	return NULL;
}

static void threads(void)
{
	long port = peer("listen 64"), results[THREADS];
	pthread_t ids[THREADS];

	for (int i = 0; i < THREADS; i++) {
		results[i] = port;
		pthread_create(&ids[i], NULL, thread_main, &results[i]);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(ids[i], NULL);
		trace_text("connect", "%ld", results[i]);
	}
	trace_peer("hold %d", THREADS);
}

static void after_fork(void)
{
	long port = peer("listen 16");
	int fd = tcp(0), status = -1;

	if (fork() == 0)
		_exit(connect_port(fd, port) ? errno : 0);
	wait(&status);
	trace_text("connect in the child", "%d", WEXITSTATUS(status));
	TRACE("connect again", connect_port(fd, port));
	trace_peer("accept");
	trace_echo(fd);
}

static void on_a_dup(void)
{
	int fd = tcp(0), other = dup(fd);

	TRACE("connect", connect_port(other, peer("listen 16")));
	trace_peer("accept");
	close(other);
	trace_echo(fd);
	TRACE("close", close(fd));
	trace_peer("readall");
}

static void unspec_unconnected(void)
{
	int fd = tcp(0);

	TRACE("connect, AF_UNSPEC",
	      connect_unspec(fd, sizeof(struct sockaddr)));
	TRACE("2 bytes", connect_unspec(fd, sizeof(sa_family_t)));
	TRACE("1 byte", connect_unspec(fd, 1));
	TRACE("connect", connect_port(fd, peer("listen 16")));
}

static void unspec_connected(void)
{
	struct sockaddr_in sa;
	socklen_t len = sizeof(sa);
	int fd = connected(), other = dup(fd);

	TRACE("connect, AF_UNSPEC",
	      connect_unspec(fd, sizeof(struct sockaddr)));
	trace_peer("readall");
	TRACE("getpeername", getpeername(fd, (struct sockaddr *)&sa, &len));
	TRACE("write to the dup", send(other, "x", 1, MSG_NOSIGNAL) > 0);
	TRACE("connect", connect_port(fd, peer("listen 16")));
	trace_peer("accept");
	trace_echo(other);
}

static void unspec_pending(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, silent_port()));
	TRACE("connect, AF_UNSPEC",
	      connect_unspec(fd, sizeof(struct sockaddr)));
	trace_so_error(fd);
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
	trace_events("connected", fd, POLLOUT);
	trace_so_error(fd);
}

static void unspec_refused(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	TRACE("connect", connect_port(fd, peer("refuse")));
	trace_events("refused", fd, POLLERR);
	TRACE("connect, AF_UNSPEC",
	      connect_unspec(fd, sizeof(struct sockaddr)));
	trace_so_error(fd);
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
	trace_events("connected", fd, POLLOUT);
	trace_so_error(fd);
}

static void fastopen_sendto(void)
{
	struct sockaddr_in sa = {.sin_family = AF_INET};
	int fd = tcp(0);

	sa.sin_port = htons((uint16_t)peer("listen 16"));
	inet_pton(AF_INET, host4, &sa.sin_addr);
	TRACE("sendto", sendto(fd, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&sa,
			       sizeof(sa)));
	TRACE("connect", connect(fd, (struct sockaddr *)&sa, sizeof(sa)));
	trace_peer("accept");
	trace_echo(fd);
}

static void fastopen_connect(void)
{
	int fd = tcp(0);

	TRACE("TCP_FASTOPEN_CONNECT",
	      set_option(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1));
	TRACE("connect", connect_port(fd, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void fastopen_listen(void)
{
	int fd = tcp(0);

	TRACE("TCP_FASTOPEN", set_option(fd, IPPROTO_TCP, TCP_FASTOPEN, 5));
	TRACE("bind", bind_port(fd, "127.0.0.1", 0));
	TRACE("listen", listen(fd, 1));
	TRACE("connect", connect_to(tcp(0), "127.0.0.1", local_port(fd)));
}

static int bind_to_device(int fd, const char *name)
{
	return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name,
			  (socklen_t)strlen(name));
}

static void bind_device(void)
{
	char name[32] = "";
	socklen_t len = sizeof(name);
	int fd = tcp(0);

	TRACE("no such device", bind_to_device(fd, "nosuch0"));
	TRACE("lo", bind_to_device(fd, "lo"));
	TRACE("getsockopt",
	      getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &len));
	trace_text("name", "%s", name);
	TRACE("connect", connect_port(fd, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void bound_port(void)
{
	long port = peer("listen 16");
	int fd = tcp(0), before;

	TRACE("bind", bind_port(fd, "0.0.0.0", 0));
	before = local_port(fd);
	trace_text("port", "%s", before ? "some" : "0");
	TRACE("connect", connect_port(fd, port));
	trace_text("same port", "%d", local_port(fd) == before);
	trace_peer("accept");
	trace_text("peer sees it", "%d", peer("port") == before);
	trace_echo(fd);
	TRACE("bind again", bind_port(fd, "0.0.0.0", 0));
}

static void bound_fixed_port(void)
{
	int fd = tcp(0);

	TRACE("SO_REUSEADDR", set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
	TRACE("bind", bind_port(fd, "0.0.0.0", 33033));
	TRACE("connect", connect_port(fd, peer("listen 16")));
	trace_text("port", "%d", local_port(fd));
	trace_peer("accept");
	TRACE("close", close(fd));
	trace_peer("readall");
	fd = tcp(0);
	TRACE("SO_REUSEADDR", set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
	TRACE("bind anew", bind_port(fd, "0.0.0.0", 33033));
	TRACE("connect anew", connect_port(fd, peer("listen 16")));
	trace_text("port", "%d", local_port(fd));
}

static void bound_low_port(void)
{
	int fd = tcp(0);

	TRACE("SO_REUSEADDR", set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
	TRACE("bind", bind_port(fd, "0.0.0.0", 1001));
	TRACE("connect", connect_port(fd, peer("listen 16")));
	trace_text("port", "%d", local_port(fd));
}

static void port_in_use(void)
{
	int server = tcp(0), fd = tcp(0);

	TRACE("bind", bind_port(server, "0.0.0.0", 0));
	TRACE("listen", listen(server, 1));
	TRACE("bind to it", bind_port(fd, "0.0.0.0", local_port(server)));
	TRACE("connect", connect_port(fd, peer("listen 16")));
}

static void reuse_port(void)
{
	int one = tcp(0), other = tcp(0);

	TRACE("SO_REUSEPORT", set_option(one, SOL_SOCKET, SO_REUSEPORT, 1));
	TRACE("SO_REUSEPORT", set_option(other, SOL_SOCKET, SO_REUSEPORT, 1));
	TRACE("bind", bind_port(one, "0.0.0.0", 0));
	TRACE("bind", bind_port(other, "0.0.0.0", local_port(one)));
	TRACE("connect", connect_port(one, peer("listen 16")));
	TRACE("connect", connect_port(other, peer("listen 16")));
	trace_text("same port", "%d", local_port(one) == local_port(other));
	TRACE("SO_REUSEPORT", get_option(one, SOL_SOCKET, SO_REUSEPORT));
}

static void epoll_edges(void)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP |
					      EPOLLET};
	int fd = tcp(SOCK_NONBLOCK), epoll = epoll_create1(0);

	TRACE("EPOLL_CTL_ADD", epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	while (epoll_wait(epoll, &event, 1, 0) == 1)
		; /* an unconnected socket is ready, too */
	TRACE("connect", connect_port(fd, peer("listen 16")));
	TRACE("epoll_wait", epoll_wait(epoll, &event, 1, 10000));
	trace_text("events", "%x", event.events);
	TRACE("epoll_wait again", epoll_wait(epoll, &event, 1, 0));
	trace_peer("accept");
	trace_peer("write 5");
	TRACE("epoll_wait", epoll_wait(epoll, &event, 1, 10000));
	trace_text("in", "%d", !!(event.events & EPOLLIN));
	TRACE("read", read(fd, &(char[8]){0}, 8));
	TRACE("read again", read(fd, &(char[8]){0}, 8));
	trace_peer("shut");
	TRACE("epoll_wait", epoll_wait(epoll, &event, 1, 10000));
	trace_text("rdhup", "%d", !!(event.events & EPOLLRDHUP));
}

static void loopback(void)
{
	int server = tcp(0), fd = tcp(0);

	TRACE("bind", bind_port(server, "127.0.0.1", 0));
	TRACE("connect", connect_to(fd, "127.0.0.1", local_port(server)));
	TRACE("listen", listen(server, 4));
	TRACE("connect", connect_to(fd, "127.0.0.1", local_port(server)));
	TRACE("accept", accept(server, NULL, NULL) >= 0);
	TRACE("connect, AF_UNSPEC",
	      connect_unspec(fd, sizeof(struct sockaddr)));
	TRACE("connect elsewhere", connect_port(fd, peer("listen 16")));
	trace_peer("accept");
	trace_echo(fd);
}

static void many(void)
{
	struct rlimit files = {.rlim_cur = MANY + 100, .rlim_max = MANY + 100};
	static int fds[MANY];
	long port = peer("listen 1024"), made = 0, good = 0, left;

	TRACE("setrlimit", setrlimit(RLIMIT_NOFILE, &files));
	for (int i = 0; i < MANY; i++) {
		fds[i] = tcp(0);
		made += fds[i] >= 0;
		good += !connect_port(fds[i], port);
		left = (i + 1) % 500;
		if (!left)
			peer("hold 500");
	}
	trace_text("sockets", "%ld", made);
	trace_text("connections", "%ld", good);
	for (int i = 0; i < MANY; i++)
		good -= !close(fds[i]);
	trace_text("not closed", "%ld", good);
	trace_peer("drop");
}

const struct test_case connect_cases[] = {
    CASE(blocking),
    CASE(ipv6),
    CASE(v4_mapped),
    CASE(v4_mapped_v6only),
    CASE(wrong_address),
    CASE(refused),
    CASE(refused_then_poll),
    CASE(unreachable),
    CASE(nonblocking),
    CASE(nonblocking_pending),
    CASE(nonblocking_refused),
    CASE(nonblocking_refused_connect),
    CASE(nonblocking_refused_read),
    CASE(nonblocking_refused_write),
    CASE(nonblocking_unreachable),
    CASE(timeout),
    CASE(interrupted),
    CASE(restarted),
    CASE(killed_while_pending),
    CASE(closed_while_pending),
    CASE(threads),
    CASE(after_fork),
    CASE(on_a_dup),
    CASE(unspec_unconnected),
    CASE(unspec_connected),
    CASE(unspec_pending),
    CASE(unspec_refused),
    CASE(fastopen_sendto),
    CASE(fastopen_connect),
    CASE(fastopen_listen),
    CASE(bind_device),
    CASE(bound_port),
    CASE(bound_fixed_port),
    CASE(bound_low_port),
    CASE(port_in_use),
    CASE(reuse_port),
    CASE(epoll_edges),
    CASE(loopback),
    CASE(many),
    {0},
};
