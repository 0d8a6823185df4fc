// SPDX-License-Identifier: Apache-2.0
/*
 * pipe_fakes.c - a connection between two sides that do as a test says
 *
 * Theory of operation
 * ===================
 *
 * Each side takes as many bytes as it was told, or says an errno, and notes
 * what it was told: that nothing more comes (SHUT_WR), that nothing more is
 * taken (SHUT_RD), that the connection is over. The near side plays a guest
 * that waits for a RST, or a socket that is just closed.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "conn/conn.h"
#include "pipe_fakes.h"

struct fake {
	struct core core;
	struct outbox_queue *outbox;
	struct vu_conn *c;
	struct fake_side sides[2];
};

static struct fake *fake_of(struct vu_conn *c)
{
	return container_of(c->core, struct fake, core);
}

static struct fake_side *side_of(struct vu_conn *c, const struct side *s)
{
	return &fake_of(c)->sides[s == &c->far];
}

static ssize_t give(struct vu_conn *c, struct side *s, const struct iovec *iov,
		    unsigned n_iov, size_t len, uint32_t flags)
{
	struct fake_side *f = side_of(c, s);
	size_t n = len < f->room ? len : f->room;

	(void)iov;
	(void)n_iov;
	(void)flags;
	if (f->error)
		return -f->error;
	if (!n && len)
		return -EAGAIN;
	f->room -= n;
	f->took += n;
	return (ssize_t)n;
}

static void taken(struct vu_conn *c, struct side *s, size_t n)
{
	(void)s;
	fake_of(c)->sides[0].acked += n;
}

static void shut(struct vu_conn *c, struct side *s, int how)
{
	side_of(c, s)->told |= how == SHUT_WR ? FAKE_END : FAKE_STOP;
}

static void close_side(struct vu_conn *c, struct side *s, int error)
{
	side_of(c, s)->closed = true;
	side_of(c, s)->close_error = error;
}

static void over(struct vu_conn *c, int error)
{
	fake_of(c)->sides[0].over = error ? error : -1;
}

static void finished(struct vu_conn *c)
{
	fake_of(c)->sides[0].finished = true;
	conn_set(c, CONN_LINGER);
}

static void reset(struct vu_conn *c)
{
	fake_of(c)->sides[0].reset = true;
	conn_set(c, CONN_DEAD);
}

static void misfit(struct vu_conn *c)
{
	fake_of(c)->sides[0].misfit = true;
}

static const struct side_ops near_ops = {
    .give = give,
    .taken = taken,
    .shut = shut,
    .over = over,
    .finished = finished,
    .reset = reset,
    .misfit = misfit,
};

static const struct side_ops far_ops = {
    .give = give,
    .shut = shut,
    .close = close_side,
};

static const struct side_ops far_message_ops = {
    .message = true,
    .give = give,
    .shut = shut,
    .close = close_side,
};

struct fake *fake_new(bool messages, uint32_t window)
{
	struct fake *f = calloc(1, sizeof(*f));

	core_init(&f->core, 1);
	outbox_init(&f->core.outbox);
	f->outbox = outbox_open(0, false);
	f->c = conn_new(&f->core, f->outbox);
	f->c->near.ops = &near_ops;
	f->c->far.ops = messages ? &far_message_ops : &far_ops;
	f->c->type = messages ? SEQPACKET : STREAM;
	f->c->credit.buf_alloc = window;
	conn_set(f->c, CONN_OPEN);
	return f;
}

void fake_free(struct fake *f)
{
	core_free(&f->core);
	outbox_unref(&f->core.outbox, f->outbox);
	outbox_free(&f->core.outbox);
	free(f);
}

static struct pipe *pipe_at(struct fake *f, int pipe)
{
	return pipe == FAKE_UP ? &f->c->up : &f->c->down;
}

void fake_put(struct fake *f, int pipe, const char *data, size_t len,
	      uint32_t flags)
{
	struct iovec iov = {
	    .iov_base = (char *)(uintptr_t)data,
	    .iov_len = len,
	};

	pipe_put(f->c, pipe_at(f, pipe), &iov, 1, len, flags);
}

void fake_end(struct fake *f, int pipe)
{
	pipe_end(f->c, pipe_at(f, pipe));
}

void fake_break(struct fake *f, int pipe, int error)
{
	pipe_break(f->c, pipe_at(f, pipe), error);
}

void fake_run(struct fake *f)
{
	conn_run(f->c);
}

int fake_state(const struct fake *f)
{
	return f->c->state;
}

int fake_pipe(struct fake *f, int pipe)
{
	return pipe_at(f, pipe)->state;
}

uint32_t fake_kept(struct fake *f, int pipe)
{
	return bytes_len(&pipe_at(f, pipe)->kept.bytes);
}

struct fake_side *fake_side(struct fake *f, int far)
{
	return &f->sides[far];
}
