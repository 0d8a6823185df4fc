// SPDX-License-Identifier: Apache-2.0
/*
 * tsi_listener.c - listeners as programs make them, each with what TCP does
 *
 *	tsi_listener FIRST_PORT [CHECK]...
 *
 * Theory of operation
 * ===================
 *
 * Each check (checks.h) states what TCP answers, so that it passes over native
 * TCP and, where FIRST_PORT and those after it are published, over TSI. It has
 * a port of its own. Clients are in the same process or a child, and connect to
 * 127.0.0.1 or ::1.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"

#define BACKLOG 16

static int port; /* the check's own */

/* ---- helpers ---- */

/* An address of either family */
union name {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

static union name address(const char *host, int at)
{
	union name name = {0};

	if (strchr(host, ':')) {
		name.in6.sin6_family = AF_INET6;
		name.in6.sin6_port = htons((uint16_t)at);
		inet_pton(AF_INET6, host, &name.in6.sin6_addr);
	} else {
		name.in.sin_family = AF_INET;
		name.in.sin_port = htons((uint16_t)at);
		inet_pton(AF_INET, host, &name.in.sin_addr);
	}
	return name;
}

static socklen_t size_of(const union name *name)
{
	return name->sa.sa_family == AF_INET6 ? sizeof(name->in6)
					      : sizeof(name->in);
}

static int tcp(const char *host, int flags)
{
	int fd = socket(strchr(host, ':') ? AF_INET6 : AF_INET,
			SOCK_STREAM | flags, 0);

	want(fd >= 0);
	return fd;
}

static int bind_to(int fd, const char *host, int at)
{
	union name name = address(host, at);

	return bind(fd, &name.sa, size_of(&name));
}

static void set(int fd, int level, int option, int value)
{
	want(!setsockopt(fd, level, option, &value, sizeof(value)));
}

static int get(int fd, int level, int option)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, level, option, &value, &len) ? -1 : value;
}

static int listener(const char *host, int flags)
{
	int fd = tcp(host, flags);

	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	want(!bind_to(fd, host, port));
	want(!listen(fd, BACKLOG));
	return fd;
}

static int client(const char *host)
{
	int fd = tcp(host, 0);
	union name name = address(host, port);

	want(!connect(fd, &name.sa, size_of(&name)));
	return fd;
}

static int refused(const char *host)
{
	int fd = tcp(host, 0);
	union name name = address(host, port);
	int ret = connect(fd, &name.sa, size_of(&name));

	return ret ? errno : 0;
}

static bool same_name(const union name *a, const union name *b)
{
	if (a->sa.sa_family != b->sa.sa_family)
		return false;
	if (a->sa.sa_family == AF_INET6)
		return a->in6.sin6_port == b->in6.sin6_port &&
		       IN6_ARE_ADDR_EQUAL(&a->in6.sin6_addr, &b->in6.sin6_addr);
	return a->in.sin_port == b->in.sin_port &&
	       a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
}

static union name local(int fd)
{
	union name name = {0};
	socklen_t len = sizeof(name);

	want(!getsockname(fd, &name.sa, &len) && len == size_of(&name));
	return name;
}

static union name peer(int fd)
{
	union name name = {0};
	socklen_t len = sizeof(name);

	want(!getpeername(fd, &name.sa, &len) && len == size_of(&name));
	return name;
}

static int take(int fd, union name *ret_name)
{
	socklen_t len = sizeof(*ret_name);
	int conn = accept(fd, &ret_name->sa, &len);

	want(conn < 0 || len == size_of(ret_name));
	return conn;
}

/* Both ends of a connection agree on its names, and bytes pass */
static void want_connected(int conn, int there, const union name *accepted)
{
	union name a = peer(conn), b = local(there);
	union name c = local(conn), d = peer(there);
	char byte = 0;

	want(same_name(&a, &b));
	want(same_name(&c, &d));
	want(!accepted || same_name(accepted, &b));
	want(send(there, "x", 1, 0) == 1 && recv(conn, &byte, 1, 0) == 1);
	want(send(conn, "y", 1, 0) == 1 && recv(there, &byte, 1, 0) == 1);
	want(byte == 'y');
}

