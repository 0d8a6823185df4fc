// SPDX-License-Identifier: Apache-2.0
/*
 * publish.c - what makes a bound TCP socket a published listener
 *
 * Theory of operation
 * ===================
 *
 * listen.c says what a published listener is. The host decides whether there is
 * to be one, and a listen() waits for it (later.c); the vsock listener is ours
 * meanwhile. A program that leaves in between is noticed at the next tick, and
 * the host told.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/tsi.h"

#define BIND_TRIES 1000
#define MANY	   65535 /* backlog that a negative one stands for */
#define ANSWER_MS  5000	 /* for the host to answer LISTEN */
#define TICK_MS	   200

/**
 * struct attempt - A listen() that waits for the host's answer
 * @link:	In attempts
 * @id:		The call
 * @inode:	Its TCP socket
 * @listener:	What it is to be
 * @fd:		Its vsock listener, which no program has yet
 * @answered:	The host has answered
 * @refused:	It has none
 * @error:	errno that listen() fails with, or 0
 */
struct attempt {
	LIST_ENTRY(attempt) link;
	uint64_t id;
	ino_t inode;
	struct listener *listener;
	int fd;
	bool answered;
	bool refused;
	int error;
};

static LIST_HEAD(, attempt) attempts = LIST_HEAD_INITIALIZER(attempts);

/**
 * bound_to() - What a TCP socket is bound to; it is bound to something now
 * @fd:		TCP socket
 * @ret_label:	What a listener in its place is labelled
 * @ret_name:	Address and port
 *
 * Returns: true if it is a TCP socket that is bound to more than loopback
 */
static bool bound_to(int fd, uint64_t *ret_label, struct destination *ret_name)
{
	struct sockaddr_storage sa = {0};
	socklen_t len = sizeof(sa);
	sa_family_t family;
	bool unspecified;

	if (getsockname(fd, (struct sockaddr *)&sa, &len) ||
	    !address_decode(&sa, len, ret_name))
		return false;
	if (!ret_name->port) { /* as listen() does */
		family = sa.ss_family;
		sa = (struct sockaddr_storage){.ss_family = family};
		len = sizeof(sa);
		if (bind(fd, (struct sockaddr *)&sa,
			 family == AF_INET6 ? sizeof(struct sockaddr_in6)
					    : sizeof(struct sockaddr_in)) ||
		    getsockname(fd, (struct sockaddr *)&sa, &len) ||
		    !address_decode(&sa, len, ret_name))
			return false;
	}
	*ret_label = kept_of(fd) | LABEL_INBOUND |
		     (sa.ss_family == AF_INET6 ? LABEL_V6 : 0);
	unspecified = IN6_IS_ADDR_V4MAPPED(&ret_name->address)
			  ? !ret_name->address.s6_addr32[3]
			  : IN6_IS_ADDR_UNSPECIFIED(&ret_name->address);
	return unspecified || !address_is_native(ret_name);
}

/**
 * bind_free() - Bind to a vsock port that a TCP port is the lower half of
 * @fd:		Socket, not bound
 * @tcp:	TCP port
 * @ret_port:	vsock port
 *
 * Any program may bind vsock ports. Those that listeners usually have may be
 * taken; then others are tried, which nobody knows before.
 *
 * Returns: 0, or an errno
 */
static int bind_free(int fd, uint16_t tcp, uint32_t *ret_port)
{
	uint32_t upper = LISTENERS;
	int error = EADDRINUSE;

	for (unsigned i = 1; i <= BIND_TRIES && error == EADDRINUSE; i++) {
		*ret_port = VSOCK_PORT(upper, tcp);
		error = ports_bind(fd, *ret_port);
		upper++;
		if (i >= FEW_SHARED && getrandom(&upper, sizeof(upper), 0) > 0)
			upper =
			    FIRST_BOUND + upper % (FIRST_CALLER - FIRST_BOUND);
	}
	return error;
}

/**
 * make_vsock() - A vsock listener for a TCP port
 * @is:		What it is to be; its port is set
 * @nonblock:	Whether it is non-blocking
 *
 * Returns: the socket; -1 with errno set otherwise
 */
static int make_vsock(struct published *is, bool nonblock)
{
	int family = is->label & LABEL_V6 ? AF_INET6 : AF_INET;
	int fd = sock_create(family, nonblock);
	uint32_t port = 0;
	int error;

	if (fd < 0)
		return -1;
	room_listener(fd);
	error = bind_free(fd, is->name.port, &port);
	sock_set_label(fd, is->label);
	if (!error && listen(fd, is->backlog))
		error = errno;
	if (error) {
		close(fd);
		errno = error;
		return -1;
	}
	is->port = port;
	return fd;
}

/**
 * publish_reserve() - Have a bound TCP socket keep its port as a listener would
 * @inet:	The socket
 *
 * Sockets with SO_REUSEADDR may be bound to one port as long as none of them
 * listens; the kernel remembers that of the port, and forgets it when one
 * listens. That one then stops to, so that nobody waits in a queue that is
 * never emptied. A port that the kernel chose would be given back with it.
 */
void publish_reserve(int inet)
{
	struct sockaddr_storage sa = {0};
	socklen_t len = sizeof(sa);

	if (getsockname(inet, (struct sockaddr *)&sa, &len))
		return;
	if (!listen(inet, 0))
		shutdown(inet, SHUT_RD);
	bind(inet, (struct sockaddr *)&sa, len); /* EINVAL: it is, still */
	setsockopt(inet, SOL_SOCKET, SO_REUSEADDR, &(int){0}, sizeof(int));
}

/**
 * attempt_of() - The attempt that a call has begun
 * @call:	listen()
 * @inode:	Of its TCP socket
 *
 * Returns: attempt; NULL: none
 */
