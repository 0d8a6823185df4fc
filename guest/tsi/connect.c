// SPDX-License-Identifier: Apache-2.0
/*
 * connect.c - connect(), and what a program learns of its outcome
 *
 * Theory of operation
 * ===================
 *
 * The agent connects the program's own socket to the destination's token,
 * without blocking. What happens next depends on the program's O_NONBLOCK:
 *
 * - Set: the program gets EINPROGRESS and the agent lets go of the socket. The
 *   kernel reports the outcome to the program's poll or epoll as for TCP. The
 *   connect is started before the answer: an unconnected vsock socket polls
 *   writable, and the program would take that for success.
 * - Clear: the agent waits in its event loop, for any number of sockets, and
 *   answers when the kernel knows. (O_NONBLOCK is the file's: it is set around
 *   the connect() for the few microseconds that takes.)
 *
 * A program may hear of the outcome later than it happened: after EINPROGRESS,
 * after a signal that took it out of connect(), or after SO_SNDTIMEO. Until it
 * does, the socket's label says LABEL_UNREPORTED, and then, as with TCP:
 *
 *	outcome		next connect()		getsockopt(SO_ERROR)
 *	none yet	EALREADY, or waits	0
 *	connected	0, then EISCONN		0
 *	failed		the errno, then anew	the errno; the connect() after
 *						it says ECONNABORTED, then anew
 *
 * A failure's errno comes from the host (control.c), while the socket only
 * says ECONNRESET. When that is seen first, the answer waits for the message,
 * at most FAILED_WAIT_MS.
 *
 * Nobody tells the agent that a waiting program was killed or interrupted, so
 * it looks every TICK_MS, and lets go of those sockets.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "tsi.h"

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
 * @fd:		The socket while it is connecting, then -1
 * @guest_port:	Whose FAILED message is awaited
 * @deadline_ms: When to give up
 * @resumed:	The label says LABEL_UNREPORTED
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
};

LIST_HEAD(waiter_list, waiter);

static struct waiter_list connecting = LIST_HEAD_INITIALIZER(connecting);
static struct waiter_list awaiting[BUCKETS];
static unsigned waiters;
static int64_t next_look_ms; /* meaningful while there are waiters */

/* ---- waiters ---- */

/**
 * waiter_new() - Keep a call for later
 * @call:	Call
 * @deadline_ms: When to give up, or NEVER_MS
 *
 * Returns: the waiter, on no list; NULL if out of memory
 */
static struct waiter *waiter_new(const struct call *call, int64_t deadline_ms)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));
	int64_t now;

	if (!waiter)
		return NULL;
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
	waiter_release(waiter);
	waiters--;
	loop_bury(&waiter->source);
}

/**
 * answer() - Answer a connect() or a getsockopt(SO_ERROR)
 * @call:	Call
 * @error:	Outcome of the connection attempt
 *
 * Returns: false if the target had left
 */
static bool answer(const struct call *call, int error)
{
	if (call->nr == SYS_connect)
		return reply_error(call->id, error);
	return reply_error(call->id, option_reply(call, &error, sizeof(error)));
}

/**
 * owe() - The program hasn't been told the outcome, or it now has
 * @fd:		Socket
 * @owed:	Which
 */
static void owe(int fd, bool owed)
{
	uint64_t label;

	if (!sock_label(fd, &label))
		return;
	sock_set_label(fd, owed ? label | LABEL_UNREPORTED
				: label & ~LABEL_UNREPORTED);
}

/**
 * tell_failure() - Answer with the errno of a failed attempt, once it is known
 * @call:	connect() or getsockopt(SO_ERROR)
 * @fd:		Socket, settled; not used after this returns
 * @error:	What the socket said
 */
static void tell_failure(const struct call *call, int fd, int error)
{
	uint32_t guest_port;
	struct waiter *waiter;

	if (error != ECONNRESET) {
		answer(call, error);
		return;
	}
	guest_port = sock_local_port(fd);
	error = control_failure(guest_port);
	waiter = error ? NULL : waiter_new(call, now_ms() + FAILED_WAIT_MS);
	if (!waiter) {
		answer(call, error ? error : ECONNREFUSED);
		return;
	}
	waiter->guest_port = guest_port;
	LIST_INSERT_HEAD(&awaiting[guest_port % BUCKETS], waiter, link);
}

/**
 * connect_failure_arrived() - control_failure() has news
 * @guest_port:	The socket's port
 */
