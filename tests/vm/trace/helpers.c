// SPDX-License-Identifier: Apache-2.0
/*
 * helpers.c - what the cases of tsi_trace are made of: lines of the trace, the
 * peer, and calls that none of them is about
 *
 * tests/vm/random has the same trace and the same peer.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "trace.h"

#define SETTLE_MS    50
#define SETTLE_TRIPS 20

const char *host4, *host6;
const char *case_name = "";
long control_port;
int control;
volatile int sigpipes;

static struct control {
	FILE *in, *out;
} controls[CONTROLS];

/* ---- the trace ---- */

/**
 * trace_text() - Write a line of the trace
 * @what:	Call
 * @fmt:	Its result
 */
void trace_text(const char *what, const char *fmt, ...)
{
	char text[200];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	printf("%s\t%s\t%s\n", case_name, what, text);
	fflush(stdout);
}

/**
 * trace_result() - Write what a call gave
 * @what:	Call
 * @ret:	Return value
 * @error:	errno if that is -1
 *
 * Returns: @ret
 */
long trace_result(const char *what, long ret, int error)
{
	const char *name = strerrorname_np(error);

	if (ret != -1)
		trace_text(what, "%ld", ret);
	else if (name)
		trace_text(what, "%s", name);
	else
		trace_text(what, "errno %d", error);
	return ret;
}

/**
 * trace_events() - Write what poll() shows
 * @what:	Where in the case this is
 * @fd:		Descriptor
 * @until:	Events to wait for first, all of them
 */
void trace_events(const char *what, int fd, short until)
{
	static const struct {
		short event;
		const char *name;
	} names[] = {{POLLIN, "IN"},	   {POLLPRI, "PRI"}, {POLLOUT, "OUT"},
		     {POLLRDHUP, "RDHUP"}, {POLLERR, "ERR"}, {POLLHUP, "HUP"},
		     {POLLNVAL, "NVAL"}};
	struct pollfd state = {
	    .fd = fd, .events = POLLIN | POLLPRI | POLLOUT | POLLRDHUP};
	char text[64] = "", call[64];

	for (int waited = 0; waited < WAIT_MS; waited += 10) {
		if (poll(&state, 1, 0) >= 0 && (state.revents & until) == until)
			break;
		pause_ms(10);
	}
	if (until)
		settle();
	poll(&state, 1, 0);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (state.revents & names[i].event) {
			strcat(text, *text ? "|" : "");
			strcat(text, names[i].name);
		}
	snprintf(call, sizeof(call), "poll, %s", what);
	trace_text(call, "%s", *text ? text : "none");
}

/**
 * trace_so_error() - Write what SO_ERROR gives
 * @fd:		Descriptor
 */
void trace_so_error(int fd)
{
	int value = -1;
	socklen_t len = sizeof(value);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &len))
		trace_result("SO_ERROR", -1, errno);
	else
		trace_text("SO_ERROR", "%s",
			   value ? strerrorname_np(value) : "0");
}

/* ---- the peer ---- */

/* Send a command and read its answer */
static long command(const char *line, int *ret_error)
{
	struct control *to = &controls[control];
	char answer[64];
	long ret = -1;

	if (!to->in) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (connect_to(fd, host4, control_port)) {
			trace_result("no peer", -1, errno);
			_exit(1);
		}
		to->in = fdopen(fd, "r");
		to->out = fdopen(dup(fd), "w");
	}
	fprintf(to->out, "%s\n", line);
	fflush(to->out);
	*ret_error = EPROTO;
	if (fgets(answer, sizeof(answer), to->in))
		sscanf(answer, "%ld %d", &ret, ret_error);
	return ret;
}

/**
 * peer() - Have the peer do something
 * @fmt:	Command
 *
 * Returns: its result
 */
long peer(const char *fmt, ...)
{
	char line[64];
	va_list args;
	int error;

	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	return command(line, &error);
}

/**
 * peer_errno() - Same, with errno as it was there
 * @fmt:	Command
 *
 * Returns: its result
 */
long peer_errno(const char *fmt, ...)
{
	char line[64];
	va_list args;
	int error;
	long ret;

	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	ret = command(line, &error);
	errno = error;
	return ret;
}

/**
 * trace_peer() - Same, and write its result down
 * @fmt:	Command
 */
void trace_peer(const char *fmt, ...)
{
	char line[64], what[80];
	va_list args;
	int error;
	long ret;

	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	ret = command(line, &error);
	snprintf(what, sizeof(what), "peer: %s", line);
	if (error)
		trace_text(what, "%ld %s", ret, strerrorname_np(error));
	else
		trace_text(what, "%ld", ret);
}

/* ---- helpers of the cases ---- */

/**
 * tcp() - A TCP socket for IPv4
 * @flags:	SOCK_NONBLOCK, SOCK_CLOEXEC
 *
 * Returns: descriptor
 */
