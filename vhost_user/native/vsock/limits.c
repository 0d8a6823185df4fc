// SPDX-License-Identifier: Apache-2.0
/*
 * limits.c - what one VM may take of the process
 *
 * Theory of operation
 * ===================
 *
 * Connections. One above max_conns is refused. The engine as a whole has room
 * for the sum over its devices, so no VM takes another's.
 *
 * Bytes. What the engine holds for a VM are bytes that its guest sent and the
 * host hasn't taken. The guest may send what it has credit for, and credit
 * can't be taken back: a Linux guest whose window shrinks below what is in
 * flight computes a huge credit from it. So windows are handed out from the
 * VM's max_queued_bytes, and the sum of all windows never exceeds it: no moment
 * comes at which bytes would have to be dropped, a connection be reset or the
 * TX ring be left alone, which would stall all the others of that VM.
 *
 * Each connection that may still come has VU_MIN_WINDOW set aside for it. A
 * new stream gets WINDOW_FIRST at most, and twice as much each time that it has
 * used half, up to the device's buf_alloc: idle connections don't hold what
 * busy ones need. An eighth of what is free at most goes to one, so when it
 * gets scarce later ones get less, instead of nothing. Windows grow again
 * when connections end. A SEQPACKET connection gets its whole window at once:
 * a program can't send a message that is larger. So does one to a sibling.
 *
 * Bytes for the guest. A socket is read when the guest has room, and keeps the
 * rest. A tunnel's peer may send a window that we gave it before, whoever
 * reads: once half of max_queued_bytes is kept, tunnels that bring more get no
 * window back, and above all of it the connection whose bytes come is reset. It
 * is the VM's own, and a peer that is told to wait sends less than that.
 *
 * Rate. A token bucket for requests of the guest and one for those of host
 * clients and siblings, so that neither can keep the other out. Each holds a
 * second's worth.
 *
 * All three can be changed while the VM runs (vu_dev_limit()). Windows that
 * were offered stay: below them, max_queued_bytes holds as soon as connections
 * that have more are gone.
 *
 * Shortages of the process (descriptors, memory) and full listeners end or
 * delay one connection. They are counted for the VM that met them.
 *
 * Python hears of each kind by VU_EV_LIMIT: at once, then at most every
 * REPORT_US as long as it goes on.
 */

#include <errno.h>
#include <stdlib.h>

#include <fastpath_ring.h>

#include "base/clock.h"
#include "vsock/dev.h"

#define WINDOW_FIRST (64U * 1024)
#define REPORT_US    60000000U /* between two events of one kind */

/**
 * counter() - Find a limit's counter
 * @d:		Device
 * @limit:	Which
 *
 * Returns: the counter
 */
static uint64_t *counter(struct vu_dev *d, enum vu_limit limit)
{
	switch (limit) {
	case VU_LIMIT_CONNS:
		return &d->stats.limit_conns;
	case VU_LIMIT_BYTES:
		return &d->stats.limit_bytes;
	case VU_LIMIT_RATE:
		return &d->stats.limit_rate;
	case VU_LIMIT_FDS:
		return &d->stats.no_fds;
	case VU_LIMIT_MEMORY:
		return &d->stats.no_memory;
	default:
		return &d->stats.backlog_full;
	}
}

/**
 * limit_hit() - Count that a VM met a limit, and tell Python now and then
 * @d:		Device
 * @limit:	Which
 */
void limit_hit(struct vu_dev *d, enum vu_limit limit)
{
	uint64_t now = clock_us(), *count = counter(d, limit);
	struct vu_event event = {.kind = VU_EV_LIMIT, .port = limit};

	++*count;
	if (*count > 1 && now - d->told_us[limit] < REPORT_US)
		return;
	d->told_us[limit] = now;
	event.up_bytes = *count;
	outbox_push(&d->core->outbox, d->outbox, &event, false);
}

/**
 * limit_shortage() - Count a connection's end if a shortage caused it
 * @d:		Device, or NULL
 * @error:	errno
 */
void limit_shortage(struct vu_dev *d, int error)
{
	if (!d)
		return;
	if (error == EMFILE || error == ENFILE)
		limit_hit(d, VU_LIMIT_FDS);
	else if (error == ENOMEM || error == ENOBUFS || error == ENOSPC)
		limit_hit(d, VU_LIMIT_MEMORY);
}

