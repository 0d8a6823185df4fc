// SPDX-License-Identifier: Apache-2.0
/*
 * sockets.c - cases: connect() of sockets that are shared, bound, used before
 * or many
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "trace.h"

#define MANY	10000
#define THREADS 8

#ifndef TCP_FASTOPEN_CONNECT
#define TCP_FASTOPEN_CONNECT 30
#endif

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

static int connect_unspec(int fd, socklen_t len)
{
	struct sockaddr_storage sa = {.ss_family = AF_UNSPEC};

	return connect(fd, (struct sockaddr *)&sa, len);
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
	const char *out =
	    getenv("DEVICE") ?: "lo"; /* which leads to the peer */
	char name[32] = "";
	socklen_t len = sizeof(name);
	int fd = tcp(0);

	TRACE("no such device", bind_to_device(fd, "nosuch0"));
	TRACE("the device", bind_to_device(fd, out));
	TRACE("getsockopt",
	      getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &len));
	trace_text("name", "%d", !strcmp(name, out));
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

const struct test_case socket_cases[] = {
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
