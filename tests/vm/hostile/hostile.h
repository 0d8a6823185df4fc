/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hostile.h - what the attackers of tsi_hostile share
 *
 *	main.c		runs them; what they have in common
 *	streams.c	who may speak for the guest
 *	floods.c	who takes more than a share
 *	hangs.c		who keeps the agent waiting
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <stdint.h>
#include <sys/types.h>

#include "../checks.h"

#define HOST	   "192.0.2.1"
#define ECHO	   7007 /* there */
#define FIRST_PORT 7200 /* published ones */

#define NOBODY 65534

double now_s(void);
pid_t as_nobody(void (*attack)(void *), void *context);
int vsock_connect(int fd, uint32_t cid, uint32_t port);
int vsock_bind(int fd, uint32_t port);
int tcp_connect(int fd, const char *host, int port);
int tcp_listener(int port);

extern const struct check streams[], hangs[], floods[];

/* Runs until a client of the host's has come; see test_guest_hostile.py */
int serve_squatted(int port);
int serve_forged(int port);

#endif /* HOSTILE_H */
