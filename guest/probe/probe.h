/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe.h - what the files of probe share
 *
 * What fails ends the program with one line on stderr and status 1.
 */

#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define COUNT_MAX      1000000U
#define SIZE_MAX_BYTES (1024U * 1024)
#define LIMIT_MAX_MS   1000000U
#define STEADY_MAX     4096U
#define CHUNK	       (64U * 1024) /* of a bulk transfer, bytes */

extern struct sockaddr_storage peer; /* where connections go, or ours */
extern socklen_t peer_len;
extern char clocksource[64]; /* of what now_ns() reads; "": unknown */

/* net.c */
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *fmt, ...);
uint64_t now_ns(void);
uint64_t number(const char *arg, uint64_t max, const char *what);
void read_clocksource(void);
void resolve(const char *address, const char *port);
int dial(void);
void send_all(int s, const char *p, size_t n);
size_t receive_some(int s, char *p, size_t n);
void *allocate(size_t n);
void print_samples(const char *op, const uint64_t *ns, uint64_t n);
void print_bulk(const char *op, uint64_t bytes, uint64_t ns);
void print_load(const char *op, const uint64_t *ns, uint64_t n,
		uint64_t all_ns);

/* timed.c */
void time_connect(uint64_t count);
void time_rtt(uint64_t count, size_t size);
void time_up(uint64_t bytes, bool half_close);
void time_down(uint64_t bytes);
void time_echo(uint64_t bytes);
void time_accept(uint64_t count);

/* crowd.c */
void time_crr(uint64_t count, size_t size, unsigned flight);
void time_http(uint64_t count, size_t size, unsigned flight);

/* open.c */
void time_open(uint64_t count, size_t size, uint64_t rate);

/* steady.c */
void time_steady(size_t size, uint64_t rate, uint64_t limit_ms);

#endif /* PROBE_H */