/**
 * admits() - May a VM have one more connection, now?
 * @d:		Device
 * @to_guest:	A host client or a sibling asks, not the guest
 *
 * Returns: true if it may; otherwise the refusal is counted
 */
static bool admits(struct vu_dev *d, bool to_guest)
{
	if (d->stats.conns >= d->cfg.max_conns ||
	    d->core->conns >= d->core->max_conns ||
	    outbox_crowded(d->outbox, d->cfg.max_conns)) {
		limit_hit(d, VU_LIMIT_CONNS);
		return false;
	}
	if (!bucket_take(&d->buckets[to_guest], d->cfg.accept_rate,
			 clock_us())) {
		limit_hit(d, VU_LIMIT_RATE);
		return false;
	}
	return true;
}

/**
 * grow() - Give a connection a larger window
 * @c:		Connection of a guest
 * @want:	How large, bytes; not smaller than it is
 */
static void grow(struct vu_conn *c, uint32_t want)
{
	struct vu_dev *d = c->dev;
	uint64_t conns = d->stats.conns;
	/* both limits may have been lowered below what there is */
	uint64_t to_come =
	    d->cfg.max_conns > conns ? d->cfg.max_conns - conns : 0;
	uint64_t taken = d->stats.window_bytes + to_come * VU_MIN_WINDOW;
	uint32_t more = want - c->credit.buf_alloc;
	uint32_t got =
	    (uint32_t)quota_share(d->cfg.max_queued_bytes, taken, more);

	if (got < more)
		limit_hit(d, VU_LIMIT_BYTES);
	c->credit.buf_alloc += got;
	d->stats.window_bytes += got;
}

/**
 * window() - Which receive window may a connection have at most?
 * @d:		Device
 * @type:	VIRTIO_VSOCK_TYPE_
 *
 * Returns: bytes
 */
static uint32_t window(const struct vu_dev *d, uint16_t type)
{
	if (type == VIRTIO_VSOCK_TYPE_SEQPACKET &&
	    d->cfg.buf_alloc > SEQ_WINDOW_MAX)
		return SEQ_WINDOW_MAX;
	return d->cfg.buf_alloc;
}

/**
 * limit_conn() - Make a connection of a guest, with its first window
 * @d:		Device
 * @type:	VIRTIO_VSOCK_TYPE_
 * @to_guest:	A host client or a sibling asks, not the guest
 *
 * Returns: the connection, not in the hash; NULL if the VM may not have it
 */
struct vu_conn *limit_conn(struct vu_dev *d, uint16_t type, bool to_guest)
{
	uint32_t most = window(d, type), first = most;
	struct vu_conn *c;

	if (!admits(d, to_guest))
		return NULL;
	c = conn_new(d->core, d->outbox);
	if (!c) {
		limit_hit(d, VU_LIMIT_MEMORY);
		return NULL;
	}
	c->dev = d;
	c->want = (uint8_t)d->cfg.want;
	c->type = (uint8_t)type;
	d->stats.conns++;
	c->credit.buf_alloc = most < VU_MIN_WINDOW ? most : VU_MIN_WINDOW;
	d->stats.window_bytes += c->credit.buf_alloc;
	if (type == VIRTIO_VSOCK_TYPE_STREAM && first > WINDOW_FIRST)
		first = WINDOW_FIRST;
	grow(c, first);
	return c;
}

/**
 * limit_used() - A connection has used half of its window: it needs more
 * @c:		Connection, its window not the largest yet
 *
 * A message must fit into the far end's socket, whose size went by the window:
 * only streams' windows grow.
 */
void limit_used(struct vu_conn *c)
{
	uint32_t most = c->dev->cfg.buf_alloc;

	if (c->type != VIRTIO_VSOCK_TYPE_STREAM)
		return;
	grow(c,
	     c->credit.buf_alloc < most / 2 ? 2 * c->credit.buf_alloc : most);
}

/**
 * limit_whole() - A connection needs its whole window from the start
 * @c:		Connection to a sibling, nothing sent yet
 *
 * Linux sends what doesn't fit its credit by copies, whatever MSG_ZEROCOPY asks
 * for, and Linux's own vsock_test looks for that.
 */
void limit_whole(struct vu_conn *c)
{
	if (c->credit.buf_alloc < c->dev->cfg.buf_alloc)
		grow(c, c->dev->cfg.buf_alloc);
}

/**
 * limit_close() - Undo limit_conn()
 * @c:		Connection of a guest
 */
