// SPDX-License-Identifier: Apache-2.0
/*
 * watch.c - calls that should not wait, and don't if they do
 *
 * Theory of operation
 * ===================
 *
 * Whether connect() or accept() waits is a flag of the file, and the program
 * has the file, too: it can clear the flag between our setting it and our call.
 * So another thread looks whether such a call is over within LIMIT_MS, and ends
 * it by a signal if not: it fails with EINTR then.
 *
 * The thread sleeps unless there was such a call just before. A call that is
 * over in time costs two writes to memory, and one system call in LIMIT_MS for
 * all of them.
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "lib/lib.h"

#define LIMIT_MS 2

static struct {
	pthread_t watched;
	int timer;	  /* -1: nobody watches */
	atomic_uint turn; /* odd: in a call */
	atomic_bool armed;
} watch = {.timer = -1};

/**
 * arm() - Have the thread look after LIMIT_MS
 */
static void arm(void)
{
	const struct itimerspec soon = {.it_value.tv_nsec =
					    LIMIT_MS * 1000000L};

	timerfd_settime(watch.timer, 0, &soon, NULL);
}

/**
 * look() - End calls that wait, for ever
 * @unused:	Unused
 *
 * Returns: never
 */
static void *look(void *unused)
{
	unsigned seen = 0, now;
	uint64_t times;

	(void)unused;
	for (;;) {
		if (read(watch.timer, &times, sizeof(times)) < 0)
			continue;
		now = atomic_load(&watch.turn);
		if (now % 2) {
			if (now == seen)
				pthread_kill(watch.watched, SIGURG);
			seen = now;
			arm();
			continue;
		}
		atomic_store(&watch.armed, false);
		if (atomic_load(&watch.turn) % 2 &&
		    !atomic_exchange(&watch.armed, true))
			arm();
	}
	return NULL;
}

static void interrupt(int signo)
{
	(void)signo; /* it is enough that the call ends */
}

/**
 * watch_start() - Watch calls of the calling thread from here on
 *
 * Returns: false if nobody can: calls may wait then
 */
bool watch_start(void)
{
	const struct sigaction action = {.sa_handler = interrupt};
	pthread_t thread;

	watch.watched = pthread_self();
	watch.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	if (watch.timer < 0 || sigaction(SIGURG, &action, NULL))
		return false;
	return !pthread_create(&thread, NULL, look, NULL);
}

/**
 * watch_begin() - A call comes that should not wait
 */
void watch_begin(void)
{
	atomic_fetch_add(&watch.turn, 1);
	if (watch.timer >= 0 && !atomic_exchange(&watch.armed, true))
		arm();
}

/**
 * watch_end() - It is over; errno stays
 */
void watch_end(void)
{
	atomic_fetch_add(&watch.turn, 1);
}