static short wait_for(int fd, short events, int limit_ms)
{
	struct pollfd state = {.fd = fd, .events = events};

	return poll(&state, 1, limit_ms) == 1 ? state.revents : 0;
}

static void nothing(int signo)
{
	(void)signo;
}

/* ---- checks ---- */

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

static void epoll_before_bind(void)
{
	int fd = tcp("0.0.0.0", SOCK_NONBLOCK), poll_fd = epoll_create1(0),
	    there;
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
	union name name;

	want(!epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event));
	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, BACKLOG));
	while (epoll_wait(poll_fd, &event, 1, 0) == 1) /* EPOLLHUP of before */
		want(take(fd, &name) == -1 && errno == EAGAIN);
	there = client("127.0.0.1");
	want(epoll_wait(poll_fd, &event, 1, 5000) == 1);
	want(event.data.u64 == 7 && (event.events & EPOLLIN));
	want_connected(take(fd, &name), there, &name);
	want(epoll_wait(poll_fd, &event, 1, 0) == 0);
}

static void edge_triggered(void)
{
	int fd = listener("0.0.0.0", SOCK_NONBLOCK);
	int poll_fd = epoll_create1(0), there[3], count = 0, conn;
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	union name name;

	want(!epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event));
	for (int i = 0; i < 3; i++)
		there[i] = client("127.0.0.1");
	while (count < 3) {
		want(epoll_wait(poll_fd, &event, 1, 5000) == 1);
		while ((conn = take(fd, &name)) >= 0)
			want_connected(conn, there[count++], &name);
		want(errno == EAGAIN);
	}
	want(epoll_wait(poll_fd, &event, 1, 0) == 0);
}

static void nobody_there(void)
{
	int fd = listener("0.0.0.0", SOCK_NONBLOCK);
	union name name;

	want_errno(take(fd, &name), EAGAIN);
	want_errno(accept(fd, NULL, NULL), EAGAIN);
	want(!wait_for(fd, POLLIN, 0));
}

