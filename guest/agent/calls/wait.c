// SPDX-License-Identifier: Apache-2.0
/*
 * wait.c - trapped calls that are answered when more is known
 *
 * Theory of operation
 * ===================
 *
 * Two things are waited for. A blocking connect() waits for its socket, which
 * the event loop watches. A connect() or getsockopt(SO_ERROR) that found a
 * failure waits for its errno: that comes from the host (failures.c), while the
 * socket only says ECONNRESET. When the socket's word is seen first, the
 * answer waits for the message, at most FAILED_WAIT_MS. A program that a signal
 * takes away meanwhile is owed the answer: it gets it when it asks again.
 *
 * Any number of calls may wait: nothing here looks at all of them but the tick.
 * Nobody tells the agent that a waiting program was killed or interrupted, so
 * it looks every TICK_MS, and lets go of those sockets. An attempt goes on
 * without its program, as with TCP; LABEL_UNREPORTED says that the program
 * hasn't heard of the outcome.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "agent/tsi.h"

#define TICK_MS	       200
#define FAILED_WAIT_MS 1000
#define SOON_MS	       5   /* see wait_for_outcome() */
#define BUCKETS	       256 /* of waiters for a FAILED message, by port */
#define NEVER_MS       INT64_MAX

/**
 * struct waiter - A trapped call that isn't answered yet
 * @source:	In the event loop, while the socket is connecting
 * @link:	In connecting, or in awaiting[] by @guest_port
 * @call:	The call; its args are a copy
 * @args:	That copy
 * @fd:		The socket
 * @guest_port:	Whose FAILED message is awaited; 0: it is connecting
 * @deadline_ms: When to give up
 * @resumed:	The label says LABEL_UNREPORTED
 * @number:	state_wait()'s
 */
struct waiter {
	struct source source;
	LIST_ENTRY(waiter) link;
	struct call call;
	uint64_t args[6];
	int fd;
	uint32_t guest_port;
	int64_t deadline_ms;
	bool resumed;
	int number;
};

LIST_HEAD(waiter_list, waiter);

static struct waiter_list connecting = LIST_HEAD_INITIALIZER(connecting);
static struct waiter_list awaiting[BUCKETS];
static unsigned waiters;
static int64_t next_look_ms; /* meaningful while there are waiters */

/**
 * waiter_new() - Keep a call for later
 * @call:	Call
 * @deadline_ms: When to give up, or NEVER_MS
 *
 * Returns: the waiter, on no list; NULL if there are too many
 */
static struct waiter *waiter_new(const struct call *call, int64_t deadline_ms)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));
	int64_t now;

	if (!waiter)
		return NULL;
	waiter->number = state_wait(call);
	if (waiter->number < 0) {
		free(waiter);
		return NULL;
	}
	waiter->call = *call;
	memcpy(waiter->args, call->args, sizeof(waiter->args));
	waiter->call.args = waiter->args;
	waiter->fd = -1;
	waiter->deadline_ms = deadline_ms;

	now = now_ms();
	if (waiters++ == 0 || next_look_ms > now + TICK_MS)
		next_look_ms = now + TICK_MS;
	if (next_look_ms > deadline_ms)
		next_look_ms = deadline_ms;
	return waiter;
}

/**
 * waiter_release() - Let go of a waiter's socket
 * @waiter:	Waiter
 *
 * Closing our descriptor doesn't take it out of epoll: the program still has
 * the file open.
 */
static void waiter_release(struct waiter *waiter)
{
	if (waiter->fd < 0)
		return;
	loop_del(waiter->fd);
	close(waiter->fd);
	waiter->fd = -1;
}

/**
 * waiter_free() - Forget a waiter
 * @waiter:	Waiter on a list
 */
static void waiter_free(struct waiter *waiter)
{
	LIST_REMOVE(waiter, link);
	state_answered(waiter->number);
	waiter_release(waiter);
	waiters--;
	loop_bury(&waiter->source);
}

/**
 * tell_error() - Answer a connect() or a getsockopt(SO_ERROR)
 * @call:	Call
 * @error:	Outcome of the connection attempt
 *
 * Returns: false if the target had left
 */
bool tell_error(const struct call *call, int error)
{
	if (call->nr == SYS_connect)
		return reply_error(call->id, error);
	return reply_error(call->id,
			   answer_option(call, &error, sizeof(error)));
}

/**
 * owe() - The program hasn't been told the outcome, or it now has
 * @fd:		Socket
 * @owed:	Which
 */
