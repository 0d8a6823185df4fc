// SPDX-License-Identifier: Apache-2.0
/*
 * netns.c - far sides whose sockets belong to another network namespace
 *
 * Theory of operation
 * ===================
 *
 * A socket stays in the namespace that it was made in, whoever connects it. So
 * a process inside (the maker) makes them, bound to the address that their
 * peers shall see, and passes them here. All else is as with a dial in our own
 * namespace: connect(), its errno, half-close.
 *
 * Connections are dialled by netns_dial(). A tunnel only gets a socket here,
 * and is on the list of those that dial until it is connected: should the
 * namespace go, it hears of it.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "side/netns.h"

#define ROUNDS 0x1fffffU

/* Of all engines: an id is for one thing, whatever engine it is shown to */
static uint32_t named;

/**
 * stock_of() - Find the sockets of an IP version
 * @n:		Namespace; NULL: it is gone
 * @family:	AF_
 *
 * Returns: the stock; NULL if that version can't be dialled there
 */
static struct stock *stock_of(struct vu_netns *n, sa_family_t family)
{
	struct stock *k;

	if (!n)
		return NULL;
	k = family == AF_INET6 ? &n->ipv6 : &n->ipv4;
	return k->ask.version ? k : NULL;
}

/**
 * netns_dial() - Connect a far side in a network namespace
 * @c:		Connection; may be gone afterwards
 * @id:		The namespace's
 * @addr:	Where to
 * @len:	Size of @addr
 */
void netns_dial(struct vu_conn *c, uint32_t id, const struct sockaddr *addr,
		socklen_t len)
{
	struct vu_netns *n = netns_by_id(c->core, id);
	struct stock *k = stock_of(n, addr->sa_family);

	c->netns = id;
	if (c->state != CONN_DIALING)
		conn_set(c, CONN_DIALING);
	if (!k) {
		conn_abort(c, ENETUNREACH);
		return;
	}
	stock_dial(c, k, addr, len);
	supply_ask(n, k); /* behind the dial: the maker wants a CPU, too */
}

/**
 * netns_get() - Have a socket of a network namespace, now or later
 * @core:	What all connections share
 * @id:		The namespace's
 * @family:	AF_
 * @w:		Who wants it
 */
void netns_get(struct core *core, uint32_t id, sa_family_t family,
	       struct waiter *w)
{
	struct vu_netns *n = netns_by_id(core, id);
	struct stock *k = stock_of(n, family);

	if (!k) {
		w->ready(w, -1, ENETUNREACH);
		return;
	}
	stock_get(k, w);
	supply_ask(n, k);
}

/**
 * netns_dialing() - Tell somebody who dials if the namespace goes
 * @core:	What all connections share
 * @id:		The namespace's
 * @w:		Who has a socket of it; leaves the list once it is connected
 */
void netns_dialing(struct core *core, uint32_t id, struct waiter *w)
{
	struct vu_netns *n = netns_by_id(core, id);

	if (n)
		list_add(&n->dialing, &w->link);
}

/**
 * watch() - Have epoll report the maker's answers
 * @n:		Namespace
 * @fd:		To the maker
 *
 * Returns: 0, or -1 with errno
 */
static int watch(const struct vu_netns *n, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = n->tag};

	return epoll_ctl(n->core->epoll_fd, EPOLL_CTL_ADD, fd, &ev);
}

/**
 * netns_new() - Have sockets come from a maker
 * @core:	What all connections share
 * @slot:	Where it is, a free one
 * @fd:		To the maker, taken over on success
 * @cfg:	Addresses
 * @tag:	What epoll reports an answer as
 *
 * Returns: the namespace; NULL with errno
 */
struct vu_netns *netns_new(struct core *core, uint32_t slot, int fd,
			   const struct vu_netns_config *cfg, uint64_t tag)
{
	struct vu_netns *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	*n = (struct vu_netns){.core = core, .fd = fd, .tag = tag};
	list_init(&n->serving);
	list_init(&n->dialing);
	list_init(&n->ipv4.waiting);
	list_init(&n->ipv6.waiting);
	n->ipv4.ask = n->ipv6.ask =
	    (struct vu_netns_ask){.what = VU_NETNS_STREAM};
	n->ipv4.keep = n->ipv6.keep =
	    cfg->keep && cfg->keep < VU_MAX_STOCK ? cfg->keep : VU_MAX_STOCK;
	if (cfg->has_ipv4) {
		n->ipv4.ask.version = 4;
		memcpy(n->ipv4.ask.ip, cfg->ipv4, sizeof(cfg->ipv4));
	}
	if (cfg->has_ipv6) {
		n->ipv6.ask.version = 6;
		memcpy(n->ipv6.ask.ip, cfg->ipv6, sizeof(cfg->ipv6));
	}
	/* not 0, which says our own namespace */
	n->id = (__atomic_fetch_add(&named, 1, __ATOMIC_RELAXED) % ROUNDS + 1) *
		    VU_MAX_NETNS +
		slot;
	n->outbox = outbox_open(n->id | VU_NETNS_SOURCE, false);
	if (!n->outbox || watch(n, fd)) {
		if (n->outbox)
			outbox_unref(&core->outbox, n->outbox);
		else
			errno = ENOMEM;
		free(n);
		return NULL;
	}
	core->netns[slot] = n;
	return n;
}

/**
 * netns_renew() - Have sockets come from another maker
 * @n:		Namespace
 * @fd:		To it, taken over on success
 *
 * Returns: 0, or -1 with errno
 */
int netns_renew(struct vu_netns *n, int fd)
{
	if (watch(n, fd))
		return -1;
	supply_lose(n);
	n->fd = fd;
	supply_serve(n, &n->ipv4);
	supply_serve(n, &n->ipv6);
	return 0;
}

/**
 * end_dials() - End what is being dialled
 * @n:		Namespace
 *
 * Else it had as long as a dial may take, and kept the namespace. This looks at
 * all engine's connections that aren't established, once in a namespace's life.
 */
static void end_dials(struct vu_netns *n)
{
	struct list *head = &n->core->deadlines[DEADLINE_DIAL];

	while (!list_empty(&n->dialing)) {
		struct waiter *w =
		    container_of(n->dialing.next, struct waiter, link);

		list_del(&w->link);
		w->ready(w, -1, ENETUNREACH);
	}
	for (struct list *at = head->next, *next; at != head; at = next) {
		struct vu_conn *c = container_of(at, struct vu_conn, timer);

		next = at->next;
		if (c->netns == n->id && c->state == CONN_DIALING)
			conn_abort(c, ENETUNREACH);
	}
}

/**
 * netns_free() - Forget a network namespace; what is established stays
 * @n:		Namespace
 *
 * All dials, those that come later too, fail with ENETUNREACH.
 */
void netns_free(struct vu_netns *n)
{
	n->core->netns[n->id % VU_MAX_NETNS] = NULL;
	list_del(&n->serving);
	supply_lose(n);
	stock_empty(&n->ipv4);
	stock_empty(&n->ipv6);
	end_dials(n);
	outbox_unref(&n->core->outbox, n->outbox);
	free(n);
}

/**
 * netns_id() - Name a network namespace
 * @n:		Namespace
 *
 * Returns: its id
 */
uint32_t netns_id(const struct vu_netns *n)
{
	return n->id;
}
