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
 * - Clear: the call waits (wait.c) and is answered when the kernel knows.
 *   (O_NONBLOCK is the file's: it is set around the connect() for the few
 *   microseconds that takes.)
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
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "agent/datagram.h"
#include "agent/tsi.h"

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
		tell_failure(call, fd, sock_settle(fd));
		close(fd);
	} else if (nonblock && !state.revents) {
		reply_error(call->id, EALREADY);
		close(fd);
	} else {
		wait_drop_stale();
		wait_for_outcome(call, fd, label | LABEL_UNREPORTED, true);
	}
}

/**
 * is_unreported() - Has the program not heard yet that it is connected?
 * @fd:		Socket
 * @label:	Its label, as it was
 *
 * A call that was interrupted says so once it is let go of. That may be now:
 * its restart may be here before.
 *
 * Returns: true if so
 */
static bool is_unreported(int fd, uint64_t label)
{
	if (label & LABEL_UNREPORTED)
		return true;
	wait_drop_stale();
	return sock_label(fd, &label) && (label & LABEL_UNREPORTED);
}

/**
 * start() - Connect a socket to a token, or to a listener of this guest
 * @call:	connect()
 * @fd:		One of our sockets; ours from here on
 * @label:	Its label
 * @cid:	TSI_HOST_CID or VMADDR_CID_LOCAL
 * @port:	Token, or the listener's port
 */
static void start(const struct call *call, int fd, uint64_t label, uint32_t cid,
		  uint32_t port)
{
	bool nonblock = sock_is_nonblocking(fd);
	int error;

	if (!nonblock)
		sock_set_nonblocking(fd, true);
	watch_begin(); /* the program may clear it */
	error = sock_connect(fd, cid, port);
	watch_end();
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
		sock_change_label(fd, LABEL_UNREPORTED, 0);
	} else if (error == EISCONN && is_unreported(fd, label)) {
		sock_change_label(fd, 0, LABEL_UNREPORTED);
		error = 0;
	} else if (error == ENODEV) { /* no transport to the host */
		error = ENETUNREACH;
	}
	reply_error(call->id, error);
	close(fd);
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
 * stays_inside() - Is a destination the guest's own?
 * @call:	connect()
 * @dst:	Destination
 *
 * Which addresses are, the kernel knows; it is asked before a destination gets
 * its token.
 *
 * Returns: true if it is
 */
static bool stays_inside(const struct call *call, const struct destination *dst)
{
	return address_is_native(dst) ||
	       (!routes_know(dst) && swap_is_local(call->tid, dst));
}

/**
 * is_usual() - Is it a new socket's connect() to where others have led?
 * @fd:		Socket; has a port then
 * @label:	Its label
 * @dst:	Destination
 * @ret_token:	The destination's token
 *
 * Most are, and each system call less counts: that it can be bound shows that
 * the socket is new.
 *
 * Returns: true if so
 */