static void owe(int fd, bool owed)
{
	if (owed)
		sock_change_label(fd, LABEL_UNREPORTED, 0);
	else
		sock_change_label(fd, 0, LABEL_UNREPORTED);
}

/**
 * tell_failed() - Answer with the errno of a failed attempt, or owe it
 * @call:	connect() or getsockopt(SO_ERROR)
 * @fd:		Socket, settled
 * @port:	Its port
 * @error:	The errno
 *
 * Returns: false if the target had left
 */
static bool tell_failed(const struct call *call, int fd, uint32_t port,
			int error)
{
	if (tell_error(call, error)) {
		sock_change_label(fd,
				  call->nr == SYS_connect ? 0 : LABEL_ABORTED,
				  LABEL_UNREPORTED);
		failures_owed(port);
		return true;
	}
	failures_keep(port, error);
	owe(fd, true);
	return false;
}

/**
 * tell_failure() - Answer with the errno of a failed attempt, once it is known
 * @call:	connect() or getsockopt(SO_ERROR)
 * @fd:		Socket, settled; not used after this returns
 * @error:	What the socket said
 */
void tell_failure(const struct call *call, int fd, int error)
{
	uint32_t port = sock_local_port(fd);
	struct waiter *waiter = NULL;
	uint64_t label;

	if (error == ECONNRESET) {
		error = sock_label(fd, &label) && (label & LABEL_LOCAL)
			    ? ECONNREFUSED
			    : failures_take(port);
		if (!error)
			waiter = waiter_new(call, now_ms() + FAILED_WAIT_MS);
	}
	if (!waiter) {
		tell_failed(call, fd, port, error ? error : ECONNREFUSED);
		return;
	}
	owe(fd, true);
	waiter->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	waiter->guest_port = port;
	LIST_INSERT_HEAD(&awaiting[port % BUCKETS], waiter, link);
}

/**
 * awaits() - Waits a call for the FAILED message of a port?
 * @port:	Port
 *
 * Returns: true if one does
 */
static bool awaits(uint32_t port)
{
	const struct waiter *waiter;

	LIST_FOREACH(waiter, &awaiting[port % BUCKETS], link)
	if (waiter->guest_port == port)
		return true;
	return false;
}

/**
 * tell_owed() - Answer with a failure that a signal kept from the program
 * @call:	connect() or getsockopt(SO_ERROR)
 * @fd:		Socket that the program hasn't heard of
 *
 * Returns: false if there was none
 */
bool tell_owed(const struct call *call, int fd)
{
	uint32_t port = sock_local_port(fd);
	int error = failures_owed(port);

	if (!error && !awaits(port))
		return false;
	tell_failure(call, fd, error ? error : ECONNRESET);
	return true;
}

/**
 * wait_failure_arrived() - failures_take() has news
 * @guest_port:	The socket's port
 *
 * Of several calls the last one is told first: signals took the others away.
 */
void wait_failure_arrived(uint32_t guest_port)
{
	struct waiter *waiter, *next;
	bool told = false;
	int error = 0;

	for (waiter = LIST_FIRST(&awaiting[guest_port % BUCKETS]); waiter;
	     waiter = next) {
		next = LIST_NEXT(waiter, link);
		if (waiter->guest_port != guest_port)
			continue;
		if (!error)
			error = failures_take(guest_port);
		if (told)
			tell_error(&waiter->call, error);
		else
			told = tell_failed(&waiter->call, waiter->fd,
					   guest_port, error);
		waiter_free(waiter);
	}
}

/**
 * tell_outcome() - Answer a blocking connect(): the socket has its outcome
 * @call:	connect()
 * @fd:		Socket
 * @resumed:	The label says LABEL_UNREPORTED
 *
 * poll() events don't tell which outcome. vsock_poll() looks at the error
 * before it takes the socket's lock and at the state after it, so that a
 * failure in between shows as writable and without an error.
 */
static void tell_outcome(const struct call *call, int fd, bool resumed)
{
	bool connected = sock_peer_port(fd) != NO_PORT;
	int error = connected ? 0 : sock_settle(fd);

	if (!connected) {
		tell_failure(call, fd, error);
		return;
	}
	if (resumed)
		owe(fd, false);
	if (!reply_error(call->id, 0))
		owe(fd, true);
}

/**
 * waiter_ready() - A connecting socket has its outcome
 * @source:	The waiter's
 * @events:	Unused: they don't tell which
 */
