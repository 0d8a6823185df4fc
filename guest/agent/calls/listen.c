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
#include <unistd.h>

#include "agent/tsi.h"

#define MANY 65535 /* backlog that a negative one stands for */

/* ---- listen() ---- */

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
		publish_reserve(fd);
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
		listeners_announce(listener);
	}
	reply_native(call->id);
}

/**
 * join() - Have what another process made of the same socket
 * @call:	listen()
 * @inet:	The socket
 *
 * Returns: false if there is no such listener
 */
static bool join(const struct call *call, int inet)
{
	int fd = listeners_made_of(inet), error;

	if (fd < 0)
		return false;
	error = swap_exchange(call, (int)call->args[0], inet, fd);
	if (error)
		later_go_on(call, error);
	else
		again(call, fd);
	close(fd);
	return true;
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
	if (fd >= 0 && swap_is_tcp(fd)) {
		if (join(call, fd)) {
			close(fd);
			return;
		}
		if (publish(call, fd))
			return;
	}
	later_go_on(call, error);
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
	later_go_on(call, error);
	if (fd >= 0)
		close(fd);
}
