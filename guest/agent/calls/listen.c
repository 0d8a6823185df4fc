// SPDX-License-Identifier: Apache-2.0
/*
 * listen.c - listen(), and what ends it
 *
 * Theory of operation
 * ===================
 *
 * A socket that binds is a TCP socket of the guest (swap.c), so that the kernel
 * decides which addresses and ports are taken. With listen() the host is asked
 * whether the port is published. If it isn't, the listener stays what it is.
 * If it is, a vsock listener takes the socket's place, and the TCP socket stays
 * with us: bound, it keeps others off the port for as long as the program has
 * the listener (closings.c).
 *
 * The vsock listener's port is a number times 65536 plus the TCP port, and the
 * host connects to it from ports that name the client (callers.c). So
 * what getsockname() and getpeername() say of an accepted socket can be told
 * from its two ports alone, long after the listener is gone. It is known as
 * ours because the kernel gives a socket that is accepted the buffer limits of
 * its listener, and these are the label (sock.c): the options of the listener
 * that are kept there are inherited, too, as with TCP.
 *
 * shutdown() of a listener, which vsock doesn't have, puts the TCP socket back,
 * listening, and then goes on natively. So does connect() to AF_UNSPEC.
 *
 * A listener outlives the agent: it is the program's. The next agent takes the
 * TCP port anew, and announces the listener on its own stream. In between
 * clients are refused. Connections in the stash are reset.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "agent/tsi.h"

#define BIND_TRIES 1000
#define MANY	   65535 /* backlog that a negative one stands for */

/* ---- listen() ---- */

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
 * reserve() - Have a bound TCP socket keep its port as a listener would
 * @inet:	The socket
 *
 * Sockets with SO_REUSEADDR may be bound to one port as long as none of them
 * listens; the kernel remembers that of the port, and forgets it when one
 * listens. That one then stops to, so that nobody waits in a queue that is
 * never emptied. A port that the kernel chose would be given back with it.
 */
static void reserve(int inet)
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
 * publish() - Make a TCP socket a published listener, if it is to be one
 * @call:	listen()
 * @inet:	The TCP socket; ours to close only if this returns false
 *
 * Should we die meanwhile: the next agent announces the listener if the program
 * has got it, and otherwise finds its port free.
 *
 * Returns: false if the kernel is to go on with the call
 */
static bool publish(const struct call *call, int inet)
{
	int backlog = (int)call->args[1];
	struct listener *listener = listeners_new();
	uint16_t port = 0;
	int error = 0, fd = -1;

	if (!listener)
		return false;
	closings_expect(listener);
	*listener->is =
	    (struct published){.backlog = backlog < 0 ? MANY : backlog};
	if (bound_to(inet, &listener->is->label, &listener->is->name)) {
		fd = make_vsock(listener->is, sock_is_nonblocking(inet));
		error = fd < 0 ? errno : 0;
	}
	if (fd < 0) {
		closings_forget(listener);
		listeners_free(listener);
		if (error != EADDRINUSE)
			return false;
		reply_error(call->id, error); /* somebody has all of them */
		close(inet);
		return true;
	}
	error = listeners_announce(listener, &port);
	if (!error && port)
		error = swap_exchange(call, (int)call->args[0], inet, fd);
	if (!port || error) {
		if (!error || port) /* else the host has none */
			control_unlisten(listener->is->port);
		close(fd);
		closings_forget(listener);
		listeners_free(listener);
		if (!error)
			return false;
		reply_error(call->id, error);
		close(inet);
		return true;
	}
	debug("port %u is published: %#x", port, listener->is->port);
	closings_watch(listener, fd);
	listener->inet = inet;
	reserve(inet);
	close(fd); /* the program has it */
	reply_error(call->id, 0);
	return true;
}

/**
 * bind_inet() - A TCP socket that keeps a listener's port
 * @is:		Listener
 *
 * Returns: the socket; -1 with errno set if the port can't be had
 */
