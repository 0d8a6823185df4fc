// SPDX-License-Identifier: Apache-2.0
/*
 * turn.c - turns of a device
 *
 * Theory of operation
 * ===================
 *
 * A guest can keep its rings full for ever, and make each chain as dear as a
 * ring is long. So one turn of a device does so much work for its TX ring, as
 * much for its RX ring and as much for its connections (WORK_TURN), whatever
 * for; then the others' turns come. For connections the end of the work is as
 * if the RX ring were empty.
 *
 * What nobody waits for is shown late. No driver waits for its TX buffers until
 * the ring runs full, nor for the RST that answers its own close; but the
 * interrupt that brings them costs the guest as much as one that brings data.
 * So they are shown with what is urgent, when they are a quarter of the ring,
 * or after HOLD_US. And a guest whose work is cut into turns sees what they did
 * together, as if it had been one: others come in between, interrupts don't.
 */

#include "base/clock.h"
#include "side/target.h"
#include "vsock/dev.h"

#define RETRIES 32 /* of one device, each time */
#define CUTS	8  /* turns that are shown together */

/**
 * owes_reset() - Does the driver have to be told of a reset?
 * @d:		Device
 *
 * Returns: true if it does, then reset.c has the details
 */
static bool owes_reset(const struct vu_dev *d)
{
	return d->reset_due || d->n_lost;
}

/**
 * waits_for_rx() - Is there something for the guest that needs an RX buffer?
 * @d:		Device
 *
 * Returns: true if there is
 */
static bool waits_for_rx(const struct vu_dev *d)
{
	return d->rst_count || !list_empty(&d->owing) ||
	       !list_empty(&d->parting) ||
	       (!list_empty(&d->starved) && !d->rx_small);
}

/**
 * turn_pending() - Is there something that a turn would do?
 * @d:		Device
 *
 * Returns: true if there is; a few loads, made for spinning
 */
bool turn_pending(const struct vu_dev *d)
{
	if ((waits_for_rx(d) && dev_rx_room(d)) || dev_failed(d) ||
	    !list_empty(&d->waiting) || (owes_reset(d) && reset_pending(d)))
		return true;
	return d->rings[QUEUE_TX] && d->rst_count < RST_QUEUE &&
	       vu_ring_pending(d->rings[QUEUE_TX]);
}

/**
 * turn_begin() - Act on a device's rings once
 * @d:		Device
 */
void turn_begin(struct vu_dev *d)
{
	for (unsigned i = 0; i < WORKS; i++)
		d->work[i] = 0;
	d->rx_small = false;
	dev_doing(d, WORK_RUN);
	if (dev_failed(d))
		dev_end(d);
	if (owes_reset(d))
		reset_turn(d);
	if (d->rings[QUEUE_TX] && vu_ring_pending(d->rings[QUEUE_TX])) {
		vu_ring_want_kicks(d->rings[QUEUE_TX], false);
		tx_turn(d);
	}
	if (dev_failed(d)) { /* before a connection passes on what it read */
		dev_end(d);
		return;
	}
	owe_pay(d);
	list_splice_first(&d->core->run, &d->waiting);
}

/**
 * turn_feed() - Run connections that waited for RX buffers, as far as these go
 * @d:		Device
 */
void turn_feed(struct vu_dev *d)
{
	while (!list_empty(&d->starved) && dev_rx_room(d) && !d->rx_small &&
	       !dev_spent(d, WORK_RX) && !dev_spent(d, WORK_RUN)) {
		struct vu_conn *c =
		    container_of(d->starved.next, struct vu_conn, run);

		list_del(&c->run);
		d->work[WORK_RUN] += WORK_RUNS;
		conn_run(c);
	}
}

