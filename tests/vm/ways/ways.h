/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ways.h - what the checks of tsi_ways share
 *
 *	main.c		runs them; what they have in common
 *	compat.c	calls of 32-bit and x32 programs
 *	uring.c		io_uring
 *	share.c		sockets of several threads and processes
 *	supervise.c	programs with a seccomp supervisor of their own
 *	pipes.c		splice(), sendfile() and their like; MSG_ZEROCOPY
 *	room.c		who hears that there is room to send
 *	over.c		attempts and connections that have failed
 *	confine.c	cgroup's programs, Landlock
 */
#ifndef WAYS_H
#define WAYS_H

#include <netinet/in.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../checks.h"

#define HOST "192.0.2.1"
#define ECHO 7007 /* there */
#define BACK 7503 /* there: connects to a port of ours, and is an echo */

struct sockaddr_in address_of(const char *host, int port);
int connected(void);
int bound(int *ret_port);
int listener(int *ret_port);
int client_from_host(int port);
void exchange(int fd);
int join(void *(*start)(void *), void *context);

/* Carry out a call of its own: the program itself, with these arguments */
int activated(void);

extern const struct check compat[], uring[], share[], supervise[], pipes[],
    room[], over[], confine[];

#endif /* WAYS_H */