void connect_failure_arrived(uint32_t guest_port)
{
	struct waiter *waiter, *next;

	for (waiter = LIST_FIRST(&awaiting[guest_port % BUCKETS]); waiter;
	     waiter = next) {
		next = LIST_NEXT(waiter, link);
		if (waiter->guest_port != guest_port)
			continue;
		answer(&waiter->call, control_failure(guest_port));
		waiter_free(waiter);
		return;
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

	if (resumed)
		owe(fd, false);
	if (!connected)
		tell_failure(call, fd, error);
	else if (!reply_error(call->id, 0))
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
 * look_at() - Is a waiter still waiting, and not for too long?
 * @waiter:	Waiter
 * @now:	now_ms()
 *
 * Returns: true if it stays
 */
static bool look_at(struct waiter *waiter, int64_t now)
{
	bool valid = notify_valid(waiter->call.id);

	if (valid && now < waiter->deadline_ms)
		return true;
	if (waiter->fd >= 0) { /* the attempt goes on without the program */
		owe(waiter->fd, true);
		if (valid)
			answer(&waiter->call, EINPROGRESS);
	} else if (valid) {
		answer(&waiter->call, ECONNREFUSED);
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
 * connect_tick() - Look at all waiters if it is time to
 */
void connect_tick(void)
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
 * connect_poll_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int connect_poll_timeout_ms(void)
{
	int64_t left;

	if (!waiters)
		return -1;
	left = next_look_ms - now_ms();
	return left > 0 ? (int)left : 0;
}

/* ---- connect() ---- */

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
static void wait_for_outcome(const struct call *call, int fd, uint64_t label,
			     bool resumed)
{
	struct waiter *waiter;

	sock_refill(); /* in the time that the host takes */
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
 * already() - connect() on a socket that is connecting, or has just failed
 * @call:	connect()
 * @fd:		Socket; ours from here on
 * @label:	Its label
 * @nonblock:	Whether the program asked not to wait
 */
static void already(const struct call *call, int fd, uint64_t label,
		    bool nonblock)
{
	struct pollfd state = {.fd = fd, .events = POLLOUT};

	poll(&state, 1, 0);
	if (state.revents & POLLERR) {
		sock_set_label(fd, label & ~LABEL_UNREPORTED);
		tell_failure(call, fd, sock_settle(fd));
		close(fd);
	} else if (nonblock && !state.revents) {
		reply_error(call->id, EALREADY);
		close(fd);
	} else {
		/* A restarted call: the waiter of the interrupted one goes
		 * first, or it would take the outcome for unreported. */
		look_at_all(&connecting, now_ms());
		wait_for_outcome(call, fd, label | LABEL_UNREPORTED, true);
	}
}

/**
 * start() - Connect a socket to a token
 * @call:	connect()
 * @fd:		One of our sockets; ours from here on
 * @label:	Its label
 * @token:	Token
 */
static void start(const struct call *call, int fd, uint64_t label,
		  uint32_t token)
{
	bool nonblock = sock_is_nonblocking(fd);
	int error;

	if (!nonblock)
		sock_set_nonblocking(fd, true);
	error = sock_connect(fd, token);
	if (!nonblock)
		sock_set_nonblocking(fd, false);

	if (error == EALREADY) {
		already(call, fd, label, nonblock);
		return;
	}
	if (error == EINPROGRESS && !nonblock) {
		wait_for_outcome(call, fd, label, false);
		return;
	}
	if (error == EINPROGRESS) {
		sock_set_label(fd, label | LABEL_UNREPORTED);
	} else if (error == EISCONN && (label & LABEL_UNREPORTED)) {
		sock_set_label(fd, label & ~LABEL_UNREPORTED);
		error = 0;
	} else if (error == ENODEV) { /* no transport to the host */
		error = ENETUNREACH;
	}
	reply_error(call->id, error);
	close(fd);
}

/**
 * is_native() - Does a destination stay in the guest?
 * @dst:	Destination
 *
 * Returns: true for loopback, and for the unspecified address, which connect()
 *	takes for loopback
 */
static bool is_native(const struct destination *dst)
{
	const struct in6_addr *addr = &dst->address;

	if (IN6_IS_ADDR_V4MAPPED(addr))
		return addr->s6_addr[12] == 127 || addr->s6_addr32[3] == 0;
	return IN6_IS_ADDR_LOOPBACK(addr) || IN6_IS_ADDR_UNSPECIFIED(addr);
}

/**
 * decode() - Understand a connect() address
 * @sa:		sockaddr
 * @len:	Bytes of it
 * @ret_dst:	Destination
 *
 * Returns: true if it is an IPv4 or IPv6 address
 */
static bool decode(const struct sockaddr_storage *sa, size_t len,
		   struct destination *ret_dst)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
	struct destination dst = {0};

	if (sa->ss_family == AF_INET && len >= sizeof(*in)) {
		dst.port = ntohs(in->sin_port);
		dst.address.s6_addr16[5] = 0xffff;
		dst.address.s6_addr32[3] = in->sin_addr.s_addr;
	} else if (sa->ss_family == AF_INET6 &&
		   len >= offsetof(struct sockaddr_in6, sin6_scope_id)) {
		dst.port = ntohs(in6->sin6_port);
		dst.address = in6->sin6_addr;
	} else {
		return false;
	}
	*ret_dst = dst;
	return true;
}

/**
 * check_family() - Would TCP take this address on this socket?
 * @label:	Socket's label
 * @sa:		Address, decoded all right
 * @dst:	Same
 *
 * Returns: 0, or the errno
 */
static int check_family(uint64_t label, const struct sockaddr_storage *sa,
			const struct destination *dst)
{
	bool v6 = sa->ss_family == AF_INET6;

	if (v6 != !!(label & LABEL_V6))
		return v6 ? EAFNOSUPPORT : EINVAL; /* too short for IPv6 */
	if (v6 && (label & LABEL_V6ONLY) && IN6_IS_ADDR_V4MAPPED(&dst->address))
		return ENETUNREACH;
	return 0;
}

/**
 * connect_ours() - connect() on one of our sockets
 * @call:	connect()
 * @fd:		Socket; ours from here on
 * @label:	Its label
 * @dst:	Destination
 */
static void connect_ours(const struct call *call, int fd, uint64_t label,
			 const struct destination *dst)
{
	uint32_t token;
	int error = 0;

	if (label & LABEL_ABORTED) {
		sock_set_label(fd, label & ~LABEL_ABORTED);
		error = ECONNABORTED;
	} else if (is_native(dst) && sock_peer_port(fd) == NO_PORT &&
		   !(label & LABEL_UNREPORTED)) {
		error = swap_to_inet(call, (int)call->args[0], fd, label);
		close(fd);
		if (error)
			reply_error(call->id, error);
		else
			reply_native(call->id);
		return;
	} else {
		error = control_token(dst, &token);
	}
	if (error) {
		reply_error(call->id, error);
		close(fd);
		return;
	}
	start(call, fd, label, token);
}

/**
 * connect_trapped() - connect()
 * @call:	The call
 */
void connect_trapped(const struct call *call)
{
	struct sockaddr_storage sa = {0};
	size_t len = (uint32_t)call->args[2];
	struct destination dst;
	uint64_t label = 0;
	int fd = -1, error = 0;

	if (len > sizeof(struct sockaddr_in6))
		len = sizeof(struct sockaddr_in6);
	if (target_read(call, call->args[1], &sa, len) ||
	    !decode(&sa, len, &dst)) {
		reply_native(call->id);
		return;
	}
	fd = target_fd(call, (int)call->args[0]);
	if (fd < 0 || !notify_valid(call->id)) {
		reply_native(call->id);
	} else if (sock_label(fd, &label)) {
		error = check_family(label, &sa, &dst);
		if (!error) {
			connect_ours(call, fd, label, &dst);
			return;
		}
		reply_error(call->id, error);
	} else if (is_native(&dst) || !swap_is_tcp(fd)) {
		reply_native(call->id);
	} else {
		/* A TCP socket that bound itself first, or from before us */
		error = swap_to_vsock(call, (int)call->args[0], &fd);
		if (!error && sock_label(fd, &label)) {
			connect_ours(call, fd, label, &dst);
			return;
		}
		reply_error(call->id, error ? error : EINVAL);
	}
	if (fd >= 0)
		close(fd);
}

/**
 * connect_error_wanted() - getsockopt(SO_ERROR) on one of our sockets
 * @call:	The call
 * @fd:		Socket; the caller closes it
 * @label:	Its label
 */
void connect_error_wanted(const struct call *call, int fd, uint64_t label)
{
	struct pollfd state = {.fd = fd};
	int error = 0;
	socklen_t len = sizeof(error);

	poll(&state, 1, 0);
	if (!(state.revents & POLLERR)) {
		answer(call, 0);
	} else if (label & LABEL_UNREPORTED) {
		sock_set_label(fd, (label & ~LABEL_UNREPORTED) | LABEL_ABORTED);
		tell_failure(call, fd, sock_settle(fd));
	} else { /* an error of an established connection */
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
		answer(call, error);
	}
}
