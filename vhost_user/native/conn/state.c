// SPDX-License-Identifier: Apache-2.0
/*
 * state.c - the one door through which a connection changes its state
 *
 * Theory of operation
 * ===================
 *
 *	NEW -> HELD -> DIALING -> OPEN -> LINGER -> FREE	(near side asks)
 *	NEW -> REQUESTED -------> OPEN				(we ask)
 *	OPEN -> ORPHAN -> FREE		(a guest left, its bytes go on)
 *	any -> DEAD -> FREE		(a RST is owed, or a close waits)
 *
 * A state says which deadline runs. Those of one kind are all as long, so a
 * list in order of arrival is in order of expiry, and arming one costs nothing.
 */

#include <assert.h>

#include "base/clock.h"
#include "conn/conn.h"

#define TO(state) (1U << (CONN_##state))

/* Where a state may lead: asserted by builds with sanitizers, which tests run
 */
static const unsigned __attribute__((unused)) arrows[CONN_STATES] = {
    [CONN_FREE] = TO(NEW),
    [CONN_NEW] =
	TO(HELD) | TO(DIALING) | TO(REQUESTED) | TO(OPEN) | TO(DEAD) | TO(FREE),
    [CONN_HELD] = TO(DIALING) | TO(OPEN) | TO(DEAD) | TO(FREE),
    [CONN_DIALING] = TO(OPEN) | TO(DEAD) | TO(FREE),
    [CONN_REQUESTED] = TO(OPEN) | TO(DEAD) | TO(FREE),
    [CONN_OPEN] = TO(ORPHAN) | TO(LINGER) | TO(DEAD) | TO(FREE),
    [CONN_ORPHAN] = TO(DEAD) | TO(FREE),
    [CONN_LINGER] = TO(DEAD) | TO(FREE),
    [CONN_DEAD] = TO(FREE),
};

#define NO_DEADLINE DEADLINES

/* Which deadline runs in a state */
static const enum deadline deadlines[CONN_STATES] = {
    [CONN_FREE] = NO_DEADLINE,	      [CONN_NEW] = NO_DEADLINE,
    [CONN_HELD] = DEADLINE_DIAL,      [CONN_DIALING] = DEADLINE_DIAL,
    [CONN_REQUESTED] = DEADLINE_DIAL, [CONN_OPEN] = NO_DEADLINE,
    [CONN_ORPHAN] = DEADLINE_ORPHAN,  [CONN_LINGER] = DEADLINE_LINGER,
    [CONN_DEAD] = NO_DEADLINE,
};

/**
 * conn_set() - Change a connection's state
 * @c:		Connection
 * @state:	The new one
 *
 * From HELD to DIALING the same deadline goes on.
 */
void conn_set(struct vu_conn *c, enum conn_state state)
{
	enum deadline old = deadlines[c->state], new = deadlines[state];

	assert(arrows[c->state] & 1U << state);
	c->state = (uint8_t)state;
	if (new == old &&new != NO_DEADLINE)
		return;
	list_del(&c->timer);
	if (new == NO_DEADLINE)
		return;
	c->since_us = clock_us();
	list_add(&c->core->deadlines[new], &c->timer);
}

/**
 * conn_flows() - Do bytes of a connection move?
 * @c:		Connection
 *
 * Returns: true if they do
 */
bool conn_flows(const struct vu_conn *c)
{
	return c->state == CONN_OPEN || c->state == CONN_ORPHAN;
}
