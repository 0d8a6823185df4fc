// SPDX-License-Identifier: Apache-2.0
/*
 * rings.c - the rings of an engine's devices
 */

#include "api/api.h"

/**
 * struct ring_arg - A ring that a call is about
 * @cfg:	Where it is
 * @queue:	Which
 * @call_fd:	Its new call eventfd
 */
struct ring_arg {
	const struct vu_ring_config *cfg;
	uint32_t queue;
	int call_fd;
};

/**
 * with_ring() - Do something with a device's ring, the engine stopped
 * @e:		Engine
 * @dev:	Device's id
 * @fn:		What to do
 * @arg:	The ring
 *
 * Returns: what @fn does, -VU_ERR_GONE or -VU_ERR_INVAL
 */
static int64_t with_ring(struct vu_engine *e, uint32_t dev, dev_fn *fn,
			 struct ring_arg arg)
{
	return arg.queue < QUEUES ? with_dev(e, dev, fn, &arg) : -VU_ERR_INVAL;
}

/**
 * start_ring() - vu_dev_start_ring() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct ring_arg
 *
 * Returns: as vu_dev_start_ring()
 */
static int64_t start_ring(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct ring_arg *r = arg;
	int err =
	    dev_start_ring(d, r->queue, r->cfg,
			   TAG_KICK | (uint64_t)DEVICE_SLOT(d->id) << TAG_SLOT);

	(void)e;
	if (err)
		return err;
	reset_ring_started(d, r->queue, r->cfg->base);
	vu_ring_want_kicks(d->rings[r->queue], false);
	return 0;
}

/**
 * vu_dev_start_ring() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @queue:	Ring
 * @cfg:	Where it is
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_dev_start_ring(struct vu_engine *e, uint32_t dev, uint32_t queue,
		      const struct vu_ring_config *cfg)
{
	return (int)with_ring(e, dev, start_ring,
			      (struct ring_arg){.cfg = cfg, .queue = queue});
}

/**
 * stop_ring() - vu_dev_stop_ring() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct ring_arg
 *
 * Returns: as vu_dev_stop_ring()
 */
static int64_t stop_ring(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct ring_arg *r = arg;

	(void)e;
	dev_stop_ring(d, r->queue);
	return d->bases[r->queue];
}

/**
 * vu_dev_stop_ring() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @queue:	Ring
 *
 * Returns: its base, or a negated enum vu_err
 */
int64_t vu_dev_stop_ring(struct vu_engine *e, uint32_t dev, uint32_t queue)
{
	return with_ring(e, dev, stop_ring, (struct ring_arg){.queue = queue});
}

/**
 * set_call() - vu_dev_set_call() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct ring_arg
 *
 * Returns: as vu_dev_set_call()
 */
static int64_t set_call(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct ring_arg *r = arg;

	(void)e;
	if (!d->rings[r->queue])
		return -VU_ERR_STATE;
	vu_ring_set_call(d->rings[r->queue], r->call_fd);
	return 0;
}

/**
 * vu_dev_set_call() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @queue:	Ring
 * @call_fd:	eventfd, borrowed; or -1
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_dev_set_call(struct vu_engine *e, uint32_t dev, uint32_t queue,
		    int call_fd)
{
	return (int)with_ring(
	    e, dev, set_call,
	    (struct ring_arg){.queue = queue, .call_fd = call_fd});
}
