/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.h - what the parts of tsi_client share
 *
 *	main.c		runs the checks
 *	blocking.c	checks: connect() that waits
 *	nonblocking.c	checks: connect() that doesn't, poll, select, epoll
 *	descriptors.c	checks: processes and descriptors
 *	names.c		checks: names and options
 *	bytes.c		checks: bytes
 *	inside.c	checks: what stays in the guest, and mistakes
 *	many.c		checks: many connections
 *	helpers.c	what checks have in common
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <netinet/in.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../checks.h"

#define ECHO	 7007
#define SLOW	 7500
#define REFUSING 8081
#define SILENT	 9999

extern const char *host4, *host6;

extern const struct check blocking_checks[];
extern const struct check nonblocking_checks[];
extern const struct check descriptor_checks[];
extern const struct check name_checks[];
extern const struct check byte_checks[];
extern const struct check inside_checks[];
extern const struct check many_checks[];

struct sockaddr_in in4(const char *host, int port);
struct sockaddr_in6 in6(const char *host, int port);
int connect4(int fd, const char *host, int port);
int connect6(int fd, const char *host, int port);
int tcp(int flags);
int option(int fd, int level, int name);
int so_error(int fd);
short wait_for(int fd, short events);
void set_blocking(int fd, bool on);
void want_echo(int fd);
int echo_socket(void);
int64_t now_ms(void);
void alarm_soon(int sa_flags);
void alarm_off(void);
int listener(struct sockaddr_in *ret_sa);

#endif /* CLIENT_H */
