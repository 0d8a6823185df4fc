// SPDX-License-Identifier: Apache-2.0
/*
 * way.c - a connection's sockets, and the bytes that they have no room for
 *
 * Theory of operation
 * ===================
 *
 * A connection's ends that are sockets are registered with epoll once, edge-
 * triggered. Its two ways keep what a sink does not take; whoever fills one
 * bounds it: by the window behind a guest, by one read behind a socket.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/socket.h>

#include "engine.h"

/**
 * end_watch() - Have epoll report what happens to a socket, edge-triggered
 * @e:		Engine
 * @c:		Connection
 * @end:	Its near or far end, with fd
 * @op:		EPOLL_CTL_ADD or EPOLL_CTL_MOD
 * @room:	Report room for writing too
 *
 * Returns: 0, or -errno
 */
int end_watch(struct vu_engine *e, struct vu_conn *c, struct end *end, int op,
	      bool room)
{
	uint64_t near = end == &c->near ? 1ULL << 63 : 0;
	struct epoll_event ev = {
	    .events = EPOLLIN | EPOLLRDHUP | EPOLLET | (room ? EPOLLOUT : 0U),
	    .data.u64 = near | (uint64_t)c->generation << 32 | (c->index + 1),
	};

	if (epoll_ctl(e->epoll_fd, op, end->fd, &ev))
		return -errno;
	end->fills = room;
	return 0;
}

/**
 * conn_watch() - Have epoll report what a socket has to read
 * @e:		Engine
 * @c:		Connection
 * @end:	Its near or far end, with fd
 *
 * Registered once: no system call when interest changes. What is there already
 * is reported too, so nobody has to try the socket before.
 *
 * Returns: 0, or -errno
 */
int conn_watch(struct vu_engine *e, struct vu_conn *c, struct end *end)
{
	return end_watch(e, c, end, EPOLL_CTL_ADD, false);
}

/**
 * enlarge() - Let a unix socket hold a window
 * @c:		Connection of a guest
 * @fd:		Its far end
 *
 * A socket's usual buffer is less, and what it doesn't take is copied once
 * more. A TCP socket's grows by itself, unless somebody sets it. Without
 * CAP_NET_ADMIN net.core.wmem_max is the bound. What a VM's sockets have more
 * than usual is not more than it may have queued here.
 */
static void enlarge(struct vu_conn *c, int fd)
{
	const int window = (int)c->dev->cfg.buf_alloc; /* the kernel doubles */
	int domain = AF_UNSPEC, size = 0;
	socklen_t len = sizeof(int);

	if (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) &&
	    domain == AF_UNIX &&
	    !getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &len) &&
	    size / 2 < window && limit_enlarge(c) &&
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &window, len))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &window, sizeof(window));
}

/**
 * conn_full() - A socket took no more: have epoll report when it does
 * @e:		Engine
 * @c:		Connection
 * @end:	Its near or far end
 *
 * Most sockets are never full, and each peer's read would wake us for nothing.
 * One that was full once stays watched for room, and has more of it.
 */
void conn_full(struct vu_engine *e, struct vu_conn *c, struct end *end)
{
	if (!end->fills && c->dev)
		enlarge(c, end->fd);
	/* else it is tried with every turn, which needs no report */
	end->writable =
	    !end->fills && end_watch(e, c, end, EPOLL_CTL_MOD, true) < 0;
}

/**
 * conn_close_end() - Close one end, if it is a socket
 * @end:	End
 * @abort:	The peer must see an error (TCP RST), not an orderly end
 */
void conn_close_end(struct end *end, bool abort)
{
	const struct linger hard = {.l_onoff = 1, .l_linger = 0};

	if (end->fd < 0)
		return;
	if (abort)
		setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	close(end->fd); /* leaves epoll too: we hold the only reference */
	*end = (struct end){.fd = -1};
}

/**
 * conn_return_end() - Let go of a socket that its owner goes on with
 * @e:		Engine
 * @end:	End
 *
 * Other descriptors keep it open, so that it leaves epoll only if told to.
 */
