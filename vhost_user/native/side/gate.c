// SPDX-License-Identifier: Apache-2.0
/*
 * gate.c - tunnels that others make
 *
 * Theory of operation
 * ===================
 *
 * A listener's clients become tunnels, and each CONNECT of a tunnel becomes a
 * connection whose near side is its stream; Python is asked where it goes, but
 * for one about which it has decided (decision.c). What the certificate says of
 * the client, and what the CONNECT says, is kept for it. A CONNECT that has no
 * host and port, or is none, is answered here.
 *
 * Only so many shake hands at a time: others wait in the listener's backlog,
 * where they cost nothing.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "side/decision.h"
#include "side/target.h"

/**
 * struct gate - A listener whose clients are tunnels
 * @group:	What they have in common
 * @listener:	Its listener, or NULL
 * @decisions:	What Python has decided
 * @max_shakes:	Tunnels that shake hands
 */
struct gate {
	struct group group;
	struct vu_listener *listener;
	struct decisions *decisions;
	uint32_t max_shakes;
};

/**
 * gate_of() - Which gate is it?
 * @g:		Its group
 *
 * Returns: the gate
 */
static struct gate *gate_of(struct group *g)
{
	return container_of(g, struct gate, group);
}

/**
 * look() - Take more clients, or none for now
 * @g:		Gate
 */
static void look(struct gate *g)
{
	if (g->listener)
		listener_close(g->listener, LISTENER_FULL,
			       g->group.stats.shakes >= g->max_shakes);
}

/**
 * put_name() - Note an address of a tunnel's socket
 * @name:	Which
 * @addr:	Address
 * @len:	Its size
 */
static void put_name(struct tunnel_name *name,
		     const struct sockaddr_storage *addr, socklen_t len)
{
	if (len > sizeof(name->addr))
		return;
	memcpy(name->addr, addr, len);
	name->len = (uint16_t)len;
}

/**
 * admit() - Make a tunnel of an accepted socket
 * @l:		Listener
 * @fd:		Socket, taken over
 * @addr:	Its client's
 * @len:	Size of @addr
 */
static void admit(struct vu_listener *l, int fd,
		  const struct sockaddr_storage *addr, socklen_t len)
{
	struct gate *g = l->gate;
	struct sockaddr_storage own;
	struct tunnel *t = NULL;
	const int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (g->group.stats.tunnels < g->group.max_tunnels)
		t = tunnel_new(&g->group);
	if (!t) {
		l->core->refused++;
		close(fd);
	} else {
		put_name(&t->src, addr, len);
		len = sizeof(own);
		if (!getsockname(fd, (struct sockaddr *)&own, &len))
			put_name(&t->dst, &own, len);
		if (tunnel_socket(t, fd, false))
			tunnel_doom(t, VU_REASON_SHORT, errno);
	}
	look(g);
}

/* ---- what tunnels tell ---- */

/**
 * fits() - Can Python be told of a request?
 * @f:		What it says
 *
 * Returns: true if all of it has room in struct vu_hbone_request
 */
static bool fits(const struct h2_fields *f)
{
	const struct vu_hbone_request *room = NULL; /* for its sizes */
	const struct {
		const char *text;
		size_t room;
	} parts[] = {
	    {f->authority, sizeof(room->authority)},
	    {f->baggage, sizeof(room->baggage)},
	    {f->forwarded, sizeof(room->forwarded)},
	    {f->traceparent, sizeof(room->traceparent)},
	    {f->network, sizeof(room->network)},
	};

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
		if (parts[i].text && strlen(parts[i].text) >= parts[i].room)
			return false;
	}
	return true;
}

/**
 * connect_to() - Make a connection of a stream
 * @g:		Gate
 * @s:		Stream
 * @d:		What was decided; NULL: Python is asked where it goes
 *
 * Returns: false if there may be none
 */
static bool connect_to(struct gate *g, struct stream *s, struct decision *d)
{
	const struct vu_target ask = {.kind = VU_TARGET_ASK};
	struct vu_target target = d ? d->target : ask;
	struct core *core = g->group.hbone->core;
	struct vu_conn *c = NULL;

	if (!outbox_crowded(g->group.outbox, core->max_conns))
		c = conn_new(core, g->group.outbox);
	if (!c) {
		core->refused++;
		return false;
	}
	c->want = (uint8_t)g->group.want;
	c->near = (struct side){.ops = &hbone_side, .stream = s, .fd = -1};
	s->c = c;
	if (d && !decision_visits(d, s->tunnel, c))
		target = ask;
	target_reach(c, &target);
	return true;
}

/**
 * go() - Have a CONNECT go where Python says, or said
 * @g:		Gate
 * @s:		Stream
 *
 * What a guest has no room for is Python's, too.
 *
 * Returns: false if there may be no more connections
 */
static bool go(struct gate *g, struct stream *s)
{
	uint16_t port = 0;
	struct decision *d = decision_find(g->decisions, s, &port);

	if (!d)
		return connect_to(g, s, NULL);
	if (d->headers) {
		d->headers->refs++;
		s->headers = d->headers;
	}
	g->group.stats.decided++;
	if (!d->offer)
		return connect_to(g, s, d);
	return d->offer(d, s, port) || connect_to(g, s, NULL);
}

