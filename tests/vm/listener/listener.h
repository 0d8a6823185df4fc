/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.h - what the parts of tsi_listener share
 *
 *	main.c		runs the checks
 *	names.c		checks: whose address is what
 *	accepts.c	checks: accept(), and what waits for it
 *	ends.c		checks: the end of listeners and connections
 *	helpers.c	what checks have in common
 */
#ifndef LISTENER_H
#define LISTENER_H

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "../checks.h"

#define BACKLOG 16

extern int port; /* the check's own */

/* An address of either family */
union name {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

extern const struct check name_checks[];
extern const struct check accept_checks[];
extern const struct check end_checks[];

union name address(const char *host, int at);
socklen_t size_of(const union name *name);
int tcp(const char *host, int flags);
int bind_to(int fd, const char *host, int at);
void set(int fd, int level, int option, int value);
int get(int fd, int level, int option);
int listener(const char *host, int flags);
int client(const char *host);
int refused(const char *host);
bool same_name(const union name *a, const union name *b);
union name local(int fd);
union name peer(int fd);
int take(int fd, union name *ret_name);
void want_connected(int conn, int there, const union name *accepted);
short wait_for(int fd, short events, int limit_ms);

#endif /* LISTENER_H */
