// SPDX-License-Identifier: Apache-2.0
/*
 * vsock.c - connections of a guest: turns of its device, half-close, the end
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 5.10 "Socket Device", stream sockets; what differs for
 * seqpacket sockets is in seqpacket.c. RX, host to guest, is in rx.c; TX, guest
 * to host, in tx.c.
 *
 * Credit. Every packet to the guest carries ours; an update of its own goes
 * when the guest asks, and when half a window was used since it last heard.
 *
 * Turns. A guest can keep its rings full for ever, and make each chain as dear
 * as a ring is long. So one turn of a device does so much work for its TX ring
 * and as much for its RX ring (VSOCK_TURN_WORK), whatever for; then the others'
 * turns come. For connections that is as if the RX ring were empty.
 *
 * The end. Each direction ends by itself: SHUTDOWN from the guest becomes
 * shutdown() once all bytes are out, a FIN becomes SHUTDOWN. With both done
 * the connection lingers until the guest lets go of the port (a RST). A guest
 * that closes (both SHUTDOWN flags) gets its RST when its bytes are out.
 */

#include <sys/socket.h>

#include "vsock.h"

/**
 * vsock_stop_ring() - Let go of a ring, all that was pushed shown
 * @d:		Device
 * @queue:	Its ring, running
 */
void vsock_stop_ring(struct vu_dev *d, uint32_t queue)
{
	vu_ring_flush(d->rings[queue]);
	d->bases[queue] = vu_ring_base(d->rings[queue]);
	vu_ring_free(d->rings[queue]);
	d->rings[queue] = NULL;
}

/**
 * vsock_show_ring() - Show the guest what was pushed
 * @d:		Device
 * @queue:	Its ring, running
 */
void vsock_show_ring(struct vu_dev *d, uint32_t queue)
{
	int ret = vu_ring_flush(d->rings[queue]);

	if (ret > 0)
		d->stats.calls++;
	if (ret >= 0)
		return;
	d->call_blocks = true; /* vsock_flush() breaks the device */
	for (uint32_t q = 0; q < QUEUES; q++) {
		if (d->rings[q])
			vu_ring_set_call(d->rings[q], -1);
	}
}

/**
 * dev_fault() - Break a device whose front-end doesn't mean well
 * @d:		Device; no connection of it is in anyone's hands
 * @err:	VU_ERR_FAULT, VU_ERR_CALL
 *
 * What was read of memory that is gone is worth nothing, so nothing of it is
 * delivered: connections end with a reset.
 */
static void dev_fault(struct vu_dev *d, enum vu_err err)
{
	struct vu_event event = {
	    .kind = VU_EV_BROKEN,
	    .source = d->id,
	    .port = VU_QUEUE_ALL,
	    .error = (int32_t)err,
	};

	for (uint32_t q = 0; q < QUEUES; q++) {
		if (d->rings[q])
			vsock_stop_ring(d, q);
	}
	dev_drop_conns(d);
	d->mem = NULL;
	d->faulted = false;
	d->call_blocks = false;
	events_push(d->engine, &event, true);
}

/**
 * vsock_broken() - Stop a ring whose driver broke the rules
 * @d:		Device
 * @queue:	Its ring
 * @err:	Negated enum vu_err
 */
void vsock_broken(struct vu_dev *d, uint32_t queue, int err)
{
	struct vu_event event = {
	    .kind = VU_EV_BROKEN,
	    .source = d->id,
	    .port = queue,
	    .error = -err,
	};

	vsock_stop_ring(d, queue);
	if (!vsock_faulted(d)) /* else dev_fault() is about to tell */
		events_push(d->engine, &event, true);
}

/**
 * owes_reset() - Does the driver have to be told of a reset?
 * @d:		Device
 *
 * Returns: true if it does, then event.c has the details
 */
static bool owes_reset(const struct vu_dev *d)
{
	return d->reset_due || d->n_lost;
}

/* ---- turns ---- */

/**
 * finish() - Both directions are done: only the guest's port is left
 * @c:		Connection in CONN_OPEN
 */
