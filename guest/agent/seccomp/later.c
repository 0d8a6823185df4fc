// SPDX-License-Identifier: Apache-2.0
/*
 * later.c - trapped calls that are made anew when more is known
 *
 * Theory of operation
 * ===================
 *
 * A call that depends on an answer of the host's must not keep all others
 * waiting for it. Such a call is kept, and handled once more when the answer
 * is there, or its time is up; its handler finds out how far it got, and goes
 * on from there. Nobody tells us that a program was killed or interrupted in
 * it, so the calls are looked at every TICK_MS.
 *
 * So must one whose program is too slow: it is tried again, MAX_RETRIES of
 * those a tick, for each keeps the others waiting for some milliseconds.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

#include "agent/tsi.h"

#define TICK_MS	    200
#define MAX_RETRIES 4
#define SLOW_MS	    30000 /* for a program to take what it is given */

/**
 * struct kept - A call that is made anew
 * @link:	In the list, in the order that they came
 * @call:	The call; its args are a copy
 * @args:	That copy
 * @key:	What it waits for
 * @woken:	That is there
 * @slow:	It is tried again for its program's sake
 * @deadline_ms: Till then it waits
 * @number:	state_wait()'s
 */
struct kept {
	STAILQ_ENTRY(kept) link;
	struct call call;
	uint64_t args[6];
	uint32_t key;
	bool woken;
	bool slow;
	int64_t deadline_ms;
	int number;
};

STAILQ_HEAD(kept_list, kept);

static struct kept_list waiting = STAILQ_HEAD_INITIALIZER(waiting);
static const struct kept *again; /* the one that is made anew now */
static int64_t next_look_ms;	 /* meaningful while there are any */
static void (*make)(const struct call *call);

/**
 * later_start() - Say who handles calls, before all else
 * @dispatch:	Handles one
 */
void later_start(void (*dispatch)(const struct call *call))
{
	make = dispatch;
}

/**
 * later_is_again() - Is a call made anew?
 * @call:	The call that is being handled
 *
 * Returns: true if it waited here before
 */
bool later_is_again(const struct call *call)
{
	return again && again->call.id == call->id;
}

/**
 * keep() - Make the call that is being handled once more
 * @call:	The call
 * @like:	How: key and slow
 * @limit_ms:	For so long in all
 *
 * Returns: false if its time is up, or too many wait
 */
static bool keep(const struct call *call, const struct kept *like, int limit_ms)
{
	int64_t now = now_ms(), deadline_ms = now + limit_ms;
	struct kept *kept;

	if (later_is_again(call))
		deadline_ms = again->deadline_ms;
	if (now >= deadline_ms)
		return false;
	kept = calloc(1, sizeof(*kept));
	if (kept)
		kept->number = state_wait(call);
	if (!kept || kept->number < 0) {
		free(kept);
		return false;
	}
	kept->call = *call;
	memcpy(kept->args, call->args, sizeof(kept->args));
	kept->call.args = kept->args;
	kept->key = like->key;
	kept->slow = like->slow;
	kept->deadline_ms = deadline_ms;
	if (STAILQ_EMPTY(&waiting))
		next_look_ms = now + TICK_MS;
	next_look_ms = MIN(next_look_ms, deadline_ms);
	STAILQ_INSERT_TAIL(&waiting, kept, link);
	return true;
}

/**
 * later_keep() - Make the call that is being handled once more
 * @call:	The call; not to be answered now, if this returns true
 * @key:	When later_wake() is called with it
 * @limit_ms:	Or when it has waited for so long in all
 *
 * Returns: false if its time is up, or too many wait
 */
bool later_keep(const struct call *call, uint32_t key, int limit_ms)
{
	return keep(call, &(struct kept){.key = key}, limit_ms);
}

/**
 * later_retry() - Make the call once more, if its program was too slow for it
 * @call:	The call
 * @error:	What came of it
 *
 * Returns: true if it is; else it is to be answered now
 */
bool later_retry(const struct call *call, int error)
{
	return error == EINTR &&
	       keep(call, &(struct kept){.slow = true}, SLOW_MS);
}

/**
 * later_go_on() - The kernel runs the call, unless something failed
 * @call:	The call
 * @error:	What did, or 0
 */
void later_go_on(const struct call *call, int error)
{
	if (!error)
		reply_native(call->id);
	else if (!later_retry(call, error))
		reply_error(call->id, error == EINTR ? ENOBUFS : error);
}

/**
 * later_wake() - What some calls wait for is there
 * @key:	Theirs
 */
void later_wake(uint32_t key)
{
	struct kept *kept;

	STAILQ_FOREACH(kept, &waiting, link)
	if (kept->key == key) {
		kept->woken = true;
		next_look_ms = 0;
	}
}

/**
 * later_wake_all() - What all wait for may be there
 */
void later_wake_all(void)
{
	struct kept *kept;

	STAILQ_FOREACH(kept, &waiting, link)
	kept->woken = true;
	next_look_ms = 0;
}

/**
 * later_tick() - Make the calls anew whose time it is
 */
void later_tick(void)
{
	struct kept_list looked = STAILQ_HEAD_INITIALIZER(looked);
	unsigned retries = 0;
	int64_t now;
	struct kept *kept;

	if (later_timeout_ms() != 0)
		return;
	now = now_ms();
	next_look_ms = now + TICK_MS;
	STAILQ_CONCAT(&looked, &waiting);
	while ((kept = STAILQ_FIRST(&looked))) {
		bool valid = notify_valid(kept->call.id);
		bool again_now = kept->woken;

		STAILQ_REMOVE_HEAD(&looked, link);
		if (valid && kept->slow)
			again_now = retries++ < MAX_RETRIES;
		if (valid && !again_now && now < kept->deadline_ms) {
			next_look_ms = MIN(next_look_ms, kept->deadline_ms);
			STAILQ_INSERT_TAIL(&waiting, kept, link);
			continue;
		}
		again = kept;
		if (valid)
			make(&kept->call);
		again = NULL;
		state_answered(kept->number);
		free(kept);
	}
}

/**
 * later_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int later_timeout_ms(void)
{
	if (STAILQ_EMPTY(&waiting))
		return -1;
	return ms_until(next_look_ms);
}