static int bind_inet(const struct published *is)
{
	bool v6 = is->label & LABEL_V6;
	int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_storage sa;
	socklen_t len = (socklen_t)address_encode(v6, &is->name, &sa);
	int error;

	if (fd < 0)
		return -1;
	kept_apply(fd, is->label);
	setsockopt(fd, SOL_IP, IP_FREEBIND, &(int){1}, sizeof(int));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (!bind(fd, (struct sockaddr *)&sa, len)) {
		reserve(fd);
		return fd;
	}
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

/**
 * listen_adopt() - Take over the listeners of the agent before this one
 *
 * Before the stream is opened, on which they are announced. Their TCP sockets
 * went with that agent, so that their ports are taken anew; no program under
 * the filter can have taken them, as bind() waited for us.
 */
void listen_adopt(void)
{
	struct published *is = state_published();
	struct listener *listener;

	for (size_t i = 0; i < MAX_PUBLISHED; i++) {
		if (!is[i].port)
			continue;
		listener = listeners_at(i);
		closings_expect(listener);
		listener->inet = bind_inet(&is[i]);
		if (listener->inet < 0)
			complain("port %u: %s", is[i].name.port,
				 strerror(errno));
	}
	closings_look();
}

/**
 * again() - listen() on a listener: the backlog may have changed
 * @call:	The call
 * @fd:		Listener
 */
static void again(const struct call *call, int fd)
{
	struct listener *listener = listeners_find(sock_local_port(fd));

	if (listener) {
		listener->is->backlog = (int)call->args[1];
		if (listener->is->backlog < 0)
			listener->is->backlog = MANY;
		listeners_announce(listener, NULL);
	}
	reply_native(call->id);
}

/**
 * listen_trapped() - listen()
 * @call:	The call
 */
void listen_trapped(const struct call *call)
{
	int fd = target_fd(call, (int)call->args[0]);
	int error = 0;
	uint64_t label;

	closings_reap();
	if (fd >= 0 && notify_valid(call->id) && sock_label(fd, &label)) {
		if (listen_is_listener(fd, label)) {
			again(call, fd);
			close(fd);
			return;
		}
		/* Neither bound nor connected */
		if (sock_local_port(fd) == NO_PORT) {
			error =
			    swap_to_inet(call, (int)call->args[0], fd, label);
			close(fd);
			fd = error ? -1 : target_fd(call, (int)call->args[0]);
		}
	}
	if (fd >= 0 && swap_is_tcp(fd) && publish(call, fd))
		return;
	if (error)
		reply_error(call->id, error);
	else
		reply_native(call->id);
	if (fd >= 0)
		close(fd);
}

/**
 * listen_is_listener() - Is this a published listener?
 * @fd:		One of our sockets
 * @label:	Its label
 *
 * Returns: true if it is
 */
bool listen_is_listener(int fd, uint64_t label)
{
	return (label & LABEL_INBOUND) && sock_is_listening(fd);
}

/* ---- shutdown(), and connect() to AF_UNSPEC ---- */

/**
 * listen_give_back() - Put a listener's TCP socket back in its place
 * @call:	Call that only TCP listeners know
 * @fd:		Published listener
 *
 * Returns: 0, or an errno
 */
int listen_give_back(const struct call *call, int fd)
{
	struct listener *listener = listeners_find(sock_local_port(fd));
	int error;

	if (!listener)
		return 0;
	if (listener->inet < 0)
		listener->inet = bind_inet(listener->is);
	if (listener->inet < 0)
		return errno;
	/* With 0, connections in TIME_WAIT would have the port; what the
	   program set comes with the swap */
	setsockopt(listener->inet, SOL_SOCKET, SO_REUSEADDR, &(int){1},
		   sizeof(int));
	if (listen(listener->inet, listener->is->backlog))
		return errno;
	setsockopt(listener->inet, SOL_SOCKET, SO_REUSEADDR, &(int){0},
		   sizeof(int));
	error = swap_exchange(call, (int)call->args[0], fd, listener->inet);
	if (error)
		return error;
	accept_end_waiting(call, listener->is->port);
	closings_end(listener);
	return 0;
}

/**
 * shutdown_trapped() - shutdown() of the reading side
 * @call:	The call
 */
void shutdown_trapped(const struct call *call)
{
	int fd = target_fd(call, (int)call->args[0]);
	uint64_t label;
	int error = 0;

	if (fd >= 0 && notify_valid(call->id) && sock_label(fd, &label) &&
	    listen_is_listener(fd, label))
		error = listen_give_back(call, fd);
	if (error)
		reply_error(call->id, error);
	else
		reply_native(call->id);
	if (fd >= 0)
		close(fd);
}
