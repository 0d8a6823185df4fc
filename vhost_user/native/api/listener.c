// SPDX-License-Identifier: Apache-2.0
/*
 * listener.c - an engine's listening sockets
 */

#include <errno.h>

#include "api/api.h"
#include "side/target.h"

/**
 * vu_listener_add() - see vu_engine.h
 * @e:		Engine
 * @fd:		Listening socket
 * @want:	VU_WANT_ bits
 * @target:	Where its connections go
 *
 * Returns: the listener's id, or a negated enum vu_err
 */
int vu_listener_add(struct vu_engine *e, int fd, uint32_t want,
		    const struct vu_target *target)
{
	uint32_t slot = 0;
	int ret = -VU_ERR_FULL;

	if (!target_valid(target) || target->kind == VU_TARGET_UNIX ||
	    target->kind == VU_TARGET_VSOCK)
		return -VU_ERR_INVAL;
	loop_enter(e);
	while (slot < MAX_LISTENERS && e->listeners[slot])
		slot++;
	if (slot < MAX_LISTENERS) {
		uint32_t id = name_new(e, slot);

		e->listeners[slot] =
		    listener_new(&e->core, id, fd, want, target,
				 TAG_LISTENER | (uint64_t)slot << 40);
		if (e->listeners[slot])
			ret = (int)id;
		else
			ret = errno == ENOMEM ? -VU_ERR_NOMEM : -VU_ERR_SYS;
	}
	loop_leave(e);
	return ret;
}

/**
 * listener_remove() - Close a listening socket
 * @e:		Engine, stopped
 * @slot:	Where it is, if it is
 */
void listener_remove(struct vu_engine *e, uint32_t slot)
{
	if (e->listeners[slot])
		listener_free(e->listeners[slot]);
	e->listeners[slot] = NULL;
}

/**
 * vu_listener_del() - see vu_engine.h
 * @e:		Engine
 * @listener:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_listener_del(struct vu_engine *e, uint32_t listener)
{
	uint32_t slot = listener % MAX_LISTENERS;
	int ret = -VU_ERR_GONE;

	loop_enter(e);
	if (e->listeners[slot] &&
	    e->listeners[slot]->outbox->source == listener) {
		listener_remove(e, slot);
		ret = 0;
	}
	loop_leave(e);
	return ret;
}
