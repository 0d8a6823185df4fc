// SPDX-License-Identifier: Apache-2.0
/*
 * listen.c - listeners that clients outside of the guest reach
 *
 * Theory of operation
 * ===================
 *
 * A socket that binds is a TCP socket of the guest (swap.c), so that the kernel
 * decides which addresses and ports are taken. With listen() the host is asked
 * whether the port is published. If it isn't, the listener stays what it is.
 * If it is, a vsock listener takes the socket's place, and the TCP socket stays
 * with us: bound, it keeps others off the port for as long as the program has
 * the listener.
 *
 * The vsock listener's port is a number times 65536 plus the TCP port, and the
 * host connects to it from ports that name the client (control_peer()). So
 * what getsockname() and getpeername() say of an accepted socket can be told
 * from its two ports alone, long after the listener is gone. It is known as
 * ours because the kernel gives a socket that is accepted the buffer limits of
 * its listener, and these are the label (sock.c): the options of the listener
 * that are kept there are inherited, too, as with TCP.
 *
 * accept() without an address isn't trapped at all. With one, the agent accepts
 * in the program's place, since the kernel would give the address of a vsock
 * socket. A blocking call that finds nobody waits here, and the event loop
 * watches the listener for it. Programs wait with poll or epoll as they are
 * used to.
 *
 * When is a listener closed? The agent must not have a descriptor of it, and
 * programs close them in many ways: close(), exec(), exit(). inotify tells:
 * the last close of a file is an event of its inode, a socket's, too. Linux
 * 6.14 and later give no events for sockets; there the agent looks twice a
 * second whether a bind() to the listener's port fails, which takes a listener.
 *
 * shutdown() of a listener, which vsock doesn't have, puts the TCP socket back,
 * listening, and then goes on natively.
 *
 * Connections from inside the guest to 127.0.0.1 or the pod's own address go to
 * the vsock listener by vsock's own loopback (CID 1). They come from ports in
 * the two ranges LOCAL_V4 and LOCAL_V6, so that both ends know their address.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/queue.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "tsi.h"

#define LOCAL_V4		4U /* upper halves of ports, see above */
#define LOCAL_V6		6U
#define FIRST_UPPER		16U /* of listeners' ports */
#define UPPERS			64U
#define FIRST_LOCAL		32768U
#define MANY			65535 /* backlog that a negative one stands for */
#define MAX_STASH		8
#define TICK_MS			200
#define LOOK_MS			500 /* for listeners, without inotify */
#define NEVER_MS		INT64_MAX
#define VSOCK_PORT(upper, port) ((uint32_t)(upper) << 16 | (port))

/**
 * struct listener - A published listener
 * @link:	In listeners
 * @port:	Its vsock port
 * @inet:	The TCP socket that keeps its TCP port
 * @watch:	inotify watch, -1 if there is none
 * @v6:		An AF_INET6 socket
 * @v6only:	For IPv6 clients only
 * @backlog:	As given to listen()
 * @name:	What it is bound to
 * @n_stash:	Used of @stash
 * @stash:	Accepted for calls that then were gone, or had no descriptors
 */
struct listener {
	LIST_ENTRY(listener) link;
	uint32_t port;
	int inet;
	int watch;
	bool v6;
	bool v6only;
	int backlog;
	struct destination name;
	unsigned n_stash;
	int stash[MAX_STASH];
};

/**
 * struct waiter - A blocking accept() that found nobody
 * @source:	In the event loop, for the listener
 * @exit:	Same, for the process: our descriptor would keep a listener open
 *		whose program was killed
 * @link:	In waiters
 * @call:	The call; its args are a copy
 * @args:	That copy
 * @fd:		The listener
 * @pidfd:	The process, or -1
 * @deadline_ms: SO_RCVTIMEO's end, or NEVER_MS
 */
struct waiter {
	struct source source;
	struct source exit;
	LIST_ENTRY(waiter) link;
	struct call call;
	uint64_t args[6];
	int fd;
	int pidfd;
	int64_t deadline_ms;
};

static LIST_HEAD(, listener) listeners = LIST_HEAD_INITIALIZER(listeners);
static LIST_HEAD(, waiter) waiters = LIST_HEAD_INITIALIZER(waiters);
static struct source closings;
static int inotify = -1; /* -1 is also: sockets have no events */
static bool inotify_tried;
static int64_t next_tick_ms;