int tcp(int flags)
{
	return socket(AF_INET, SOCK_STREAM | flags, 0);
}

/**
 * tcp6() - A TCP socket for IPv6
 *
 * Returns: descriptor
 */
int tcp6(void)
{
	return socket(AF_INET6, SOCK_STREAM, 0);
}

/**
 * connect_to() - connect() by text
 * @fd:		Socket
 * @host:	IPv4 or IPv6 address
 * @port:	Port
 *
 * Returns: connect()'s
 */
int connect_to(int fd, const char *host, long port)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons((uint16_t)port)};

	if (inet_pton(AF_INET, host, &in.sin_addr) == 1)
		return connect(fd, (struct sockaddr *)&in, sizeof(in));
	inet_pton(AF_INET6, host, &in6.sin6_addr);
	return connect(fd, (struct sockaddr *)&in6, sizeof(in6));
}

/**
 * connect_port() - connect() to a port of the peer
 * @fd:		IPv4 socket
 * @port:	Port
 *
 * Returns: connect()'s
 */
int connect_port(int fd, long port)
{
	return connect_to(fd, host4, port);
}

/**
 * connected() - A connection that the peer has accepted
 *
 * Returns: descriptor
 */
int connected(void)
{
	int fd = tcp(0);

	if (connect_port(fd, peer("listen 16")) || peer("accept") != 1)
		trace_text("connected", "not");
	return fd;
}

/**
 * bind_port() - bind() by text
 * @fd:		IPv4 socket
 * @host:	Address
 * @port:	Port
 *
 * Returns: bind()'s
 */
int bind_port(int fd, const char *host, long port)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host, &in.sin_addr);
	return bind(fd, (struct sockaddr *)&in, sizeof(in));
}

/**
 * local_port() - The port of getsockname()
 * @fd:		Socket
 *
 * Returns: port
 */
int local_port(int fd)
{
	struct sockaddr_in6 sa = {0};
	socklen_t len = sizeof(sa);

	getsockname(fd, (struct sockaddr *)&sa, &len);
	return ntohs(sa.sin6_port); /* in the same place for IPv4 */
}

/**
 * get_option() - getsockopt() of an int
 * @fd:		Socket
 * @level:	Level
 * @name:	Option
 *
 * Returns: its value, -1 with errno set otherwise
 */
int get_option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, level, name, &value, &len) ? -1 : value;
}

/**
 * set_option() - setsockopt() of an int
 * @fd:		Socket
 * @level:	Level
 * @name:	Option
 * @value:	Value
 *
 * Returns: setsockopt()'s
 */
int set_option(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

/**
 * set_blocking() - Set or clear O_NONBLOCK
 * @fd:		Socket
 * @on:		Clear it
 */
void set_blocking(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, on ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

/**
 * pause_ms() - Sleep
 * @ms:		So long
 */
void pause_ms(long ms)
{
	const struct timespec pause = {.tv_sec = ms / 1000,
				       .tv_nsec = ms % 1000 * 1000000};

	nanosleep(&pause, NULL);
}

static void on_alarm(int signo)
{
	(void)signo;
}

/**
 * alarm_in() - Have a signal interrupt a call
 * @ms:		After so long
 * @sa_flags:	SA_RESTART, or nothing: then again and again until alarm_off(),
 *		so that one meets the call
 */
void alarm_in(long ms, int sa_flags)
{
	struct sigaction action = {.sa_handler = on_alarm,
				   .sa_flags = sa_flags};
	struct itimerval soon = {.it_value.tv_sec = ms / 1000,
				 .it_value.tv_usec = ms % 1000 * 1000};

	if (!sa_flags)
		soon.it_interval = soon.it_value;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
}

/**
 * alarm_off() - Have no more signals interrupt calls
 */
void alarm_off(void)
{
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

static void on_sigpipe(int signo)
{
	(void)signo;
	sigpipes++;
}

/**
 * count_sigpipes() - Count SIGPIPE in sigpipes
 */
void count_sigpipes(void)
{
	struct sigaction action = {.sa_handler = on_sigpipe};

	sigaction(SIGPIPE, &action, NULL);
}

/**
 * settle() - Wait for what comes after what was waited for
 *
 * A multiple of the longest of a few round trips to the peer: long on a machine
 * that is slow.
 */
void settle(void)
{
	static long longest_ms = -1;
	struct timespec before, now;

	for (int i = 0; longest_ms < 0 || i < 5; i++) {
		clock_gettime(CLOCK_MONOTONIC, &before);
		peer("own");
		clock_gettime(CLOCK_MONOTONIC, &now);
		long ms = (now.tv_sec - before.tv_sec) * 1000 +
			  (now.tv_nsec - before.tv_nsec) / 1000000;

		if (ms > longest_ms)
			longest_ms = ms;
	}
	pause_ms(SETTLE_MS + SETTLE_TRIPS * longest_ms);
}
