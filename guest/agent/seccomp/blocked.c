// SPDX-License-Identifier: Apache-2.0
/*
 * blocked.c - trapped calls that block until there is something at their socket
 *
 * Theory of operation
 * ===================
 *
 * The event loop watches the socket, and the part of the agent that made the
 * list answers the call then. With SO_RCVTIMEO over it gets EAGAIN here. Nobody
 * tells the agent that a program was killed or interrupted in the call, so the
 * list is looked at every TICK_MS, and such a call let go of.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/param.h>
#include <sys/time.h>
#include <unistd.h>

#include "agent/tsi.h"

#define TICK_MS	 200
#define NEVER_MS INT64_MAX

/**
 * receive_deadline() - When a call on a socket gives up
 * @fd:		Socket
 * @now:	now_ms()
 *
 * Returns: ms, or NEVER_MS
 */
static int64_t receive_deadline(int fd, int64_t now)
{
	struct timeval limit = {0};
	socklen_t len = sizeof(limit);

	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &len);
	if (!limit.tv_sec && !limit.tv_usec)
		return NEVER_MS;
	return now + limit.tv_sec * 1000 + (limit.tv_usec + 999) / 1000;
}

/**
 * blocked_add() - Keep a call until there is something at its socket
 * @list:	List
 * @call:	Call; answered if there are too many
 * @fd:		Socket; ours from here on
 * @events:	What the event loop watches for
 * @ready:	Called when that is so
 *
 * Returns: what is kept; NULL if there are too many
 */
struct blocked *blocked_add(struct blocked_list *list, const struct call *call,
			    int fd, uint32_t events,
			    void (*ready)(struct source *, uint32_t))
{
	struct blocked *blocked = calloc(1, sizeof(*blocked));
	int64_t now = now_ms();

	if (blocked)
		blocked->number = state_wait(call);
	if (!blocked || blocked->number < 0) {
		free(blocked);
		reply_error(call->id, ENOMEM);
		close(fd);
		return NULL;
	}
	blocked->source.ready = ready;
	blocked->call = *call;
	memcpy(blocked->args, call->args, sizeof(blocked->args));
	blocked->call.args = blocked->args;
	blocked->fd = fd;
	blocked->pidfd = -1;
	blocked->deadline_ms = receive_deadline(fd, now);
	if (LIST_EMPTY(&list->head) || list->next_look_ms > now + TICK_MS)
		list->next_look_ms = now + TICK_MS;
	list->next_look_ms = MIN(list->next_look_ms, blocked->deadline_ms);
	LIST_INSERT_HEAD(&list->head, blocked, link);
	loop_add(&blocked->source, fd, events);
	return blocked;
}

/**
 * blocked_free() - Forget a call
 * @blocked:	Call, answered or gone
 */
void blocked_free(struct blocked *blocked)
{
	LIST_REMOVE(blocked, link);
	state_answered(blocked->number);
	loop_del(blocked->fd);
	close(blocked->fd);
	if (blocked->pidfd >= 0) {
		loop_del(blocked->pidfd);
		close(blocked->pidfd);
	}
	blocked->exit.dead = true;
	loop_bury(&blocked->source);
}

/**
 * exited() - The process of a call has ended
 * @source:	The call's @exit
 * @events:	Unused
 */
static void exited(struct source *source, uint32_t events)
{
	(void)events;
	blocked_free(
	    (struct blocked *)(void *)((char *)source -
				       offsetof(struct blocked, exit)));
}

/**
 * blocked_until_exit() - Let go of a call as soon as its process ends
 * @blocked:	Call
 */
void blocked_until_exit(struct blocked *blocked)
{
	blocked->exit.ready = exited;
	blocked->pidfd = target_pidfd(&blocked->call);
	if (blocked->pidfd >= 0)
		loop_add(&blocked->exit, blocked->pidfd, EPOLLIN);
}

/**
 * blocked_drop_stale() - Let go of calls that were interrupted or are over
 * @list:	List
 */
void blocked_drop_stale(struct blocked_list *list)
{
	struct blocked *blocked, *next;
	int64_t now;

	if (LIST_EMPTY(&list->head))
		return;
	now = now_ms();
	list->next_look_ms = now + TICK_MS;
	for (blocked = LIST_FIRST(&list->head); blocked; blocked = next) {
		bool valid = notify_valid(blocked->call.id);

		next = LIST_NEXT(blocked, link);
		if (valid && now < blocked->deadline_ms) {
			list->next_look_ms =
			    MIN(list->next_look_ms, blocked->deadline_ms);
			continue;
		}
		if (valid)
			reply_error(blocked->call.id, EAGAIN);
		blocked_free(blocked);
	}
}

/**
 * blocked_tick() - Same, if it is time to
 * @list:	List
 */
void blocked_tick(struct blocked_list *list)
{
	if (blocked_timeout_ms(list) == 0)
		blocked_drop_stale(list);
}

/**
 * blocked_timeout_ms() - How long the event loop may sleep
 * @list:	List
 *
 * Returns: ms, -1 for any time
 */
int blocked_timeout_ms(const struct blocked_list *list)
{
	if (LIST_EMPTY(&list->head))
		return -1;
	return ms_until(list->next_look_ms);
}
