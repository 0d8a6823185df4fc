// SPDX-License-Identifier: Apache-2.0
/*
 * listener.c - an engine's listening sockets
 */

#include <errno.h>

#include "api/api.h"
#include "side/hbone.h"
#include "side/target.h"

/**
 * listener_remove() - Close a listening socket
 * @e:		Engine, stopped
 * @slot:	Where it is, if it is
 */
void listener_remove(struct vu_engine *e, uint32_t slot)
{
	struct vu_listener *l = e->listeners[slot];

	if (!l)
		return;
	e->listeners[slot] = NULL;
	door_close(l);
	gate_close(l);
	listener_free(l);
}

/**
 * listener_make() - Make a listener
 * @e:		Engine, stopped
 * @fd:		Listening socket, taken over on success
 * @want:	VU_WANT_ bits
 * @target:	Where its connections go
 * @ret:	The listener
 *
 * Returns: its id, or a negated enum vu_err
 */
int listener_make(struct vu_engine *e, int fd, uint32_t want,
		  const struct vu_target *target, struct vu_listener **ret)
{
	uint32_t slot = 0, id;

	while (slot < MAX_LISTENERS && e->listeners[slot])
		slot++;
	if (slot == MAX_LISTENERS)
		return -VU_ERR_FULL;
	id = name_new(e, slot);
	*ret = listener_new(&e->core, id, fd, want, target,
			    TAG_LISTENER | (uint64_t)slot << TAG_SLOT);
	if (!*ret)
		return errno == ENOMEM ? -VU_ERR_NOMEM : -VU_ERR_SYS;
	e->listeners[slot] = *ret;
	return (int)id;
}

/**
 * vu_listener_add() - see vu_conn.h
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
	struct vu_listener *l;
	int ret;

	if (!target_valid(target) || target->kind == VU_TARGET_UNIX ||
	    target->kind == VU_TARGET_VSOCK)
		return -VU_ERR_INVAL;
	loop_enter(e);
	ret = listener_make(e, fd, want, target, &l);
	loop_leave(e);
	return ret;
}

/**
 * vu_listener_guest() - see vu_conn.h
 * @e:		Engine
 * @fd:		Listening socket
 * @backlog:	Its backlog
 * @dev:	The guest's device
 * @tag:	For its clients' events
 *
 * Returns: the listener's id, or a negated enum vu_err
 */
int vu_listener_guest(struct vu_engine *e, int fd, int backlog, uint32_t dev,
		      uint32_t tag)
{
	const struct vu_target ask = {.kind = VU_TARGET_ASK};
	struct vu_listener *l;
	struct vu_dev *d;
	int ret = -VU_ERR_GONE;

	if (!tag)
		return -VU_ERR_INVAL;
	loop_enter(e);
	d = dev_by_id(e, dev);
	if (d)
		ret = listener_make(e, fd, VU_WANT_FAILED, &ask, &l);
	if (ret >= 0 && door_open(l, d, backlog, tag)) {
		l->fd = -1; /* not taken over */
		listener_remove(e, (uint32_t)(l->tag >> TAG_SLOT));
		ret = -VU_ERR_NOMEM;
	}
	loop_leave(e);
	return ret;
}

/**
 * with_listener() - Do something with a listener, the engine stopped
 * @e:		Engine
 * @listener:	Its id
 * @fn:		What to do
 * @arg:	For @fn
 *
 * Returns: what @fn does, or -VU_ERR_GONE
 */
static int with_listener(struct vu_engine *e, uint32_t listener,
			 int (*fn)(struct vu_engine *e, struct vu_listener *l,
				   const void *arg),
			 const void *arg)
{
	struct vu_listener *l;
	int ret = -VU_ERR_GONE;

	loop_enter(e);
	l = listener_by_id(e, listener);
	if (l)
		ret = fn(e, l, arg);
	loop_leave(e);
	return ret;
}

/**
 * remove_one() - vu_listener_del() with the engine stopped
 * @e:		Engine
 * @l:		Listener
 * @arg:	Unused
 *
 * Returns: 0
 */
static int remove_one(struct vu_engine *e, struct vu_listener *l,
		      const void *arg)
{
	(void)arg;
	listener_remove(e, (uint32_t)(l->tag >> TAG_SLOT));
	return 0;
}

/**
 * vu_listener_del() - see vu_conn.h
 * @e:		Engine
 * @listener:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_listener_del(struct vu_engine *e, uint32_t listener)
{
	return with_listener(e, listener, remove_one, NULL);
}

/* ---- those whose clients are a guest's ---- */

/**
 * set_caller() - vu_listener_caller() with the engine stopped
 * @e:		Engine
 * @l:		Listener
 * @arg:	Caller
 *
 * Returns: as vu_listener_caller()
 */
static int set_caller(struct vu_engine *e, struct vu_listener *l,
		      const void *arg)
{
	(void)e;
	return door_caller(l, arg);
}

/**
 * vu_listener_caller() - see vu_conn.h
 * @e:		Engine
 * @listener:	Id
 * @caller:	Whose clients go where
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_listener_caller(struct vu_engine *e, uint32_t listener,
		       const struct vu_caller *caller)
{
	if ((caller->version != 4 && caller->version != 6) ||
	    caller->first_port % RANGE_PORTS)
		return -VU_ERR_INVAL;
	return with_listener(e, listener, set_caller, caller);
}

/**
 * forget() - vu_listener_forget() with the engine stopped
 * @e:		Engine
 * @l:		Listener
 * @arg:	Unused
 *
 * Returns: 0
 */
static int forget(struct vu_engine *e, struct vu_listener *l, const void *arg)
{
	(void)e;
	(void)arg;
	door_forget(l);
	return 0;
}

/**
 * vu_listener_forget() - see vu_conn.h
 * @e:		Engine
 * @listener:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_listener_forget(struct vu_engine *e, uint32_t listener)
{
	return with_listener(e, listener, forget, NULL);
}

/**
 * pause_one() - vu_listener_pause() with the engine stopped
 * @e:		Engine
 * @l:		Listener
 * @arg:	bool
 *
 * Returns: 0
 */
static int pause_one(struct vu_engine *e, struct vu_listener *l,
		     const void *arg)
{
	(void)e;
	listener_close(l, LISTENER_PAUSED, *(const bool *)arg);
	return 0;
}

/**
 * vu_listener_pause() - see vu_conn.h
 * @e:		Engine
 * @listener:	Id
 * @paused:	Accept nobody; false: accept again
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_listener_pause(struct vu_engine *e, uint32_t listener, bool paused)
{
	return with_listener(e, listener, pause_one, &paused);
}

/**
 * set_backlog() - vu_listener_backlog() with the engine stopped
 * @e:		Engine
 * @l:		Listener
 * @arg:	int
 *
 * Returns: as vu_listener_backlog()
 */
static int set_backlog(struct vu_engine *e, struct vu_listener *l,
		       const void *arg)
{
	const int *backlog = arg;

	(void)e;
	if (listen(l->fd, *backlog))
		return -VU_ERR_SYS;
	door_backlog(l, *backlog);
	return 0;
}

/**
 * vu_listener_backlog() - see vu_conn.h
 * @e:		Engine
 * @listener:	Id
 * @backlog:	As of listen()
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_listener_backlog(struct vu_engine *e, uint32_t listener, int backlog)
{
	return with_listener(e, listener, set_backlog, &backlog);
}