static void waiter_ready(struct source *source, uint32_t events)
{
	struct waiter *waiter = (struct waiter *)source;

	(void)events;
	tell_outcome(&waiter->call, waiter->fd, waiter->resumed);
	waiter_free(waiter);
}

/**
 * send_deadline() - When a blocking connect() gives up by the program's wish
 * @fd:		Socket
 * @label:	Its label
 *
 * Returns: ms, or NEVER_MS
 */
static int64_t send_deadline(int fd, uint64_t label)
{
	struct timeval limit;
	socklen_t len = sizeof(limit);

	if (!(label & LABEL_SNDTIMEO) ||
	    getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, &len) ||
	    (!limit.tv_sec && !limit.tv_usec))
		return NEVER_MS;
	return now_ms() + limit.tv_sec * 1000 + (limit.tv_usec + 999) / 1000;
}

/**
 * wait_for_outcome() - Answer a blocking connect() when the kernel knows
 * @call:	connect()
 * @fd:		Socket, connecting; ours from here on
 * @label:	Its label
 * @resumed:	It was connecting before this call
 *
 * The host mostly answers within some microseconds. So the socket is waited
 * for by itself first, as long as nothing else happens, which saves putting
 * it into the event loop and out again.
 */
void wait_for_outcome(const struct call *call, int fd, uint64_t label,
		      bool resumed)
{
	struct waiter *waiter;

	if (loop_wait_for(fd, POLLOUT, SOON_MS)) {
		tell_outcome(call, fd, resumed);
		close(fd);
		return;
	}
	waiter = waiter_new(call, send_deadline(fd, label));
	if (!waiter) {
		reply_error(call->id, ENOMEM);
		close(fd);
		return;
	}
	waiter->source.ready = waiter_ready;
	waiter->fd = fd;
	waiter->resumed = resumed;
	LIST_INSERT_HEAD(&connecting, waiter, link);
	loop_add(&waiter->source, fd, EPOLLOUT);
}

/**
 * look_at() - Is a waiter still waiting, and not for too long?
 * @waiter:	Waiter
 * @now:	now_ms()
 *
 * Returns: true if it stays
 */
static bool look_at(struct waiter *waiter, int64_t now)
{
	bool late = now >= waiter->deadline_ms;
	bool valid = waiter->guest_port || notify_valid(waiter->call.id);

	if (valid && !late)
		return true;
	if (waiter->guest_port) {
		tell_failed(&waiter->call, waiter->fd, waiter->guest_port,
			    ECONNREFUSED);
	} else { /* the attempt goes on without the program */
		owe(waiter->fd, true);
		if (valid)
			tell_error(&waiter->call, EINPROGRESS);
	}
	waiter_free(waiter);
	return false;
}

/**
 * look_at_all() - Same for every waiter of a list
 * @list:	List
 * @now:	now_ms()
 */
static void look_at_all(struct waiter_list *list, int64_t now)
{
	struct waiter *waiter, *next;

	for (waiter = LIST_FIRST(list); waiter; waiter = next) {
		next = LIST_NEXT(waiter, link);
		if (look_at(waiter, now) && waiter->deadline_ms < next_look_ms)
			next_look_ms = waiter->deadline_ms;
	}
}

/**
 * wait_was_pending() - A call waited in the agent before this one
 * @call:	connect(), or another
 *
 * A program that connects hasn't heard of the outcome, which may be there by
 * now.
 */
void wait_was_pending(const struct call *call)
{
	bool connects = call->nr == SYS_connect || call->nr == SYS_getsockopt;
	int fd = connects ? target_fd(call, (int)call->args[0]) : -1;

	if (fd >= 0) {
		owe(fd, true);
		close(fd);
	}
}

/**
 * wait_drop_stale() - Let go of the sockets of interrupted connect() calls
 *
 * For a call that is restarted: the waiter of the interrupted one goes first,
 * or it would take the outcome for unreported.
 */
void wait_drop_stale(void)
{
	look_at_all(&connecting, now_ms());
}

/**
 * wait_tick() - Look at all waiters if it is time to
 */
void wait_tick(void)
{
	int64_t now;

	if (!waiters)
		return;
	now = now_ms();
	if (now < next_look_ms)
		return;
	next_look_ms = now + TICK_MS;
	look_at_all(&connecting, now);
	for (unsigned i = 0; i < BUCKETS; i++)
		look_at_all(&awaiting[i], now);
}

/**
 * wait_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int wait_timeout_ms(void)
{
	if (!waiters)
		return -1;
	return ms_until(next_look_ms);
}