/**
 * held_long() - Is it time to show the guest what nobody waits for?
 * @d:		Device
 * @queue:	Its ring, running
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
	now = clock_us();
	if (!d->held_us[queue])
		d->held_us[queue] = now;
	return now - d->held_us[queue] >= HOLD_US;
}

/**
 * cut() - Does the next turn go on with this one's work?
 * @d:		Device
 *
 * A turn that was spent with the last of the work may be followed by a wait:
 * the guest would hear only behind that, and its next bytes be late as much.
 *
 * Returns: true if it does
 */
static bool cut(const struct vu_dev *d)
{
	return (dev_spent(d, WORK_TX) || dev_spent(d, WORK_RUN)) &&
	       turn_pending(d);
}

/**
 * turn_end() - Show the guest what a turn did
 * @d:		Device
 */
void turn_end(struct vu_dev *d)
{
	owe_pay(d);
	if (dev_failed(d)) {
		dev_end(d);
		return;
	}
	if (cut(d) && ++d->unshown < CUTS)
		return;
	d->unshown = 0;
	for (uint32_t q = QUEUE_RX; q <= QUEUE_TX; q++) {
		bool urgent = q == QUEUE_RX && d->rx_urgent;

		if (d->rings[q] && (urgent || held_long(d, q)))
			dev_flush(d, q);
	}
	d->rx_urgent = false;
}

/**
 * turn_show() - Show the guest the RX buffers that are held back
 * @d:		Device
 *
 * Without polling nothing is held for the sake of fewer interrupts: a program
 * that lingers in close() (SO_LINGER) does wait for the RST.
 */
void turn_show(struct vu_dev *d)
{
	if (d->rings[QUEUE_RX])
		dev_flush(d, QUEUE_RX);
}

/**
 * turn_holds() - Is there something that the guest doesn't see yet?
 * @d:		Device
 *
 * Returns: true if there is: another turn is due within HOLD_US
 */
bool turn_holds(const struct vu_dev *d)
{
	return (d->rings[QUEUE_RX] && vu_ring_unflushed(d->rings[QUEUE_RX])) ||
	       (d->rings[QUEUE_TX] && vu_ring_unflushed(d->rings[QUEUE_TX]));
}

/**
 * turn_deaf() - Is there something that no kick will tell us?
 * @d:		Device
 *
 * A ring without kick eventfd; or larger RX buffers, behind those that are of
 * no use.
 *
 * Returns: true if there is: another turn is due soon
 */
bool turn_deaf(const struct vu_dev *d)
{
	return (d->rings[QUEUE_TX] && d->kick_fds[QUEUE_TX] < 0) ||
	       (!list_empty(&d->starved) && d->rx_small);
}

/**
 * turn_want_kicks() - Ask the guest to wake us, as far as it could help
 * @d:		Device
 *
 * Returns: true if there is work already: don't block
 */
bool turn_want_kicks(struct vu_dev *d)
{
	bool ready = reset_want_kicks(d);
	bool rx = waits_for_rx(d) ||
		  (d->n_lost && d->rings[QUEUE_TX]); /* see reset.c */

	if (d->rings[QUEUE_RX])
		ready |= vu_ring_want_kicks(d->rings[QUEUE_RX], rx) && rx;
	if (d->rings[QUEUE_TX] && d->rst_count < RST_QUEUE)
		ready |= vu_ring_want_kicks(d->rings[QUEUE_TX], true);
	return ready || !list_empty(&d->waiting);
}

/**
 * turn_retry() - Dial again the unix listeners that were full
 * @d:		Device
 *
 * A guest can make thousands of connections to a listener that takes none; so
 * one tick dials some of them once, the longest waiting first.
 *
 * Returns: true if some still wait
 */
bool turn_retry(struct vu_dev *d)
{
	struct list now;

	list_init(&now);
	list_splice(&now, &d->retries);
	for (unsigned i = 0; i < RETRIES && !list_empty(&now); i++) {
		struct vu_conn *c = container_of(now.next, struct vu_conn, run);

		list_del(&c->run);
		target_retry(c, route_find(&d->routes, c->port));
	}
	list_splice_first(&d->retries, &now);
	return !list_empty(&d->retries);
}
