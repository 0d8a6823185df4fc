// SPDX-License-Identifier: Apache-2.0
/*
 * route.c - which far side a port has
 */

#include <stdlib.h>

#include "vsock/dev.h"

/**
 * slot() - Find where a port's route is, or would be
 * @r:		Routes, with buckets
 * @port:	Port
 *
 * Returns: the link to it; *link is NULL if there is none
 */
static struct route **slot(struct routes *r, uint32_t port)
{
	struct route **link = &r->buckets[port % r->n_buckets];

	while (*link && (*link)->port != port)
		link = &(*link)->next;
	return link;
}

/**
 * route_find() - Find a port's target
 * @r:		Routes
 * @port:	Port
 *
 * Returns: the target, the fallback if the port has none of its own
 */
const struct vu_target *route_find(const struct routes *r, uint32_t port)
{
	const struct route *at =
	    r->n_buckets ? r->buckets[port % r->n_buckets] : NULL;

	while (at && at->port != port)
		at = at->next;
	return at ? &at->target : &r->fallback;
}

/**
 * grow() - Make more buckets
 * @r:		Routes
 *
 * Returns: false if there are none at all: out of memory
 */
static bool grow(struct routes *r)
{
	unsigned n = r->n_buckets ? 4 * r->n_buckets : 16;
	struct route **buckets = calloc(n, sizeof(struct route *));

	if (!buckets)
		return r->n_buckets;
	for (unsigned i = 0; i < r->n_buckets; i++) {
		struct route *at = r->buckets[i], *next;

		for (; at; at = next) {
			next = at->next;
			at->next = buckets[at->port % n];
			buckets[at->port % n] = at;
		}
	}
	free(r->buckets);
	r->buckets = buckets;
	r->n_buckets = n;
	return true;
}

/**
 * route_set() - Say where connections to a port go
 * @r:		Routes
 * @port:	Port; VU_PORT_ANY: any that has no route
 * @target:	Where to, copied
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
int route_set(struct routes *r, uint32_t port, const struct vu_target *target)
{
	struct route **link;

	if (port == VU_PORT_ANY) {
		r->fallback = *target;
		return 0;
	}
	if (r->n >= r->n_buckets && !grow(r))
		return -VU_ERR_NOMEM;
	link = slot(r, port);
	if (!*link) {
		*link = calloc(1, sizeof(struct route));
		if (!*link)
			return -VU_ERR_NOMEM;
		r->n++;
	}
	(*link)->port = port;
	(*link)->target = *target;
	return 0;
}

/**
 * route_clear() - Forget the routes of ports; the fallback holds again
 * @r:		Routes
 * @first:	The lowest port
 * @last:	The highest
 *
 * Returns: true if there was one
 */
bool route_clear(struct routes *r, uint32_t first, uint32_t last)
{
	unsigned from = 0, to = r->n_buckets;
	bool found = false;

	if (!r->n)
		return false;
	if (first == last) {
		from = first % r->n_buckets;
		to = from + 1;
	}
	for (unsigned i = from; i < to; i++) {
		struct route **link = &r->buckets[i];

		while (*link) {
			struct route *at = *link;

			if (at->port < first || at->port > last) {
				link = &at->next;
				continue;
			}
			*link = at->next;
			r->n--;
			free(at);
			found = true;
		}
	}
	return found;
}

/**
 * route_free() - Forget all routes, and free what they took
 * @r:		Routes
 */
void route_free(struct routes *r)
{
	route_clear(r, 0, VU_PORT_ANY);
	free(r->buckets);
	r->buckets = NULL;
	r->n_buckets = 0;
}
