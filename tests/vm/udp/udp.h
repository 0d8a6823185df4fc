/* SPDX-License-Identifier: Apache-2.0 */
/*
 * udp.h - what the parts of udp_client share
 *
 *	main.c		runs the checks
 *	exchanges.c	checks: datagrams and how they are sent and received
 *	waits.c		checks: waiting, and who else has the socket
 *	addresses.c	checks: families, ports, and what nobody carries
 *	helpers.c	what checks have in common
 */
#ifndef UDP_H
#define UDP_H

#include <netinet/in.h>
#include <stdint.h>

#include "../checks.h"

#define ECHO	 7007
#define OTHER	 7008
#define REFUSING 8081

#define WAIT_MS	 (LIMIT_S * 1000) /* for what has to come */
#define QUIET_MS 300		  /* for what must not */

extern const char *host4, *host6;

extern const struct check exchange_checks[];
extern const struct check wait_checks[];
extern const struct check address_checks[];

struct sockaddr_in addr4(const char *host, uint16_t port);
struct sockaddr_in6 addr6(const char *host, uint16_t port);
int udp4(void);
int connected(void);
void send_to(int fd, uint16_t port, const char *text);
void expect_from(int fd, uint16_t port, const char *text);
bool readable(int fd, int limit_ms);

#endif /* UDP_H */
