// SPDX-License-Identifier: Apache-2.0
/*
 * give.c - new descriptors, for programs that may take their time to take them
 *
 * Theory of operation
 * ===================
 *
 * A descriptor is put into a program's table by the program's own thread, in
 * its own CPU time, and who gives it waits for that. A thread whose cgroup has
 * used up its share of CPU time takes up to a second; all others would wait
 * with us. So if somebody was as slow as SLOW_MS within the last CALM_MS,
 * descriptors are given by helpers, threads that can wait. Else by us: to wake
 * a helper costs a program more than it takes.
 *
 * The wait can't be cut short: a call that has been told that its descriptor
 * comes returns 0 if it doesn't.
 *
 * A helper knows nothing of the rest of the agent: what came of it is for the
 * event loop. Until then we have the file open, too, and exchange.c would look
 * for who else has. So a thread's next call waits for the helper to return
 * (give_before): the thread has taken what it was given.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "agent/tsi.h"

#define SLOW_MS	    20
#define CALM_MS	    10000
#define MAX_HELPERS 16
#define STACK_BYTES 65536

/**
 * enum progress - How far a descriptor is
 * @QUEUED:	No helper has it yet
 * @TAKEN:	One has
 * @GIVEN:	Or could not be
 */
enum progress { QUEUED, TAKEN, GIVEN };

/**
 * struct gift - A descriptor on its way
 * @link:	In given.gifts
 * @progress:	How far it is
 * @tid:	Whose it is to be
 * @id:		The call
 * @fd:		Our descriptor
 * @cloexec:	Whether theirs is close-on-exec
 * @port:	give()'s
 * @number:	state_wait()'s
 * @error:	What came of it: 0, or an errno
 */
struct gift {
	TAILQ_ENTRY(gift) link;
	enum progress progress;
	pid_t tid;
	uint64_t id;
	int fd;
	bool cloexec;
	uint32_t port;
	int number;
	int error;
};

TAILQ_HEAD(gifts, gift);

static struct {
	pthread_mutex_t lock;  /* of what follows, up to @slow_ms */
	pthread_cond_t more;   /* is QUEUED */
	pthread_cond_t passed; /* something is GIVEN */
	struct gifts gifts;
	unsigned idle;	 /* helpers */
	int64_t slow_ms; /* when somebody was; 0: nobody yet */
	unsigned helpers;
	struct source source;
	int event; /* something is GIVEN; -1: there are no helpers */
	void (*lost)(uint32_t port, int fd);
} given = {.lock = PTHREAD_MUTEX_INITIALIZER,
	   .more = PTHREAD_COND_INITIALIZER,
	   .passed = PTHREAD_COND_INITIALIZER,
	   .gifts = TAILQ_HEAD_INITIALIZER(given.gifts),
	   .event = -1};

/**
 * hand_over() - Give a descriptor, and see how long that takes
 * @gift:	It
 */
static void hand_over(struct gift *gift)
{
	int64_t begin_ms = now_ms();

	gift->error = reply_fd(gift->id, gift->fd, gift->cloexec);
	if (now_ms() - begin_ms < SLOW_MS)
		return;
	pthread_mutex_lock(&given.lock);
	given.slow_ms = now_ms();
	pthread_mutex_unlock(&given.lock);
}

/**
 * settle() - See to what came of it
 * @gift:	It
 */
static void settle(const struct gift *gift)
{
	if (gift->error && gift->error != ENOENT)
		reply_error(gift->id, gift->error);
	if (gift->error && gift->port)
		given.lost(gift->port, gift->fd);
	else
		close(gift->fd);
}

/**
 * find() - The first descriptor that is so far
 * @progress:	How far
 *
 * Called with the lock held.
 *
 * Returns: it; NULL if there is none
 */
static struct gift *find(enum progress progress)
{
	struct gift *gift;

	TAILQ_FOREACH(gift, &given.gifts, link)
	if (gift->progress == progress)
		return gift;
	return NULL;
}

/**
 * help() - Give what is queued, for ever
 * @unused:	Unused
 *
 * Returns: never
 */
static void *help(void *unused)
{
	struct gift *gift;

	pthread_mutex_lock(&given.lock);
	for (;;) {
		while (!(gift = find(QUEUED))) {
			given.idle++;
			pthread_cond_wait(&given.more, &given.lock);
			given.idle--;
		}
		gift->progress = TAKEN;
		pthread_mutex_unlock(&given.lock);
		hand_over(gift);
		pthread_mutex_lock(&given.lock);
		gift->progress = GIVEN;
		pthread_cond_signal(&given.passed);
		eventfd_write(given.event, 1);
	}
	return unused;
}

