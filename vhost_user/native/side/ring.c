// SPDX-License-Identifier: Apache-2.0
/*
 * ring.c - sides that are another process, by rings of shared memory
 *
 * Theory of operation
 * ===================
 *
 * Bytes to the process are copied once, from guest memory into a ring; bytes
 * from it once, from a ring into RX buffers. What the near side doesn't take
 * stays in the ring, and what doesn't fit into the ring is kept by the pipe.
 *
 * Polling. A connection with work is awake: the engine looks at its rings with
 * each turn and while it spins (ring_look()), and the process need not wake it.
 * One without work for a while, or before the engine blocks, asks to be woken
 * and is on no list: idle rings cost nothing. A wake-up is an edge of the
 * eventfd, which is never read; nothing is believed because of it.
 *
 * The end. A process ends a direction by a state in memory, and rings. It is
 * gone when its socket is: what it wrote is read to its end, which it must have
 * said, or else it was killed and the near side hears of an error. So it does
 * when there are bytes that the process will never read.
 *
 * A process that breaks the rules loses the connection, with EPROTO.
 */

#include <errno.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "base/iov.h"
#include "side/peer.h"

#define IDLE_TURNS 64 /* until it asks to be woken */

/**
 * wake_process() - Wake the process
 * @c:		Connection
 *
 * A socket that is full has wake-ups enough; one that is closed, an event.
 */
static void wake_process(const struct vu_conn *c)
{
	const char bell = 0;

	if (send(c->far.fd, &bell, sizeof(bell), MSG_DONTWAIT | MSG_NOSIGNAL) <
	    0)
		errno = 0;
}

/* ---- polling ---- */

/**
 * wake() - Look at a connection's rings from now on
 * @m:		Its memory
 */
static void wake(struct shm *m)
{
	fpring_awake(&m->ring);
	m->idle = 0;
	list_add(&m->c->core->awake, &m->awake);
}

/**
 * wants() - What does a connection wait for?
 * @m:		Its memory
 *
 * Returns: FPRING_ bits
 */
static unsigned wants(const struct shm *m)
{
	unsigned want = 0;

	if (m->c->down.state == PIPE_FLOWS && !m->stuck)
		want |= FPRING_READ;
	if (m->full)
		want |= FPRING_WRITE;
	return want;
}

/**
 * works() - Has a connection work? It runs then
 * @m:		Its memory
 *
 * One whose guest is gone has none: it waits to be closed (conn_forsake()).
 *
 * Returns: true if it has
 */
static bool works(struct shm *m)
{
	if (!conn_flows(m->c) || !fpring_ready(&m->ring, wants(m)))
		return false;
	m->idle = 0;
	conn_hurry(m->c);
	return true;
}

/**
 * rest() - Ask the process to wake us, and leave the connection alone
 * @m:		Its memory
 *
 * Returns: true if it has work
 */
static bool rest(struct shm *m)
{
	if (!fpring_sleep(&m->ring, wants(m)))
		return works(m);
	list_del(&m->awake);
	return false;
}

/**
 * ring_look() - Has any connection that is awake work?
 * @core:	What all connections share
 *
 * Returns: true if one has
 */
bool ring_look(struct core *core)
{
	const struct list *head = &core->awake;
	bool found = false;

	for (struct list *at = head->next; at != head; at = at->next)
		found |= works(container_of(at, struct shm, awake));
	return found;
}

/**
 * ring_rest() - Have all of them wake us: the engine is about to block
 * @core:	What all connections share
 *
 * Returns: true if one has work
 */
bool ring_rest(struct core *core)
{
	const struct list *head = &core->awake;
	bool found = false;

	for (struct list *at = head->next, *next; at != head; at = next) {
		next = at->next;
		found |= rest(container_of(at, struct shm, awake));
	}
	return found;
}

/**
 * ring_turn() - Have those with work run, and those without one for long rest
 * @core:	What all connections share
 */
void ring_turn(struct core *core)
{
	const struct list *head = &core->awake;

	for (struct list *at = head->next, *next; at != head; at = next) {
		struct shm *m = container_of(at, struct shm, awake);

		next = at->next;
		if (!works(m) && ++m->idle > IDLE_TURNS)
			rest(m);
	}
}

/* ---- bytes ---- */

/**
 * broken() - The process resets the connection, or breaks the rules
 * @c:		Connection; ends when it runs
 * @error:	errno
 */
static void broken(struct vu_conn *c, int error)
{
	if (!c->error)
		c->error = (uint16_t)error;
	c->closed = true;
	conn_hurry(c);
}

/**
 * refusal() - What does a write get, now that the process is gone?
 * @m:		Memory
 *
 * Returns: -EPIPE; -ECONNRESET: there are bytes that it will never read
 */
static int refusal(const struct shm *m)
{
	const struct fpring_way *out = &m->ring.out;
	uint32_t read =
	    __atomic_load_n(&out->theirs->position, __ATOMIC_ACQUIRE);

	return read == out->position ? -EPIPE : -ECONNRESET;
}

