// SPDX-License-Identifier: Apache-2.0
/*
 * relay.c - connections that came in by a listening socket
 *
 * Theory of operation
 * ===================
 *
 * The standard paths end here: TPROXY hands us TCP connections, and bytes are
 * copied between two sockets through the engine's scratch buffer. Each
 * direction reads only while its sink takes bytes, and ends by itself: a FIN
 * goes on as shutdown() when all bytes before it are written. What the sink
 * refuses is kept, at most one read's worth.
 *
 * The echo, discard and chargen ends are the same as behind vsock.c, so that
 * a path can be measured to the engine itself.
 */

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include "engine.h"

#define ACCEPT_TURN 64

/**
 * enum moved - How a direction's turn ended
 * @MOVED_ALL:	Until one end would block, or the direction ended
 * @MOVED_PART:	A turn's worth; there may be more
 * @MOVED_ERROR: The source failed; errno says how
 */
enum moved { MOVED_ALL, MOVED_PART, MOVED_ERROR };

/**
 * put() - Write what was just read
 * @e:		Engine
 * @c:		Connection
 * @way:	Direction
 * @sink:	Where it goes
 * @data:	Bytes
 * @len:	How many
 *
 * Returns: false if out of memory
 */
static bool put(struct vu_engine *e, struct vu_conn *c, struct way *way,
		struct end *sink, char *data, size_t len)
{
	struct iovec iov = {.iov_base = data, .iov_len = len};
	ssize_t n;

	if (way->broken)
		return true;
	n = send(sink->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		way->broken = true;
		return true;
	}
	if (n < 0)
		n = 0;
	if ((size_t)n == len)
		return true;
	conn_full(e, c, sink);
	return way_append(way, &iov, 1, (size_t)n);
}

/**
 * settle() - Write kept bytes, and the end behind them
 * @e:		Engine
 * @c:		Connection
 * @way:	Direction
 * @sink:	Where they go
 *
 * Returns: true if the sink is ready for more
 */
static bool settle(struct vu_engine *e, struct vu_conn *c, struct way *way,
		   struct end *sink)
{
	if (way->len && !way->broken) {
		if (!sink->writable)
			return false;
		way->broken = way_drain(e, c, way, sink) < 0;
		if (way->len && !way->broken)
			return false;
	}
	if (way->eof && !way->shut) {
		way->shut = true;
		shutdown(sink->fd, SHUT_WR);
	}
	return true;
}

/**
 * move() - Move one direction's bytes for one turn
 * @e:		Engine
 * @c:		Connection
 * @way:	Direction
 * @source:	Where bytes come from
 * @sink:	Where they go
 * @count:	Bytes moved, added to
 *
 * Returns: how the turn ended
 */
static enum moved move(struct vu_engine *e, struct vu_conn *c, struct way *way,
		       struct end *source, struct end *sink, uint64_t *count)
{
	size_t total = 0;

	for (;;) {
		ssize_t n;

		if (!settle(e, c, way, sink) || way->eof || !source->readable)
			return MOVED_ALL;
		if (total >= SCRATCH)
			return MOVED_PART;
		n = recv(source->fd, e->scratch, SCRATCH, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			source->readable = errno == EINTR;
			continue;
		}
		if (n < 0)
			return MOVED_ERROR;
		if (n == 0) {
			way->eof = true;
			continue;
		}
		if (n < SCRATCH)
			source->readable = source->hup;
		if (!put(e, c, way, sink, e->scratch, (size_t)n)) {
			errno = ENOMEM;
			return MOVED_ERROR;
		}
		total += (size_t)n;
		*count += (uint64_t)n;
	}
}

/**
 * drop_input() - Read and drop what the near end sends
 * @e:		Engine
 * @c:		Connection
 *
 * Returns: how the turn ended; MOVED_ALL with up.eof set after a FIN
 */
static enum moved drop_input(struct vu_engine *e, struct vu_conn *c)
{
	size_t total = 0;

