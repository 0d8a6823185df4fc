// SPDX-License-Identifier: Apache-2.0
/*
 * stock.c - sockets that were made before they are needed
 *
 * Theory of operation
 * ===================
 *
 * A dial must not wait for the maker of its socket (netns.c), so some are kept.
 * There is none before the first dial, and when more come at once than there
 * are: then who wants one waits, first come, first served. A connection that
 * waits has a far side of its own kind, by which it leaves the queue however it
 * ends; a tunnel leaves when it is doomed. So what waits is bounded by the
 * connections and tunnels that there may be.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>

#include "side/dial.h"
#include "side/socket.h"
#include "side/stock.h"

#define SERVES 8 /* dials, when sockets come: others' turns wait */

/**
 * union address - Where a dial goes
 * @any:	Its family
 * @ipv4:	One of IPv4
 * @ipv6:	One of IPv6
 */
union address {
	struct sockaddr any;
	struct sockaddr_in ipv4;
	struct sockaddr_in6 ipv6;
};

/**
 * struct dial - A connection that waits for a socket
 * @waiter:	In its stock
 * @c:		Connection
 * @len:	Bytes used of @addr
 * @addr:	Where to
 */
struct dial {
	struct waiter waiter;
	struct vu_conn *c;
	socklen_t len;
	union address addr;
};

/**
 * leave() - A connection waits no more
 * @c:		Connection
 * @s:		Its far side
 * @error:	errno, or 0
 */
static void leave(struct vu_conn *c, struct side *s, int error)
{
	struct waiter *w = c->waiter;

	(void)s;
	(void)error;
	c->waiter = NULL;
	if (w) {
		list_del(&w->link);
		free(container_of(w, struct dial, waiter));
	}
}

static const struct side_ops waiting = {.close = leave};

/**
 * dial() - A connection's socket is there, or will never be
 * @w:		Of its dial, freed
 * @fd:		Socket, taken over; -1: there is none
 * @error:	errno, if there is none
 */
static void dial(struct waiter *w, int fd, int error)
{
	struct dial *d = container_of(w, struct dial, waiter);
	union address addr = d->addr;
	struct vu_conn *c = d->c;
	socklen_t len = d->len;

	leave(c, &c->far, 0);
	if (c->state != CONN_DIALING) { /* its guest is gone (conn_forsake()) */
		if (fd >= 0)
			close(fd);
	} else if (fd < 0) {
		conn_abort(c, error);
	} else {
		c->far = (struct side){.ops = socket_ops(c), .fd = fd};
		dial_start(c, &addr.any, len);
	}
}

/**
 * queue_up() - Have a dial wait for a socket
 * @c:		Connection; gone afterwards if memory is short
 * @k:		Stock
 * @addr:	Where to
 * @len:	Size of @addr
 */
static void queue_up(struct vu_conn *c, struct stock *k,
		     const struct sockaddr *addr, socklen_t len)
{
	struct dial *d = calloc(1, sizeof(*d));

	if (!d || len > sizeof(d->addr)) {
		conn_abort(c, d ? EINVAL : ENOMEM);
		free(d);
		return;
	}
	list_init(&d->waiter.link);
	d->waiter.ready = dial;
	d->c = c;
	d->len = len;
	memcpy(&d->addr, addr, len);
	list_add(&k->waiting, &d->waiter.link);
	c->waiter = &d->waiter;
	c->far = (struct side){.ops = &waiting, .fd = -1};
}

/**
 * first() - Take who waits for longest out of the queue
 * @k:		Stock, somebody waits
 *
 * Returns: that
 */
static struct waiter *first(struct stock *k)
{
	struct waiter *w = container_of(k->waiting.next, struct waiter, link);

	list_del(&w->link);
	return w;
}

/**
 * stock_fail() - There is no socket for those that wait
 * @k:		Stock
 * @error:	errno
 * @most:	So many hear of it
 */
void stock_fail(struct stock *k, int error, unsigned most)
{
	while (most-- && !list_empty(&k->waiting)) {
		struct waiter *w = first(k);

		w->ready(w, -1, error);
	}
}

/**
 * stock_serve() - Give sockets to those that wait
 * @k:		Stock
 *
 * Returns: true if there is more to do
 */
bool stock_serve(struct stock *k)
{
	for (unsigned i = 0; i < SERVES && k->n && !list_empty(&k->waiting);
	     i++) {
		struct waiter *w = first(k);

		w->ready(w, k->fds[--k->n], 0);
	}
	return k->n && !list_empty(&k->waiting);
}

/**
 * stock_put() - Take the sockets of a message
 * @k:		Stock; NULL: they are not wanted
 * @msg:	Received
 *
 * Returns: how many there were
 */
unsigned stock_put(struct stock *k, struct msghdr *msg)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);
	unsigned count = 0;

	for (; cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		int fds[VU_MAX_STOCK];

		if (cmsg->cmsg_level != SOL_SOCKET ||
		    cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		count =
		    (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(cmsg), count * sizeof(int));
		for (unsigned i = 0; i < count; i++) {
			if (k && k->n < VU_MAX_STOCK)
				k->fds[k->n++] = fds[i];
			else
				close(fds[i]);
		}
	}
	return count;
}

/**
 * stock_empty() - Let go of a stock
 * @k:		Stock
 */
void stock_empty(struct stock *k)
{
	while (k->n)
		close(k->fds[--k->n]);
	stock_fail(k, ENETUNREACH, ~0U);
}

/**
 * stock_dial() - Connect a far side with a socket of a stock
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 * @k:		Stock
 * @addr:	Where to
 * @len:	Size of @addr
 */
void stock_dial(struct vu_conn *c, struct stock *k, const struct sockaddr *addr,
		socklen_t len)
{
	if (!k->n || !list_empty(&k->waiting)) {
		queue_up(c, k, addr, len);
		return;
	}
	c->far = (struct side){.ops = socket_ops(c), .fd = k->fds[--k->n]};
	dial_start(c, addr, len);
}

/**
 * stock_get() - Have a socket, now or later
 * @k:		Stock
 * @w:		Who wants it
 */
void stock_get(struct stock *k, struct waiter *w)
{
	if (k->n && list_empty(&k->waiting))
		w->ready(w, k->fds[--k->n], 0);
	else
		list_add(&k->waiting, &w->link);
}
