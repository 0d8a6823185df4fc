// SPDX-License-Identifier: Apache-2.0
/*
 * tsi_client.c - socket calls as programs make them, each with what TCP does
 *
 *	tsi_client IPV4 IPV6 [CHECK]...
 *
 * Theory of operation
 * ===================
 *
 * Every check (checks.h) makes calls and states what TCP answers, and passes
 * over native TCP and over TSI.
 *
 * One answer is TCP's but not vsock's: after a failed connect, poll() shows
 * POLLERR always there and here all but always, so that the checks look at
 * SO_ERROR, as programs do.
 *
 * The peer, at both addresses, port by port: 7007 echoes, 7500 answers a
 * connect after half a second, 8081 refuses, 9999 never answers. 198.51.100.1
 * is unreachable from there, and 169.254.169.254 is denied.
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
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"

#define ECHO	 7007
#define SLOW	 7500
#define REFUSING 8081
#define SILENT	 9999

#define BULK_BYTES (1 << 20) /* of the check that moves many */

static const char *host4, *host6;

/* ---- helpers ---- */

static struct sockaddr_in in4(const char *host, int port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host, &sa.sin_addr);
	return sa;
}

static struct sockaddr_in6 in6(const char *host, int port)
{
	struct sockaddr_in6 sa = {.sin6_family = AF_INET6,
				  .sin6_port = htons((uint16_t)port)};

	inet_pton(AF_INET6, host, &sa.sin6_addr);
	return sa;
}

static int connect4(int fd, const char *host, int port)
{
	struct sockaddr_in sa = in4(host, port);

	return connect(fd, (struct sockaddr *)&sa, sizeof(sa));
}

static int connect6(int fd, const char *host, int port)
{
	struct sockaddr_in6 sa = in6(host, port);

	return connect(fd, (struct sockaddr *)&sa, sizeof(sa));
}

static int tcp(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	want(fd >= 0);
	return fd;
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, level, name, &value, &len) ? -1 : value;
}

static int so_error(int fd)
{
	return option(fd, SOL_SOCKET, SO_ERROR);
}

static short wait_for(int fd, short events)
{
	struct pollfd state = {.fd = fd, .events = events};

	want(poll(&state, 1, LIMIT_S * 1000) == 1);
	return state.revents;
}

static void set_blocking(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	flags = on ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
	want(fcntl(fd, F_SETFL, flags) == 0);
}

/* A blocking socket that is connected to the echo server echoes */
static void want_echo(int fd)
{
	char buf[8] = {0};

	want(write(fd, "ping", 4) == 4);
	want(recv(fd, buf, 4, MSG_WAITALL) == 4);
	want(memcmp(buf, "ping", 4) == 0);
}

static int echo_socket(void)
{
	int fd = tcp(0);

	want(connect4(fd, host4, ECHO) == 0);
	return fd;
}

static int64_t now_ms(void)
{
	struct timeval now;

	gettimeofday(&now, NULL);
	return (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000;
}

static void on_alarm(int signo)
{
	(void)signo;
}

/* SIGALRM after 200 ms; without SA_RESTART again and again until alarm_off(),
 * so that one meets the call */
static void alarm_soon(int sa_flags)
{
	struct sigaction action = {.sa_handler = on_alarm,
				   .sa_flags = sa_flags};
	struct itimerval soon = {.it_value.tv_usec = 200000};

	if (!sa_flags)
		soon.it_interval = soon.it_value;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
}

static void alarm_off(void)
{
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

static int listener(struct sockaddr_in *ret_sa)
{
	struct sockaddr_in sa = in4("127.0.0.1", 0);
	socklen_t len = sizeof(sa);
	int fd = tcp(0);

	want(bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(listen(fd, 16) == 0);
	want(getsockname(fd, (struct sockaddr *)&sa, &len) == 0);
	want(ntohs(sa.sin_port) != 0);
	*ret_sa = sa;
	return fd;
}

/* ---- connect(), blocking ---- */

static void blocking(void)
{
	want_echo(echo_socket());
}

static void blocking_ipv6(void)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	want(connect6(fd, host6, ECHO) == 0);
	want_echo(fd);
}

static void blocking_v4_mapped(void)
{
	struct sockaddr_in6 name = {0};
	socklen_t len = sizeof(name);
	char mapped[64];
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	snprintf(mapped, sizeof(mapped), "::ffff:%s", host4);
	want(connect6(fd, mapped, ECHO) == 0);
	want_echo(fd);
	want(getpeername(fd, (struct sockaddr *)&name, &len) == 0);
	want(IN6_IS_ADDR_V4MAPPED(&name.sin6_addr) && len == sizeof(name));
	want(ntohs(name.sin6_port) == ECHO);
}

static void v6only_refuses_v4_mapped(void)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0), on = 1;

	want(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) == 0);
	want_errno(connect6(fd, "::ffff:192.0.2.1", ECHO), ENETUNREACH);
}

