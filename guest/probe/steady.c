// SPDX-License-Identifier: Apache-2.0
/*
 * steady.c - connections at a fixed rate, while something is done to their path
 *
 * Theory of operation
 * ===================
 *
 * KEPT connections to an echo are made first; then a line on stderr says that
 * it begins. Attempt i is due at START + i / RATE, whatever becomes of those
 * before: it connects, has SIZE bytes echoed, and closes. One that isn't done
 * within LIMIT has failed. PLACES threads take turns, so that attempts which
 * wait hold up no other until all places do.
 *
 * It ends with the end of stdin, or after ATTEMPTS. The gap is the longest time
 * in which none succeeded: between two ends, or before the first, or behind the
 * last. The kept ones are asked once more then; who doesn't answer is broken.
 */

#include "probe/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define KEPT	  16
#define PLACES	  32U
#define ATTEMPTS  100000U
#define SECOND_NS 1000000000ULL
#define START_NS  (60 * SECOND_NS) /* for each of those that are kept */
#define MS_NS	  1000000ULL

/**
 * struct steady - What the threads share
 * @size:	Bytes of an attempt, each way
 * @start:	When attempt 0 is due, ns
 * @end:	When the last one may begin, ns
 * @period:	Time from one to the next, ns
 * @limit:	For one, ns
 * @over:	No attempt is to begin any more
 * @next:	Place of the next thread
 * @done:	By attempt: when it succeeded, ns; FAILED; 0: it was not made
 */
struct steady {
	size_t size;
	uint64_t start;
	uint64_t end;
	uint64_t period;
	uint64_t limit;
	atomic_bool over;
	atomic_uint next;
	uint64_t *done;
};

#define FAILED UINT64_MAX

/**
 * ready() - Wait for a socket
 * @s:		Socket, which doesn't block
 * @events:	As of poll()
 * @until:	When to give up, ns
 *
 * Returns: whether it is
 */
static bool ready(int s, short events, uint64_t until)
{
	struct pollfd p = {.fd = s, .events = events};
	uint64_t now = now_ns();

	return now < until &&
	       poll(&p, 1, (int)((until - now) / MS_NS) + 1) == 1;
}

/**
 * connected() - Connect to @peer
 * @until:	When to give up, ns
 *
 * Returns: a socket that doesn't block, or -1
 */
static int connected(uint64_t until)
{
	int s = socket(peer.ss_family, SOCK_STREAM, 0), error = 0;
	socklen_t len = sizeof(error);

	if (s < 0 || fcntl(s, F_SETFL, O_NONBLOCK))
		fail("socket: %s", strerror(errno));
	if (!connect(s, (struct sockaddr *)&peer, peer_len))
		return s;
	if (errno == EINPROGRESS && ready(s, POLLOUT, until) &&
	    !getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &len) && !error)
		return s;
	close(s);
	return -1;
}

/**
 * echoed() - Have bytes echoed
 * @s:		Socket
 * @size:	How many
 * @until:	When to give up, ns
 *
 * Returns: whether they were
 */
static bool echoed(int s, size_t size, uint64_t until)
{
	char out[STEADY_MAX] = {0}, in[STEADY_MAX];
	size_t sent = 0, got = 0;
	ssize_t n;

	while (got < size) {
		if (!ready(s, sent < size ? POLLIN | POLLOUT : POLLIN, until))
			return false;
		n = sent < size ? send(s, out, size - sent, MSG_DONTWAIT) : 0;
		if (n < 0 && errno != EAGAIN)
			return false;
		sent += n < 0 ? 0 : (size_t)n;
		n = recv(s, in, size - got, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			return false;
		got += n < 0 ? 0 : (size_t)n;
	}
	return true;
}

/**
 * attempt() - Make a connection, use it, and close it
 * @own:	How
 *
 * Returns: when that was done, ns, or FAILED
 */
static uint64_t attempt(const struct steady *own)
{
	uint64_t until = now_ns() + own->limit;
	int s = connected(until);
	bool good = s >= 0 && echoed(s, own->size, until);

	if (s >= 0)
		close(s);
	return good ? now_ns() : FAILED;
}

/**
 * take_turns() - Make each attempt of a place
 * @arg:	The struct steady
 *
 * Returns: NULL
 */
static void *take_turns(void *arg)
{
	struct steady *own = arg;

	for (uint64_t i = atomic_fetch_add(&own->next, 1); i < ATTEMPTS;
	     i += PLACES) {
		uint64_t due = own->start + i * own->period;
		struct timespec ts = {.tv_sec = (time_t)(due / SECOND_NS),
				      .tv_nsec = (long)(due % SECOND_NS)};

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
		if (atomic_load(&own->over))
			break;
		own->done[i] = attempt(own);
	}
	return NULL;
}

static int by_time(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/**
 * print() - Print the line
 * @own:	All attempts, which are sorted by this
 * @broken:	Of the kept connections
 */
static void print(struct steady *own, unsigned broken)
{
	uint64_t tried = 0, failed = 0, gap = 0, last = own->start;

	qsort(own->done, ATTEMPTS, sizeof(*own->done), by_time);
	for (unsigned i = 0; i < ATTEMPTS; i++) {
		uint64_t at = own->done[i];

		tried += at != 0;
		failed += at == FAILED;
		if (at == 0 || at == FAILED)
			continue;
		gap = at > last && at - last > gap ? at - last : gap;
		last = at > last ? at : last;
	}
	if (own->end > last && own->end - last > gap)
		gap = own->end - last;
	printf("{\"op\":\"steady\",\"clocksource\":\"%s\",\"gap_ns\":%" PRIu64
	       ",\"tried\":%" PRIu64 ",\"failed\":%" PRIu64
	       ",\"kept\":%u,\"broken\":%u}\n",
	       clocksource, gap, tried, failed, KEPT, broken);
}

/**
 * time_steady() - Connect at a fixed rate until the end of stdin
 * @size:	Bytes each way
 * @rate:	Attempts a second
 * @limit_ms:	For each
 */
void time_steady(size_t size, uint64_t rate, uint64_t limit_ms)
{
	struct steady own = {.size = size,
			     .period = SECOND_NS / rate,
			     .limit = limit_ms * MS_NS};
	unsigned broken = 0;
	pthread_t place[PLACES];
	int kept[KEPT];
	char byte;

	own.done = allocate(ATTEMPTS * sizeof(*own.done));
	memset(own.done, 0, ATTEMPTS * sizeof(*own.done));
	for (unsigned i = 0; i < KEPT; i++) {
		kept[i] = connected(now_ns() + START_NS);
		if (kept[i] < 0 || !echoed(kept[i], size, now_ns() + START_NS))
			fail("the path does not work, before anything is done");
	}
	own.start = now_ns();
	for (unsigned i = 0; i < PLACES; i++)
		if (pthread_create(&place[i], NULL, take_turns, &own))
			fail("pthread_create");
	fputs("steady\n", stderr);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	own.end = now_ns();
	atomic_store(&own.over, true);
	for (unsigned i = 0; i < PLACES; i++)
		pthread_join(place[i], NULL);
	for (unsigned i = 0; i < KEPT; i++) {
		broken += !echoed(kept[i], size, now_ns() + own.limit);
		close(kept[i]);
	}
	print(&own, broken);
	free(own.done);
}
