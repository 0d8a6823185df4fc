// SPDX-License-Identifier: Apache-2.0
/*
 * stock.c - sockets that were made before they are needed
 *
 * Theory of operation
 * ===================
 *
 * A dial must not wait for the maker of its socket (netns.c), so some are kept.
 * There is none before the first dial, and when more come at once than there
 * are: then connections wait, first come, first served. A connection that waits
 * has a far side of its own kind, by which it leaves the queue however it ends.
 * So what waits is bounded by the connections that there may be.
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
 * struct waiter - A dial that waits for a socket
 * @link:	In its stock
 * @c:		Connection
 * @len:	Bytes used of @addr
 * @addr:	Where to
 */
struct waiter {
	struct list link;
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
		free(w);
	}
}

static const struct side_ops waiting = {.close = leave};

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
	struct waiter *w = calloc(1, sizeof(*w));

	if (!w || len > sizeof(w->addr)) {
		free(w);
		conn_abort(c, w ? EINVAL : ENOMEM);
		return;
	}
	list_init(&w->link);
	w->c = c;
	w->len = len;
	memcpy(&w->addr, addr, len);
	list_add(&k->waiting, &w->link);
	c->waiter = w;
	c->far = (struct side){.ops = &waiting, .fd = -1};
}

/**
 * dial_from() - Dial with a socket of a stock that has one
 * @c:		Connection; may be gone afterwards
 * @k:		Stock
 * @addr:	Where to
 * @len:	Size of @addr
 */
static void dial_from(struct vu_conn *c, struct stock *k,
		      const struct sockaddr *addr, socklen_t len)
{
	c->far = (struct side){.ops = socket_ops(c), .fd = k->fds[--k->n]};
	dial_start(c, addr, len);
}

/**
 * first() - Take the dial out of the queue that waits for longest
 * @k:		Stock, somebody waits
 * @ret_addr:	Where to
 * @ret_len:	Size of that
 *
 * Returns: its connection; NULL if its guest is gone (conn_forsake())
 */
static struct vu_conn *first(struct stock *k, union address *ret_addr,
			     socklen_t *ret_len)
{
	struct waiter *w = container_of(k->waiting.next, struct waiter, link);
	struct vu_conn *c = w->c;

	*ret_addr = w->addr;
	*ret_len = w->len;
	leave(c, &c->far, 0);
	return c->state == CONN_DIALING ? c : NULL;
}

/**
 * stock_fail() - End dials that wait
 * @k:		Stock
 * @error:	errno
 * @most:	So many
 */
void stock_fail(struct stock *k, int error, unsigned most)
{
	while (most-- && !list_empty(&k->waiting)) {
		union address addr;
		socklen_t len;
		struct vu_conn *c = first(k, &addr, &len);

		if (c)
			conn_abort(c, error);
	}
}

/**
 * stock_serve() - Dial for those that wait
 * @k:		Stock
 *
 * Returns: true if there is more to do
 */
bool stock_serve(struct stock *k)
{
	for (unsigned i = 0; i < SERVES && k->n && !list_empty(&k->waiting);
	     i++) {
		union address addr;
		socklen_t len;
		struct vu_conn *c = first(k, &addr, &len);

		if (c)
			dial_from(c, k, &addr.any, len);
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
	if (k->n && list_empty(&k->waiting))
		dial_from(c, k, addr, len);
	else
		queue_up(c, k, addr, len);
}
