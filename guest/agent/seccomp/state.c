// SPDX-License-Identifier: Apache-2.0
/*
 * state.c - what outlives an agent: the calls it owes an answer, names of
 * tokens
 *
 * Theory of operation
 * ===================
 *
 * The seccomp listener outlives the agent, because whoever started it (init)
 * holds it, too. New calls then wait in the kernel for the next agent. But a
 * call that was received and not answered is nowhere but in the agent that
 * received it: the kernel doesn't give it out twice, and its thread would sleep
 * for ever. So these calls are kept in shared memory, a memfd that goes with
 * the listener, and the next agent takes them over:
 *
 * - The call that was being handled is answered with an error. It may be what
 *   the agent died of, so it isn't tried again.
 * - So is one that was received and not yet written down. The kernel numbers
 *   notifications in sequence, gives them out in that order, and refuses an
 *   answer to one that it hasn't given out; so the next few numbers are tried.
 * - Calls that waited (wait.c) are handled as if they were made just now: their
 *   sockets are connecting, and a connect() of such a socket waits on.
 *
 * What the host granted is there, destinations of tokens, and clients'
 * addresses, for getpeername() of connections that the agent before this one
 * made or took. So are published listeners, which live on in their programs and
 * have to be announced anew (listen.c), and the peers of UDP sockets, which
 * programs' sockets are connected to by the relay's port (relay.c).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/datagram.h"
#include "agent/tsi.h"

#define MAX_KEPT  16384
#define LOST_SPAN 1024 /* numbers of calls that left before they were seen */

/**
 * struct kept - A call
 * @used:	Whether there is one
 * @tid:	As in struct call, like the others
 * @nr:		"
 * @id:		"
 * @args:	"
 */
struct kept {
	bool used;
	pid_t tid;
	int nr;
	uint64_t id;
	uint64_t args[6];
};

/**
 * struct state - The shared memory
 * @beat:	loop.c's, for init
 * @current:	The call that is being handled
 * @waiting:	Calls that wait
 * @welcome:	control.c's
 * @routes:	routes.c's
 * @callers:	callers.c's
 * @published:	listeners.c's
 * @datagrams:	peers.c's and relay.c's
 */
struct state {
	struct beat beat;
	struct kept current;
	struct kept waiting[MAX_KEPT];
	struct tsi_welcome welcome;
	struct route routes[MAX_WINDOW];
	struct caller callers[CALLERS];
	struct published published[MAX_PUBLISHED];
	struct datagrams datagrams;
};

static struct state *state;
static unsigned lowest; /* slot of waiting[] that may be free */

/**
 * state_create() - Make the memory
 *
 * Returns: memfd, -1 with errno set otherwise
 */
int state_create(void)
{
	int fd = memfd_create("tsi-agent", MFD_CLOEXEC);

	if (fd >= 0 && ftruncate(fd, sizeof(*state))) {
		close(fd);
		return -1;
	}
	return fd;
}

/**
 * state_map() - Use the memory
 * @fd:		From state_create(), perhaps of the agent before this one
 *
 * Returns: 0, or -1 with errno set
 */
int state_map(int fd)
{
	void *memory = mmap(NULL, sizeof(*state), PROT_READ | PROT_WRITE,
			    MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		return -1;
	state = memory;
	loop_beat(&state->beat);
	return 0;
}

/**
 * keep() - Write a call down
 * @kept:	Where
 * @call:	Call
 */
static void keep(struct kept *kept, const struct call *call)
{
	kept->tid = call->tid;
	kept->nr = call->nr;
	kept->id = call->id;
	memcpy(kept->args, call->args, sizeof(kept->args));
	__atomic_store_n(&kept->used, true, __ATOMIC_RELEASE);
}

/**
 * state_begin() - A call is being handled from here on
 * @call:	Call
 */
void state_begin(const struct call *call)
{
	keep(&state->current, call);
}

/**
 * state_end() - It is answered, or waits
 */
void state_end(void)
{
	__atomic_store_n(&state->current.used, false, __ATOMIC_RELEASE);
}

/**
 * state_wait() - A call waits from here on
 * @call:	Call
 *
 * Returns: number for state_answered(), -1 if too many do
 */
int state_wait(const struct call *call)
{
	for (; lowest < MAX_KEPT; lowest++)
		if (!state->waiting[lowest].used) {
			keep(&state->waiting[lowest], call);
			return (int)lowest++;
		}
	return -1;
}

/**
 * state_answered() - It doesn't wait any more
 * @number:	From state_wait()
 */
void state_answered(int number)
{
	__atomic_store_n(&state->waiting[number].used, false, __ATOMIC_RELEASE);
	lowest = MIN(lowest, (unsigned)number);
}

/**
 * state_welcome() - Memory for control.c
 *
 * Returns: what the host granted; zeros: it hasn't yet
 */
struct tsi_welcome *state_welcome(void)
{
	return &state->welcome;
}

/**
 * state_routes() - Memory for routes.c
 *
 * Returns: MAX_WINDOW routes
 */
struct route *state_routes(void)
{
	return state->routes;
}

/**
 * state_callers() - Memory for callers.c
 *
 * Returns: CALLERS ranges
 */
struct caller *state_callers(void)
{
	return state->callers;
}

/**
 * state_published() - Memory for listeners.c
 *
 * Returns: MAX_PUBLISHED listeners
 */
struct published *state_published(void)
{
	return state->published;
}

/**
 * state_datagrams() - Memory for peers.c and relay.c
 *
 * Returns: the memory
 */
struct datagrams *state_datagrams(void)
{
	return &state->datagrams;
}

/**
 * state_take_over() - Answer what the agent before this one didn't
 * @resume:	Called with each call that waited; it may wait again
 */
void state_take_over(void (*resume)(const struct call *call))
{
	static struct kept waited[MAX_KEPT];
	const struct kept current = state->current;

	memcpy(waited, state->waiting, sizeof(waited));
	if (current.used && notify_valid(current.id))
		reply_error(current.id,
			    current.nr == SYS_connect ? ENETUNREACH : ENOBUFS);
	state_end();
	for (unsigned i = 1; current.id && i <= LOST_SPAN; i++)
		if (reply_error(current.id + i, ENOBUFS))
			break;
	for (unsigned i = 0; i < MAX_KEPT; i++) {
		const struct call call = {.id = waited[i].id,
					  .tid = waited[i].tid,
					  .nr = waited[i].nr,
					  .args = waited[i].args};

		if (!waited[i].used)
			continue;
		if (notify_valid(call.id))
			resume(&call);
		state_answered((int)i); /* not before: we may die of it, too */
	}
}
