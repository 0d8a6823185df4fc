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
 * host connects to it from ports that name the client (callers.c). So
 * what getsockname() and getpeername() say of an accepted socket can be told
 * from its two ports alone, long after the listener is gone. It is known as
 * ours because the kernel gives a socket that is accepted the buffer limits of
 * its listener, and these are the label (sock.c): the options of the listener
 * that are kept there are inherited, too, as with TCP.
 *
 * When is a listener closed? The agent must not have a descriptor of it, and
 * programs close them in many ways: close(), exec(), exit(). inotify tells:
 * the last close of a file is an event of its inode, a socket's, too. That is
 * tried with the first listener. Where a kernel gives no such event, the agent
 * looks twice a second whether a bind() to the listener's port still fails.
 *
 * shutdown() of a listener, which vsock doesn't have, puts the TCP socket back,
 * listening, and then goes on natively. So does connect() to AF_UNSPEC.
 *
 * A listener outlives the agent: it is the program's. What the next agent needs
 * to know of it is in struct published, in memory that it gets (state.c). It
 * takes the TCP port anew, and announces the listener on its own stream. In
 * between clients are refused. Connections in the stash are reset.
 *
 * Connections from inside the guest to 127.0.0.1 or the pod's own address go to
 * the vsock listener by vsock's own loopback (CID 1). They come from ports in
 * the ranges from LOCAL_V4 on, so that both ends know their address.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "tsi.h"

#define FIRST_LOCAL 32768U
#define MANY	    65535 /* backlog that a negative one stands for */
#define MAX_STASH   8
#define LOOK_MS	    500 /* for listeners, without inotify */

/**
 * struct listener - A published listener
 * @is:		What outlives us, in state.c's memory; NULL: there is none
 * @inet:	The TCP socket that keeps its TCP port, -1 if it can't be had
 * @watch:	inotify watch, -1 if there is none
 * @n_stash:	Used of @stash
 * @stash:	Accepted for calls that then were gone, or had no descriptors
 */
struct listener {
	struct published *is;
	int inet;
	int watch;
	unsigned n_stash;
	int stash[MAX_STASH];
};

static struct listener listeners[MAX_PUBLISHED];
static unsigned used; /* of listeners[]; some of them may be free */
static struct source closings;
static int inotify = -1; /* -1 is also: sockets have no events */
static bool inotify_tried;
static int64_t next_look_ms;
static unsigned stashed;   /* by all listeners */
static unsigned unwatched; /* listeners */

/* ---- the table ---- */

/**
 * find() - A listener by its vsock port
 * @port:	vsock port
 *
 * Returns: the listener, or NULL
 */
static struct listener *find(uint32_t port)
{
	for (unsigned i = 0; i < used; i++)
		if (listeners[i].is && listeners[i].is->port == port)
			return &listeners[i];
	return NULL;
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
	const struct in6_addr *addr = &listener->is->name.address;
	bool v6 = listener->is->label & LABEL_V6;
	struct tsi_listen msg = {
	    .listener = listener->is->port,
	    .backlog = (uint32_t)listener->is->backlog,
	    .port = listener->is->name.port,
	    .family = v6 ? TSI_IPV6 : TSI_IPV4,
	    .flags = listener->is->label & LABEL_V6ONLY ? TSI_V6ONLY : 0,
	};

	if (v6)
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
	for (unsigned i = 0; i < used; i++)
		if (listeners[i].is)
			announce(&listeners[i], NULL);
}

/* ---- the end of a listener ---- */

/**
 * listener_free() - A listener is closed
 * @listener:	Listener
 */
static void listener_free(struct listener *listener)
{
	if (listener->watch >= 0)
		inotify_rm_watch(inotify, listener->watch);
	else
		unwatched--;
	stashed -= listener->n_stash;
	while (listener->n_stash)
		close(listener->stash[--listener->n_stash]);
	if (listener->inet >= 0)
		close(listener->inet);
	listener->is->port = 0;
	listener->is = NULL;
	while (used && !listeners[used - 1].is)
		used--;
}

/**
 * listener_end() - A listener is closed: tell the host
 * @listener:	Listener
 */
static void listener_end(struct listener *listener)
{
	debug("listener %#x is gone", listener->is->port);
	control_unlisten(listener->is->port);
	listener_free(listener);
}

/**
 * closing() - A watched socket was closed
 * @watch:	Its watch
 */
static void closing(int watch)
{
	for (unsigned i = 0; i < used; i++)
		if (listeners[i].is && listeners[i].watch == watch) {
			listener_end(&listeners[i]);
			return;
		}
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
 * is_free() - Is a vsock port free, its listener gone?
 * @port:	Port
 *
 * Returns: true if it is
 */
static bool is_free(uint32_t port)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool freed = fd >= 0 && sock_bind(fd, port) == 0;

	if (fd >= 0)
		close(fd);
	return freed;
}

/**
 * look_for_closed() - End the listeners that are gone, where nobody tells
 */
