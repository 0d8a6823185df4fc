// SPDX-License-Identifier: Apache-2.0
/*
 * pipe.c - one direction of a connection: bytes that wait, and how it ends
 *
 * Theory of operation
 * ===================
 *
 * A source either pushes (a guest's packets: pipe_put()) or is pulled while its
 * sink has room (a socket: pipe_run()). What the sink doesn't take is kept, and
 * nothing is pulled while something is. Whoever pushes is bounded by credit,
 * whoever is pulled by one read.
 *
 * How it ends is written here and nowhere else:
 *
 *	state	the source ends	  the sink takes no more   nothing is kept
 *	FLOWS	ENDING		  BROKEN		   FLOWS
 *	ENDING	ENDING		  BROKEN		   ENDED
 *	ENDED	-		  -			   -
 *	BROKEN	-		  -			   -
 *
 * Entering ENDED tells the sink (SHUT_WR), entering BROKEN tells the source
 * (SHUT_RD). So bytes that no sink takes are dropped in one state only, and in
 * that state their source has been told: they are never acknowledged, and never
 * lost in silence.
 */

#include <errno.h>

#include "base/iov.h"
#include "conn/conn.h"

#define MESSAGES 256 /* of one pipe in one turn */

/**
 * pipe_source() - Where does a pipe's bytes come from?
 * @c:		Connection
 * @p:		Its pipe
 *
 * Returns: the side
 */
struct side *pipe_source(struct vu_conn *c, const struct pipe *p)
{
	return p == &c->up ? &c->near : &c->far;
}

/**
 * pipe_sink() - Where do they go?
 * @c:		Connection
 * @p:		Its pipe
 *
 * Returns: the side
 */
struct side *pipe_sink(struct vu_conn *c, const struct pipe *p)
{
	return p == &c->up ? &c->far : &c->near;
}

/**
 * pipe_from() - Which pipe takes the bytes of a side?
 * @c:		Connection
 * @source:	Its side
 *
 * Returns: the pipe
 */
struct pipe *pipe_from(struct vu_conn *c, const struct side *source)
{
	return source == &c->near ? &c->up : &c->down;
}

/**
 * pipe_to() - Which pipe brings bytes to a side?
 * @c:		Connection
 * @sink:	Its side
 *
 * Returns: the pipe
 */
struct pipe *pipe_to(struct vu_conn *c, const struct side *sink)
{
	return sink == &c->near ? &c->down : &c->up;
}

/**
 * shut() - Tell a side that a pipe has ended
 * @c:		Connection
 * @s:		Its side
 * @how:	SHUT_WR: nothing more will be given; SHUT_RD: nothing is taken
 */
static void shut(struct vu_conn *c, struct side *s, int how)
{
	if (s->ops->shut)
		s->ops->shut(c, s, how);
}

/**
 * recount() - Have the near side know how much is kept
 * @c:		Connection
 */
static void recount(struct vu_conn *c)
{
	if (c->near.ops->kept)
		c->near.ops->kept(c);
}

/* ---- the end ---- */

/**
 * finish() - Everything that the source sent is out
 * @c:		Connection
 * @p:		Its pipe, ENDING
 */
static void finish(struct vu_conn *c, struct pipe *p)
{
	p->state = PIPE_ENDED;
	shut(c, pipe_sink(c, p), SHUT_WR);
}

/**
 * pipe_end() - The source sends no more
 * @c:		Connection
 * @p:		Its pipe
 */
void pipe_end(struct vu_conn *c, struct pipe *p)
{
	if (p->state != PIPE_FLOWS)
		return;
	p->state = PIPE_ENDING;
	if (!bytes_len(&p->kept.bytes))
		finish(c, p);
}

/**
 * pipe_break() - The sink takes no more
 * @c:		Connection
 * @p:		Its pipe; what is kept is lost
 * @error:	Why, an errno; 0: it said so
 */
void pipe_break(struct vu_conn *c, struct pipe *p, int error)
{
	if (p->state == PIPE_ENDED || p->state == PIPE_BROKEN)
		return;
	p->state = PIPE_BROKEN;
	if (!c->error)
		c->error = (uint16_t)error;
	bytes_free(&p->kept.bytes);
	recount(c);
	shut(c, pipe_source(c, p), SHUT_RD);
	conn_hurry(c);
}

/* ---- bytes ---- */

/**
 * took() - The sink took bytes
 * @c:		Connection
 * @p:		Its pipe
 * @n:		How many
 */
static void took(struct vu_conn *c, struct pipe *p, size_t n)
{
	struct side *source = pipe_source(c, p);

	if (p == &c->up)
		c->up_bytes += n;
	else if (!c->dev) /* a guest counts what it is sent */
		c->down_bytes += n;
	if (source->ops->taken)
		source->ops->taken(c, source, n);
}

/**
 * give() - Have the sink take bytes
 * @c:		Connection; may be gone afterwards
 * @p:		Its pipe
 * @m:		Where they are in m->iov, or @iov
 * @iov:	Segments
 *
 * Returns: bytes taken; -EAGAIN: none; another -errno: the pipe or the
 * connection is no more
 */
static ssize_t give(struct vu_conn *c, struct pipe *p, const struct iovec *iov,
		    unsigned n_iov, size_t len, uint32_t flags)
{
	struct side *sink = pipe_sink(c, p);
	ssize_t n;

	if (sink->ops->message && !flags)
		return -EAGAIN; /* the message isn't whole yet */
	n = sink->ops->give(c, sink, iov, n_iov, len, flags);
	if (n == -EMSGSIZE)
		conn_misfit(c, EMSGSIZE);
	else if (n < 0 && n != -EAGAIN)
		pipe_break(c, p, (int)-n);
	else if (n > 0)
		took(c, p, (size_t)n);
	return n;
}

