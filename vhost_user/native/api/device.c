// SPDX-License-Identifier: Apache-2.0
/*
 * device.c - an engine's devices
 */

#include <errno.h>

#include "api/api.h"
#include "vsock/visit.h"

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

/**
 * aside_dev() - The same, for what no turn has to act on
 * @e:		Engine
 * @dev:	Its id
 * @fn:		What to do
 * @arg:	For @fn
 *
 * Of a thousand idle devices none becomes active because somebody reads its
 * counters.
 *
 * Returns: what @fn does, or -VU_ERR_GONE
 */
int64_t aside_dev(struct vu_engine *e, uint32_t dev, dev_fn *fn, void *arg)
{
	struct vu_dev *d;
	int64_t ret = -VU_ERR_GONE;

	loop_enter(e);
	d = dev_by_id(e, dev);
	if (d)
		ret = fn(e, d, arg);
	loop_release(e);
	return ret;
}

/* ---- from start to end ---- */

/**
 * vu_dev_add() - see vu_dev.h
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
	loop_release(e);
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
	visit_end(d);
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
	device_remove(e, DEVICE_SLOT(d->id));
	return 0;
}

/**
 * vu_dev_del() - see vu_dev.h
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
 * vu_dev_limit() - see vu_dev.h
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
 * vu_dev_set_mem() - see vu_dev.h
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
 * vu_dev_reset() - see vu_dev.h
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
 * vu_dev_transport_reset() - see vu_dev.h
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
 * vu_dev_stats() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @ret:	Counters
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_stats(struct vu_engine *e, uint32_t dev, struct vu_dev_stats *ret)
{
	return (int)aside_dev(e, dev, get_stats, ret);
}
