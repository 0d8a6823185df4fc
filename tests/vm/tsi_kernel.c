// SPDX-License-Identifier: Apache-2.0
/*
 * tsi_kernel.c - what the kernel module does without the agent, and for whom
 *
 *	tsi_kernel AGENT IPV4 IPV6 [CHECK]...
 *
 * Theory of operation
 * ===================
 *
 * AGENT is the agent's process id. Checks stop it: what still works then, the
 * module does. All of them are for a sandbox, whose user is root.
 *
 * The peer, at both addresses, port by port: 7007 echoes, 7500 answers a
 * connect late, 8081 refuses. 169.254.0.0/16 is denied.
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
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "checks.h"

#define ECHO	 7007
#define SLOW	 7500
#define REFUSING 8081
#define MANY	 1500 /* more than the module remembers */

#define MARK ((uint64_t)0x54534921 << 32) /* guest/include/kernel.h */

static const char *host4, *host6;
static pid_t agent;

/* ---- helpers ---- */

static struct sockaddr_in in4(const char *host, int port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host, &sa.sin_addr);
	return sa;
}

static int connect4(int fd, const char *host, int port)
{
	struct sockaddr_in sa = in4(host, port);

	return connect(fd, (struct sockaddr *)&sa, sizeof(sa));
}

static void echoes(int fd)
{
	char byte = 0;

	want(write(fd, "x", 1) == 1);
	want(read(fd, &byte, 1) == 1 && byte == 'x');
}

static int pending_error(int fd)
{
	int error = -1;
	socklen_t len = sizeof(error);

	want(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0);
	want(len == sizeof(error));
	return error;
}

/* Has a destination's token known, by a connection that the agent makes */
static void meet(const char *host, int port)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	connect4(fd, host, port);
	close(fd);
}

static void stop_agent(void)
{
	char path[64], state = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)agent);
	want(kill(agent, SIGSTOP) == 0);
	while (state != 'T') {
		file = fopen(path, "r");
		want(file && fscanf(file, "%*d (%*[^)]) %c", &state) == 1);
		fclose(file);
	}
}

static void ignore(int sig)
{
	(void)sig;
}

/* A signal without SA_RESTART every @ms, until it is 0 */
static void interrupt_in(int ms)
{
	struct sigaction act = {.sa_handler = ignore};
	struct itimerspec when = {.it_value.tv_nsec = ms * 1000000L,
				  .it_interval.tv_nsec = ms * 1000000L};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL,
				 .sigev_signo = SIGUSR1};
	static timer_t timer;

	sigaction(SIGUSR1, &act, NULL);
	if (ms)
		want(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
	want(timer_settime(timer, 0, &when, NULL) == 0);
}

/* ---- checks ---- */

