// SPDX-License-Identifier: Apache-2.0
/*
 * loop.c - the event loop
 *
 * Theory of operation
 * ===================
 *
 * One thread waits for descriptors and for the time that a part of the agent
 * wants to look at something. A source may be buried while its event is among
 * those that were taken together: it is freed once they are all handled.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#include "lib/lib.h"

#define BATCH 64 /* events taken at once */

static int epoll_fd = -1;
static struct source *dead;
static struct timer *timers;
static struct beat none, *beat = &none;

/**
 * loop_init() - Prepare the loop
 *
 * Returns: false with errno set if that fails
 */
bool loop_init(void)
{
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return epoll_fd >= 0;
}

/**
 * now_ms() - The time
 *
 * Returns: ms since some moment
 */
int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/**
 * ms_until() - How long it is until some time, for poll() and the like
 * @time_ms:	As now_ms() has it
 *
 * Returns: ms, 0 if it has passed
 */
int ms_until(int64_t time_ms)
{
	int64_t left = time_ms - now_ms();

	return left > 0 ? (int)left : 0;
}

/**
 * loop_add() - Wait for a descriptor
 * @source:	What to call
 * @fd:		Descriptor
 * @events:	epoll events
 */
void loop_add(struct source *source, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
		complain("epoll: %s", strerror(errno));
}

/**
 * loop_del() - Don't wait for a descriptor any more
 * @fd:		Descriptor
 */
void loop_del(int fd)
{
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

/**
 * loop_wait_for() - Wait for one more descriptor, outside the loop
 * @fd:		Descriptor
 * @events:	poll events
 * @limit_ms:	At most so long
 *
 * Returns: true if @fd is ready; false if the loop has work to do first, or
 *	time is up
 */
bool loop_wait_for(int fd, short events, int limit_ms)
{
	struct pollfd fds[] = {{.fd = fd, .events = events},
			       {.fd = epoll_fd, .events = POLLIN}};

	return poll(fds, 2, limit_ms) > 0 && fds[0].revents;
}

/**
 * loop_bury() - Free a source, once no event for it can be queued
 * @source:	From malloc(), and not waited for
 */
void loop_bury(struct source *source)
{
	source->dead = true;
	source->next = dead;
	dead = source;
}

/**
 * sooner() - The shorter of two waits
 * @a:		ms, -1 for any time
 * @b:		Same
 *
 * Returns: same
 */
static int sooner(int a, int b)
{
	return a < 0 || (b >= 0 && b < a) ? b : a;
}

/**
 * loop_add_timer() - Call a part when it is time
 * @timer:	It, for as long as the loop runs
 */
void loop_add_timer(struct timer *timer)
{
	timer->next = timers;
	timers = timer;
}

/**
 * sleep_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
static int sleep_ms(void)
{
	int limit_ms = -1;

	for (const struct timer *timer = timers; timer; timer = timer->next)
		limit_ms = sooner(limit_ms, timer->timeout_ms());
	return limit_ms;
}

/**
 * loop_beat() - Show from here on that the loop goes on
 * @memory:	Where
 */
void loop_beat(struct beat *memory)
{
	beat = memory;
	beat->turns = (beat->turns + 2) | 1;
}

/**
 * loop_alive() - What the loop is at takes a while
 */
void loop_alive(void)
{
	beat->turns += 2;
}

/**
 * loop_once() - Wait, then handle what came
 */
void loop_once(void)
{
	struct epoll_event events[BATCH];
	int n, limit_ms = sleep_ms();

	beat->turns = (beat->turns | 1) + 1;
	n = epoll_wait(epoll_fd, events, BATCH, limit_ms);
	beat->turns |= 1;
	for (int i = 0; i < n; i++) {
		struct source *source = events[i].data.ptr;

		if (!source->dead)
			source->ready(source, events[i].events);
	}
	for (const struct timer *timer = timers; timer; timer = timer->next)
		timer->tick();
	while (dead) {
		struct source *next = dead->next;

		free(dead);
		dead = next;
	}
}
