// SPDX-License-Identifier: Apache-2.0
/*
 * handoff.c - far sides that are other proxies
 *
 * Theory of operation
 * ===================
 *
 * A hand-off is a proxy, and what it is told of a guest's connections before
 * their bytes. A target names one by its id, and the destination; so a route,
 * which Python sets once, hands over any number of connections.
 *
 * Such a connection is dialled as any other (dial.c, netns.c). But when its
 * socket is connected it has a greeting (pending.h): what is to be said, and
 * heard, in CONN_DIALING still. Then the socket is one as any other, and what
 * follows costs what it does without a hand-off.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <sys/un.h>

#include "side/dial.h"
#include "side/handoff.h"
#include "side/netns.h"

#define ROUNDS 0x1fffffU

/**
 * struct vu_handoff - Another proxy
 * @core:	What all connections share
 * @id:		Its id
 * @cfg:	As it was given
 */
struct vu_handoff {
	struct core *core;
	uint32_t id;
	struct vu_handoff_config cfg;
};

/**
 * struct header - A connection to a unix socket that gets a header first
 * @greeting:	What the engine knows of it
 * @handoff:	Id of the hand-off
 * @src:	Whose it is
 * @dst:	Where it was to go
 */
struct header {
	struct greeting greeting;
	uint32_t handoff;
	union ip_port src;
	union ip_port dst;
};

/* Of all engines: an id is for one thing, whatever engine it is shown to */
static uint32_t named;

/* ---- unix sockets ---- */

/**
 * source() - Whose is a connection?
 * @c:		Connection
 * @cfg:	Hand-off
 * @dst:	Where it was to go
 * @ret:	The source's address, of the same family
 *
 * Returns: 0, or errno: it has none of that family
 */
static int source(const struct vu_conn *c, const struct vu_handoff_config *cfg,
		  const union ip_port *dst, union ip_port *ret)
{
	bool ipv4 = dst->any.sa_family == AF_INET;
	uint16_t port = htons((uint16_t)c->peer_port);
	socklen_t len = sizeof(*ret);

	*ret = (union ip_port){.any.sa_family = dst->any.sa_family};
	if (c->near.fd >= 0) { /* a listener's client */
		if (getpeername(c->near.fd, &ret->any, &len))
			return errno;
		return ret->any.sa_family == dst->any.sa_family ? 0
								: ENETUNREACH;
	}
	if (!(ipv4 ? cfg->has_ipv4 : cfg->has_ipv6))
		return ENETUNREACH;
	if (ipv4) {
		memcpy(&ret->ipv4.sin_addr, cfg->ipv4, sizeof(cfg->ipv4));
		ret->ipv4.sin_port = port;
	} else {
		memcpy(&ret->ipv6.sin6_addr, cfg->ipv6, sizeof(cfg->ipv6));
		ret->ipv6.sin6_port = port;
	}
	return 0;
}

/**
 * say() - The proxy took the connection: say whose it is
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 *
 * The socket is empty, and holds more than a header.
 */
static void say(struct vu_conn *c)
{
	const struct header *header = (const struct header *)c->greeting;
	const struct vu_handoff *h = handoff_by_id(c->core, header->handoff);
	uint8_t bytes[PROXY_MOST];
	size_t len;
	ssize_t n;

	if (!h) {
		conn_abort(c, ENETUNREACH);
		return;
	}
	len = proxy_header(bytes, &header->src, &header->dst, h->cfg.identity,
			   h->cfg.identity_len);
	n = send(c->far.fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n != (ssize_t)len) {
		conn_abort(c, ECONNRESET);
		return;
	}
	conn_greeted(c);
	conn_opened(c);
}

/**
 * connect_unix() - Connect to a proxy's unix socket
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 */
static void connect_unix(struct vu_conn *c)
{
	const struct header *header = (const struct header *)c->greeting;
	const struct vu_handoff *h = handoff_by_id(c->core, header->handoff);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	if (!h) {
		conn_abort(c, ENETUNREACH);
		return;
	}
	memcpy(addr.sun_path, h->cfg.addr, h->cfg.addr_len);
	dial_here(c, (struct sockaddr *)&addr, sizeof(addr));
}

