// SPDX-License-Identifier: Apache-2.0
/*
 * peer.c - the other end of every case: a server that does as it is told
 *
 * Theory of operation
 * ===================
 *
 * A case has a control connection of its own, served by a process of its own,
 * with one listener and at most one connection of interest. A command is a
 * line; its answer is a line of two numbers: a result and an errno. So a case
 * knows what its peer has done before it makes its next call, and no trace
 * depends on time.
 *
 *	listen BACKLOG	make the listener; the result is its port
 *	refuse		take a port that refuses; the result is the port
 *	fill		fill the listener's queue: it answers no SYN from here
 *			on
 *	free MS		answer; after so long empty the queue
 *	accept MS	wait for a connection, 0: as long as there is time: 1,
 *			or 0
 *	hold N		accept N connections and keep them
 *	drop		close those
 *	dial PORT	connect to the case: that is the connection of interest
 *	read N		read N bytes, or up to the end or an error
 *	readall		read to the end, or to an error
 *	write N		write N bytes
 *	drain		read what is there, up to the end or an error
 *	wrong		how many bytes of those weren't as they should be
 *	late N		answer; after LATE_MS write N bytes
 *	oob		write one byte of urgent data
 *	flood		write until that fails
 *	echo N		read N bytes and write them
 *	shut, close, reset
 *			end the connection, in the three ways
 *	port		the client's port, as seen from here
 *	own		our own
 *	unread		bytes that could be read, once there are any
 *	udp		make the UDP socket; the result is its port
 *	bounce		send a datagram back to where it comes from, waiting for
 *			it at most 10 s; the result is its size
 *	udpport		where that came from: the port
 *	udpclose	close the UDP socket
 */

#define _GNU_SOURCE
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "trace.h"

#define MAX_HELD 20000
#define LATE_MS	 30

/**
 * struct session - What the process of a case has
 * @listener:	Listener, or -1
 * @conn:	Connection of interest, or -1
 * @filler:	Our own connection that fills the queue, or -1
 * @udp:	UDP socket, or -1
 * @udp_port:	Port that the last datagram came from
 * @written:	Bytes that "write" wrote to @conn
 * @drained:	Bytes that "drain" read from it
 * @wrong:	How many of those weren't pattern()'s
 * @n_held:	Used of @held
 * @held:	Connections that are kept
 */
static struct session {
	int listener;
	int conn;
	int filler;
	int udp;
	int udp_port;
	long written;
	long drained;
	long wrong;
	int n_held;
	int held[MAX_HELD];
} session = {.listener = -1, .conn = -1, .filler = -1, .udp = -1};

static char bytes[1 << 16];
static const char *client_host; /* where cases are reached */

/* A socket bound to a port of any address; 0 lets the kernel choose */
static int bound(int type, long port)
{
	struct sockaddr_in6 sa = {.sin6_family = AF_INET6,
				  .sin6_port = htons((uint16_t)port)};
	int fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0), on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)))
		return -1;
	return fd;
}

static long port_of(int fd, bool peer)
{
	struct sockaddr_in6 sa = {0};
	socklen_t len = sizeof(sa);

	if ((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&sa,
					       &len))
		return -1;
	return ntohs(sa.sin6_port);
}

static long do_fill(long unused)
{
	struct sockaddr_in6 sa = {.sin6_family = AF_INET6,
				  .sin6_addr = IN6ADDR_LOOPBACK_INIT};

	(void)unused;
	sa.sin6_port = htons((uint16_t)port_of(session.listener, false));
	session.filler = socket(AF_INET6, SOCK_STREAM, 0);
	return connect(session.filler, (struct sockaddr *)&sa, sizeof(sa));
}

static long do_free(long ms)
{
	pause_ms(ms);
	close(accept(session.listener, NULL, NULL));
	return close(session.filler);
}