static void accept4_flags(void)
{
	int fd = listener("0.0.0.0", 0), conn;
	union name name;
	socklen_t len = sizeof(name);

	client("127.0.0.1");
	conn = accept4(fd, &name.sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
	want(fcntl(conn, F_GETFL) & O_NONBLOCK);
	want(fcntl(conn, F_GETFD) & FD_CLOEXEC);
	client("127.0.0.1");
	len = sizeof(name);
	conn = accept4(fd, &name.sa, &len, 0);
	want(conn >= 0 && !(fcntl(conn, F_GETFL) & O_NONBLOCK));
	want(!(fcntl(conn, F_GETFD) & FD_CLOEXEC));
	want_errno(accept4(fd, &name.sa, &len, 1 << 20), EINVAL);
}

static void errors_of_accept(void)
{
	int fd = listener("0.0.0.0", SOCK_NONBLOCK), other = tcp("0.0.0.0", 0);
	int pipes[2], conn;
	union name name;

	want(!pipe(pipes));
	want_errno(take(pipes[0], &name), ENOTSOCK);
	want_errno(take(1000, &name), EBADF);
	want_errno(take(other, &name), EINVAL);
	want(!bind_to(other, "0.0.0.0", 0));
	want_errno(take(other, &name), EINVAL);
	client("127.0.0.1");
	want(wait_for(fd, POLLIN, 5000));
	conn = take(fd, &name);
	want_errno(take(conn, &name), EINVAL);
}

static void short_room_for_the_address(void)
{
	int fd = listener("0.0.0.0", 0), conn;
	unsigned char room[16];
	socklen_t len = 4;

	memset(room, 0xee, sizeof(room));
	client("127.0.0.1");
	conn = accept(fd, (struct sockaddr *)room, &len);
	want(conn >= 0 && len == sizeof(struct sockaddr_in));
	want(room[0] == AF_INET && room[4] == 0xee);
}

static void listener_connects(void)
{
	int fd = listener("0.0.0.0", 0);
	union name name = address("127.0.0.1", port);

	want_errno(connect(fd, &name.sa, size_of(&name)), EISCONN);
}

static void receive_timeout(void)
{
	int fd = listener("0.0.0.0", 0);
	struct timeval limit = {.tv_usec = 100000};
	union name name;

	want(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	want_errno(take(fd, &name), EAGAIN);
}

static void signal_interrupts(void)
{
	struct itimerval soon = {.it_value.tv_usec = 100000,
				 .it_interval.tv_usec = 100000};
	struct sigaction action = {.sa_handler = nothing};
	int fd = listener("0.0.0.0", 0);
	union name name;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	want_errno(take(fd, &name), EINTR);
}

static void signal_restarts(void)
{
	struct itimerval soon = {.it_value.tv_usec = 100000};
	struct sigaction action = {.sa_handler = nothing,
				   .sa_flags = SA_RESTART};
	int fd = listener("0.0.0.0", 0);
	union name name;
	int conn;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	if (fork() == 0) {
		usleep(400000);
		_exit(recv(client("127.0.0.1"), &name, 1, 0) != 0);
	}
	conn = take(fd, &name);
	want(conn >= 0);
	close(conn);
}

static void backlog_holds_clients(void)
{
	int fd = tcp("0.0.0.0", 0), there[4], conn;
	char byte;

	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, 3));
	for (int i = 0; i < 4; i++) {
		there[i] = client("127.0.0.1");
		byte = (char)('a' + i);
		want(send(there[i], &byte, 1, 0) == 1);
	}
	for (int i = 0; i < 4; i++) {
		conn = accept(fd, NULL, NULL);
		want(recv(conn, &byte, 1, 0) == 1 && byte == 'a' + i);
	}
}