static void look_for_closed(void)
{
	for (unsigned i = 0; i < used; i++) {
		struct listener *listener = &listeners[i];

		if (listener->is && listener->watch < 0 &&
		    is_free(listener->is->port))
			listener_end(listener);
	}
}

/**
 * listen_reap() - Give back the ports of listeners that were closed just now
 *
 * Before a program binds: it may be the one that closed them.
 */
void listen_reap(void)
{
	if (!used)
		return;
	if (inotify >= 0)
		read_closings();
	if (unwatched)
		look_for_closed();
}

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
	*ret_label = options_kept(fd) | LABEL_INBOUND |
		     (sa.ss_family == AF_INET6 ? LABEL_V6 : 0);
	unspecified = IN6_IS_ADDR_V4MAPPED(&ret_name->address)
			  ? !ret_name->address.s6_addr32[3]
			  : IN6_IS_ADDR_UNSPECIFIED(&ret_name->address);
	return unspecified || !address_is_native(ret_name);
}

/**
 * make_vsock() - A vsock listener for a TCP port
 * @is:		What it is to be; its port is set
 * @nonblock:	Whether it is non-blocking
 *
 * Returns: the socket; -1 if that fails
 */
static int make_vsock(struct published *is, bool nonblock)
{
	int family = is->label & LABEL_V6 ? AF_INET6 : AF_INET;
	int fd = sock_create(family, nonblock);
	int error = EADDRINUSE;
	uint32_t port = 0;

	if (fd < 0)
		return -1;
	for (unsigned i = 0; i < MAX_SHARED && error == EADDRINUSE; i++) {
		port = VSOCK_PORT(LISTENERS + i, is->name.port);
		error = sock_bind(fd, port);
	}
	sock_set_label(fd, is->label);
	if (error || listen(fd, is->backlog)) {
		close(fd);
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
	setsockopt(inet, SOL_SOCKET, SO_REUSEADDR, &(int){0}, sizeof(int));
	if (!listen(inet, 0))
		shutdown(inet, SHUT_RD);
	bind(inet, (struct sockaddr *)&sa, len); /* EINVAL: it is, still */
}

/**
 * listener_new() - Room for one more listener
 *
 * Returns: the listener, with nothing in it yet; NULL if there are too many
 */
static struct listener *listener_new(void)
{
	struct listener *listener = listeners;

	while (listener < listeners + used && listener->is)
		listener++;
	if (listener == listeners + MAX_PUBLISHED)
		return NULL;
	if (listener == listeners + used)
		used++;
	*listener = (struct listener){
	    .is = &state_published()[listener - listeners],
	    .inet = -1,
	    .watch = -1,
	};
	unwatched++;
	return listener;
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
	struct listener *listener = listener_new();
	uint16_t port = 0;
	int error, fd = -1;

	if (!listener)
		return false;
	*listener->is =
	    (struct published){.backlog = backlog < 0 ? MANY : backlog};
	if (bound_to(inet, &listener->is->label, &listener->is->name))
		fd = make_vsock(listener->is, sock_is_nonblocking(inet));
	if (fd < 0) {
		listener_free(listener);
		return false;
	}
	error = announce(listener, &port);
	if (!error && port)
		error = swap_exchange(call, (int)call->args[0], inet, fd);
	if (!port || error) {
		if (!error || port) /* else the host has none */
			control_unlisten(listener->is->port);
		close(fd);
		listener_free(listener);
		if (!error)
			return false;
		reply_error(call->id, error);
		close(inet);
		return true;
	}
	debug("port %u is published: %#x", port, listener->is->port);
	try_inotify();
	listener->watch = watch(fd);
	if (listener->watch >= 0)
		unwatched--;
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
	options_apply(fd, is->label);
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

	for (size_t i = 0; i < MAX_PUBLISHED; i++) {
		if (!is[i].port)
			continue;
		used = (unsigned)i + 1;
		listeners[i] = (struct listener){.is = &is[i], .watch = -1};
		unwatched++;
		listeners[i].inet = bind_inet(&is[i]);
		if (listeners[i].inet < 0)
			complain("port %u: %s", is[i].name.port,
				 strerror(errno));
	}
	look_for_closed();
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
		listener->is->backlog = (int)call->args[1];
		if (listener->is->backlog < 0)
			listener->is->backlog = MANY;
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

/* ---- names ---- */

/**
 * listen_names() - Both names of a socket that isn't connected to a token
 * @fd:		One of our sockets
 * @label:	Its label
 * @ret_local:	What getsockname() says
 * @ret_peer:	What getpeername() says, if this returns 0
 *
 * Returns: 0; ENOTCONN: it has no peer; EOPNOTSUPP: it is another socket
 */
int listen_names(int fd, uint64_t label, struct destination *ret_local,
		 struct destination *ret_peer)
{
	struct sockaddr_vm peer;
	uint32_t port = sock_local_port(fd);
	bool inbound = label & LABEL_INBOUND;
	bool listening = inbound && sock_is_listening(fd);
	bool connected = sock_peer(fd, &peer), v4 = !(label & LABEL_V6);
	const struct listener *listener = listening ? find(port) : NULL;

	if (!connected && !listening && (label & (LABEL_INBOUND | LABEL_LOCAL)))
		connected = sock_half_closed_peer(fd, &peer);
	if (connected && peer.svm_cid == VMADDR_CID_LOCAL) {

		callers_name(inbound ? peer.svm_port : port, ret_local);
		*ret_peer = *ret_local;
		ret_local->port = (uint16_t)port;
		ret_peer->port = (uint16_t)peer.svm_port;
		return 0;
	}
	if (!inbound)
		return EOPNOTSUPP;
	if (listener) {
		*ret_local = listener->is->name;
		return ENOTCONN;
	}
	if (connected) {
		callers_name(peer.svm_port, ret_peer);
		v4 = IN6_IS_ADDR_V4MAPPED(&ret_peer->address);
	}
	ret_local->address = control_pod_address(v4);
	ret_local->port = (uint16_t)port;
	return connected ? 0 : ENOTCONN;
}

/* ---- the stash ---- */

/**
 * listen_stash() - Keep a connection for the next accept()
 * @fd:		Listener
 * @conn:	Connection; ours no more
 */
void listen_stash(int fd, int conn)
{
	struct listener *listener = find(sock_local_port(fd));

	if (listener && listener->n_stash < MAX_STASH) {
		listener->stash[listener->n_stash++] = conn;
		stashed++;
	} else {
		close(conn);
	}
}

/**
 * listen_unstash() - Take a connection that was kept
 * @fd:		Listener
 *
 * Returns: the connection, -1 if there is none
 */
int listen_unstash(int fd)
{
	struct listener *listener = stashed ? find(sock_local_port(fd)) : NULL;

	if (!listener || !listener->n_stash)
		return -1;
	stashed--;
	return listener->stash[--listener->n_stash];
}

/* ---- what nobody tells of ---- */

/**
 * listen_tick() - See to closed listeners and the stream, if it is time to
 */
void listen_tick(void)
{
	if (listen_timeout_ms() != 0)
		return;
	next_look_ms = now_ms() + LOOK_MS;
	if (unwatched)
		look_for_closed();
	if (used)
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

	if (!used || (!unwatched && control_is_open()))
		return -1;
	left = next_look_ms - now_ms();
	return left > 0 ? (int)left : 0;
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
	struct listener *listener = find(sock_local_port(fd));
	int error;

	if (!listener)
		return 0;
	if (listener->inet < 0)
		listener->inet = bind_inet(listener->is);
	if (listener->inet < 0 || listen(listener->inet, listener->is->backlog))
		return errno;
	error = swap_exchange(call, (int)call->args[0], fd, listener->inet);
	if (error)
		return error;
	accept_end_waiting(call, listener->is->port);
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
	return (label & LABEL_INBOUND) && sock_is_listening(fd);
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
	const struct in6_addr *bound = &listener->is->name.address;
	bool v4 = IN6_IS_ADDR_V4MAPPED(&dst->address);

	if (listener->is->name.port != dst->port)
		return false;
	if (IN6_ARE_ADDR_EQUAL(bound, &dst->address))
		return true;
	if (v4 && IN6_IS_ADDR_V4MAPPED(bound))
		return bound->s6_addr32[3] == 0;
	return IN6_IS_ADDR_UNSPECIFIED(bound) &&
	       !(v4 && (listener->is->label & LABEL_V6ONLY));
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
	if (!used)
		return false;
	if (!address_is_native(dst) && !IN6_ARE_ADDR_EQUAL(&own, &dst->address))
		return false;
	listen_reap();
	for (unsigned i = 0; i < used; i++)
		if (listeners[i].is && serves(&listeners[i], dst)) {
			*ret_port = listeners[i].is->port;
			return true;
		}
	return false;
}

/**
 * listen_local_upper() - Where a connection within the guest comes from
 * @port:	vsock port of the listener
 * @v4:		It connects to an IPv4 address
 *
 * Returns: upper half of its port
 */
uint32_t listen_local_upper(uint32_t port, bool v4)
{
	const struct listener *listener = find(port);

	if (!v4)
		return LOCAL_V6;
	return listener && (listener->is->label & LABEL_V6) ? LOCAL_MAPPED
							    : LOCAL_V4;
}

/**
 * listen_bind_local() - Give a socket that connects within the guest a port
 * @fd:		One of our sockets
 * @port:	vsock port of the listener that it connects to
 * @v4:		It connects to an IPv4 address
 */
void listen_bind_local(int fd, uint32_t port, bool v4)
{
	static uint16_t last = FIRST_LOCAL;
	uint32_t upper = listen_local_upper(port, v4);
	int error = EADDRINUSE;

	for (unsigned i = FIRST_LOCAL; i <= UINT16_MAX && error == EADDRINUSE;
	     i++) {
		last = last == UINT16_MAX ? FIRST_LOCAL : (uint16_t)(last + 1);
		error = sock_bind(fd, VSOCK_PORT(upper, last));
	}
}