/* ---- the table ---- */

/**
 * find() - A listener by its vsock port
 * @port:	vsock port
 *
 * Returns: the listener, or NULL
 */
static struct listener *find(uint32_t port)
{
	struct listener *listener;

	LIST_FOREACH(listener, &listeners, link)
	if (listener->port == port)
		break;
	return listener;
}

/**
 * is_listening() - Is this a listener, and not what was accepted from one?
 * @fd:		One of our sockets
 *
 * Returns: true if it is
 */
static bool is_listening(int fd)
{
	int value = 0;
	socklen_t len = sizeof(value);

	return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &len) &&
	       value;
}

/**
 * bind_vsock() - Bind a vsock socket
 * @fd:		Socket
 * @port:	Port
 *
 * Returns: 0, or an errno
 */
static int bind_vsock(int fd, uint32_t port)
{
	struct sockaddr_vm addr = {
	    .svm_family = AF_VSOCK,
	    .svm_port = port,
	    .svm_cid = VMADDR_CID_ANY,
	};

	return bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ? errno : 0;
}

/**
 * announce() - Tell the host of a listener
 * @listener:	Listener
 * @ret_port:	Where clients reach it; 0: nowhere. NULL: don't wait for that
 *
 * Returns: 0, or an errno
 */
static int announce(const struct listener *listener, uint16_t *ret_port)
{
	const struct in6_addr *addr = &listener->name.address;
	struct tsi_listen msg = {
	    .listener = listener->port,
	    .backlog = (uint32_t)listener->backlog,
	    .port = listener->name.port,
	    .family = listener->v6 ? TSI_IPV6 : TSI_IPV4,
	    .flags = listener->v6only ? TSI_V6ONLY : 0,
	};

	if (listener->v6)
		memcpy(msg.address, addr->s6_addr, 16);
	else
		memcpy(msg.address, addr->s6_addr + 12, 4);
	return control_listen(&msg, ret_port);
}

/**
 * listen_announce_all() - Tell the host, on a new stream, of all listeners
 */
void listen_announce_all(void)
{
	const struct listener *listener;

	LIST_FOREACH(listener, &listeners, link)
	announce(listener, NULL);
}

/* ---- the end of a listener ---- */

/**
 * listener_free() - A listener is closed
 * @listener:	Listener
 */
static void listener_free(struct listener *listener)
{
	LIST_REMOVE(listener, link);
	if (listener->watch >= 0)
		inotify_rm_watch(inotify, listener->watch);
	while (listener->n_stash)
		close(listener->stash[--listener->n_stash]);
	close(listener->inet);
	free(listener);
}

/**
 * listener_end() - A listener is closed: tell the host
 * @listener:	Listener
 */
static void listener_end(struct listener *listener)
{
	debug("listener %#x is gone", listener->port);
	control_unlisten(listener->port);
	listener_free(listener);
}

/**
 * closing() - A watched socket was closed
 * @watch:	Its watch
 */
static void closing(int watch)
{
	struct listener *listener;

	LIST_FOREACH(listener, &listeners, link)
	if (listener->watch == watch)
		break;
	if (listener)
		listener_end(listener);
}

/**
 * read_closings() - Take what inotify has
 *
 * Returns: how many sockets were closed
 */
static unsigned read_closings(void)
{
	char buf[64 * sizeof(struct inotify_event)]
	    __attribute__((aligned(__alignof__(struct inotify_event))));
	const struct inotify_event *event;
	unsigned count = 0;
	ssize_t len;

	while ((len = read(inotify, buf, sizeof(buf))) > 0)
		for (ssize_t at = 0; at < len;
		     at += (ssize_t)(sizeof(*event) + event->len)) {
			event = (const void *)(buf + at);
			if (!(event->mask & IN_CLOSE))
				continue;
			closing(event->wd);
			count++;
		}
	return count;
}

/**
 * closings_ready() - inotify has something
 * @source:	Unused: there is one
 * @events:	Unused
 */
static void closings_ready(struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	read_closings();
}

