// SPDX-License-Identifier: Apache-2.0
/*
 * loan.c - a CONNECT on offer to a guest
 *
 * Theory of operation
 * ===================
 *
 * A CONNECT is a connection that is held for Python (gate.c). To offer it to a
 * guest, its stream is lent to a connection that the guest is asked for. A
 * guest without room says RST, as to a socket on offer: then the stream goes
 * back, and Python may offer it again. Taken, or ended by anything else, it
 * stays with the guest's connection, and the one that was held is no more.
 *
 * One that goes to a guest by a decision (decision.c) was never held: then it
 * is from now on, and Python is asked about it.
 *
 * The one that is held may end first: its deadline runs on. Then nothing goes
 * back, and a RST is the end of the stream, too.
 */

#include <errno.h>
#include <stdlib.h>

#include "side/hbone.h"

/**
 * struct loan - What a guest's connection knows of the one that is held
 * @client:	As a guest's connection has it
 * @core:	What all connections share
 * @from:	Id of the one that is held
 */
struct loan {
	struct client client;
	struct core *core;
	uint64_t from;
};

/**
 * move() - Make a stream, and what came by it, another connection's
 * @s:		Stream
 * @c:		Connection
 * @side:	Side of @c that it becomes
 * @kept:	Bytes of the peer, as the connection that had it has them
 */
static void move(struct stream *s, struct vu_conn *c, struct side *side,
		 struct msgs *kept)
{
	stream_side(s)->stream = NULL;
	s->c = c;
	*side = (struct side){.ops = &hbone_side, .stream = s, .fd = -1};
	pipe_from(c, side)->kept = *kept;
	*kept = (struct msgs){0};
}

/**
 * give_back() - Make a far side another connection's near side
 * @from:	Connection that a guest was asked for, with a stream
 * @to:		Connection without one
 */
static void give_back(struct vu_conn *from, struct vu_conn *to)
{
	move(from->far.stream, to, &to->near, &from->down.kept);
}

/**
 * settled() - The guest took it, or it is over
 * @client:	Client, gone afterwards
 */
static void settled(struct client *client)
{
	struct loan *l = container_of(client, struct loan, client);
	struct vu_conn *from = conn_by_id(l->core, l->from);

	if (from && stream_lent(from))
		conn_free(from);
	free(l);
}

/**
 * refused() - The guest has no room: the stream goes back
 * @c:		Connection that the guest was asked for; gone afterwards, if so
 *
 * Returns: whether it does
 */
static bool refused(struct vu_conn *c)
{
	const struct loan *l = container_of(c->client, struct loan, client);
	struct vu_conn *from = conn_by_id(l->core, l->from);

	if (!from || !c->far.stream)
		return false;
	give_back(c, from);
	conn_drop(c, ECONNREFUSED);
	return true;
}

/**
 * stream_lent() - Is a CONNECT on offer?
 * @c:		Connection
 *
 * Returns: true if its stream is another one's meanwhile
 */
bool stream_lent(const struct vu_conn *c)
{
	return c->near.ops == &hbone_side && !c->near.stream;
}

/**
 * stream_lend() - Make a near side another connection's far side
 * @from:	Connection that a tunnel's peer asked for, HELD
 * @to:		New connection, whose near side is a guest
 *
 * Returns: false if out of memory
 */
bool stream_lend(struct vu_conn *from, struct vu_conn *to)
{
	struct loan *l = calloc(1, sizeof(*l));

	if (!l)
		return false;
	*l = (struct loan){
	    .client = {.settled = settled, .refused = refused},
	    .core = from->core,
	    .from = conn_id(from),
	};
	to->client = &l->client;
	move(from->near.stream, to, &to->far, &from->up.kept);
	return true;
}

/**
 * stream_ask() - A guest has no room for a CONNECT that was never held: ask
 *		  Python
 * @c:		Connection that the guest was asked for; gone afterwards, if so
 *
 * Returns: whether that can be done
 */
bool stream_ask(struct vu_conn *c)
{
	const struct group *g = c->far.stream ? c->far.stream->group : NULL;
	struct core *core = c->core;
	struct vu_conn *held = NULL;

	if (g && !g->gone && !outbox_crowded(g->outbox, core->max_conns))
		held = conn_new(core, g->outbox);
	if (!held)
		return false;
	held->want = (uint8_t)g->want;
	held->target = VU_TARGET_ASK;
	give_back(c, held);
	conn_set(held, CONN_HELD);
	conn_post(held, VU_EV_REQUEST, ECONNREFUSED);
	c->reported = true; /* Python hears of the one that is held */
	conn_drop(c, ECONNREFUSED);
	return true;
}

/**
 * stream_preface() - Have the far side get bytes before those of the peer
 * @s:		Stream of a connection that is HELD
 * @data:	Bytes
 * @len:	How many
 *
 * Returns: 0, -VU_ERR_STATE or -VU_ERR_NOMEM
 */
int stream_preface(struct stream *s, const void *data, uint32_t len)
{
	struct bytes *kept = &pipe_from(s->c, stream_side(s))->kept.bytes;
	struct bytes all = {0};
	struct iovec iov[3] = {{
	    .iov_base = (void *)(uintptr_t)data,
	    .iov_len = len,
	}};
	unsigned n = 1 + bytes_peek(kept, 0, bytes_len(kept), iov + 1);

	if (s->preface)
		return -VU_ERR_STATE;
	if (!bytes_put(&all, iov, n, 0)) {
		bytes_free(&all);
		return -VU_ERR_NOMEM;
	}
	bytes_free(kept);
	*kept = all;
	s->preface = len;
	return 0;
}
