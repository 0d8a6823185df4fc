// SPDX-License-Identifier: Apache-2.0
/*
 * reset.c - a driver that outlives our connections is told so
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 5.10.6.7 "Device Events". When a front-end goes, so do the
 * connections of its guest; yet the guest's driver may come back with the next
 * front-end and go on where it was. Then it is told by TRANSPORT_RESET on the
 * event queue, which ends its connections, as soon as it offers a buffer there.
 *
 * Some front-ends keep that queue to themselves (QEMU's vhost-user-vsock). So
 * each connection that was lost is also remembered by its addresses, and the
 * guest gets a RST about it, unless it had the event before; both do no harm.
 *
 * A driver that starts anew lost nothing: one whose RX and TX rings both begin
 * at their start never sent nor received a packet. So nothing is sent before
 * both rings run.
 */

#include <stdlib.h>

#include "base/iov.h"
#include "vsock/dev.h"

/**
 * driver_runs() - Do both data rings run?
 * @d:		Device
 *
 * Returns: true if they do
 */
static bool driver_runs(const struct vu_dev *d)
{
	return d->rings[QUEUE_RX] && d->rings[QUEUE_TX];
}

/**
 * reset_forget() - Owe the driver nothing any more
 * @d:		Device
 */
void reset_forget(struct vu_dev *d)
{
	free(d->lost);
	d->lost = NULL;
	d->n_lost = d->lost_cap = 0;
	d->reset_due = false;
}

/**
 * reset_ring_started() - Note where a ring begins
 * @d:		Device
 * @queue:	The ring, running
 * @base:	Index of its next available entry
 */
void reset_ring_started(struct vu_dev *d, uint32_t queue, uint32_t base)
{
	/* of a packed ring's base the top bits are wrap counters */
	d->begun[queue] = (base & 0x7fff7fffU) != 0;
	if (driver_runs(d) && !d->begun[QUEUE_RX] && !d->begun[QUEUE_TX])
		reset_forget(d);
}

/**
 * reset_pending() - Is there something that reset_turn() would do?
 * @d:		Device
 *
 * Returns: true if there is
 */
bool reset_pending(const struct vu_dev *d)
{
	if (!driver_runs(d))
		return false;
	if (d->n_lost && vu_ring_pending(d->rings[QUEUE_RX]))
		return true;
	return d->reset_due && d->rings[QUEUE_EVENT] &&
	       vu_ring_pending(d->rings[QUEUE_EVENT]);
}

/**
 * reset_want_kicks() - Ask for kicks of the event ring while it is waited for
 * @d:		Device
 *
 * Returns: true if there is work already: don't block
 */
bool reset_want_kicks(struct vu_dev *d)
{
	if (!d->rings[QUEUE_EVENT])
		return false;
	return vu_ring_want_kicks(d->rings[QUEUE_EVENT],
				  d->reset_due && driver_runs(d));
}

/**
 * post_reset() - Put TRANSPORT_RESET into the event ring
 * @d:		Device with that ring
 *
 * Returns: true if there was a buffer
 */
static bool post_reset(struct vu_dev *d)
{
	struct virtio_vsock_event event = {
	    .id = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET,
	};
	struct vu_ring *ring = d->rings[QUEUE_EVENT];
	struct iovec *iov = d->core->rx_iov;
	struct vu_chain chain;
	int ret = vu_ring_pop(ring, iov, BATCH_IOV, &chain);

	if (ret > 0 && chain.write_len < sizeof(event))
		ret = -VU_ERR_CHAIN;
	if (ret < 0)
		dev_broken(d, QUEUE_EVENT, ret);
	if (ret <= 0)
		return false;
	iov += chain.n_read;
	iov_copy(iov, chain.n_write, 0, &event, sizeof(event), true);
	vu_ring_push(ring, &chain, iov, sizeof(event));
	dev_flush(d, QUEUE_EVENT);
	return true;
}

/**
 * reset_turn() - Tell the driver what it doesn't know yet
 * @d:		Device
 */
void reset_turn(struct vu_dev *d)
{
	if (!driver_runs(d))
		return;
	if (d->reset_due && d->rings[QUEUE_EVENT] && post_reset(d)) {
		reset_forget(d);
		return;
	}
	while (d->n_lost) {
		const struct rst *rst = &d->lost[d->n_lost - 1];
		/* its ports may be in use again */
		bool used = conn_find(d->core, d, rst->dst_port, rst->src_cid,
				      rst->src_port);

		if (!used && !owe_send_rst(d, rst))
			return;
		d->n_lost--;
	}
}