static bool is_usual(int fd, uint64_t label, const struct destination *dst,
		     uint32_t *ret_token)
{
	const uint64_t unusual =
	    LABEL_UNREPORTED | LABEL_ABORTED | LABEL_LOCAL | LABEL_INBOUND;

	return !(label & unusual) && !listeners_any() && routes_know(dst) &&
	       !ports_bind_any(fd) && !routes_token(dst, ret_token);
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
	uint32_t port;
	int error = 0;
	bool fresh;

	if (is_usual(fd, label, dst, &port)) {
		start(call, fd, label, TSI_HOST_CID, port);
		return;
	}
	fresh = sock_peer_port(fd) == NO_PORT && !(label & LABEL_UNREPORTED);
	if ((label & LABEL_UNREPORTED) && tell_owed(call, fd)) {
		close(fd);
		return;
	}
	if (listen_is_listener(fd, label)) {
		error = EISCONN;
	} else if (label & LABEL_ABORTED) {
		sock_change_label(fd, 0, LABEL_ABORTED);
		error = ECONNABORTED;
	} else if (fresh && local_listener(dst, &port)) {
		label |= LABEL_LOCAL;
		sock_change_label(fd, LABEL_LOCAL, 0);
		local_bind(fd, port, IN6_IS_ADDR_V4MAPPED(&dst->address));
		start(call, fd, label, VMADDR_CID_LOCAL, port);
		return;
	} else if (!fresh && (label & LABEL_LOCAL)) { /* the address is moot */
		start(call, fd, label, VMADDR_CID_LOCAL, NO_PORT);
		return;
	} else if (fresh && stays_inside(call, dst)) {
		error = swap_to_inet(call, (int)call->args[0], fd, label);
		close(fd);
		later_go_on(call, error);
		return;
	} else {
		error = routes_token(dst, &port);
	}
	if (error) {
		if (error != EINPROGRESS ||
		    !later_keep(call, STREAM_KEY, HELLO_MS))
			reply_error(call->id,
				    error == EINPROGRESS ? ENETUNREACH : error);
		close(fd);
		return;
	}
	if (label & LABEL_LOCAL) { /* it failed to */
		label &= ~LABEL_LOCAL;
		sock_change_label(fd, 0, LABEL_LOCAL);
	}
	if (fresh && sock_local_port(fd) == NO_PORT)
		ports_bind_any(fd);
	start(call, fd, label, TSI_HOST_CID, port);
}

/**
 * disconnect() - connect() to AF_UNSPEC
 * @call:	The call
 */
static void disconnect(const struct call *call)
{
	int fd = target_fd(call, (int)call->args[0]), error = 0;
	uint64_t label;

	if (fd < 0 || !notify_valid(call->id) || !sock_label(fd, &label)) {
		reply_native(call->id);
	} else if (listen_is_listener(fd, label)) {
		error = listen_give_back(call, fd);
		later_go_on(call, error);
	} else {
		if (sock_local_port(fd) != NO_PORT || (label & LABEL_ABORTED))
			error =
			    swap_to_fresh(call, (int)call->args[0], fd, label);
		if (!later_retry(call, error))
			reply_error(call->id, error);
	}
	if (fd >= 0)
		close(fd);
}

/**
 * connect_trapped() - connect()
 * @call:	The call
 */
void connect_trapped(const struct call *call)
{
	struct sockaddr_storage sa = {.ss_family = AF_MAX};
	size_t len = (uint32_t)call->args[2];
	struct destination dst;
	uint64_t label = 0;
	uint32_t port = 0, upper = 0;
	int fd = -1, error = 0;

	if (len > sizeof(struct sockaddr_in6))
		len = sizeof(struct sockaddr_in6);
	if (target_read(call, call->args[1], &sa, len)) {
		reply_native(call->id);
		return;
	}
	if (sa.ss_family == AF_UNSPEC && len >= sizeof(sa.ss_family)) {
		disconnect(call);
		return;
	}
	if (!address_decode(&sa, len, &dst)) {
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
	} else if (datagram_connect(call, fd, &sa, &dst)) {
		debug("datagrams of %d go to port %u", call->tid, dst.port);
		/* Else a TCP socket that bound itself first, or from before us
		 */
	} else if (!swap_is_tcp(fd)) {
		reply_native(call->id);
	} else if (local_listener(&dst, &port) || !stays_inside(call, &dst)) {
		if (port)
			upper = local_upper(port,
					    IN6_IS_ADDR_V4MAPPED(&dst.address));
		error = swap_to_vsock(call, (int)call->args[0], upper, &fd);
		if (!error && sock_label(fd, &label)) {
			connect_ours(call, fd, label, &dst);
			return;
		}
		if (!later_retry(call, error))
			reply_error(call->id, error ? error : EINVAL);
	} else {
		reply_native(call->id);
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
		if (!(label & LABEL_UNREPORTED) || !tell_owed(call, fd))
			tell_error(call, 0);
	} else if (is_unreported(fd, label)) {
		tell_failure(call, fd, sock_settle(fd));
	} else { /* an error of an established connection */
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
		tell_error(call, error);
	}
}