/**
 * watch() - Be told when a socket is closed
 * @fd:		Socket
 *
 * Returns: watch, -1 if that is not possible
 */
static int watch(int fd)
{
	char path[32];

	if (inotify < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return inotify_add_watch(inotify, path, IN_CLOSE);
}

/**
 * try_inotify() - See whether the kernel tells when sockets are closed
 */
static void try_inotify(void)
{
	int fd;

	if (inotify_tried)
		return;
	inotify_tried = true;
	inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	watch(fd);
	close(fd);
	if (inotify >= 0 && read_closings() == 0) {
		close(inotify);
		inotify = -1;
	}
	if (inotify >= 0) {
		closings.ready = closings_ready;
		loop_add(&closings, inotify, EPOLLIN);
	}
	debug("closed listeners are %s", inotify < 0 ? "looked for" : "told");
}

/**
 * look_for_closed() - End the listeners that are gone, without inotify
 */
static void look_for_closed(void)
{
	struct listener *listener, *next;

	for (listener = LIST_FIRST(&listeners); listener; listener = next) {
		int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

		next = LIST_NEXT(listener, link);
		if (fd >= 0 && bind_vsock(fd, listener->port) == 0)
			listener_end(listener);
		if (fd >= 0)
			close(fd);
	}
}

/**
 * listen_reap() - Give back the ports of listeners that were closed just now
 *
 * Before a program binds: it may be the one that closed them.
 */
void listen_reap(void)
{
	if (LIST_EMPTY(&listeners))
		return;
	if (inotify >= 0)
		read_closings();
	else
		look_for_closed();
}

/* ---- listen() ---- */

/**
 * bound_to() - What a TCP socket is bound to; it is bound to something now
 * @fd:		TCP socket
 * @ret_v6:	An AF_INET6 socket
 * @ret_name:	Address and port
 *
 * Returns: true if it is a TCP socket that is bound to more than loopback
 */
static bool bound_to(int fd, bool *ret_v6, struct destination *ret_name)
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
	*ret_v6 = sa.ss_family == AF_INET6;
	unspecified = IN6_IS_ADDR_V4MAPPED(&ret_name->address)
			  ? !ret_name->address.s6_addr32[3]
			  : IN6_IS_ADDR_UNSPECIFIED(&ret_name->address);
	return unspecified || !address_is_native(&ret_name->address);
}

/**
 * make_vsock() - A vsock listener for a TCP port
 * @listener:	What it is for; its port is set
 * @inet:	The TCP socket, for its options
 *
 * Returns: the socket; -1 with errno set otherwise
 */
static int make_vsock(struct listener *listener, int inet)
{
	int family = listener->v6 ? AF_INET6 : AF_INET;
	int fd = sock_create(family, sock_is_nonblocking(inet));
	int error = EADDRINUSE;

	if (fd < 0)
		return -1;
	for (unsigned i = 0; i < UPPERS && error == EADDRINUSE; i++) {
		listener->port =
		    VSOCK_PORT(FIRST_UPPER + i, listener->name.port);
		error = bind_vsock(fd, listener->port);
	}
	sock_set_label(fd, options_collect(inet) | LABEL_INBOUND |
			       (listener->v6 ? LABEL_V6 : 0));
	if (!error && listen(fd, listener->backlog))
		error = errno;
	if (!error)
		return fd;
	close(fd);
	errno = error;
	return -1;
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
	setsockopt(inet, SOL_SOCKET, SO_REUSEADDR, &(int){0}, sizeof(int));
	if (!listen(inet, 0))
		shutdown(inet, SHUT_RD);
	bind(inet, (struct sockaddr *)&sa, len); /* EINVAL: it is, still */
}

/**
 * publish() - Make a TCP socket a published listener, if it is to be one
 * @call:	listen()
 * @inet:	The TCP socket; ours to close only if this returns false
 *
 * Returns: false if the kernel is to go on with the call
 */