static void finish(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	conn_post(e, c, VU_EV_CLOSED, 0);
	conn_close_end(&c->far, false);
	list_del(&c->run);
	c->state = CONN_LINGER;
	c->alone_us = now_us();
	list_del(&c->timer);
	list_add(&e->lingering, &c->timer);
	vsock_owe(c, OWE_SHUTDOWN);
}

/**
 * stream_run_up() - Move a stream's held bytes up
 * @c:		Connection
 */
static void stream_run_up(struct vu_conn *c)
{
	int64_t n;

	if (c->up.len && c->far.fd >= 0 && c->far.writable) {
		n = way_drain(c->dev->engine, c, &c->up, &c->far);
		if (n < 0)
			vsock_up_broken(c);
		else
			vsock_consumed(c, (size_t)n);
	} else if (c->up.len && c->target == VU_TARGET_ECHO &&
		   !(c->owe & OWE_RESPONSE)) {
		n = (int64_t)vsock_send_block(c, c->up.data + c->up.off,
					      c->up.len, 0);
		c->up.off += (uint32_t)n;
		c->up.len -= (uint32_t)n;
		if (!c->up.len)
			way_drop(&c->up);
		vsock_consumed(c, (size_t)n);
	}
}

/**
 * run_up() - Move what a connection holds up, and its end
 * @c:		Connection
 *
 * Returns: false if the connection has ended
 */
static bool run_up(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	if (c->type == VIRTIO_VSOCK_TYPE_STREAM)
		stream_run_up(c);
	else if (!seq_run_up(c))
		return false;
	limit_queued(c);
	if (c->up.len &&
	    !(c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV && c->far.fd < 0))
		return true;
	if (c->guest_shut == SHUT_BOTH) { /* also an orphan */
		conn_abort(e, c, 0);
		return false;
	}
	if ((c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND) && !c->up.shut) {
		c->up.shut = true;
		if (c->far.fd >= 0)
			shutdown(c->far.fd, SHUT_WR);
		else if (c->target != VU_TARGET_CHARGEN)
			vsock_down_ended(c);
	}
	return true;
}

/**
 * vsock_run() - Move an open connection's bytes for one turn
 * @c:		Connection
 */
void vsock_run(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;

	if (c->twin) {
		sibling_run(c);
		return;
	}
	if (!run_up(c))
		return;
	if (!(c->owe & OWE_RESPONSE) && !c->down.eof && !c->orphan &&
	    !(c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV)) {
		if (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET) {
			seq_run_down(c);
			if (c->state != CONN_OPEN)
				return;
		} else if (c->far.fd >= 0) {
			vsock_rx_socket(c);
			if (c->state != CONN_OPEN)
				return;
		} else if (c->target == VU_TARGET_CHARGEN) {
			size_t n = vsock_send_block(c, e->chargen, SCRATCH, 0);

			if (n == SCRATCH)
				list_add(&e->run, &c->run);
		}
	}
	if (c->down.eof && (c->up.shut || c->up.broken) && !c->up.len)
		finish(c);
}

/**
 * vsock_pending() - Is there something that a turn would do?
 * @d:		Device
 *
 * Returns: true if there is; a few loads, made for spinning
 */
bool vsock_pending(const struct vu_dev *d)
{
	bool wait_rx =
	    d->rst_count || !list_empty(&d->owing) || !list_empty(&d->starved);

	if ((wait_rx && vsock_rx_room(d)) || vsock_faulted(d) ||
	    (owes_reset(d) && event_pending(d)))
		return true;
	return d->rings[QUEUE_TX] && d->rst_count < RST_QUEUE &&
	       vu_ring_pending(d->rings[QUEUE_TX]);
}

/**
 * vsock_turn() - Act on a device's rings once
 * @d:		Device
 */