void limit_close(struct vu_conn *c)
{
	struct vu_dev_stats *stats = &c->dev->stats;

	stats->conns--;
	stats->window_bytes -= c->credit.buf_alloc;
	stats->queued_bytes -= c->held;
	c->dev->enlarged_bytes -= c->enlarged;
	if (c->ranged)
		c->dev->ranges[c->port >> RANGE_BITS]--;
}

/**
 * limit_range() - Count a connection among those of its port's range
 * @c:		Connection of a guest
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
int limit_range(struct vu_conn *c)
{
	struct vu_dev *d = c->dev;

	if (!d->ranges)
		d->ranges = calloc(RANGES, sizeof(*d->ranges));
	if (!d->ranges)
		return -VU_ERR_NOMEM;
	d->ranges[c->port >> RANGE_BITS]++;
	c->ranged = true;
	return 0;
}

/**
 * limit_enlarge() - How much may a connection's socket hold?
 * @c:		Connection of a guest
 *
 * Without CAP_NET_ADMIN net.core.wmem_max is the bound. What a VM's sockets
 * have more than usual is not more than it may have queued here.
 *
 * Returns: a whole window, counted; or 0: as usual
 */
uint32_t limit_enlarge(struct vu_conn *c)
{
	struct vu_dev *d = c->dev;

	if (!c->enlarged &&
	    d->enlarged_bytes + d->cfg.buf_alloc > d->cfg.max_queued_bytes)
		return 0;
	if (!c->enlarged)
		d->enlarged_bytes += d->cfg.buf_alloc;
	c->enlarged = d->cfg.buf_alloc;
	return d->cfg.buf_alloc;
}

/**
 * limit_ring() - How much may each ring of a connection's far side hold?
 * @c:		Connection of a guest, new
 * @want:	Bytes, a power of two
 *
 * Rings are what a socket's buffer is, and count with those: an eighth of what
 * is free goes to one at most, but the least that rings can be always does.
 *
 * Returns: a power of two, counted twice
 */
uint32_t limit_ring(struct vu_conn *c, uint32_t want)
{
	struct vu_dev *d = c->dev;
	uint64_t fits = quota_share(d->cfg.max_queued_bytes, d->enlarged_bytes,
				    2 * (uint64_t)want);
	uint32_t got = want;

	while (got > FPRING_MIN && 2 * (uint64_t)got > fits)
		got /= 2;
	if (got < want)
		limit_hit(d, VU_LIMIT_BYTES);
	d->work[d->doing] += WORK_RINGS;
	c->enlarged = 2 * got;
	d->enlarged_bytes += c->enlarged;
	return got;
}

/**
 * limit_shrink() - Give back a part of a window that was never offered
 * @c:		Connection of a guest
 * @most:	What is enough, bytes
 */
void limit_shrink(struct vu_conn *c, uint32_t most)
{
	if (c->credit.buf_alloc <= most)
		return;
	c->dev->stats.window_bytes -= c->credit.buf_alloc - most;
	c->credit.buf_alloc = most;
}

/**
 * limit_queued() - Count the bytes that a connection holds now
 * @c:		Connection of a guest
 *
 * What is kept was copied: that is work.
 */
void limit_queued(struct vu_conn *c)
{
	uint32_t now =
	    bytes_len(&c->up.kept.bytes) + bytes_len(&c->down.kept.bytes);
	struct vu_dev *d = c->dev;

	if (now > c->held)
		d->work[d->doing] +=
		    WORK_KEEP + (now - c->held) / 1024 * WORK_KIB;
	d->stats.queued_bytes += (uint64_t)now - c->held;
	c->held = now;
}

/**
 * limit_crowded() - Is much kept for a guest?
 * @c:		Connection of it
 *
 * Returns: true if it is half of what may be
 */
bool limit_crowded(struct vu_conn *c)
{
	const struct vu_dev *d = c->dev;

	return d && d->stats.queued_bytes > d->cfg.max_queued_bytes / 2;
}

/**
 * limit_full() - Is more kept for a guest than may be?
 * @c:		Connection of it
 *
 * Returns: true if it is, which is counted
 */
bool limit_full(struct vu_conn *c)
{
	struct vu_dev *d = c->dev;

	if (!d || d->stats.queued_bytes <= d->cfg.max_queued_bytes)
		return false;
	limit_hit(d, VU_LIMIT_BYTES);
	return true;
}