/**
 * give() - Write bytes into the ring
 * @c:		Connection
 * @s:		Its far side
 * @iov:	Bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	0
 *
 * Returns: as side_ops.give
 */
static ssize_t give(struct vu_conn *c, struct side *s, const struct iovec *iov,
		    unsigned n_iov, size_t len, uint32_t flags)
{
	struct shm *m = c->shm;
	struct iovec room[2];
	ssize_t n = fpring_room(&m->ring, room);

	(void)s;
	(void)flags;
	if (m->gone)
		return refusal(m);
	wake(m); /* an answer may come */
	m->full = n == -EAGAIN || (n >= 0 && (size_t)n < len);
	if (n == -EAGAIN || n == -EPIPE)
		return n;
	if (n < 0) {
		broken(c, (int)-n);
		return -EAGAIN;
	}
	if ((size_t)n > len)
		n = (ssize_t)len;
	iov_move(room, 2, iov, n_iov, 0, (size_t)n);
	if (c->near.ops->lost && c->near.ops->lost(c))
		return -EAGAIN;
	if (fpring_produced(&m->ring, (size_t)n))
		wake_process(c);
	return n;
}

/**
 * nothing() - The process has no bytes
 * @c:		Connection; may be gone afterwards
 * @n:		What fpring_readable() said
 */
static void nothing(struct vu_conn *c, ssize_t n)
{
	if (n == 0) {
		pipe_end(c, &c->down);
		if (c->shm->gone)
			pipe_break(c, &c->up, -refusal(c->shm));
	} else if (n != -EAGAIN) {
		conn_abort(c, (int)-n);
	} else if (c->shm->gone) {
		conn_abort(c, ECONNRESET); /* it was killed */
	}
}

/**
 * pull() - Move what the process has written to the near side, for a turn
 * @c:		Connection; may be gone afterwards
 * @s:		Its far side
 */
static void pull(struct vu_conn *c, struct side *s)
{
	struct shm *m = c->shm;
	size_t total = 0;

	wake(m); /* it may have been left alone while the near side took none */
	m->stuck = s->readable = false;
	while (total < SCRATCH) {
		struct iovec iov[2];
		ssize_t n = fpring_readable(&m->ring, iov), took;

		if (n <= 0) {
			nothing(c, n);
			return;
		}
		took = c->near.ops->give(c, &c->near, iov,
					 iov[1].iov_len ? 2 : 1, (size_t)n, 0);
		if (took > 0) {
			if (!c->dev) /* a guest counts what it is sent */
				c->down_bytes += (size_t)took;
			total += (size_t)took;
			if (fpring_consumed(&m->ring, (size_t)took))
				wake_process(c);
		} else if (took < 0 && took != -EAGAIN) {
			pipe_break(c, &c->down, (int)-took);
			return;
		}
		if (took < n) {
			/* the near side runs us when it can */
			m->stuck = s->readable = true;
			return;
		}
	}
	conn_wake(c);
}

/* ---- life ---- */

/**
 * opened() - The connection is established
 * @c:		Connection
 * @s:		Its far side
 */
static void opened(struct vu_conn *c, struct side *s)
{
	(void)s;
	wake(c->shm);
}

/**
 * event() - The process woke us, or is gone
 * @c:		Connection; may be gone afterwards
 * @s:		Its far side
 * @events:	EPOLL bits, of the socket or the eventfd
 */
static void event(struct vu_conn *c, struct side *s, uint32_t events)
{
	struct shm *m = c->shm;

	(void)s;
	if (!conn_flows(c))
		return;
	wake(m);
	conn_hurry(c);
	if (m->gone || !(events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)))
		return;
	m->gone = true;
	if (c->down.state != PIPE_FLOWS) /* else a read or a write tells */
		pipe_break(c, &c->up, -refusal(m));
}

/**
 * shut() - A direction has ended: tell the process
 * @c:		Connection
 * @s:		Its far side
 * @how:	SHUT_WR or SHUT_RD
 */
static void shut(struct vu_conn *c, struct side *s, int how)
{
	(void)s;
	fpring_end(&c->shm->ring, how == SHUT_WR ? FPRING_WRITE : FPRING_READ);
	wake_process(c);
}

/**
 * ring_close() - Let go of the process; what it was sent it can still read
 * @c:		Connection
 * @s:		Its far side
 * @error:	errno: it must see an error; 0: an orderly end
 */
void ring_close(struct vu_conn *c, struct side *s, int error)
{
	struct shm *m = c->shm;
	struct iovec unused[2];

	if (m && m->mem) {
		if (!error && fpring_readable(&m->ring, unused) > 0)
			error = ECONNRESET; /* as a socket does it */
		if (error)
			fpring_fail(&m->ring, error);
		fpring_end(&m->ring, FPRING_READ | FPRING_WRITE);
	}
	if (s->fd >= 0)
		close(s->fd); /* it looks at the states then */
	shm_free(m);
	c->shm = NULL;
	*s = (struct side){.ops = s->ops, .fd = -1};
}

const struct side_ops ring_ops = {
    .give = give,
    .pull = pull,
    .shut = shut,
    .close = ring_close,
    .opened = opened,
    .event = event,
};