void conn_return_end(struct vu_engine *e, struct end *end)
{
	if (end->fd < 0)
		return;
	epoll_ctl(e->epoll_fd, EPOLL_CTL_DEL, end->fd, NULL);
	close(end->fd);
	*end = (struct end){.fd = -1};
}

/**
 * iov_copy() - Copy between an iovec and a flat buffer
 * @iov:	Segments
 * @n:		How many
 * @off:	Bytes of them to skip first
 * @buf:	The flat buffer
 * @len:	Bytes; fewer if the segments are short
 * @to_iov:	Copy from @buf to @iov, else from @iov to @buf
 */
void iov_copy(const struct iovec *iov, unsigned n, size_t off, void *buf,
	      size_t len, bool to_iov)
{
	char *flat = buf;

	for (unsigned i = 0; i < n && len; i++) {
		size_t span = iov[i].iov_len;
		char *seg = iov[i].iov_base;

		if (off >= span) {
			off -= span;
			continue;
		}
		span = span - off < len ? span - off : len;
		if (to_iov)
			memcpy(seg + off, flat, span);
		else
			memcpy(flat, seg + off, span);
		off = 0;
		flat += span;
		len -= span;
	}
}

/**
 * iov_move() - Copy from one iovec to another
 * @to:		Segments to fill from their start
 * @n_to:	How many
 * @from:	Segments to copy, no byte of them in @to
 * @n_from:	How many
 * @off:	Bytes of @from to skip first
 * @len:	Bytes; fewer if either is short
 */
void iov_move(const struct iovec *to, unsigned n_to, const struct iovec *from,
	      unsigned n_from, size_t off, size_t len)
{
	for (unsigned i = 0; i < n_to && len; i++) {
		size_t span = to[i].iov_len < len ? to[i].iov_len : len;

		while (n_from && off >= from->iov_len) {
			off -= from->iov_len;
			from++;
			n_from--;
		}
		iov_copy(from, n_from, off, to[i].iov_base, span, false);
		off += span;
		len -= span;
	}
}

/**
 * way_append() - Keep bytes that the sink has no room for
 * @way:	Direction
 * @iov:	Bytes
 * @n_iov:	Segments
 * @skip:	Leading bytes that are delivered already
 *
 * Returns: false if out of memory; nothing was kept
 */
bool way_append(struct way *way, const struct iovec *iov, unsigned n_iov,
		size_t skip)
{
	size_t len = 0, need;

	for (unsigned i = 0; i < n_iov; i++)
		len += iov[i].iov_len;
	len -= skip;
	if (way->off && way->off + way->len + len > way->cap) {
		memmove(way->data, way->data + way->off, way->len);
		way->off = 0;
	}
	need = way->off + way->len + len;
	if (need > way->cap) {
		size_t cap = way->cap ? way->cap : 4096;
		char *data;

		while (cap < need)
			cap *= 2;
		data = realloc(way->data, cap);
		if (!data)
			return false;
		way->data = data;
		way->cap = (uint32_t)cap;
	}
	iov_copy(iov, n_iov, skip, way->data + way->off + way->len, len, false);
	way->len += (uint32_t)len;
	return true;
}

/**
 * way_drain() - Write kept bytes
 * @e:		Engine
 * @c:		Connection
 * @way:	Direction
 * @sink:	Where they go
 *
 * Returns: bytes written, 0 if the sink is full, or -errno
 */
int64_t way_drain(struct vu_engine *e, struct vu_conn *c, struct way *way,
		  struct end *sink)
{
	ssize_t n = send(sink->fd, way->data + way->off, way->len,
			 MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0 && errno == EINTR)
		return 0;
	if (n < 0 && errno == EAGAIN) {
		conn_full(e, c, sink);
		return 0;
	}
	if (n < 0)
		return -errno;
	way->off += (uint32_t)n;
	way->len -= (uint32_t)n;
	if (way->len)
		conn_full(e, c, sink);
	else
		way_drop(way);
	return n;
}

/**
 * way_drop() - Forget kept bytes
 * @way:	Direction
 */
void way_drop(struct way *way)
{
	free(way->data);
	way->data = NULL;
	way->off = way->len = way->cap = 0;
}