static void refused(void)
{
	int fd = tcp(0);

	want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
	want(so_error(fd) == 0);
	want_errno(getpeername(fd, (struct sockaddr *)&(struct sockaddr_in){0},
			       &(socklen_t){sizeof(struct sockaddr_in)}),
		   ENOTCONN);
}

static void unreachable(void)
{
	want_errno(connect4(tcp(0), "198.51.100.1", 80), EHOSTUNREACH);
}

static void denied(void)
{
	want_errno(connect4(tcp(0), "169.254.169.254", 80), ECONNREFUSED);
}

static void again_after_refused(void)
{
	int fd = tcp(0);

	for (int i = 0; i < 3; i++)
		want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
	want(connect4(fd, host4, ECHO) == 0);
	want_echo(fd);
}

static void connected_twice(void)
{
	int fd = echo_socket();

	want_errno(connect4(fd, host4, ECHO), EISCONN);
	want_echo(fd);
}

static void slow(void)
{
	int64_t before = now_ms();
	int fd = tcp(0);

	want(connect4(fd, host4, SLOW) == 0);
	want(getenv("NATIVE") || now_ms() - before >= 400);
	want_echo(fd);
}

static void send_timeout(void)
{
	struct timeval limit = {.tv_usec = 300000};
	int64_t before = now_ms();
	int fd = tcp(0);

	want(!setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	want_errno(connect4(fd, host4, SILENT), EINPROGRESS);
	want(now_ms() - before >= 290);
	set_blocking(fd, false);
	want_errno(connect4(fd, host4, SILENT), EALREADY);
}

static void interrupted(void)
{
	int fd = tcp(0);

	alarm_soon(0);
	want_errno(connect4(fd, host4, SILENT), EINTR);
	alarm_off();
	set_blocking(fd, false);
	want_errno(connect4(fd, host4, SILENT), EALREADY);
}

static void interrupted_goes_on(void)
{
	int fd = tcp(0);

	if (getenv("NATIVE"))
		return; /* nothing is slow there */
	alarm_soon(0);
	want_errno(connect4(fd, host4, SLOW), EINTR);
	alarm_off();
	want(wait_for(fd, POLLOUT) == POLLOUT);
	want(so_error(fd) == 0);
	want(connect4(fd, host4, SLOW) == 0);
	want_errno(connect4(fd, host4, SLOW), EISCONN);
	want_echo(fd);
}

static void restarted(void)
{
	int fd = tcp(0);

	alarm_soon(SA_RESTART);
	want(connect4(fd, host4, SLOW) == 0);
	alarm_off();
	want_errno(connect4(fd, host4, SLOW), EISCONN);
	want_echo(fd);
}

static void killed_while_pending(void)
{
	struct pollfd earlier = {.fd = tcp(SOCK_NONBLOCK), .events = POLLOUT};
	pid_t child;

	want_errno(connect4(earlier.fd, host4, SILENT), EINPROGRESS);
	child = fork();
	if (child == 0) {
		connect4(tcp(0), host4, SILENT);
		_exit(0);
	}
	await_call(child, SYS_connect);
	kill(child, SIGKILL);
	want(waitpid(child, NULL, 0) == child);
	want(poll(&earlier, 1, 0) == 0); /* it wasn't its own end */
	usleep(400000);
	blocking();
}

/* ---- connect(), non-blocking ---- */

static void nonblocking(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	want(so_error(fd) == 0);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_by_connect(void)
{
	int fd = tcp(0);

	set_blocking(fd, false);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	want(connect4(fd, host4, ECHO) == 0);
	want_errno(connect4(fd, host4, ECHO), EISCONN);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_already(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, SILENT), EINPROGRESS);
	want_errno(connect4(fd, host4, SILENT), EALREADY);
	want(so_error(fd) == 0);
	want(poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 100) == 0);
}

static void nonblocking_refused(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, REFUSING), EINPROGRESS);
	wait_for(fd, POLLOUT);
	want(so_error(fd) == ECONNREFUSED);
	want(so_error(fd) == 0);
	want_errno(connect4(fd, host4, ECHO), ECONNABORTED);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_refused_by_connect(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, REFUSING), EINPROGRESS);
	wait_for(fd, POLLOUT);
	want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
	want(so_error(fd) == 0);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(wait_for(fd, POLLOUT) == POLLOUT);
	set_blocking(fd, true);
	want_echo(fd);
}