static struct attempt *attempt_of(const struct call *call, ino_t inode)
{
	struct attempt *attempt;

	if (!later_is_again(call))
		return NULL;
	LIST_FOREACH(attempt, &attempts, link)
	if (attempt->id == call->id && attempt->inode == inode)
		return attempt;
	return NULL;
}

/**
 * attempt_end() - Forget an attempt
 * @attempt:	Attempt
 * @unlisten:	The host may have a listener, and isn't to have it
 */
static void attempt_end(struct attempt *attempt, bool unlisten)
{
	LIST_REMOVE(attempt, link);
	close(attempt->fd);
	if (unlisten)
		control_unlisten(attempt->listener->is->port);
	if (unlisten || attempt->refused) {
		closings_forget(attempt->listener);
		listeners_free(attempt->listener);
	}
	free(attempt);
}

/**
 * publish_tick() - Forget the attempts of programs that left
 */
void publish_tick(void)
{
	struct attempt *attempt = LIST_FIRST(&attempts), *next;

	for (; attempt; attempt = next) {
		next = LIST_NEXT(attempt, link);
		if (!notify_valid(attempt->id))
			attempt_end(attempt, true);
	}
}

/**
 * publish_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int publish_timeout_ms(void)
{
	return LIST_EMPTY(&attempts) ? -1 : TICK_MS;
}

/**
 * publish_answered() - The host has answered LISTEN
 * @listener:	vsock port
 * @port:	TCP port that clients reach it at; 0: none does
 * @error:	errno that listen() fails with, or 0
 */
void publish_answered(uint32_t listener, uint16_t port, int error)
{
	struct attempt *attempt;

	LIST_FOREACH(attempt, &attempts, link)
	if (attempt->listener->is->port == listener) {
		attempt->answered = true;
		attempt->refused = error || !port;
		attempt->error = error;
		later_wake(listener);
	}
}

/**
 * attempt_begin() - Make a vsock listener, and tell the host of it
 * @call:	listen()
 * @inet:	Its TCP socket
 * @inode:	The same
 * @ret_error:	errno that listen() fails with; 0: it isn't to be published
 *
 * Returns: attempt; NULL if there is none
 */
static struct attempt *attempt_begin(const struct call *call, int inet,
				     ino_t inode, int *ret_error)
{
	int backlog = (int)call->args[1], error = 0;
	struct attempt *attempt = calloc(1, sizeof(*attempt));
	struct listener *listener = attempt ? listeners_new() : NULL;

	*ret_error = 0;
	if (!listener) {
		free(attempt);
		return NULL;
	}
	closings_expect(listener);
	*listener->is =
	    (struct published){.backlog = backlog < 0 ? MANY : backlog};
	*attempt = (struct attempt){
	    .id = call->id, .listener = listener, .inode = inode, .fd = -1};
	if (bound_to(inet, &listener->is->label, &listener->is->name)) {
		attempt->fd =
		    make_vsock(listener->is, sock_is_nonblocking(inet));
		error = attempt->fd < 0 ? errno : 0;
	}
	if (attempt->fd < 0) {
		closings_forget(listener);
		listeners_free(listener);
		free(attempt);
		*ret_error = error == EADDRINUSE ? error : 0;
		return NULL;
	}
	LIST_INSERT_HEAD(&attempts, attempt, link);
	control_keep();
	listeners_announce(listener);
	return attempt;
}

/**
 * attempt_finish() - The host has answered, or doesn't
 * @call:	listen()
 * @attempt:	Attempt
 * @inet:	The TCP socket; ours to close only if this returns false
 *
 * Returns: false if the kernel is to go on with the call
 */
static bool attempt_finish(const struct call *call, struct attempt *attempt,
			   int inet)
{
	struct listener *listener = attempt->listener;
	int error = attempt->error;

	if (!attempt->answered || attempt->refused) {
		attempt_end(attempt, !attempt->answered);
		if (!error)
			return false;
		reply_error(call->id, error);
		close(inet);
		return true;
	}
	error = swap_exchange(call, (int)call->args[0], inet, attempt->fd);
	if (later_retry(call, error)) {
		close(inet);
		return true;
	}
	if (error) {
		attempt_end(attempt, true);
		reply_error(call->id, error);
		close(inet);
		return true;
	}
	debug("port %u is published: %#x", listener->is->name.port,
	      listener->is->port);
	closings_watch(listener, attempt->fd);
	listener->inet = inet;
	listener->tgid = target_tgid(call->tid);
	listener->num = (int)call->args[0];
	publish_reserve(inet);
	attempt_end(attempt, false); /* the program has it */
	reply_error(call->id, 0);
	return true;
}

/**
 * publish() - Make a TCP socket a published listener, if it is to be one
 * @call:	listen()
 * @inet:	The TCP socket; ours to close only if this returns false
 *
 * The call waits for the host's answer. Should we die meanwhile: the next agent
 * announces the listener if the program has got it, and otherwise finds its
 * port free.
 *
 * Returns: false if the kernel is to go on with the call
 */
bool publish(const struct call *call, int inet)
{
	struct attempt *attempt;
	struct stat status;
	int error = 0;

	if (fstat(inet, &status))
		return false;
	attempt = attempt_of(call, status.st_ino);
	if (!attempt)
		attempt = attempt_begin(call, inet, status.st_ino, &error);
	if (!attempt && !error)
		return false;
	if (!attempt) {
		reply_error(call->id, error); /* somebody has all of them */
		close(inet);
		return true;
	}
	if (!attempt->answered && (control_is_open() || control_is_opening()) &&
	    later_keep(call, attempt->listener->is->port, ANSWER_MS)) {
		close(inet);
		return true;
	}
	return attempt_finish(call, attempt, inet);
}
