// SPDX-License-Identifier: Apache-2.0
/*
 * gate.c - tunnels that others make
 *
 * Theory of operation
 * ===================
 *
 * A listener's clients become tunnels, and each CONNECT of a tunnel becomes a
 * connection whose near side is its stream; Python is asked where it goes. What
 * the certificate says of the client, and what the CONNECT says, is kept for
 * it. A CONNECT that has no host and port, or is none, is answered here.
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

#include "side/hbone.h"
#include "side/target.h"

/**
 * struct gate - A listener whose clients are tunnels
 * @group:	What they have in common
 * @listener:	Its listener, or NULL
 * @want:	VU_WANT_ bits
 * @max_shakes:	Tunnels that shake hands
 */
struct gate {
	struct group group;
	struct vu_listener *listener;
	uint32_t want;
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
	struct tunnel *t = NULL;
	const int one = 1;

	(void)addr;
	(void)len;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (g->group.stats.tunnels < g->group.max_tunnels)
		t = tunnel_new(&g->group);
	if (!t) {
		l->core->refused++;
		close(fd);
	} else if (tunnel_socket(t, fd, false)) {
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
	};

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
		if (parts[i].text && strlen(parts[i].text) >= parts[i].room)
			return false;
	}
	return true;
}

/**
 * connect_to() - Make a connection of a stream, and ask Python where it goes
 * @g:		Gate
 * @s:		Stream
 *
 * Returns: false if there may be none
 */
static bool connect_to(struct gate *g, struct stream *s)
{
	const struct vu_target ask = {.kind = VU_TARGET_ASK};
	struct core *core = g->group.hbone->core;
	struct vu_conn *c = NULL;

	if (!outbox_crowded(g->group.outbox, core->max_conns))
		c = conn_new(core, g->group.outbox);
	if (!c) {
		core->refused++;
		return false;
	}
	c->want = (uint8_t)g->want;
	c->near = (struct side){.ops = &hbone_side, .stream = s, .fd = -1};
	s->c = c;
	target_reach(c, &ask);
	return true;
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
	else if (!connect_to(g, s))
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
	g->want = cfg->want;
	g->max_shakes = cfg->max_shakes;
	if (!g->group.names) {
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