static void a_connection_without_the_agent(void)
{
	struct sockaddr_in peer, own;
	socklen_t len = sizeof(peer);
	int fd, on = 1;

	meet(host4, ECHO);
	stop_agent();
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
	want(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	want(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0);
	want(connect4(fd, host4, ECHO) == 0);
	echoes(fd);
	want(pending_error(fd) == 0);
	want(getpeername(fd, (struct sockaddr *)&peer, &len) == 0);
	want(len == sizeof(peer) && peer.sin_family == AF_INET);
	want(peer.sin_port == htons(ECHO));
	want(peer.sin_addr.s_addr == in4(host4, 0).sin_addr.s_addr);
	want(getsockname(fd, (struct sockaddr *)&own, &len) == 0);
	want(own.sin_addr.s_addr == in4(getenv("POD_IPV4"), 0).sin_addr.s_addr);
	want(own.sin_port != 0);
	want(shutdown(fd, SHUT_WR) == 0 && read(fd, &on, 1) == 0);
	want(close(fd) == 0);
}

static void ipv6_without_the_agent(void)
{
	struct sockaddr_in6 peer = {.sin6_family = AF_INET6,
				    .sin6_port = htons(ECHO)};
	struct sockaddr_in6 said;
	socklen_t len = sizeof(said);
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	inet_pton(AF_INET6, host6, &peer.sin6_addr);
	want(connect(fd, (struct sockaddr *)&peer, sizeof(peer)) == 0);
	close(fd);
	stop_agent();
	fd = socket(AF_INET6, SOCK_STREAM, 0);
	want(connect(fd, (struct sockaddr *)&peer, sizeof(peer)) == 0);
	echoes(fd);
	want(getpeername(fd, (struct sockaddr *)&said, &len) == 0);
	want(len == sizeof(said) && !memcmp(&said, &peer, sizeof(said)));
}

static void a_non_blocking_connect_without_the_agent(void)
{
	struct pollfd state = {.events = POLLOUT};

	meet(host4, ECHO);
	stop_agent();
	state.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	want_errno(connect4(state.fd, host4, ECHO), EINPROGRESS);
	want(poll(&state, 1, -1) == 1 && state.revents == POLLOUT);
	want(pending_error(state.fd) == 0);
	want(kill(agent, SIGCONT) == 0);
	want(connect4(state.fd, host4, ECHO) == 0);
	want_errno(connect4(state.fd, host4, ECHO), EISCONN);
	fcntl(state.fd, F_SETFL, 0);
	echoes(state.fd);
}

static void messages_without_the_agent(void)
{
	char byte = 0;
	struct iovec iov = {.iov_base = &byte, .iov_len = 1};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	int pair[2], fd = socket(AF_INET, SOCK_STREAM, 0);

	want(connect4(fd, host4, ECHO) == 0);
	want(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	stop_agent();
	want(sendmsg(pair[0], &msg, 0) == 1);
	want(recvmsg(pair[1], &msg, 0) == 1);
	want(sendmsg(fd, &msg, 0) == 1);
	want(recvmsg(fd, &msg, 0) == 1);
}

static void a_refusal_is_one(void)
{
	for (int i = 0; i < 3; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
		want(pending_error(fd) == 0);
		want_errno(connect4(fd, host4, REFUSING), ECONNREFUSED);
		want(connect4(fd, host4, ECHO) == 0);
		echoes(fd);
		close(fd);
	}
}

static void an_interrupted_connect_goes_on(void)
{
	int fd;

	meet(host4, SLOW);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	interrupt_in(100);
	want_errno(connect4(fd, host4, SLOW), EINTR);
	interrupt_in(0);
	want(connect4(fd, host4, SLOW) == 0);
	want_errno(connect4(fd, host4, SLOW), EISCONN);
	echoes(fd);
}

static void *shut(void *fd)
{
	await_call(getpid(), SYS_connect);
	shutdown((int)(intptr_t)fd, SHUT_RDWR);
	return NULL;
}

static void a_shutdown_ends_a_connect(void)
{
	pthread_t thread;
	int fd;

	meet(host4, SLOW);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	pthread_create(&thread, NULL, shut, (void *)(intptr_t)fd);
	want_errno(connect4(fd, host4, SLOW), ECONNRESET);
}

static void more_destinations_than_are_remembered(void)
{
	char host[INET_ADDRSTRLEN];
	struct sockaddr_in peer;
	socklen_t len = sizeof(peer);
	int fd;

	for (int turn = 0; turn < 2; turn++)
		for (int i = 1; i <= MANY / 2; i++) {
			fd = socket(AF_INET, SOCK_STREAM, 0);
			snprintf(host, sizeof(host), "169.254.%d.%d",
				 turn * 8 + i / 256, i % 256);
			want_errno(connect4(fd, host, 80), ECONNREFUSED);
			close(fd);
		}
	fd = socket(AF_INET, SOCK_STREAM, 0);
	want(connect4(fd, host4, ECHO) == 0);
	want(getpeername(fd, (struct sockaddr *)&peer, &len) == 0);
	want(peer.sin_addr.s_addr == in4(host4, 0).sin_addr.s_addr);
	echoes(fd);
}

/* Whatever a program puts where the module has its mark is its own affair */
static void a_forged_mark_is_of_no_use(void)
{
	struct sockaddr_in sa = in4(host4, ECHO);

	meet(host4, ECHO);
	for (uint64_t wish = 0; wish < 6; wish++)
		for (uint64_t token = 0; token <= 0x10000; token += 0x10000) {
			int fd = socket(AF_INET, SOCK_STREAM, 0);
			long result = syscall(SYS_connect, fd, &sa, sizeof(sa),
					      token, 0, MARK | wish);

			if (result == 0) {
				echoes(fd);
				close(fd);
				continue;
			}
			want(wish == 1 && result == -1); /* TSI_WHOSE */
			want(connect4(fd, host4, ECHO) == 0);
			echoes(fd);
			close(fd);
		}
}

static void a_forged_reset_does_not_stop_the_agent(void)
{
	struct sockaddr_in sa = in4(host4, SLOW);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	want_errno(connect4(fd, host4, SLOW), EINPROGRESS);
	want_errno(
	    (int)syscall(SYS_connect, fd, &sa, sizeof(sa), 0, 0, MARK | 3),
	    EALREADY);
}

static void names_fit_their_room(void)
{
	struct sockaddr_in peer;
	char small[8] = "abcdefg";
	socklen_t len = 4;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	want(connect4(fd, host4, ECHO) == 0);
	want(getpeername(fd, (struct sockaddr *)small, &len) == 0);
	want(len == sizeof(peer) && !memcmp(small + 4, "efg", 4));
	len = (socklen_t)-1;
	want_errno(getpeername(fd, (struct sockaddr *)&peer, &len), EINVAL);
	len = sizeof(peer);
	want_errno(getpeername(fd, (struct sockaddr *)8, &len), EFAULT);
}

static void the_device_is_the_agents(void)
{
	struct sockaddr_in peer;
	socklen_t len = sizeof(peer);
	int device = open("/dev/tsi", O_RDWR), fd;

	want(device >= 0); /* as root: an instance that nobody asks for */
	want_errno(ioctl(device, 0, NULL), ENOTTY);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	want(connect4(fd, host4, ECHO) == 0);
	want(getpeername(fd, (struct sockaddr *)&peer, &len) == 0);
	close(device);
	want(setuid(65534) == 0);
	want_errno(open("/dev/tsi", O_RDWR), EACCES);
	meet(host4, ECHO);
}

static const struct check table[] = {
    SANDBOX(a_connection_without_the_agent),
    SANDBOX(ipv6_without_the_agent),
    SANDBOX(a_non_blocking_connect_without_the_agent),
    SANDBOX(messages_without_the_agent),
    SANDBOX(a_refusal_is_one),
    SANDBOX(an_interrupted_connect_goes_on),
    SANDBOX(a_shutdown_ends_a_connect),
    SANDBOX(more_destinations_than_are_remembered),
    SANDBOX(a_forged_mark_is_of_no_use),
    SANDBOX(a_forged_reset_does_not_stop_the_agent),
    SANDBOX(names_fit_their_room),
    SANDBOX(the_device_is_the_agents),
};

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	agent = atoi(argv[1]);
	host4 = argv[2];
	host6 = argv[3];
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		run_check(&table[i], argv + 4);
		kill(agent, SIGCONT);
	}
	return sum_up();
}