static void nonblocking_unreachable(void)
{
	int fd = tcp(SOCK_NONBLOCK);
	int ret = connect4(fd, "198.51.100.1", 80);

	if (getenv("NATIVE"))
		return; /* the route is known at once there */
	want(ret == -1 && errno == EINPROGRESS);
	wait_for(fd, POLLOUT);
	want(so_error(fd) == EHOSTUNREACH);
}

static void closed_while_pending(void)
{
	int fd = tcp(SOCK_NONBLOCK);

	want_errno(connect4(fd, host4, SLOW), EINPROGRESS);
	want(close(fd) == 0);
	usleep(1700000); /* until the host has answered */
	blocking();
}

/* ---- poll, select, epoll ---- */

static void epoll_finds(int epoll, int data)
{
	struct epoll_event event;

	want(epoll_wait(epoll, &event, 1, LIMIT_S * 1000) == 1);
	want((event.events & EPOLLOUT) && !(event.events & EPOLLERR));
	want(event.data.fd == data);
}

static void epoll_before_connect(void)
{
	struct epoll_event event = {.events = EPOLLOUT | EPOLLET};
	int fd = tcp(SOCK_NONBLOCK), epoll = epoll_create1(0);

	event.data.fd = fd;
	want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
	while (epoll_wait(epoll, &event, 1, 0) == 1)
		; /* an unconnected socket is ready, too */
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	epoll_finds(epoll, fd);
	want(so_error(fd) == 0);
	set_blocking(fd, true);
	want_echo(fd);
}

static void epoll_after_connect(void)
{
	struct epoll_event event = {.events = EPOLLOUT};
	int fd = tcp(SOCK_NONBLOCK), epoll = epoll_create1(0);

	event.data.fd = fd;
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
	epoll_finds(epoll, fd);
	want(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) == 0);
}

static void by_select(void)
{
	struct timeval limit = {.tv_sec = 10};
	int fd = tcp(SOCK_NONBLOCK);
	fd_set set;

	FD_ZERO(&set);
	FD_SET(fd, &set);
	want_errno(connect4(fd, host4, ECHO), EINPROGRESS);
	want(select(fd + 1, NULL, &set, NULL, &limit) == 1);
	want(so_error(fd) == 0);
}

static void epoll_survives_a_swap(void)
{
	struct epoll_event event = {.events = EPOLLOUT};
	struct sockaddr_in sa;
	int server = listener(&sa);
	int fd = tcp(SOCK_NONBLOCK), epoll = epoll_create1(0);

	event.data.u64 = 0x1122334455667788;
	want(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		want(errno == EINPROGRESS);
	want(accept(server, NULL, NULL) >= 0);
	want(epoll_wait(epoll, &event, 1, 5000) == 1);
	want(event.events == EPOLLOUT);
	want(event.data.u64 == 0x1122334455667788);
	event.events = EPOLLIN;
	want(epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) == 0);
	want(epoll_wait(epoll, &event, 1, 0) == 0);
	want(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) == 0);
}

/* ---- processes and descriptors ---- */