/**
 * request() - A CONNECT
 * @t:		Tunnel
 * @id:		Stream's number
 * @f:		What it says, taken over
 *
 * Returns: its stream; NULL if out of memory, or there shall be no more
 */
static struct h2_stream *request(struct tunnel *t, int32_t id,
				 struct h2_fields *f)
{
	struct gate *g = gate_of(t->group);
	struct stream *s =
	    t->state == TUNNEL_OPEN ? stream_new(t->group, t, NULL) : NULL;

	if (!s)
		return NULL;
	s->h2.id = id;
	list_add(&t->streams, &s->link);
	s->request = *f;
	*f = (struct h2_fields){0};
	if (!fields_connect(&s->request) || !fits(&s->request))
		stream_refuse(s, 400);
	else if (!go(g, s))
		stream_refuse(s, 503);
	return &s->h2;
}

/**
 * spare() - A tunnel is there
 * @g:		Group
 * @t:		Tunnel
 */
static void spare(struct group *g, struct tunnel *t)
{
	(void)t;
	look(gate_of(g));
}

/**
 * refused() - A stream was refused: nobody does that to a server
 * @g:		Group
 * @s:		Stream
 *
 * Returns: false
 */
static bool refused(struct group *g, struct stream *s)
{
	(void)g;
	(void)s;
	return false;
}

/**
 * ended() - A tunnel is no more
 * @g:		Group
 * @t:		Tunnel
 */
static void ended(struct group *g, struct tunnel *t)
{
	(void)t;
	look(gate_of(g));
}

/**
 * unused() - Nobody uses a gate any more
 * @g:		Group
 */
static void unused(struct group *g)
{
	decisions_free(gate_of(g)->decisions);
	group_free(g);
	free(gate_of(g));
}

static const struct group_ops gate_ops = {
    .request = request,
    .spare = spare,
    .refused = refused,
    .ended = ended,
    .unused = unused,
};

static const struct listener_ops to_tunnel = {.admit = admit};

/* ---- for the others ---- */

/**
 * gate_open() - Make tunnels of a listener's clients
 * @l:		Listener
 * @hb:		Tunnels
 * @cfg:	Configuration, checked
 *
 * Returns: 0, or a negated enum vu_err
 */
int gate_open(struct vu_listener *l, struct hbone *hb,
	      const struct vu_hbone_config *cfg)
{
	struct vu_tls *tls = ids_get(&hb->tls, cfg->tls);
	struct gate *g;

	if (!tls)
		return -VU_ERR_GONE;
	g = calloc(1, sizeof(*g));
	if (!g)
		return -VU_ERR_NOMEM;
	g->group = (struct group){
	    .ops = &gate_ops,
	    .hbone = hb,
	    .refs = 1,
	    .names = tls_names(&cfg->trust_domain, 1, true),
	    .server = true,
	    .max_streams = cfg->max_streams,
	    .max_tunnels = cfg->max_tunnels,
	    .connect_us = cfg->connect_ms * 1000ULL,
	    .ping_us = cfg->ping_ms * 1000ULL,
	    .silence_us = cfg->silence_ms * 1000ULL,
	};
	list_init(&g->group.all);
	g->group.want = cfg->want;
	g->max_shakes = cfg->max_shakes;
	g->decisions = decisions_new(hb->random ^ (uintptr_t)g);
	if (!g->group.names || !g->decisions) {
		group_unref(&g->group);
		return -VU_ERR_NOMEM;
	}
	group_tls(&g->group, tls);
	g->group.outbox = l->outbox;
	outbox_ref(l->outbox);
	g->listener = l;
	l->gate = g;
	l->ops = &to_tunnel;
	return 0;
}

/**
 * gate_close() - Its listener goes; tunnels stay
 * @l:		Listener
 */
void gate_close(struct vu_listener *l)
{
	struct gate *g = l->gate;

	if (!g)
		return;
	decisions_clear(g->decisions); /* so that the last event may come */
	l->gate = NULL;
	g->listener = NULL;
	g->group.gone = true;
	group_unref(&g->group);
}

/**
 * gate_group() - What do a listener's tunnels have in common?
 * @l:		Listener
 *
 * Returns: that; NULL if its clients are no tunnels
 */
struct group *gate_group(const struct vu_listener *l)
{
	return l->gate ? &l->gate->group : NULL;
}

/**
 * gate_decisions() - What was decided about the CONNECTs of a group?
 * @g:		Group
 *
 * Returns: that; NULL if there is nothing to decide: it is a pool's, or its
 * listener is gone
 */
struct decisions *gate_decisions(const struct group *g)
{
	const struct gate *gate = container_of(g, const struct gate, group);

	return g->server && gate->listener ? gate->decisions : NULL;
}

/**
 * gate_forget() - Have Python decide anew
 * @l:		Listener of a gate
 */
void gate_forget(struct vu_listener *l)
{
	decisions_clear(l->gate->decisions);
}
