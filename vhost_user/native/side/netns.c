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
 * A dial must not wait for the maker, so there is a stock of sockets for each
 * IP version (stock.c), filled up when half of it is gone: one message for many
 * dials.
 *
 * A maker that is gone is Python's business: who waits, waits for the next one
 * (netns_renew()) as long as a dial may take.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "side/netns.h"
#include "side/stock.h"

#define FAILS  64 /* ends of those that wait, at once */
#define ROUNDS 0x1fffffU

/**
 * struct vu_netns - Where sockets of a network namespace come from
 * @serving:	On the list of those that have sockets for dials that wait
 * @core:	What all connections share
 * @id:		Its id
 * @fd:		To the maker; -1: it is gone
 * @tag:	What epoll reports an answer as
 * @ipv4:	Sockets of IPv4
 * @ipv6:	Sockets of IPv6
 */
struct vu_netns {
	struct list serving;
	struct core *core;
	uint32_t id;
	int fd;
	uint64_t tag;
	struct stock ipv4;
	struct stock ipv6;
};

/* Of all engines: an id is for one thing, whatever engine it is shown to */
static uint32_t named;

_Static_assert(sizeof(struct vu_netns_ask) == 24, "the maker reads 24 bytes");
_Static_assert(sizeof(struct vu_netns_answer) == 8, "it writes 8");

/* ---- the maker ---- */

/**
 * ask() - Have the maker fill up a stock, if it has to
 * @n:		Namespace
 * @k:		Its stock
 */
static void ask(struct vu_netns *n, struct stock *k)
{
	if (n->fd < 0 || k->asked || k->n > k->keep / 2)
		return;
	k->ask.count = (uint16_t)(k->keep - k->n);
	k->asked = send(n->fd, &k->ask, sizeof(k->ask),
			MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(k->ask);
}

/**
 * lose() - The maker is gone
 * @n:		Namespace
 */
static void lose(struct vu_netns *n)
{
	if (n->fd >= 0)
		close(n->fd);
	n->fd = -1;
	n->ipv4.asked = n->ipv6.asked = false;
}

/**
 * serve() - Dial for those that wait
 * @n:		Namespace
 * @k:		Its stock
 */
static void serve(struct vu_netns *n, struct stock *k)
{
	if (stock_serve(k))
		list_add(&n->core->serving, &n->serving);
	if (!list_empty(&k->waiting)) /* else the next dial asks */
		ask(n, k);
}

/**
 * netns_run() - Dial for those that wait, for a turn
 * @core:	What all connections share
 */
void netns_run(struct core *core)
{
	struct list now;

	list_init(&now);
	list_splice(&now, &core->serving);
	while (!list_empty(&now)) {
		struct vu_netns *n =
		    container_of(now.next, struct vu_netns, serving);

		list_del(&n->serving);
		serve(n, &n->ipv4);
		serve(n, &n->ipv6);
	}
}

/**
 * nonsense() - The maker's answer is none
 * @n:		Namespace
 * @msg:	Received
 *
 * It is our own process, so that is a bug, or its memory is broken. Nobody
 * waits for what will not come.
 */
static void nonsense(struct vu_netns *n, struct msghdr *msg)
{
	struct stock *stocks[] = {&n->ipv4, &n->ipv6};

	stock_put(NULL, msg);
	for (unsigned i = 0; i < 2; i++) {
		stocks[i]->asked = false;
		stock_fail(stocks[i], EPROTO, FAILS);
		serve(n, stocks[i]);
	}
}

/**
 * netns_event() - Take an answer of the maker
 * @n:		Namespace
 */
void netns_event(struct vu_netns *n)
{
	union {
		char room[CMSG_SPACE(VU_MAX_STOCK * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct vu_netns_answer answer = {0};
	struct iovec iov = {.iov_base = &answer, .iov_len = sizeof(answer)};
	struct msghdr msg = {
	    .msg_iov = &iov,
	    .msg_iovlen = 1,
	    .msg_control = control.room,
	    .msg_controllen = sizeof(control.room),
	};
	struct stock *k;
	ssize_t len;

	if (n->fd < 0)
		return;
	len = recvmsg(n->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (len <= 0) {
		lose(n);
		return;
	}
	if (len != sizeof(answer) || answer.what != VU_NETNS_STREAM ||
	    (answer.version != 4 && answer.version != 6)) {
		nonsense(n, &msg);
		return;
	}
	k = answer.version == 6 ? &n->ipv6 : &n->ipv4;
	k->asked = false;
	/* without an error it is us who are out of descriptors */
	if (!stock_put(k, &msg))
		stock_fail(k, answer.error ? answer.error : EMFILE, FAILS);
	serve(n, k);
}

/* ---- for the others ---- */

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
	struct stock *k = NULL;

	c->netns = id;
	if (c->state != CONN_DIALING)
		conn_set(c, CONN_DIALING);
	if (n)
		k = addr->sa_family == AF_INET6 ? &n->ipv6 : &n->ipv4;
	if (!k || !k->ask.version) {
		conn_abort(c, ENETUNREACH);
		return;
	}
	stock_dial(c, k, addr, len);
	ask(n, k); /* behind the dial: the maker wants a CPU, too */
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
	if (watch(n, fd)) {
		free(n);
		return NULL;
	}
	/* not 0, which says our own namespace */
	n->id = (__atomic_fetch_add(&named, 1, __ATOMIC_RELAXED) % ROUNDS + 1) *
		    VU_MAX_NETNS +
		slot;
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
	lose(n);
	n->fd = fd;
	serve(n, &n->ipv4);
	serve(n, &n->ipv6);
	return 0;
}

/**
 * end_dials() - End connections that are being dialled
 * @n:		Namespace
 *
 * Else they had as long as a dial may take, and kept the namespace. This looks
 * at all engine's that aren't established, once in a namespace's life.
 */
static void end_dials(const struct vu_netns *n)
{
	struct list *head = &n->core->deadlines[DEADLINE_DIAL];

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
	lose(n);
	stock_empty(&n->ipv4);
	stock_empty(&n->ipv6);
	end_dials(n);
	free(n);
}

/**
 * netns_by_id() - Find a network namespace
 * @core:	What all connections share
 * @id:		Its id
 *
 * Returns: it; NULL if it is gone
 */
struct vu_netns *netns_by_id(const struct core *core, uint32_t id)
{
	struct vu_netns *n = core->netns[id % VU_MAX_NETNS];

	return n && n->id == id ? n : NULL;
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
