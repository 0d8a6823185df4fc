/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace.h - what the parts of tsi_trace share
 *
 *	main.c		runs the cases
 *	helpers.c	writes the trace, speaks to the peer; helpers of the
 *			cases
 *	peer.c		the other end: a server that does as the cases say
 *	connects.c	cases: connect()
 *	sockets.c	cases: connect() of shared, bound, used or many sockets
 *	bytes.c		cases: bytes, ends and errors of a connection
 *	options.c	cases: options, names, ioctl()
 *	listens.c	cases: listeners, and what they accept
 *	datagrams.c	cases: UDP
 */
#ifndef TRACE_H
#define TRACE_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../waits.h"

/**
 * struct test_case - A row of the table of cases
 * @name:	As docs/tsi-compat.md has it
 * @run:	Makes the calls
 */
struct test_case {
	const char *name;
	void (*run)(void);
};

#define CASE(name) {#name, name}

extern const struct test_case connect_cases[];
extern const struct test_case socket_cases[];
extern const struct test_case byte_cases[];
extern const struct test_case option_cases[];
extern const struct test_case listen_cases[];
extern const struct test_case datagram_cases[];

/* Make a call and trace its result under the name that follows */
#define TRACE(what, call)                                                      \
	({                                                                     \
		long ret_;                                                     \
		errno = 0;                                                     \
		ret_ = (long)(call);                                           \
		trace_result((what), ret_, errno);                             \
	})

long trace_result(const char *what, long ret, int error);
void trace_text(const char *what, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void trace_events(const char *what, int fd, short until);
void trace_so_error(int fd);
void trace_echo(int fd);

long silent_port(void);
long peer(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
long peer_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void trace_peer(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define WAIT_MS (LIMIT_S * 1000) /* for what has to come */

int tcp(int flags);
int tcp6(void);
int connect_to(int fd, const char *host, long port);
int connect_port(int fd, long port);
int connected(void);
int bind_port(int fd, const char *host, long port);
int local_port(int fd);
int get_option(int fd, int level, int name);
int set_option(int fd, int level, int name, int value);
void set_blocking(int fd, bool on);
void pause_ms(long ms);
void alarm_in(long ms, int sa_flags);
void alarm_off(void);
void count_sigpipes(void);
void settle(void);

extern const char *host4, *host6; /* where the peer is */
extern const char *case_name;	  /* first column of the trace */
extern long control_port;
extern volatile int sigpipes;

#define CONTROLS 4
extern int control; /* which of the peer's processes is spoken to */

/* The byte of a connection at an offset, where it is looked at */
static inline char pattern(long at)
{
	return (char)(at * 7 + (at >> 8));
}

int serve(long port, const char *client);

#endif /* TRACE_H */
