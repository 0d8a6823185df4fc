/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib.h - what is below the agent's parts and knows nothing of them
 *
 *	loop.c		the event loop
 *	watch.c		calls that should not wait
 *	address.c	addresses as programs write them, and as we do
 *	log.c		lines on stderr
 */
#ifndef LIB_H
#define LIB_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "include/beat.h"

/* ---- loop.c ---- */

/**
 * struct source - Something the event loop waits for
 * @ready:	Called with the epoll events that came
 * @dead:	Gone while its event may still be queued: not called, then freed
 * @next:	Of the dead, until the loop frees them
 *
 * Embedded as the first member of what it stands for.
 */
struct source {
	void (*ready)(struct source *source, uint32_t events);
	bool dead;
	struct source *next;
};

/**
 * struct timer - A part that looks at something after a time
 * @tick:	Called after each turn
 * @timeout_ms:	How long the loop may sleep; -1 for any time
 * @next:	Of all timers
 */
struct timer {
	void (*tick)(void);
	int (*timeout_ms)(void);
	struct timer *next;
};

bool loop_init(void);
void loop_add_timer(struct timer *timer);
void loop_add(struct source *source, int fd, uint32_t events);
void loop_del(int fd);
bool loop_wait_for(int fd, short events, int limit_ms);
void loop_bury(struct source *source);
void loop_once(void);
void loop_beat(struct beat *memory);
void loop_alive(void);
int64_t now_ms(void);
int ms_until(int64_t time_ms);

/* ---- log.c ---- */

extern bool log_verbose; /* -v */

void debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- watch.c ---- */

bool watch_start(void);
void watch_begin(void);
void watch_end(void);

/* ---- address.c ---- */

/**
 * struct destination - A TCP endpoint
 * @address:	IPv6, or IPv4 in its v4-mapped form
 * @port:	Host order
 */
struct destination {
	struct in6_addr address;
	uint16_t port;
};

bool address_is_native(const struct destination *dst);
struct in6_addr address_of(bool v4, const uint8_t *bytes);
uint32_t address_hash(const struct destination *dst);
bool address_same(const struct destination *a, const struct destination *b);
bool address_decode(const struct sockaddr_storage *sa, size_t len,
		    struct destination *ret_dst);
size_t address_encode(bool v6, const struct destination *dst,
		      struct sockaddr_storage *ret_sa);

#endif /* LIB_H */