	while (c->near.readable && !c->up.eof) {
		ssize_t n = recv(c->near.fd, e->scratch, SCRATCH, MSG_DONTWAIT);

		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return MOVED_ERROR;
		if (n <= 0) {
			c->near.readable = n < 0 && errno == EINTR;
			c->up.eof = n == 0;
			continue;
		}
		c->up_bytes += (uint64_t)n;
		total += (size_t)n;
		if (total >= SCRATCH)
			return MOVED_PART;
	}
	return MOVED_ALL;
}

/**
 * chargen() - Send the near end bytes until it takes no more
 * @e:		Engine
 * @c:		Connection
 *
 * Returns: how the turn ended
 */
static enum moved chargen(struct vu_engine *e, struct vu_conn *c)
{
	ssize_t n;

	if (drop_input(e, c) == MOVED_ERROR)
		return MOVED_ERROR;
	if (!c->near.writable)
		return MOVED_ALL;
	n = send(c->near.fd, e->chargen, SCRATCH, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return MOVED_ERROR;
	if (n < SCRATCH)
		conn_full(e, c, &c->near);
	if (n > 0)
		c->down_bytes += (uint64_t)n;
	return n == SCRATCH ? MOVED_PART : MOVED_ALL;
}

/**
 * relay_run() - Move a socket connection's bytes for one turn
 * @e:		Engine
 * @c:		Connection in CONN_OPEN without a device
 */
void relay_run(struct vu_engine *e, struct vu_conn *c)
{
	enum moved up = MOVED_ALL, down = MOVED_ALL;
	bool done;

	switch (c->target) {
	case VU_TARGET_ECHO:
		up = move(e, c, &c->up, &c->near, &c->near, &c->up_bytes);
		c->down_bytes = c->up_bytes - c->up.len;
		done = c->up.shut || c->up.broken;
		break;
	case VU_TARGET_DISCARD:
		up = drop_input(e, c);
		done = c->up.eof;
		break;
	case VU_TARGET_CHARGEN:
		up = chargen(e, c);
		done = false;
		break;
	default:
		up = move(e, c, &c->up, &c->near, &c->far, &c->up_bytes);
		if (up != MOVED_ERROR)
			down = move(e, c, &c->down, &c->far, &c->near,
				    &c->down_bytes);
		done = c->down.broken ||
		       (c->down.shut && (c->up.shut || c->up.broken));
	}
	if (up == MOVED_ERROR || down == MOVED_ERROR) {
		conn_abort(e, c, errno);
		return;
	}
	if (done) {
		conn_abort(e, c, c->down.broken ? EPIPE : 0);
		return;
	}
	if (up == MOVED_PART || down == MOVED_PART)
		list_add(&e->run, &c->run);
}

/**
 * admit() - Make a connection of an accepted socket
 * @e:		Engine
 * @l:		Listener
 * @fd:		Socket, taken over
 */
static void admit(struct vu_engine *e, struct vu_listener *l, int fd)
{
	const int one = 1;
	struct vu_conn *c = NULL;

	if (!events_crowded(e, l->id, e->cfg.max_conns))
		c = conn_new(e, l->id);
	if (!c) {
		close(fd);
		return;
	}
	l->conns++;
	c->want = (uint8_t)l->want;
	c->near = (struct end){.fd = fd, .writable = true};
	c->state = CONN_HELD;
	/* fails on a unix socket, which has no use for it */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (conn_watch(e, c, &c->near)) {
		conn_free(e, c);
		return;
	}
	conn_target(e, c, &l->target);
}

/**
 * relay_accept() - Accept what waits at a listener
 * @e:		Engine
 * @l:		Listener
 *
 * Out of descriptors, it pauses: the backlog waits until some are free.
 */
void relay_accept(struct vu_engine *e, struct vu_listener *l)
{
	for (unsigned i = 0; i < ACCEPT_TURN; i++) {
		int fd =
		    accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			admit(e, l, fd);
		} else if (errno == EAGAIN) {
			return;
		} else if (errno == EMFILE || errno == ENFILE ||
			   errno == ENOBUFS || errno == ENOMEM) {
			struct epoll_event none = {0};

			l->paused = true;
			epoll_ctl(e->epoll_fd, EPOLL_CTL_MOD, l->fd, &none);
			return;
		} /* else that client is gone already: the next one */
	}
}
