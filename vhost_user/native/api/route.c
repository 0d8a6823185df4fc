// SPDX-License-Identifier: Apache-2.0
/*
 * route.c - which far side a device's ports have, and who its siblings are
 */

#include "api/api.h"
#include "side/target.h"

/**
 * struct route_arg - Ports that a call is about
 * @target:	Their new target
 * @first:	The lowest
 * @last:	The highest
 */
struct route_arg {
	const struct vu_target *target;
	uint32_t first;
	uint32_t last;
};

/**
 * set() - vu_dev_route() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct route_arg
 *
 * Returns: as vu_dev_route()
 */
static int64_t set(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct route_arg *r = arg;

	(void)e;
	return route_set(&d->routes, r->first, r->target);
}

/**
 * vu_dev_route() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @port:	Host port
 * @target:	Where to
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_dev_route(struct vu_engine *e, uint32_t dev, uint32_t port,
		 const struct vu_target *target)
{
	struct route_arg r = {.target = target, .first = port};

	return target_valid(target) ? (int)aside_dev(e, dev, set, &r)
				    : -VU_ERR_INVAL;
}

/**
 * clear() - Forget the routes of ports, with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	struct route_arg
 *
 * Returns: 1 if there was one, else 0
 */
static int64_t clear(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	const struct route_arg *r = arg;

	(void)e;
	return route_clear(&d->routes, r->first, r->last);
}

/**
 * vu_dev_unroute() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @port:	Host port
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_unroute(struct vu_engine *e, uint32_t dev, uint32_t port)
{
	struct route_arg r = {.first = port, .last = port};

	return aside_dev(e, dev, clear, &r) > 0 ? 0 : -VU_ERR_GONE;
}

/**
 * vu_dev_unroute_from() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @first:	The lowest port
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_dev_unroute_from(struct vu_engine *e, uint32_t dev, uint32_t first)
{
	struct route_arg r = {.first = first, .last = VU_PORT_ANY};
	int64_t ret = aside_dev(e, dev, clear, &r);

	return ret < 0 ? (int)ret : 0;
}

/**
 * join() - vu_dev_join() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	The group's number
 *
 * Returns: as vu_dev_join()
 */
static int64_t join(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	(void)e;
	return sibling_join(d, *(const uint32_t *)arg);
}

/**
 * vu_dev_join() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @group:	Number
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_dev_join(struct vu_engine *e, uint32_t dev, uint32_t group)
{
	return (int)aside_dev(e, dev, join, &group);
}

/**
 * count() - vu_dev_conns_from() with the engine stopped
 * @e:		Engine
 * @d:		Device
 * @arg:	A port
 *
 * Returns: as vu_dev_conns_from()
 */
static int64_t count(struct vu_engine *e, struct vu_dev *d, void *arg)
{
	(void)e;
	return d->ranges ? d->ranges[*(uint32_t *)arg >> RANGE_BITS] : 0;
}

/**
 * vu_dev_conns_from() - see vu_dev.h
 * @e:		Engine
 * @dev:	Id
 * @first_port:	The first of a range of ports
 *
 * Returns: how many, or -VU_ERR_GONE
 */
int64_t vu_dev_conns_from(struct vu_engine *e, uint32_t dev,
			  uint32_t first_port)
{
	return aside_dev(e, dev, count, &first_port);
}
