// SPDX-License-Identifier: Apache-2.0
/*
 * listeners.c - the table of published listeners
 *
 * Theory of operation
 * ===================
 *
 * What the next agent needs to know of a listener is in struct published, in
 * memory that it gets (state.c); the rest is here. The slots of both are the
 * same.
 *
 * A connection that was accepted for a call that is gone stays in the
 * listener's stash, for the next one.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/tsi.h"

static struct listener listeners[MAX_PUBLISHED];
static unsigned used;	 /* of listeners[]; some of them may be free */
static unsigned stashed; /* by all listeners */

/* ---- the table ---- */

/**
 * listeners_next() - Go through the table
 * @listener:	The one before; NULL: none. It may have ended meanwhile
 *
 * Returns: a listener, NULL: there is no other one
 */
struct listener *listeners_next(struct listener *listener)
{
	listener = listener ? listener + 1 : listeners;
	for (; listener < listeners + used; listener++)
		if (listener->is)
			return listener;
	return NULL;
}

/**
 * listeners_any() - Is there a listener?
 *
 * Returns: true if there is
 */
bool listeners_any(void)
{
	return used > 0;
}

/**
 * listeners_find() - A listener by its vsock port
 * @port:	vsock port
 *
 * Returns: the listener, or NULL
 */
struct listener *listeners_find(uint32_t port)
{
	for (unsigned i = 0; i < used; i++)
		if (listeners[i].is && listeners[i].is->port == port)
			return &listeners[i];
	return NULL;
}

/**
 * listeners_made_of() - The listener that took a TCP socket's place elsewhere
 * @inet:	A program's TCP socket
 *
 * Processes that share a socket share the listener, and its clients, as with
 * TCP. The one that called listen() first has it.
 *
 * Returns: the listener, the caller's to close; -1 if there is none
 */
int listeners_made_of(int inet)
{
	const struct listener *listener = NULL;
	struct stat status, theirs;
	uint64_t label;
	int fd = -1;

	if (fstat(inet, &status))
		return -1;
	for (unsigned i = 0; i < used && !listener; i++)
		if (listeners[i].is && listeners[i].tgid &&
		    !fstat(listeners[i].inet, &theirs) &&
		    theirs.st_ino == status.st_ino)
			listener = &listeners[i];
	if (listener)
		fd = target_fd(&(struct call){.tid = listener->tgid},
			       listener->num);
	if (fd >= 0 && (!sock_label(fd, &label) || !sock_is_listening(fd) ||
			sock_local_port(fd) != listener->is->port)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/**
 * listeners_at() - Begin a listener
 * @slot:	Free slot
 *
 * Returns: the listener, with nothing in it yet
 */
struct listener *listeners_at(size_t slot)
{
	struct listener *listener = &listeners[slot];

	if (slot >= used)
		used = (unsigned)slot + 1;
	*listener = (struct listener){
	    .is = &state_published()[slot], .inet = -1, .watch = -1};
	return listener;
}

/**
 * listeners_new() - Room for one more listener
 *
 * Returns: the listener, with nothing in it yet; NULL if there are too many
 */
struct listener *listeners_new(void)
{
	struct listener *listener = listeners;

	while (listener < listeners + used && listener->is)
		listener++;
	if (listener == listeners + MAX_PUBLISHED)
		return NULL;
	return listeners_at((size_t)(listener - listeners));
}

/**
 * listeners_free() - A listener is closed
 * @listener:	Listener
 */
void listeners_free(struct listener *listener)
{
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
 * listeners_end() - A listener is closed: tell the host
 * @listener:	Listener
 */
void listeners_end(struct listener *listener)
{
	debug("listener %#x is gone", listener->is->port);
	control_unlisten(listener->is->port);
	listeners_free(listener);
}

/* ---- the host ---- */

/**
 * listeners_announce() - Tell the host of a listener
 * @listener:	Listener
 *
 * Returns: false if there is no stream
 */
bool listeners_announce(const struct listener *listener)
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
	return control_listen(&msg);
}

/**
 * listeners_announce_all() - Tell the host, on a new stream, of all listeners
 */
void listeners_announce_all(void)
{
	for (unsigned i = 0; i < used; i++)
		if (listeners[i].is)
			listeners_announce(&listeners[i]);
}

/* ---- names ---- */

/**
 * listeners_names() - Both names of a socket that isn't connected to a token
 * @fd:		One of our sockets
 * @label:	Its label
 * @ret_local:	What getsockname() says
 * @ret_peer:	What getpeername() says, if this returns 0
 *
 * Returns: 0; ENOTCONN: it has no peer; EOPNOTSUPP: it is another socket
 */
int listeners_names(int fd, uint64_t label, struct destination *ret_local,
		    struct destination *ret_peer)
{
	struct sockaddr_vm peer;
	uint32_t port = sock_local_port(fd);
	const struct sockaddr_vm own = {.svm_cid = VMADDR_CID_LOCAL,
					.svm_port = port};
	bool inbound = label & LABEL_INBOUND;
	bool listening = inbound && sock_is_listening(fd);
	bool connected = sock_peer(fd, &peer), v4 = !(label & LABEL_V6);
	const struct listener *listener =
	    listening ? listeners_find(port) : NULL;

	if (!connected && !listening && (label & (LABEL_INBOUND | LABEL_LOCAL)))
		connected = sock_half_closed_peer(fd, &peer);
	if (connected && peer.svm_cid == VMADDR_CID_LOCAL) {
		callers_name(inbound ? &peer : &own, ret_local);
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
		callers_name(&peer, ret_peer);
		v4 = IN6_IS_ADDR_V4MAPPED(&ret_peer->address);
	}
	ret_local->address = control_pod_address(v4);
	ret_local->port = (uint16_t)port;
	return connected ? 0 : ENOTCONN;
}

/* ---- the stash ---- */

/**
 * listeners_stash() - Keep a connection for the next accept()
 * @port:	The listener's
 * @conn:	Connection; ours no more
 */
void listeners_stash(uint32_t port, int conn)
{
	struct listener *listener = listeners_find(port);

	if (listener && listener->n_stash < MAX_STASH) {
		listener->stash[listener->n_stash++] = conn;
		stashed++;
	} else {
		close(conn);
	}
}

/**
 * listeners_unstash() - Take a connection that was kept
 * @fd:		Listener
 *
 * Returns: the connection, -1 if there is none
 */
int listeners_unstash(int fd)
{
	struct listener *listener =
	    stashed ? listeners_find(sock_local_port(fd)) : NULL;

	if (!listener || !listener->n_stash)
		return -1;
	stashed--;
	return listener->stash[--listener->n_stash];
}