static long do_listen(long backlog)
{
	session.listener = bound(SOCK_STREAM, 0);
	if (listen(session.listener, (int)backlog))
		return -1;
	return port_of(session.listener, false);
}

static long do_refuse(long unused)
{
	(void)unused;
	return port_of(bound(SOCK_STREAM, 0), false);
}

/* Begin with a connection, of which each packet goes at once */
static void begin(int conn)
{
	int on = 1;

	setsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	session.conn = conn;
	session.written = 0;
	session.drained = 0;
	session.wrong = 0;
}

static long do_accept(long ms)
{
	struct pollfd state = {.fd = session.listener, .events = POLLIN};

	if (poll(&state, 1, ms ? (int)ms : WAIT_MS) != 1)
		return 0;
	begin(accept(session.listener, NULL, NULL));
	return session.conn >= 0;
}

static long do_hold(long count)
{
	long done = 0;

	while (done < count && session.n_held < MAX_HELD && do_accept(0)) {
		session.held[session.n_held++] = session.conn;
		done++;
	}
	return done;
}

static long do_drop(long unused)
{
	(void)unused;
	while (session.n_held)
		close(session.held[--session.n_held]);
	return 0;
}

/* Bytes read: up to @count, the end, or an error, which errno then tells */
static long do_read(long count)
{
	long done = 0;

	while (done < count) {
		size_t want = (size_t)(count - done);
		ssize_t n = read(session.conn, bytes,
				 want < sizeof(bytes) ? want : sizeof(bytes));

		if (n <= 0)
			break;
		done += n;
	}
	return done;
}

static long do_read_all(long unused)
{
	(void)unused;
	return do_read(INT32_MAX);
}

static long send_bytes(long count)
{
	long done = 0;

	while (done < count) {
		size_t want = (size_t)(count - done);
		ssize_t n = write(session.conn, bytes,
				  want < sizeof(bytes) ? want : sizeof(bytes));

		if (n < 0)
			break;
		done += n;
	}
	return done;
}

static long do_write(long count)
{
	long done;

	for (long i = 0; i < count && i < (long)sizeof(bytes); i++)
		bytes[i] = pattern(session.written + i);
	done = send_bytes(count);
	session.written += done;
	return done;
}

static long do_drain(long unused)
{
	long done = 0;
	ssize_t n;

	(void)unused;
	while ((n = recv(session.conn, bytes, sizeof(bytes), MSG_DONTWAIT)) >
	       0) {
		for (ssize_t i = 0; i < n; i++)
			session.wrong +=
			    bytes[i] != pattern(session.drained + i);
		session.drained += n;
		done += n;
	}
	return done;
}

static long do_wrong(long unused)
{
	(void)unused;
	return session.wrong;
}

static long do_late(long count)
{
	pause_ms(LATE_MS);
	return do_write(count);
}

static long do_oob(long unused)
{
	(void)unused;
	return send(session.conn, "!", 1, MSG_OOB);
}

static long do_flood(long done)
{
	done = do_write(INT32_MAX);
	errno = 0; /* EPIPE or ECONNRESET: chance */
	return done < INT32_MAX;
}

static long do_echo(long count)
{
	return send_bytes(do_read(count));
}

static long do_shut(long unused)
{
	(void)unused;
	return shutdown(session.conn, SHUT_WR);
}

static long do_close(long unused)
{
	(void)unused;
	return close(session.conn);
}

static long do_reset(long unused)
{
	struct linger linger = {.l_onoff = 1};

	(void)unused;
	setsockopt(session.conn, SOL_SOCKET, SO_LINGER, &linger,
		   sizeof(linger));
	return close(session.conn);
}

static long do_port(long unused)
{
	(void)unused;
	return port_of(session.conn, true);
}

static long do_own(long unused)
{
	(void)unused;
	return port_of(session.conn, false);
}

