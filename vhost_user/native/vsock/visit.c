// SPDX-License-Identifier: Apache-2.0
/*
 * visit.c - CONNECTs that are a guest's
 *
 * Theory of operation
 * ===================
 *
 * A decision (side/decision.c) may say that CONNECTs go to a port of a guest. A
 * connection is the device's then, as a client's of a published port is
 * (door.c), and its far side the stream. The port on our side tells the guest
 * who comes: the range is the client's IP, the port in it the client's own,
 * where "forwarded" says that and no other connection has it.
 */

#include "vsock/visit.h"

#define TRIES 64U /* ports, for one connection */

/**
 * free_port() - Find a port on our side
 * @d:		Device
 * @what:	Decision
 * @port:	The client's port
 *
 * Returns: a port that no connection to the guest's port has; 0 if most are
 * taken
 */
static uint32_t free_port(const struct vu_dev *d, const struct decision *what,
			  uint16_t port)
{
	for (uint32_t i = 0; i < TRIES; i++) {
		uint32_t at = what->first_port | (uint16_t)(port + i);

		if (at &&
		    !conn_find(d->core, d, what->guest_port, HOST_CID, at))
			return at;
	}
	return 0;
}

/**
 * offer() - Ask the guest to take a CONNECT
 * @what:	Decision
 * @s:		Stream of a gate, nobody's
 * @port:	The client's port, or 0
 *
 * Returns: the connection; NULL if the guest can't have it
 */
static struct vu_conn *offer(struct decision *what, struct stream *s,
			     uint16_t port)
{
	struct vu_dev *d = what->dev;
	uint32_t ours =
	    free_port(d, what, port ? port : (uint16_t)d->next_port++);
	struct vu_conn *c = ours ? guest_conn(d, what->guest_port, ours) : NULL;

	if (!c)
		return NULL;
	if (!decision_visits(what, s->tunnel, c)) {
		conn_free(c);
		return NULL;
	}
	stream_join(s, c);
	guest_ask(c);
	return c;
}

/**
 * visit_decide() - Have CONNECTs be a guest's
 * @what:	Decision, new
 * @d:		The guest's device
 * @guest_port:	Port that a program in the guest listens on
 * @first_port:	The first of 65536 on our side
 */
void visit_decide(struct decision *what, struct vu_dev *d, uint32_t guest_port,
		  uint32_t first_port)
{
	what->offer = offer;
	what->dev = d;
	what->guest_port = guest_port;
	what->first_port = first_port;
	list_add(&d->decisions, &what->link);
}

/**
 * visit_end() - A device goes, and decisions about its guest do
 * @d:		Device
 */
void visit_end(struct vu_dev *d)
{
	while (!list_empty(&d->decisions))
		decision_drop(
		    container_of(d->decisions.next, struct decision, link));
}