static void *thread_main(void *arg)
{
	(void)arg;
	for (int i = 0; i < 10; i++) {
		int fd = echo_socket();

		want_echo(fd);
		close(fd);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t ids[8];

	for (int i = 0; i < 8; i++)
		want(!pthread_create(&ids[i], NULL, thread_main, NULL));
	for (int i = 0; i < 8; i++)
		want(!pthread_join(ids[i], NULL));
}

static void fork_after_connect(void)
{
	int fd = echo_socket(), status;

	if (fork() == 0) {
		want_echo(fd);
		_exit(0);
	}
	want(wait(&status) > 0 && status == 0);
	want_echo(fd);
}

static void fork_before_connect(void)
{
	int fd = tcp(0), status;

	if (fork() == 0) {
		want(connect4(fd, host4, ECHO) == 0);
		_exit(0);
	}
	want(wait(&status) > 0 && status == 0);
	want_echo(fd);
	want_errno(connect4(fd, host4, ECHO), EISCONN);
}

static void connect_on_a_dup(void)
{
	int fd = tcp(0), other = dup(fd);

	want(connect4(other, host4, ECHO) == 0);
	close(other);
	want_echo(fd);
}

static void swap_reaches_dups(void)
{
	struct sockaddr_in sa;
	int server = listener(&sa), fd = tcp(SOCK_CLOEXEC), other = dup(fd);

	want(connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(write(other, "x", 1) == 1);
	want(accept(server, NULL, NULL) >= 0);
	want(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(other, F_GETFD) == 0);
}

static void close_on_exec_is_kept(void)
{
	want(fcntl(tcp(SOCK_CLOEXEC), F_GETFD) == FD_CLOEXEC);
	want(fcntl(tcp(0), F_GETFD) == 0);
	want(fcntl(tcp(SOCK_NONBLOCK), F_GETFL) & O_NONBLOCK);
}

/* ---- names and options ---- */

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

/* ---- bytes ---- */

static void fionread(void)
{
	int fd = echo_socket(), len = -1;
	char buf[8];

	want(ioctl(fd, FIONREAD, &len) == 0 && len == 0);
	want(write(fd, "12345", 5) == 5);
	want(recv(fd, buf, 5, MSG_PEEK | MSG_WAITALL) > 0);
	while (len < 5)
		want(ioctl(fd, FIONREAD, &len) == 0);
	want(len == 5);
	want(recv(fd, buf, 5, MSG_WAITALL) == 5);
}

static void half_close(void)
{
	int fd = echo_socket();
	char buf[8];

	want(write(fd, "12345", 5) == 5);
	want(shutdown(fd, SHUT_WR) == 0);
	want(recv(fd, buf, 5, MSG_WAITALL) == 5);
	want(read(fd, buf, sizeof(buf)) == 0);
	signal(SIGPIPE, SIG_IGN);
	want_errno(write(fd, "x", 1), EPIPE);
}

static void *sender(void *arg)
{
	static char buf[BULK_BYTES];
	int fd = *(int *)arg;
	size_t done = 0;

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 7 >> 3);
	while (done < sizeof(buf)) {
		ssize_t len = write(fd, buf + done, sizeof(buf) - done);

		want(len > 0);
		done += (size_t)len;
	}
	return NULL;
}

static void bulk(void)
{
	static char buf[BULK_BYTES];
	int fd = echo_socket();
	size_t done = BULK_BYTES / 2;
	pthread_t id;

	want(!pthread_create(&id, NULL, sender, &fd));
	want(recv(fd, buf, done, MSG_WAITALL) == (ssize_t)done);
	while (done < sizeof(buf)) {
		ssize_t len = read(fd, buf + done, sizeof(buf) - done);

		want(len > 0);
		done += (size_t)len;
	}
	want(!pthread_join(id, NULL));
	for (size_t i = 0; i < sizeof(buf); i++)
		want(buf[i] == (char)(i * 7 >> 3));
}

/* ---- what stays in the guest ---- */

static void loopback(void)
{
	struct sockaddr_in sa, name;
	socklen_t len = sizeof(name);
	int server = listener(&sa), fd = tcp(0), peer;

	want(connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	peer = accept(server, (struct sockaddr *)&name, &len);
	want(peer >= 0 && ntohl(name.sin_addr.s_addr) == INADDR_LOOPBACK);
	want(write(fd, "x", 1) == 1 && read(peer, &(char){0}, 1) == 1);
}

static void loopback_refused(void)
{
	want_errno(connect4(tcp(0), "127.0.0.1", 1), ECONNREFUSED);
	want_errno(connect4(tcp(0), "0.0.0.0", 1), ECONNREFUSED);
	want_errno(connect6(socket(AF_INET6, SOCK_STREAM, 0), "::1", 1),
		   ECONNREFUSED);
}

static void loopback_then_elsewhere(void)
{
	int fd = tcp(0);

	want_errno(connect4(fd, "127.0.0.1", 1), ECONNREFUSED);
	want(connect4(fd, host4, ECHO) == 0);
	want_echo(fd);
}

static void bound_then_elsewhere(void)
{
	struct sockaddr_in any = {.sin_family = AF_INET};
	int fd = tcp(0);

	want(bind(fd, (struct sockaddr *)&any, sizeof(any)) == 0);
	want(connect4(fd, host4, ECHO) == 0);
	want_echo(fd);
}

static void udp(void)
{
	struct sockaddr_in sa = in4("127.0.0.1", 0);
	socklen_t len = sizeof(sa);
	int server = socket(AF_INET, SOCK_DGRAM, 0);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	want(bind(server, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(getsockname(server, (struct sockaddr *)&sa, &len) == 0);
	want(connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(send(fd, "x", 1, 0) == 1);
	want(recv(server, &(char){0}, 1, 0) == 1);
	want(option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_UDP);
	want(so_error(fd) == 0);
}

static void unix_socket(void)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX, .sun_path = "\0tsi"};
	socklen_t len = sizeof(sa.sun_family) + 20; /* 16 or more is trapped */
	int server = socket(AF_UNIX, SOCK_STREAM, 0);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	want(bind(server, (struct sockaddr *)&sa, len) == 0);
	want(listen(server, 1) == 0);
	want(connect(fd, (struct sockaddr *)&sa, len) == 0);
}

static void io_uring(void)
{
	want_errno(syscall(SYS_io_uring_setup, 1, NULL), ENOSYS);
}

/* ---- mistakes ---- */

static void bad_arguments(void)
{
	struct sockaddr_in sa = in4(host4, ECHO);
	int fd = tcp(0), file = open("/", O_RDONLY);
	void *bad = (void *)16;

	want_errno(connect4(-1, host4, ECHO), EBADF);
	want_errno(connect4(file, host4, ECHO), ENOTSOCK);
	want_errno(connect(fd, bad, sizeof(sa)), EFAULT);
	want_errno(connect(fd, (struct sockaddr *)&sa, 4), EINVAL);
	want_errno(connect6(fd, host6, ECHO), EAFNOSUPPORT);
	want_errno(getsockopt(fd, SOL_SOCKET, SO_ERROR, bad,
			      &(socklen_t){sizeof(int)}),
		   EFAULT);
	want_errno(getpeername(echo_socket(), bad, &(socklen_t){16}), EFAULT);
	want(connect4(fd, host4, ECHO) == 0);
}

/* ---- many ---- */

static void many_at_once(void)
{
	enum { COUNT = 300 };
	static struct pollfd fds[COUNT];

	for (int i = 0; i < COUNT; i++) {
		fds[i].fd = tcp(SOCK_NONBLOCK);
		fds[i].events = POLLOUT;
		want_errno(connect4(fds[i].fd, host4, ECHO), EINPROGRESS);
	}
	for (int i = 0; i < COUNT; i++) {
		want(wait_for(fds[i].fd, POLLOUT) == POLLOUT);
		want(so_error(fds[i].fd) == 0);
		set_blocking(fds[i].fd, true);
		want_echo(fds[i].fd);
		close(fds[i].fd);
	}
}

static void one_after_another(void)
{
	for (int i = 0; i < 500; i++) {
		int fd = echo_socket();

		want(fd < 100);
		close(fd);
	}
}

/* ---- running them ---- */

static const struct check checks[] = {
    CHECK(blocking),
    CHECK(blocking_ipv6),
    CHECK(blocking_v4_mapped),
    CHECK(v6only_refuses_v4_mapped),
    CHECK(refused),
    CHECK(unreachable),
    SANDBOX(denied),
    CHECK(again_after_refused),
    CHECK(connected_twice),
    CHECK(slow),
    CHECK(send_timeout),
    CHECK(interrupted),
    CHECK(interrupted_goes_on),
    CHECK(restarted),
    CHECK(killed_while_pending),
    CHECK(nonblocking),
    CHECK(nonblocking_by_connect),
    CHECK(nonblocking_already),
    CHECK(nonblocking_refused),
    CHECK(nonblocking_refused_by_connect),
    CHECK(nonblocking_unreachable),
    CHECK(closed_while_pending),
    CHECK(epoll_before_connect),
    CHECK(epoll_after_connect),
    CHECK(by_select),
    CHECK(epoll_survives_a_swap),
    CHECK(threads),
    CHECK(fork_after_connect),
    CHECK(fork_before_connect),
    CHECK(connect_on_a_dup),
    CHECK(swap_reaches_dups),
    CHECK(close_on_exec_is_kept),
    CHECK(names),
    CHECK(names_ipv6),
    CHECK(short_name_buffer),
    CHECK(kind_options),
    CHECK(tcp_options),
    CHECK(tcp_info_state),
    CHECK(options_follow_a_swap),
    CHECK(fionread),
    CHECK(half_close),
    CHECK(bulk),
    CHECK(loopback),
    CHECK(loopback_refused),
    CHECK(loopback_then_elsewhere),
    CHECK(bound_then_elsewhere),
    CHECK(udp),
    CHECK(unix_socket),
    SANDBOX(io_uring),
    CHECK(bad_arguments),
    CHECK(many_at_once),
    CHECK(one_after_another),
};

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: tsi_client IPV4 IPV6 [CHECK]...\n");
		return 2;
	}
	host4 = argv[1];
	host6 = argv[2];
	for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++)
		run_check(&checks[i], argv + 3);
	return sum_up();
}