static bool publish(const struct call *call, int inet)
{
	struct listener *listener = calloc(1, sizeof(*listener));
	uint16_t port = 0;
	int error, fd = -1;
	uint64_t label;

	if (!listener)
		return false;
	listener->backlog = (int)call->args[1];
	if (listener->backlog < 0)
		listener->backlog = MANY;
	if (bound_to(inet, &listener->v6, &listener->name))
		fd = make_vsock(listener, inet);
	if (fd < 0) {
		free(listener);
		return false;
	}
	if (sock_label(fd, &label))
		listener->v6only = label & LABEL_V6ONLY;
	error = announce(listener, &port);
	if (!error && port)
		error = swap_exchange(call, (int)call->args[0], inet, fd);
	if (!port || error) {
		if (port)
			control_unlisten(listener->port);
		close(fd);
		free(listener);
		if (error)
			reply_error(call->id, error);
		else
			return false;
		close(inet);
		return true;
	}
	debug("port %u is published: %#x", port, listener->port);
	try_inotify();
	listener->watch = watch(fd);
	listener->inet = inet;
	reserve(inet);
	LIST_INSERT_HEAD(&listeners, listener, link);
	close(fd); /* the program has it */
	reply_error(call->id, 0);
	return true;
}

/**
 * again() - listen() on a listener: the backlog may have changed
 * @call:	The call
 * @fd:		Listener
 */