static long do_dial(long port)
{
	begin(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	return connect_to(session.conn, client_host, port);
}

static long do_udp(long unused)
{
	(void)unused;
	session.udp = bound(SOCK_DGRAM, 0);
	return port_of(session.udp, false);
}

static long do_bounce(long unused)
{
	struct pollfd state = {.fd = session.udp, .events = POLLIN};
	struct sockaddr_in6 from;
	socklen_t len = sizeof(from);
	ssize_t size;

	(void)unused;
	if (poll(&state, 1, WAIT_MS) != 1)
		return -1;
	size = recvfrom(session.udp, bytes, sizeof(bytes), 0,
			(struct sockaddr *)&from, &len);
	session.udp_port = ntohs(from.sin6_port);
	return sendto(session.udp, bytes, (size_t)size, 0,
		      (struct sockaddr *)&from, len);
}

static long do_udp_port(long unused)
{
	(void)unused;
	return session.udp_port;
}

static long do_udp_close(long unused)
{
	(void)unused;
	return close(session.udp);
}

static long do_unread(long unused)
{
	struct pollfd state = {.fd = session.conn, .events = POLLIN};
	int count = -1;

	(void)unused;
	poll(&state, 1, WAIT_MS);
	ioctl(session.conn, FIONREAD, &count);
	return count;
}

static const struct command {
	const char *name;
	long (*run)(long arg);
	bool answer_first;
} commands[] = {
    {"listen", do_listen, false},
    {"refuse", do_refuse, false},
    {"fill", do_fill, false},
    {"free", do_free, true},
    {"accept", do_accept, false},
    {"hold", do_hold, false},
    {"drop", do_drop, false},
    {"read", do_read, false},
    {"readall", do_read_all, false},
    {"write", do_write, false},
    {"oob", do_oob, false},
    {"flood", do_flood, false},
    {"echo", do_echo, false},
    {"shut", do_shut, false},
    {"close", do_close, false},
    {"reset", do_reset, false},
    {"port", do_port, false},
    {"unread", do_unread, false},
    {"own", do_own, false},
    {"dial", do_dial, false},
    {"drain", do_drain, false},
    {"wrong", do_wrong, false},
    {"late", do_late, true},
    {"udp", do_udp, false},
    {"bounce", do_bounce, false},
    {"udpport", do_udp_port, false},
    {"udpclose", do_udp_close, false},
};

/* Do one line of a control connection */
static void obey(FILE *control, const char *line)
{
	char name[32] = "";
	long arg = 0, ret = -1;

	sscanf(line, "%31s %ld", name, &arg);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		const struct command *command = &commands[i];

		if (strcmp(command->name, name) != 0)
			continue;
		if (command->answer_first) {
			fprintf(control, "0 0\n");
			fflush(control);
			command->run(arg);
			return;
		}
		errno = 0;
		ret = command->run(arg);
		break;
	}
	fprintf(control, "%ld %d\n", ret, errno);
	fflush(control);
}

/* The process of a case */
static void __attribute__((noreturn)) session_main(int fd)
{
	struct rlimit files = {.rlim_cur = MAX_HELD + 100,
			       .rlim_max = MAX_HELD + 100};
	FILE *in = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");
	char line[128];

	setrlimit(RLIMIT_NOFILE, &files);
	while (fgets(line, sizeof(line), in))
		obey(out, line);
	_exit(0);
}

/**
 * serve() - Serve control connections until killed
 * @port:	Port
 * @client:	Address that cases are reached at
 *
 * Returns: 1 if it can't
 */
int serve(long port, const char *client)
{
	int server = bound(SOCK_STREAM, port);

	client_host = client;
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	if (server < 0 || listen(server, 64)) {
		perror("tsi_trace");
		return 1;
	}
	printf("serving\n");
	fflush(stdout);
	for (;;) {
		int fd = accept(server, NULL, NULL);

		if (fd >= 0 && fork() == 0) {
			close(server);
			session_main(fd);
		}
		close(fd);
	}
}