/**
 * settle_all() - See to all that helpers have given
 */
static void settle_all(void)
{
	struct gift *gift;

	for (;;) {
		pthread_mutex_lock(&given.lock);
		gift = find(GIVEN);
		if (gift)
			TAILQ_REMOVE(&given.gifts, gift, link);
		pthread_mutex_unlock(&given.lock);
		if (!gift)
			return;
		settle(gift);
		state_answered(gift->number);
		free(gift);
	}
}

/**
 * some_given() - Helpers have given something
 * @source:	Unused: there is one
 * @events:	Unused
 */
static void some_given(struct source *source, uint32_t events)
{
	eventfd_t count;

	(void)source;
	(void)events;
	eventfd_read(given.event, &count);
	settle_all();
}

/**
 * more_helpers() - Have a helper more
 *
 * Called with the lock held.
 */
static void more_helpers(void)
{
	pthread_attr_t attr;
	pthread_t thread;

	if (pthread_attr_init(&attr))
		return;
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (!pthread_create(&thread, &attr, help, NULL))
		given.helpers++;
	pthread_attr_destroy(&attr);
}

/**
 * queue() - Have a helper give a descriptor
 * @call:	The call
 * @gift:	As in give()
 *
 * Returns: false if there is none, or too many wait
 */
static bool queue(const struct call *call, const struct gift *gift)
{
	struct gift *copy;
	bool queued;

	if (given.event < 0)
		return false;
	copy = malloc(sizeof(*copy));
	if (!copy)
		return false;
	*copy = *gift;
	copy->number = state_wait(call);
	pthread_mutex_lock(&given.lock);
	if (!given.idle && given.helpers < MAX_HELPERS)
		more_helpers();
	queued = given.helpers && copy->number >= 0;
	if (queued)
		TAILQ_INSERT_TAIL(&given.gifts, copy, link);
	pthread_cond_signal(&given.more);
	pthread_mutex_unlock(&given.lock);
	if (!queued && copy->number >= 0)
		state_answered(copy->number);
	if (!queued)
		free(copy);
	return queued;
}

/**
 * is_calm() - Has nobody been slow of late?
 *
 * Returns: true if so
 */
static bool is_calm(void)
{
	int64_t slow_ms;

	pthread_mutex_lock(&given.lock);
	slow_ms = given.slow_ms;
	pthread_mutex_unlock(&given.lock);
	return !slow_ms || now_ms() - slow_ms > CALM_MS;
}

/**
 * give() - The call returns a new descriptor, now or soon
 * @call:	The call, answered from here on
 * @fd:		Ours, for the same file; not to be used any more
 * @cloexec:	Whether theirs is close-on-exec
 * @port:	The listener that it came from, should the call not get it; 0:
 *		then it is closed
 */
void give(const struct call *call, int fd, bool cloexec, uint32_t port)
{
	struct gift gift = {.tid = call->tid,
			    .id = call->id,
			    .fd = fd,
			    .cloexec = cloexec,
			    .port = port};

	if (!is_calm() && queue(call, &gift))
		return;
	hand_over(&gift);
	settle(&gift);
}

/**
 * give_before() - See to what a thread was given, before its next call
 * @call:	That call
 */
void give_before(const struct call *call)
{
	const struct gift *gift;

	if (!given.helpers)
		return;
	pthread_mutex_lock(&given.lock);
	TAILQ_FOREACH(gift, &given.gifts, link)
	while (gift->tid == call->tid && gift->progress == TAKEN)
		pthread_cond_wait(&given.passed, &given.lock);
	pthread_mutex_unlock(&given.lock);
	settle_all();
}

/**
 * give_start() - Be ready to have helpers
 * @lost:	Takes a connection that could not be given, and its listener's
 *		port
 *
 * A process that is forked from this one has none, and gives all itself.
 */
void give_start(void (*lost)(uint32_t port, int fd))
{
	given.lost = lost;
	given.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	given.source.ready = some_given;
	if (given.event >= 0)
		loop_add(&given.source, given.event, EPOLLIN);
}

/**
 * give_alone() - This process is a fork of one that may have helpers
 */
void give_alone(void)
{
	given.event = -1;
}