/**
 * keep() - Keep what the sink didn't take
 * @c:		Connection; gone if it can't
 * @p:		Its pipe
 * @iov:	Bytes
 * @n_iov:	Segments
 * @skip:	Leading bytes that it took
 * @flags:	Of a message
 *
 * Marks of messages cost no credit: more of them than four for each byte of the
 * window come only with a flood of empty messages.
 */
static void keep(struct vu_conn *c, struct pipe *p, const struct iovec *iov,
		 unsigned n_iov, size_t skip, uint32_t flags)
{
	bool ok;

	if (c->type == STREAM) {
		ok = bytes_put(&p->kept.bytes, iov, n_iov, skip);
	} else {
		uint64_t most = (MSGS_MARK + 1) * (uint64_t)c->credit.buf_alloc;
		size_t more = MSGS_MARK + iov_sum(iov, n_iov);

		if (p == &c->up && bytes_len(&p->kept.bytes) + more > most) {
			conn_misfit(c, ENOBUFS);
			return;
		}
		ok = msgs_put(&p->kept, iov, n_iov, skip, flags);
	}
	if (!ok) {
		conn_abort(c, ENOMEM);
		return;
	}
	recount(c);
}

/**
 * pipe_keep() - Keep what a source has before there is a sink
 * @c:		Connection, a stream; gone if it can't
 * @p:		Its pipe
 * @iov:	Bytes
 */
void pipe_keep(struct vu_conn *c, struct pipe *p, const struct iovec *iov)
{
	keep(c, p, iov, 1, 0, 0);
}

/**
 * head() - Find the bytes that are kept for the sink
 * @c:		Connection
 * @p:		Its pipe
 * @ret:	A message, or a turn's worth of a stream
 *
 * Returns: false if there are none
 */
static bool head(const struct vu_conn *c, const struct pipe *p, struct msg *ret)
{
	const struct bytes *b = &p->kept.bytes;

	if (c->type == SEQPACKET)
		return msgs_head(&p->kept, ret);
	ret->len = bytes_len(b) < SCRATCH ? bytes_len(b) : SCRATCH;
	ret->n_iov = bytes_peek(b, 0, ret->len, ret->iov);
	ret->flags = 0;
	return ret->len;
}

/**
 * advance() - Forget what the sink took
 * @c:		Connection
 * @p:		Its pipe
 * @m:		Head of it
 * @n:		Bytes of it that were taken
 */
static void advance(const struct vu_conn *c, struct pipe *p,
		    const struct msg *m, uint32_t n)
{
	if (c->type == SEQPACKET)
		msgs_advance(&p->kept, n, n == m->len && m->flags);
	else
		bytes_drop(&p->kept.bytes, n);
}

/**
 * drain() - Have the sink take what is kept, for a turn
 * @c:		Connection; may be gone afterwards
 * @p:		Its pipe
 * @most:	Bytes, less than SCRATCH more
 */
static void drain(struct vu_conn *c, struct pipe *p, size_t most)
{
	struct msg m;
	ssize_t n = 0;
	size_t total = 0;
	unsigned count = 0;

	while (head(c, p, &m)) {
		if (count++ == MESSAGES || total >= most) {
			conn_wake(c);
			break;
		}
		if (!m.len && !m.flags)
			break; /* the rest of a message has yet to come */
		n = give(c, p, m.iov, m.n_iov, m.len, m.flags);
		if (n < 0)
			break;
		advance(c, p, &m, (uint32_t)n);
		total += (size_t)n;
		if ((uint32_t)n < m.len)
			break;
	}
	if (count && conn_flows(c))
		recount(c);
}

/**
 * pipe_put() - Pass on what a source has, keep what the sink doesn't take
 * @c:		Connection; may be gone afterwards
 * @p:		Its pipe
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	Of a message; 0: of a stream, or more of it is to come
 *
 * What is kept goes first, and more of it than comes: else a source that pushes
 * as fast as the sink takes would have each byte kept, for ever, once one was.
 */
void pipe_put(struct vu_conn *c, struct pipe *p, const struct iovec *iov,
	      unsigned n_iov, size_t len, uint32_t flags)
{
	ssize_t n = -EAGAIN;

	if (p->state == PIPE_BROKEN || (!len && !flags))
		return; /* the source knows */
	if (bytes_len(&p->kept.bytes)) {
		drain(c, p, len + SCRATCH);
		if (!conn_flows(c) || p->state == PIPE_BROKEN)
			return;
	}
	if (!bytes_len(&p->kept.bytes)) {
		n = give(c, p, iov, n_iov, len, flags);
		if (n < 0 && n != -EAGAIN)
			return;
	}
	if (n != (ssize_t)len)
		keep(c, p, iov, n_iov, n > 0 ? (size_t)n : 0, flags);
}

/**
 * pipe_run() - Move a direction's bytes, and its end, for a turn
 * @c:		Connection; may be gone afterwards
 * @p:		Its pipe
 */
void pipe_run(struct vu_conn *c, struct pipe *p)
{
	struct side *source = pipe_source(c, p);
	struct msg m;

	if (bytes_len(&p->kept.bytes)) {
		drain(c, p, SCRATCH);
		if (!conn_flows(c))
			return;
	}
	if (p->state == PIPE_ENDING) {
		if (!bytes_len(&p->kept.bytes))
			finish(c, p);
		else if (c->type == SEQPACKET && head(c, p, &m) && !m.flags)
			conn_misfit(c, EPROTO); /* its end will never come */
	} else if (p->state == PIPE_FLOWS && !bytes_len(&p->kept.bytes) &&
		   source->ops->pull) {
		source->ops->pull(c, source);
	}
}