static void again(const struct call *call, int fd)
{
	struct listener *listener = find(sock_local_port(fd));

	if (listener) {
		listener->backlog = (int)call->args[1];
		if (listener->backlog < 0)
			listener->backlog = MANY;
		announce(listener, NULL);
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

	listen_reap();
	if (fd >= 0 && notify_valid(call->id) && sock_label(fd, &label)) {
		if ((label & LABEL_INBOUND) && is_listening(fd)) {
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

/* ---- names ---- */

/**
 * loopback() - A loopback address, by the range of a local port
 * @port:	vsock port of the end that connected
 * @tcp_port:	Port
 * @ret_name:	127.0.0.1 or ::1, and the port
 */
static void loopback(uint32_t port, uint16_t tcp_port,
		     struct destination *ret_name)
{
	*ret_name = (struct destination){.port = tcp_port};
	if (port >> 16 == LOCAL_V6) {
		ret_name->address = in6addr_loopback;
	} else {
		ret_name->address.s6_addr16[5] = 0xffff;
		ret_name->address.s6_addr32[3] = htonl(INADDR_LOOPBACK);
	}
}

/**
 * peer_of() - The client that a vsock address stands for
 * @addr:	Peer of an accepted socket
 * @ret_name:	Its address and port
 */
static void peer_of(const struct sockaddr_vm *addr,
		    struct destination *ret_name)
{
	if (addr->svm_cid == VMADDR_CID_LOCAL)
		loopback(addr->svm_port, (uint16_t)addr->svm_port, ret_name);
	else
		control_peer(addr->svm_port, ret_name);
}

/**
 * listen_names() - Both names of a socket that isn't connected to a token
 * @fd:		One of our sockets
 * @label:	Its label
 * @ret_local:	What getsockname() says
 * @ret_peer:	What getpeername() says, if this returns 0
 *
 * Returns: 0; ENOTCONN: it is a listener; EOPNOTSUPP: it is another socket
 */
int listen_names(int fd, uint64_t label, struct destination *ret_local,
		 struct destination *ret_peer)
{
	struct sockaddr_vm peer;
	uint32_t port = sock_local_port(fd);
	const struct listener *listener;
	bool connected = sock_peer(fd, &peer);

	if (connected && peer.svm_cid == VMADDR_CID_LOCAL) {
		bool inbound = label & LABEL_INBOUND;
		uint32_t from = inbound ? peer.svm_port : port;

		loopback(from, (uint16_t)port, ret_local);
		loopback(from, (uint16_t)peer.svm_port, ret_peer);
		return 0;
	}
	if (!(label & LABEL_INBOUND))
		return EOPNOTSUPP;
	if (connected) {
		peer_of(&peer, ret_peer);
		ret_local->address = control_pod_address(
		    IN6_IS_ADDR_V4MAPPED(&ret_peer->address));
		ret_local->port = (uint16_t)port;
		return 0;
	}
	listener = find(port);
	*ret_local = (struct destination){.port = (uint16_t)port};
	if (listener)
		*ret_local = listener->name;
	return ENOTCONN;
}

/* ---- accept() ---- */

/**
 * hand_over() - Answer accept() with a connection
 * @call:	accept() or accept4()
 * @conn:	The connection; ours to close unless it was stashed
 * @peer:	Its other end
 * @v6:		For an AF_INET6 socket
 *
 * Returns: false if the caller can't take it: stash it
 */
static bool hand_over(const struct call *call, int conn,
		      const struct sockaddr_vm *peer, bool v6)
{
	int flags = call->nr == SYS_accept4 ? (int)call->args[3] : 0;
	struct destination name;
	int error;

	peer_of(peer, &name);
	error = name_write(call, call->args[1], call->args[2], v6, &name);
	if (error) { /* the kernel loses it, too */
		reply_error(call->id, error);
		return true;
	}
	error = reply_fd(call->id, conn, flags & SOCK_CLOEXEC);
	if (error && error != ENOENT)
		reply_error(call->id, error);
	return !error;
}

/**
 * take() - Take a connection: one that was stashed, or the next
 * @fd:		Listener
 * @flags:	For accept4()
 * @ret_peer:	Its other end
 *
 * Returns: the connection; -1 with errno set otherwise
 */
static int take(int fd, int flags, struct sockaddr_vm *ret_peer)
{
	struct listener *listener =
	    LIST_EMPTY(&listeners) ? NULL : find(sock_local_port(fd));
	socklen_t len = sizeof(*ret_peer);
	bool nonblock;
	int conn;

	if (listener && listener->n_stash) {
		conn = listener->stash[--listener->n_stash];
		sock_set_nonblocking(conn, flags & SOCK_NONBLOCK);
		if (sock_peer(conn, ret_peer))
			return conn;
		*ret_peer = (struct sockaddr_vm){0}; /* it has ended since */
		return conn;
	}
	nonblock = sock_is_nonblocking(fd);
	if (!nonblock)
		sock_set_nonblocking(fd, true);
	conn = accept4(fd, (struct sockaddr *)ret_peer, &len,
		       SOCK_CLOEXEC | (flags & SOCK_NONBLOCK));
	if (!nonblock)
		sock_set_nonblocking(fd, false);
	return conn;
}

/**
 * stash() - Keep a connection for the next accept()
 * @fd:		Listener
 * @conn:	Connection; ours no more
 */
static void stash(int fd, int conn)
{
	struct listener *listener = find(sock_local_port(fd));

	if (listener && listener->n_stash < MAX_STASH)
		listener->stash[listener->n_stash++] = conn;
	else
		close(conn);
}

/**
 * try_accept() - Answer accept() if there is a connection
 * @call:	accept() or accept4()
 * @fd:		Listener
 * @label:	Its label
 *
 * Returns: false if there is none, and it isn't answered
 */
static bool try_accept(const struct call *call, int fd, uint64_t label)
{
	int flags = call->nr == SYS_accept4 ? (int)call->args[3] : 0;
	struct sockaddr_vm peer = {0};
	int conn = take(fd, flags, &peer);

	if (conn < 0 && errno == EAGAIN)
		return false;
	if (conn < 0) {
		reply_error(call->id, errno);
		return true;
	}
	if (hand_over(call, conn, &peer, label & LABEL_V6))
		close(conn);
	else
		stash(fd, conn);
	return true;
}

/**
 * waiter_free() - Forget a waiter
 * @waiter:	Waiter
 */
static void waiter_free(struct waiter *waiter)
{
	LIST_REMOVE(waiter, link);
	loop_del(waiter->fd);
	close(waiter->fd);
	if (waiter->pidfd >= 0) {
		loop_del(waiter->pidfd);
		close(waiter->pidfd);
	}
	waiter->exit.dead = true;
	loop_bury(&waiter->source);
}

/**
 * waiter_exited() - The process of a waiter has ended
 * @source:	The waiter's @exit
 * @events:	Unused
 */
static void waiter_exited(struct source *source, uint32_t events)
{
	(void)events;
	waiter_free((struct waiter *)(void *)((char *)source -
					      offsetof(struct waiter, exit)));
}

/**
 * waiter_ready() - A listener has a connection
 * @source:	The waiter's
 * @events:	Unused
 */
static void waiter_ready(struct source *source, uint32_t events)
{
	struct waiter *waiter = (struct waiter *)source;
	uint64_t label;

	(void)events;
	if (!notify_valid(waiter->call.id)) {
		waiter_free(waiter);
		return;
	}
	if (!sock_label(waiter->fd, &label))
		label = 0;
	if (try_accept(&waiter->call, waiter->fd, label))
		waiter_free(waiter);
}

/**
 * wait_for_client() - Answer a blocking accept() later
 * @call:	accept() or accept4()
 * @fd:		Listener; ours from here on
 */
static void wait_for_client(const struct call *call, int fd)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));
	struct timeval limit = {0};
	socklen_t len = sizeof(limit);
	int64_t now = now_ms();

	if (!waiter) {
		reply_error(call->id, ENOMEM);
		close(fd);
		return;
	}
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &len);
	waiter->call = *call;
	memcpy(waiter->args, call->args, sizeof(waiter->args));
	waiter->call.args = waiter->args;
	waiter->fd = fd;
	waiter->deadline_ms = NEVER_MS;
	if (limit.tv_sec || limit.tv_usec)
		waiter->deadline_ms =
		    now + limit.tv_sec * 1000 + (limit.tv_usec + 999) / 1000;
	if (LIST_EMPTY(&waiters) || next_tick_ms > now + TICK_MS)
		next_tick_ms = now + TICK_MS;
	if (next_tick_ms > waiter->deadline_ms)
		next_tick_ms = waiter->deadline_ms;
	waiter->source.ready = waiter_ready;
	waiter->exit.ready = waiter_exited;
	LIST_INSERT_HEAD(&waiters, waiter, link);
	loop_add(&waiter->source, fd, EPOLLIN);
	waiter->pidfd = target_pidfd(call);
	if (waiter->pidfd >= 0)
		loop_add(&waiter->exit, waiter->pidfd, EPOLLIN);
}