void vsock_turn(struct vu_dev *d)
{
	d->work[QUEUE_RX] = d->work[QUEUE_TX] = 0;
	if (vsock_faulted(d))
		dev_fault(d, VU_ERR_FAULT);
	if (owes_reset(d))
		event_turn(d);
	if (d->rings[QUEUE_TX] && vu_ring_pending(d->rings[QUEUE_TX])) {
		vu_ring_want_kicks(d->rings[QUEUE_TX], false);
		vsock_tx(d);
	}
	if (vsock_faulted(d)) { /* before a connection passes on what it read */
		dev_fault(d, VU_ERR_FAULT);
		return;
	}
	vsock_pay_all(d);
	if (!list_empty(&d->starved) && vsock_rx_room(d))
		list_splice(&d->engine->run, &d->starved);
}

/**
 * held_long() - Is it time to show the guest what nobody waits for?
 * @d:		Device
 * @queue:	Its ring, running
 *
 * No driver waits for its TX buffers until the ring runs full, nor for the RST
 * that answers its own close; but the interrupt that brings them costs the
 * guest as much as one that brings data. So they are shown with what is
 * urgent, when they are a quarter of the ring, or after HOLD_US.
 *
 * Returns: true if it is
 */
static bool held_long(struct vu_dev *d, uint32_t queue)
{
	unsigned held = vu_ring_unflushed(d->rings[queue]);
	uint64_t now;

	if (!held)
		return false;
	if (held >= vu_ring_num(d->rings[queue]) / 4)
		return true;
	now = now_us();
	if (!d->held_us[queue])
		d->held_us[queue] = now;
	return now - d->held_us[queue] >= HOLD_US;
}

/**
 * vsock_flush() - Show the guest what a turn did
 * @d:		Device
 */
void vsock_flush(struct vu_dev *d)
{
	vsock_pay_all(d);
	if (vsock_faulted(d)) {
		dev_fault(d, VU_ERR_FAULT);
		return;
	}
	for (uint32_t q = QUEUE_RX; q <= QUEUE_TX; q++) {
		bool urgent = q == QUEUE_RX && d->rx_urgent;

		if (!d->rings[q] || (!urgent && !held_long(d, q)))
			continue;
		d->held_us[q] = 0;
		vsock_show_ring(d, q);
	}
	d->rx_urgent = false;
	if (d->call_blocks)
		dev_fault(d, VU_ERR_CALL);
}

/**
 * vsock_show() - Show the guest the RX buffers that are held back
 * @d:		Device
 *
 * Without polling nothing is held for the sake of fewer interrupts: a program
 * that lingers in close() (SO_LINGER) does wait for the RST.
 */
void vsock_show(struct vu_dev *d)
{
	d->held_us[QUEUE_RX] = 0;
	if (d->rings[QUEUE_RX])
		vsock_show_ring(d, QUEUE_RX);
	if (d->call_blocks)
		dev_fault(d, VU_ERR_CALL);
}

/**
 * vsock_holds() - Is there something that the guest doesn't see yet?
 * @d:		Device
 *
 * Returns: true if there is: another turn is due within HOLD_US
 */
bool vsock_holds(const struct vu_dev *d)
{
	return (d->rings[QUEUE_RX] && vu_ring_unflushed(d->rings[QUEUE_RX])) ||
	       (d->rings[QUEUE_TX] && vu_ring_unflushed(d->rings[QUEUE_TX]));
}

/**
 * vsock_want_kicks() - Ask the guest to wake us, as far as it could help
 * @d:		Device
 *
 * Returns: true if there is work already: don't block
 */
bool vsock_want_kicks(struct vu_dev *d)
{
	bool wait_rx = d->rst_count || !list_empty(&d->owing) ||
		       !list_empty(&d->starved) || d->n_lost;
	bool ready = event_want_kicks(d);

	if (d->rings[QUEUE_RX] && wait_rx)
		ready |= vu_ring_want_kicks(d->rings[QUEUE_RX], true);
	else if (d->rings[QUEUE_RX])
		vu_ring_want_kicks(d->rings[QUEUE_RX], false);
	if (d->rings[QUEUE_TX] && d->rst_count < RST_QUEUE)
		ready |= vu_ring_want_kicks(d->rings[QUEUE_TX], true);
	return ready;
}
