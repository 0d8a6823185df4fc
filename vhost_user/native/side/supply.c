// SPDX-License-Identifier: Apache-2.0
/*
 * supply.c - sockets from the maker in a network namespace
 *
 * Theory of operation
 * ===================
 *
 * A dial must not wait for the maker, so there is a stock of sockets for each
 * IP version (stock.c), filled up when half of it is gone: one message for many
 * dials.
 *
 * A maker that is gone, or says nonsense, is Python's business (VU_EV_MAKER):
 * who waits, waits for the next one (netns_renew()) as long as a dial may take.
 */

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "side/netns.h"

#define FAILS 64 /* ends of those that wait, at once */

_Static_assert(sizeof(struct vu_netns_ask) == 24, "the maker reads 24 bytes");
_Static_assert(sizeof(struct vu_netns_answer) == 8, "it writes 8");

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
 * supply_ask() - Have the maker fill up a stock, if it has to
 * @n:		Namespace
 * @k:		Its stock
 */
void supply_ask(struct vu_netns *n, struct stock *k)
{
	if (n->fd < 0 || k->asked || k->n > k->keep / 2)
		return;
	k->ask.count = (uint16_t)(k->keep - k->n);
	k->asked = send(n->fd, &k->ask, sizeof(k->ask),
			MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(k->ask);
}

/**
 * supply_lose() - The maker is gone
 * @n:		Namespace
 */
void supply_lose(struct vu_netns *n)
{
	if (n->fd >= 0)
		close(n->fd);
	n->fd = -1;
	n->ipv4.asked = n->ipv6.asked = false;
}

/**
 * supply_serve() - Dial for those that wait
 * @n:		Namespace
 * @k:		Its stock
 */
void supply_serve(struct vu_netns *n, struct stock *k)
{
	if (stock_serve(k))
		list_add(&n->core->serving, &n->serving);
	if (!list_empty(&k->waiting)) /* else the next dial asks */
		supply_ask(n, k);
}

/**
 * supply_run() - Dial for those that wait, for a turn
 * @core:	What all connections share
 */
void supply_run(struct core *core)
{
	struct list now;

	list_init(&now);
	list_splice(&now, &core->serving);
	while (!list_empty(&now)) {
		struct vu_netns *n =
		    container_of(now.next, struct vu_netns, serving);

		list_del(&n->serving);
		supply_serve(n, &n->ipv4);
		supply_serve(n, &n->ipv6);
	}
}

/**
 * tell() - Tell Python that the maker is of no use
 * @n:		Namespace
 * @error:	Why, an errno
 */
static void tell(struct vu_netns *n, int error)
{
	struct vu_event event = {.kind = VU_EV_MAKER, .error = error};

	outbox_push(&n->core->outbox, n->outbox, &event, true);
}

/**
 * nonsense() - The maker's answer is none
 * @n:		Namespace
 * @msg:	Received
 *
 * It is our own process, so that is a bug, or its memory is broken. Nobody
 * waits for what will not come; it is asked again until there is another one.
 */
static void nonsense(struct vu_netns *n, struct msghdr *msg)
{
	struct stock *stocks[] = {&n->ipv4, &n->ipv6};

	stock_put(NULL, msg);
	tell(n, EPROTO);
	for (unsigned i = 0; i < 2; i++) {
		stocks[i]->asked = false;
		stock_fail(stocks[i], EPROTO, FAILS);
		supply_serve(n, stocks[i]);
	}
}

/**
 * supply_event() - Take an answer of the maker
 * @n:		Namespace
 */
void supply_event(struct vu_netns *n)
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
		supply_lose(n);
		tell(n, ECONNRESET);
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
	supply_serve(n, k);
}