/**
 * dial_unix() - Hand a connection to a proxy by a unix socket
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 * @h:		Hand-off
 * @dst:	Where it was to go
 */
static void dial_unix(struct vu_conn *c, const struct vu_handoff *h,
		      const union ip_port *dst)
{
	struct header *header = calloc(1, sizeof(*header));
	int error = header ? source(c, &h->cfg, dst, &header->src) : ENOMEM;

	if (error) {
		free(header);
		conn_abort(c, error);
		return;
	}
	header->greeting =
	    (struct greeting){.step = say, .again = connect_unix};
	header->handoff = h->id;
	header->dst = *dst;
	c->greeting = &header->greeting;
	connect_unix(c);
}

/* ---- SOCKS5 ---- */

/**
 * dial_socks5() - Have a proxy asked by SOCKS5
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 * @h:		Hand-off
 * @dst:	Where it was to go
 * @netns:	Where the proxy is
 */
static void dial_socks5(struct vu_conn *c, const struct vu_handoff *h,
			const union ip_port *dst, uint32_t netns)
{
	int error = socks5_greet(c, dst);
	union ip_port proxy = {0};

	if (error) {
		conn_abort(c, error);
		return;
	}
	memcpy(&proxy, h->cfg.addr, h->cfg.addr_len);
	if (netns)
		netns_dial(c, netns, &proxy.any, h->cfg.addr_len);
	else
		dial_here(c, &proxy.any, h->cfg.addr_len);
}

/* ---- for the others ---- */

/**
 * handoff_dial() - Hand a connection to another proxy
 * @c:		Connection; may be gone afterwards
 * @target:	Target with a hand-off
 */
void handoff_dial(struct vu_conn *c, const struct vu_target *target)
{
	const struct vu_handoff *h = handoff_by_id(c->core, target->handoff);
	union ip_port dst = {0};

	if (c->state != CONN_DIALING)
		conn_set(c, CONN_DIALING);
	memcpy(&dst, target->addr, target->addr_len);
	if (!h)
		conn_abort(c, ENETUNREACH);
	else if (dst.any.sa_family != AF_INET && dst.any.sa_family != AF_INET6)
		conn_abort(c, EAFNOSUPPORT);
	else if (h->cfg.kind == VU_HANDOFF_UNIX)
		dial_unix(c, h, &dst);
	else
		dial_socks5(c, h, &dst, target->netns);
}

/**
 * handoff_new() - Hand connections to another proxy
 * @core:	What all connections share
 * @slot:	Where it is, a free one
 * @cfg:	The proxy, checked
 *
 * Returns: the hand-off; NULL if out of memory
 */
struct vu_handoff *handoff_new(struct core *core, uint32_t slot,
			       const struct vu_handoff_config *cfg)
{
	struct vu_handoff *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	*h = (struct vu_handoff){.core = core, .cfg = *cfg};
	/* not 0, which says none, and positive as an int */
	h->id = (__atomic_fetch_add(&named, 1, __ATOMIC_RELAXED) % ROUNDS + 1) *
		    VU_MAX_HANDOFFS +
		slot;
	core->handoffs[slot] = h;
	return h;
}

/**
 * handoff_free() - Forget a hand-off; its connections stay
 * @h:		Hand-off
 */
void handoff_free(struct vu_handoff *h)
{
	h->core->handoffs[h->id % VU_MAX_HANDOFFS] = NULL;
	free(h);
}

/**
 * handoff_by_id() - Find a hand-off
 * @core:	What all connections share
 * @id:		Its id
 *
 * Returns: it; NULL if it is gone
 */
struct vu_handoff *handoff_by_id(const struct core *core, uint32_t id)
{
	struct vu_handoff *h = core->handoffs[id % VU_MAX_HANDOFFS];

	return h && h->id == id ? h : NULL;
}

/**
 * handoff_id() - Name a hand-off
 * @h:		Hand-off
 *
 * Returns: its id
 */
uint32_t handoff_id(const struct vu_handoff *h)
{
	return h->id;
}
