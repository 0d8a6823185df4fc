// SPDX-License-Identifier: Apache-2.0
/*
 * device.c - an engine's devices and their rings
 */

#include <errno.h>

#include "api/api.h"

/* Ids are a slot and a number that no other device had */
#define SLOT(dev) ((dev) % VU_MAX_DEVICES)

/**
 * with_dev() - Do something with a device, the engine stopped
 * @e:		Engine
 * @dev:	Its id
 * @fn:		What to do; the device takes part in the next turn
 * @arg:	For @fn
 *
 * Returns: what @fn does, or -VU_ERR_GONE
 */
int64_t with_dev(struct vu_engine *e, uint32_t dev, dev_fn *fn, void *arg)
{
	struct vu_dev *d;
	int64_t ret = -VU_ERR_GONE;

	loop_enter(e);
	d = dev_by_id(e, dev);
	if (d) {
		list_add(&e->core.active, &d->active);
		ret = fn(e, d, arg);
	}
	loop_leave(e);
	return ret;
}

/* ---- from start to end ---- */

/**
 * vu_dev_add() - see vu_engine.h
 * @e:		Engine
 * @cfg:	Configuration
 *
 * Returns: the device's id, or a negated enum vu_err
 */
int vu_dev_add(struct vu_engine *e, const struct vu_dev_config *cfg)
{
	struct vu_dev *d = NULL;
	uint32_t slot = 0;
	int ret = -VU_ERR_FULL;

	if (cfg->guest_cid < 3 || cfg->guest_cid >= 0xffffffffU ||
	    !cfg->buf_alloc || cfg->buf_alloc > CREDIT_WINDOW_MAX ||
	    cfg->max_queued_bytes / VU_MIN_WINDOW < cfg->max_conns)
		return -VU_ERR_INVAL;
	loop_enter(e);
	while (slot < VU_MAX_DEVICES && e->devs[slot])
		slot++;
	if (slot < VU_MAX_DEVICES) {
		uint32_t id = name_new(e, slot);

		d = dev_new(&e->core, id, cfg);
		e->devs[slot] = d;
		ret = d ? (int)id : -VU_ERR_NOMEM;
	}
	loop_leave(e);
	return ret;
}

/**
 * device_remove() - Remove a device: its connections end, its rings stop
 * @e:		Engine, stopped
 * @slot:	Where it is, if it is
 */
void device_remove(struct vu_engine *e, uint32_t slot)
{
	struct vu_dev *d = e->devs[slot];
	struct list *head = &e->core.deadlines[DEADLINE_ORPHAN];

	if (!d)
		return;
	dev_drop_conns(d);
	for (uint32_t q = 0; q < QUEUES; q++)
		dev_stop_ring(d, q);
	/* orphans still point to it: no guest, no more counting */
	for (struct list *n = head->next, *next; n != head; n = next) {
		struct vu_conn *c = container_of(n, struct vu_conn, timer);

		next = n->next;
		if (c->dev == d)
			conn_abort(c, ECONNRESET);
	}
	sibling_forget(d);
	door_walled(d);
	e->devs[slot] = NULL;
	dev_free(d);
}

/**
 * remove_dev() - vu_dev_del() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	Unused
 *
 * Returns: 0
 */
static int64_t remove_dev(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	(void)arg;
	device_remove(e, SLOT(d->id));
	return 0;
}

/**
 * vu_dev_del() - see vu_engine.h
 * @e:		Engine
 * @dev:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_del(struct vu_engine *e, uint32_t dev)
{
	return (int)with_dev(e, dev, remove_dev, NULL);
}

/**
 * struct limits - What vu_dev_limit() is told
 */
struct limits {
	uint32_t max_conns;
	uint64_t max_queued_bytes;
	uint32_t accept_rate;
};

/**
 * set_limits() - vu_dev_limit() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct limits
 *
 * Returns: 0
 */
static int64_t set_limits(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct limits *l = arg;

	(void)e;
	d->cfg.max_conns = l->max_conns;
	d->cfg.max_queued_bytes = l->max_queued_bytes;
	d->cfg.accept_rate = l->accept_rate;
	return 0;
}

/**
 * vu_dev_limit() - see vu_engine.h
 * @e:		Engine
 * @dev:	Id
 * @max_conns:	As in struct vu_dev_config, like the others
 * @max_queued_bytes: Same
 * @accept_rate: Same
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_dev_limit(struct vu_engine *e, uint32_t dev, uint32_t max_conns,
		 uint64_t max_queued_bytes, uint32_t accept_rate)
{
	struct limits l = {max_conns, max_queued_bytes, accept_rate};

	if (max_queued_bytes / VU_MIN_WINDOW < max_conns)
		return -VU_ERR_INVAL;
	return (int)with_dev(e, dev, set_limits, &l);
}

/**
 * set_mem() - vu_dev_set_mem() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	Memory map
 *
 * Returns: as vu_dev_set_mem()
 */
static int64_t set_mem(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	(void)e;
	for (unsigned q = 0; q < QUEUES; q++) {
		if (d->rings[q])
			return -VU_ERR_STATE;
	}
	d->mem = arg;
	d->failure = 0;
	return 0;
}

/**
 * vu_dev_set_mem() - see vu_engine.h
 * @e:		Engine
 * @dev:	Id
 * @mem:	Memory map, borrowed; NULL: none
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_dev_set_mem(struct vu_engine *e, uint32_t dev, const struct vu_mem *mem)
{
	return (int)with_dev(e, dev, set_mem, (void *)(uintptr_t)mem);
}

/* ---- rings ---- */

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
	int err = dev_start_ring(d, r->queue, r->cfg,
				 TAG_KICK | (uint64_t)SLOT(d->id) << TAG_SLOT);

	(void)e;
	if (err)
		return err;
	reset_ring_started(d, r->queue, r->cfg->base);
	vu_ring_want_kicks(d->rings[r->queue], false);
	return 0;
}

/**
 * vu_dev_start_ring() - see vu_engine.h
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
 * vu_dev_stop_ring() - see vu_engine.h
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
 * vu_dev_set_call() - see vu_engine.h
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

/* ---- its guest ---- */

/**
 * drop_conns() - vu_dev_reset() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	Unused
 *
 * Returns: 0
 */
static int64_t drop_conns(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	(void)e;
	(void)arg;
	dev_drop_conns(d);
	return 0;
}

/**
 * vu_dev_reset() - see vu_engine.h
 * @e:		Engine
 * @dev:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_reset(struct vu_engine *e, uint32_t dev)
{
	return (int)with_dev(e, dev, drop_conns, NULL);
}

/**
 * owe_event() - vu_dev_transport_reset() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	Unused
 *
 * Returns: 0
 */
static int64_t owe_event(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	(void)e;
	(void)arg;
	d->reset_due = true;
	return 0;
}

/**
 * vu_dev_transport_reset() - see vu_engine.h
 * @e:		Engine
 * @dev:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_transport_reset(struct vu_engine *e, uint32_t dev)
{
	return (int)with_dev(e, dev, owe_event, NULL);
}

/**
 * get_stats() - vu_dev_stats() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	Counters
 *
 * Returns: 0
 */
static int64_t get_stats(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	(void)e;
	*(struct vu_dev_stats *)arg = d->stats;
	return 0;
}

/**
 * vu_dev_stats() - see vu_engine.h
 * @e:		Engine
 * @dev:	Id
 * @ret:	Counters
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_stats(struct vu_engine *e, uint32_t dev, struct vu_dev_stats *ret)
{
	return (int)with_dev(e, dev, get_stats, ret);
}