/**
 * accept_trapped() - accept() and accept4() with an address
 * @call:	The call
 */
void accept_trapped(const struct call *call)
{
	int flags = call->nr == SYS_accept4 ? (int)call->args[3] : 0;
	int fd = target_fd(call, (int)call->args[0]);
	uint64_t label;
	int room;

	if (fd < 0 || (flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) ||
	    !notify_valid(call->id) || !sock_label(fd, &label) ||
	    !(label & LABEL_INBOUND) ||
	    target_read(call, call->args[2], &room, sizeof(room))) {
		reply_native(call->id);
	} else if (!try_accept(call, fd, label)) {
		if (!sock_is_nonblocking(fd)) {
			wait_for_client(call, fd);
			return;
		}
		reply_error(call->id, EAGAIN);
	}
	if (fd >= 0)
		close(fd);
}

/**
 * listen_tick() - Look at what nobody tells of, if it is time to
 */
void listen_tick(void)
{
	struct waiter *waiter, *next;
	int64_t now;

	if (listen_timeout_ms() != 0)
		return;
	now = now_ms();
	next_tick_ms = now + (LIST_EMPTY(&waiters) ? LOOK_MS : TICK_MS);
	for (waiter = LIST_FIRST(&waiters); waiter; waiter = next) {
		bool valid = notify_valid(waiter->call.id);

		next = LIST_NEXT(waiter, link);
		if (valid && now < waiter->deadline_ms) {
			if (next_tick_ms > waiter->deadline_ms)
				next_tick_ms = waiter->deadline_ms;
			continue;
		}
		if (valid)
			reply_error(waiter->call.id, EAGAIN);
		waiter_free(waiter);
	}
	if (inotify < 0)
		look_for_closed();
	if (!LIST_EMPTY(&listeners))
		control_keep();
}

/**
 * listen_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int listen_timeout_ms(void)
{
	int64_t left;

	if (LIST_EMPTY(&waiters) &&
	    (LIST_EMPTY(&listeners) || (inotify >= 0 && control_is_open())))
		return -1;
	left = next_tick_ms - now_ms();
	return left > 0 ? (int)left : 0;
}

/* ---- shutdown() ---- */

/**
 * unpublish() - Put a listener's TCP socket back in its place
 * @call:	shutdown()
 * @listener:	Listener
 * @fd:		Its socket
 *
 * Returns: 0, or an errno
 */
