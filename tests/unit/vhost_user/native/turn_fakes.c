// SPDX-License-Identifier: Apache-2.0
/*
 * turn_fakes.c - a device whose turns take one chain each, and are spent by it
 */

#include <stdlib.h>

#include "side/target.h"
#include "vsock/dev.h"

#define ENTRIES 256

static unsigned chains;	   /* that the guest has sent, in the TX ring */
static unsigned shown;	   /* times that the guest was shown its RX ring */
static char rings[QUEUES]; /* nothing but addresses */

/* ---- what turn.c stands on ---- */

bool vu_ring_pending(const struct vu_ring *ring)
{
	return (const void *)ring == &rings[QUEUE_TX] && chains;
}

bool vu_ring_want_kicks(struct vu_ring *ring, bool want)
{
	(void)want;
	return vu_ring_pending(ring);
}

unsigned vu_ring_unflushed(const struct vu_ring *ring)
{
	(void)ring;
	return 0;
}

uint32_t vu_ring_num(const struct vu_ring *ring)
{
	(void)ring;
	return ENTRIES;
}

void tx_turn(struct vu_dev *d)
{
	chains--;
	d->work[WORK_TX] = WORK_TURN;
	d->rx_urgent = true; /* half of the window is free again */
}

void dev_flush(struct vu_dev *d, uint32_t queue)
{
	(void)d;
	shown += queue == QUEUE_RX;
}

bool vu_mem_faulted(const struct vu_mem *mem)
{
	(void)mem;
	return false;
}

bool reset_pending(const struct vu_dev *d)
{
	(void)d;
	return false;
}

bool reset_want_kicks(struct vu_dev *d)
{
	(void)d;
	return false;
}

void reset_turn(struct vu_dev *d)
{
	(void)d;
}

void dev_end(struct vu_dev *d)
{
	(void)d;
}

void owe_pay(struct vu_dev *d)
{
	(void)d;
}

void conn_run(struct vu_conn *c)
{
	(void)c;
}

const struct vu_target *route_find(const struct routes *r, uint32_t port)
{
	(void)r;
	(void)port;
	return NULL;
}

void target_retry(struct vu_conn *c, const struct vu_target *target)
{
	(void)c;
	(void)target;
}

/* ---- what the test sees ---- */

/**
 * turn_shown() - Have a guest send chains, and take turns until they are done
 * @n:		Chains
 * @ret_turns:	Turns that it took
 *
 * Returns: times that the guest was shown what they did
 */
unsigned turn_shown(unsigned n, unsigned *ret_turns)
{
	struct core *core = calloc(1, sizeof(*core));
	struct vu_dev *d = calloc(1, sizeof(*d));

	if (!core || !d)
		abort();
	d->core = core;
	list_init(&core->run);
	list_init(&d->waiting);
	list_init(&d->starved);
	list_init(&d->owing);
	list_init(&d->parting);
	for (unsigned i = 0; i < QUEUES; i++)
		d->rings[i] = (struct vu_ring *)(void *)&rings[i];
	chains = n;
	shown = 0;
	*ret_turns = 0;
	while (chains) {
		turn_begin(d);
		turn_end(d);
		++*ret_turns;
	}
	free(d);
	free(core);
	return shown;
}