static void options_are_inherited(void)
{
	int fd = tcp("0.0.0.0", 0), conn;
	union name name;

	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, BACKLOG));
	client("127.0.0.1");
	conn = take(fd, &name);
	want(get(conn, IPPROTO_TCP, TCP_NODELAY) == 1);
	want(get(conn, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
	want(get(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1);
	want(get(conn, SOL_SOCKET, SO_ACCEPTCONN) == 0);
	want(get(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET);
	want(get(conn, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP);
}

static void close_refuses(void)
{
	int fd = listener("0.0.0.0", 0);

	close(fd);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void dup_keeps_it_open(void)
{
	int fd = listener("0.0.0.0", 0), other = dup(fd), there;
	union name name;

	close(fd);
	there = client("127.0.0.1");
	want_connected(take(other, &name), there, &name);
	close(other);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void child_keeps_it_open(void)
{
	int fd = listener("0.0.0.0", 0), there, status;
	union name name;
	char byte;

	if (fork() == 0) {
		int conn = take(fd, &name);

		want(conn >= 0 && recv(conn, &byte, 1, 0) == 1);
		_exit(0);
	}
	close(fd);
	there = client("127.0.0.1");
	want(send(there, "x", 1, 0) == 1);
	want(wait(&status) > 0 && status == 0);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void port_is_in_use(void)
{
	int fd = tcp("0.0.0.0", 0), other = tcp("0.0.0.0", 0);

	set(other, SOL_SOCKET, SO_REUSEADDR, 1);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, BACKLOG));
	want_errno(bind_to(other, "0.0.0.0", port), EADDRINUSE);
	close(fd);
	want(!bind_to(other, "0.0.0.0", port));
	want(!listen(other, BACKLOG));
	client("127.0.0.1");
}

static void listens_again(void)
{
	int fd = listener("0.0.0.0", 0), there;
	union name name;

	want(!listen(fd, 2 * BACKLOG));
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

static void reuseport_shares_a_port(void)
{
	int one = tcp("0.0.0.0", 0), two = tcp("0.0.0.0", 0), there;
	union name name;

	set(one, SOL_SOCKET, SO_REUSEPORT, 1);
	set(two, SOL_SOCKET, SO_REUSEPORT, 1);
	want(!bind_to(one, "0.0.0.0", port) && !listen(one, BACKLOG));
	want(!bind_to(two, "0.0.0.0", port) && !listen(two, BACKLOG));
	want(get(one, SOL_SOCKET, SO_REUSEPORT) == 1);
	close(one);
	there = client("127.0.0.1");
	want_connected(take(two, &name), there, &name);
}

static volatile pid_t accepter;

static void *accept_in_thread(void *arg)
{
	union name name;
	long error;

	accepter = gettid();
	error = take(*(int *)arg, &name) < 0 ? errno : 0;
	return (void *)error;
}

static void shutdown_wakes_accept(void)
{
	int fd = listener("0.0.0.0", 0);
	pthread_t thread;
	union name name;
	void *error;

	want(!pthread_create(&thread, NULL, accept_in_thread, &fd));
	while (!accepter)
		usleep(1000);
	await_call(accepter, SYS_accept);
	want(!shutdown(fd, SHUT_RDWR));
	want(!pthread_join(thread, &error) && (long)error == EINVAL);
	want_errno(take(fd, &name), EINVAL);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void shutdown_then_listen(void)
{
	int fd = listener("0.0.0.0", 0), there;
	union name name;

	want(!shutdown(fd, SHUT_RD));
	want(refused("127.0.0.1") == ECONNREFUSED);
	want(!listen(fd, BACKLOG));
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

static void connections_outlive_the_listener(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1");
	union name name;
	int conn = take(fd, &name);

	close(fd);
	want(refused("127.0.0.1") == ECONNREFUSED);
	want_connected(conn, there, &name);
}

static void half_close(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1");
	union name name;
	int conn = take(fd, &name);
	char byte;

	want(!shutdown(there, SHUT_WR));
	want(recv(conn, &byte, 1, 0) == 0);
	want(send(conn, "x", 1, 0) == 1 && recv(there, &byte, 1, 0) == 1);
	want(!shutdown(conn, SHUT_RDWR));
	want(recv(there, &byte, 1, 0) == 0);
}

static void half_closed_ends_have_names(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1");
	union name name, own, client_name;
	int conn = take(fd, &name);

	own = local(conn);
	want(!shutdown(conn, SHUT_WR));
	client_name = local(there);
	name = peer(conn);
	want(same_name(&name, &client_name));
	name = local(conn);
	want(same_name(&name, &own));
	name = peer(there);
	want(same_name(&name, &own));
}

static void client_that_bound_first(void)
{
	static const char *const hosts[] = {"127.0.0.1", "::1"};
	int fd = listener("::", 0);

	for (int i = 0; i < 2; i++) {
		union name to = address(hosts[i], port), name, bound;
		int there = tcp(hosts[i], 0), conn;

		want(!bind_to(there, hosts[i], 0));
		bound = local(there);
		want(!connect(there, &to.sa, size_of(&to)));
		name = local(there);
		want(same_name(&name, &bound));
		conn = take(fd, &name);
		want(ntohs(name.in6.sin6_port) == ntohs(bound.in.sin_port));
		name = peer(there);
		want(same_name(&name, &to));
		close(conn);
		close(there);
	}
}

static void nonblocking_client(void)
{
	int fd = listener("0.0.0.0", 0);
	int there = tcp("127.0.0.1", SOCK_NONBLOCK);
	union name to = address("127.0.0.1", port), name;

	want_errno(connect(there, &to.sa, size_of(&to)), EINPROGRESS);
	want(wait_for(there, POLLOUT, 5000) == POLLOUT);
	want(get(there, SOL_SOCKET, SO_ERROR) == 0);
	want(!connect(there, &to.sa, size_of(&to)));
	want_errno(connect(there, &to.sa, size_of(&to)), EISCONN);
	want(!fcntl(there, F_SETFL, 0));
	want_connected(take(fd, &name), there, &name);
}

static void unspec_stops_listening(void)
{
	int fd = listener("0.0.0.0", 0), there;
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};
	union name name;

	want(!connect(fd, &nobody, sizeof(nobody)));
	want(refused("127.0.0.1") == ECONNREFUSED);
	want_errno(take(fd, &name), EINVAL);
	want(!listen(fd, BACKLOG));
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

static void tcp_info_tells_the_state(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1"), conn;
	struct tcp_info info;
	socklen_t len = sizeof(info);
	union name name;
	int bytes;

	want(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_LISTEN);
	want_errno(ioctl(fd, FIONREAD, &bytes), EINVAL);
	conn = take(fd, &name);
	len = sizeof(info);
	want(!getsockopt(conn, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_ESTABLISHED);
	want(!getsockopt(there, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_ESTABLISHED);
}

static void prefork(int flags)
{
	int fd = listener("0.0.0.0", flags), there[3];
	int *taken = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status, ended = 0;

	for (int i = 0; i < 3; i++) {
		if (fork() != 0)
			continue;
		for (;;) {
			union name name;
			int conn = take(fd, &name);
			char byte;

			if (conn < 0 && errno == EAGAIN) {
				wait_for(fd, POLLIN, 5000);
				continue;
			}
			want(conn >= 0);
			want(recv(conn, &byte, 1, 0) == 1);
			__atomic_add_fetch(taken, 1, __ATOMIC_SEQ_CST);
			_exit(0); /* each takes one */
		}
	}
	for (int i = 0; i < 3; i++)
		there[i] = client("127.0.0.1");
	for (int i = 0; i < 3; i++)
		want(send(there[i], "x", 1, 0) == 1);
	while (wait(&status) > 0) {
		want(status == 0);
		ended++;
	}
	want(ended == 3 && *taken == 3);
}

static void prefork_that_blocks(void)
{
	prefork(0);
}

static void prefork_that_polls(void)
{
	prefork(SOCK_NONBLOCK);
}

static void loopback_only(void)
{
	int fd = listener("127.0.0.1", 0), there = client("127.0.0.1");
	union name name;

	want_connected(take(fd, &name), there, &name);
}

/* ---- running them ---- */

static const struct check checks[] = {
    CHECK(names_agree),
    CHECK(names_without_an_address_in_accept),
    CHECK(ipv6),
    CHECK(ipv4_client_of_a_dual_stack_listener),
    CHECK(v6only_refuses_ipv4),
    CHECK(both_families_on_one_port),
    CHECK(port_0_is_a_real_port),
    CHECK(listen_without_bind),
    CHECK(epoll_before_bind),
    CHECK(edge_triggered),
    CHECK(nobody_there),
    CHECK(accept4_flags),
    CHECK(errors_of_accept),
    CHECK(short_room_for_the_address),
    CHECK(listener_connects),
    CHECK(receive_timeout),
    CHECK(signal_interrupts),
    CHECK(signal_restarts),
    CHECK(backlog_holds_clients),
    CHECK(options_are_inherited),
    CHECK(close_refuses),
    CHECK(dup_keeps_it_open),
    CHECK(child_keeps_it_open),
    CHECK(port_is_in_use),
    CHECK(listens_again),
    CHECK(reuseport_shares_a_port),
    CHECK(shutdown_wakes_accept),
    CHECK(shutdown_then_listen),
    CHECK(connections_outlive_the_listener),
    CHECK(half_close),
    CHECK(half_closed_ends_have_names),
    CHECK(client_that_bound_first),
    CHECK(nonblocking_client),
    CHECK(unspec_stops_listening),
    CHECK(tcp_info_tells_the_state),
    CHECK(prefork_that_blocks),
    CHECK(prefork_that_polls),
    CHECK(loopback_only),
};

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: tsi_listener FIRST_PORT [CHECK]...\n");
		return 2;
	}
	for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
		port = atoi(argv[1]) + (int)i;
		run_check(&checks[i], argv + 2);
	}
	return sum_up();
}