static int unpublish(const struct call *call, struct listener *listener, int fd)
{
	struct waiter *waiter, *next;
	int error;

	if (listen(listener->inet, listener->backlog))
		return errno;
	error = swap_exchange(call, (int)call->args[0], fd, listener->inet);
	if (error)
		return error;
	for (waiter = LIST_FIRST(&waiters); waiter; waiter = next) {
		next = LIST_NEXT(waiter, link);
		if (sock_local_port(waiter->fd) != listener->port)
			continue;
		reply_error(waiter->call.id, EINVAL); /* as TCP's */
		waiter_free(waiter);
	}
	listener_end(listener);
	return 0;
}

/**
 * shutdown_trapped() - shutdown() of the reading side
 * @call:	The call
 */
void shutdown_trapped(const struct call *call)
{
	int fd = target_fd(call, (int)call->args[0]);
	struct listener *listener = NULL;
	uint64_t label;
	int error = 0;

	if (fd >= 0 && notify_valid(call->id) && sock_label(fd, &label) &&
	    (label & LABEL_INBOUND) && is_listening(fd))
		listener = find(sock_local_port(fd));
	if (listener)
		error = unpublish(call, listener, fd);
	if (error)
		reply_error(call->id, error);
	else
		reply_native(call->id);
	if (fd >= 0)
		close(fd);
}

/* ---- connections from inside ---- */

/**
 * listen_is_listener() - Is this a published listener?
 * @fd:		One of our sockets
 * @label:	Its label
 *
 * Returns: true if it is
 */
bool listen_is_listener(int fd, uint64_t label)
{
	return (label & LABEL_INBOUND) && is_listening(fd);
}

/**
 * serves() - Would a listener's TCP accept this destination?
 * @listener:	Listener
 * @dst:	Loopback, unspecified, or the pod's address
 *
 * Returns: true if it would
 */
static bool serves(const struct listener *listener,
		   const struct destination *dst)
{
	const struct in6_addr *bound = &listener->name.address;
	bool v4 = IN6_IS_ADDR_V4MAPPED(&dst->address);

	if (listener->name.port != dst->port)
		return false;
	if (IN6_ARE_ADDR_EQUAL(bound, &dst->address))
		return true;
	if (v4 && IN6_IS_ADDR_V4MAPPED(bound))
		return bound->s6_addr32[3] == 0;
	return IN6_IS_ADDR_UNSPECIFIED(bound) && !(v4 && listener->v6only);
}

/**
 * listen_local() - The listener that a connection from inside is for
 * @dst:	Destination
 * @ret_port:	Its vsock port
 *
 * Returns: false if @dst isn't the guest, or no published listener serves it
 */
bool listen_local(const struct destination *dst, uint32_t *ret_port)
{
	bool v4 = IN6_IS_ADDR_V4MAPPED(&dst->address);
	struct in6_addr own = control_pod_address(v4);
	const struct listener *listener;

	if (LIST_EMPTY(&listeners))
		return false;
	if (!address_is_native(&dst->address) &&
	    !IN6_ARE_ADDR_EQUAL(&own, &dst->address))
		return false;
	listen_reap();
	LIST_FOREACH(listener, &listeners, link)
	if (serves(listener, dst)) {
		*ret_port = listener->port;
		return true;
	}
	return false;
}

/**
 * listen_bind_local() - Give a socket that connects within the guest a port
 * @fd:		One of our sockets
 * @v4:		It connects to an IPv4 address
 */
void listen_bind_local(int fd, bool v4)
{
	static uint16_t last = FIRST_LOCAL;
	int error = EADDRINUSE;

	for (unsigned i = FIRST_LOCAL; i <= UINT16_MAX && error == EADDRINUSE;
	     i++) {
		last = last == UINT16_MAX ? FIRST_LOCAL : (uint16_t)(last + 1);
		error =
		    bind_vsock(fd, VSOCK_PORT(v4 ? LOCAL_V4 : LOCAL_V6, last));
	}
}

/**
 * listen_is_local_port() - Did a connection from this port stay in the guest?
 * @port:	vsock port
 *
 * Returns: true if it did
 */
bool listen_is_local_port(uint32_t port)
{
	return port >> 16 == LOCAL_V4 || port >> 16 == LOCAL_V6;
}
