// SPDX-License-Identifier: Apache-2.0
/*
 * door.c - listeners whose clients are a guest's
 *
 * Theory of operation
 * ===================
 *
 * A port of a guest is published by listeners of the host. Python says of which
 * IPs the clients may go straight to a port of the guest, and from which port
 * on our side: such a caller's are offered to the guest at once. Of any other
 * client Python hears (VU_EV_REQUEST) and takes its socket (vu_conn_take()).
 *
 * So it does with one that the guest has no room for (a RST). That one is
 * first: nobody else is accepted until Python says so.
 *
 * A client is pending from accept() until the guest or Python has it; when a
 * door has as many as it may, others wait in the listener's backlog. A door
 * outlives its listener and its device as long as there are some.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include "side/socket.h"
#include "vsock/dev.h"

#define MAX_PENDING 256 /* clients of a listener that nobody has answered */

/**
 * struct door - What a listener is to a guest
 * @link:	On its device's list
 * @listener:	The listener; NULL: it is deleted
 * @dev:	The guest's device; NULL: it is removed
 * @callers:	Clients that Python isn't asked about
 * @tag:	What Python calls it
 * @most:	Clients that may be pending
 * @pending:	Those that are
 */
struct door {
	struct list link;
	struct vu_listener *listener;
	struct vu_dev *dev;
	struct callers callers;
	uint32_t tag;
	uint32_t most;
	uint32_t pending;
};

/**
 * struct visitor - A client, and the door that it came by
 */
struct visitor {
	struct client client;
	struct door *door;
};

/**
 * update() - Accept clients as long as there is room
 * @o:		Door; gone afterwards if nobody needs it
 */
static void update(struct door *o)
{
	if (o->listener)
		listener_close(o->listener, LISTENER_FULL,
			       o->pending >= o->most);
	else if (!o->pending)
		free(o);
}

/**
 * settled() - A client is not pending any more
 * @client:	Client, gone afterwards
 */
static void settled(struct client *client)
{
	struct visitor *v = container_of(client, struct visitor, client);
	struct door *o = v->door;

	free(v);
	o->pending--;
	update(o);
}

/* Held for Python, which takes the socket and nothing else */
static const struct side_ops waiting = {
    .close = socket_close,
    .reset = conn_free,
};

/**
 * hold() - Have Python take a client
 * @v:		Client
 * @fd:		Its socket, in no epoll set
 * @error:	errno: why it is not on offer; nobody else is accepted then.
 *		0: it is unknown
 *
 * Returns: false if it can't
 */
static bool hold(struct visitor *v, int fd, int error)
{
	struct vu_listener *l = v->door->listener;
	struct vu_conn *c = conn_new(l->core, l->outbox);

	if (!c)
		return false;
	c->want = (uint8_t)l->want;
	c->near = (struct side){.ops = &waiting, .fd = fd};
	c->client = &v->client;
	c->target = VU_TARGET_ASK;
	conn_set(c, CONN_HELD);
	conn_post(c, VU_EV_REQUEST, error);
	if (error)
		listener_close(l, LISTENER_PAUSED, true);
	return true;
}

/**
 * refused() - The guest has no room for a client
 * @c:		Connection; gone afterwards, if it is held in its stead
 *
 * Returns: whether it is
 */
static bool refused(struct vu_conn *c)
{
	struct visitor *v = container_of(c->client, struct visitor, client);
	int fd = c->far.fd;

	if (!v->door->listener || !hold(v, fd, ECONNREFUSED))
		return false;
	epoll_ctl(c->core->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	c->far.fd = -1;
	c->client = NULL;
	c->reported = true; /* Python hears of the one that is held */
	conn_drop(c, ECONNREFUSED);
	return true;
}

/**
 * offer() - Ask the guest to take a client, if Python need not be asked
 * @v:		Client
 * @fd:		Its socket, taken over on success
 * @addr:	Its address
 *
 * Returns: 0; or errno, negated if it is not the guest that is short
 */
static int offer(struct visitor *v, int fd, const struct sockaddr_storage *addr)
{
	const struct vu_caller *caller;
	struct door *o = v->door;
	uint16_t port = 0;
	int64_t id;

	caller = callers_find(&o->callers, addr, &port);
	if (!caller || !o->dev)
		return -ENOENT;
	id = guest_open(o->dev, caller->guest_port, caller->first_port | port,
			fd, NULL);
	if (id < 0)
		return id == -VU_ERR_STATE ? -EADDRINUSE : EAGAIN;
	conn_by_id(o->dev->core, (uint64_t)id)->client = &v->client;
	return 0;
}

/**
 * admit() - Take in a client
 * @l:		Listener of a door
 * @fd:		Its socket, taken over
 * @addr:	Its address
 * @len:	Size of @addr
 */
static void admit(struct vu_listener *l, int fd,
		  const struct sockaddr_storage *addr, socklen_t len)
{
	struct sockaddr_storage name;
	struct door *o = l->door;
	struct visitor *v = calloc(1, sizeof(*v));
	int error;

	if (!v) {
		l->core->refused++;
		close(fd);
		return;
	}
	*v = (struct visitor){
	    .door = o,
	    .client = {.settled = settled, .refused = refused, .tag = o->tag},
	};
	if (len <= sizeof(v->client.src)) {
		memcpy(v->client.src, addr, len);
		v->client.src_len = (uint16_t)len;
	}
	len = sizeof(name);
	if (!getsockname(fd, (struct sockaddr *)&name, &len) &&
	    len <= sizeof(v->client.dst)) {
		memcpy(v->client.dst, &name, len);
		v->client.dst_len = (uint16_t)len;
	}
	o->pending++;
	error = offer(v, fd, addr);
	if (error && !hold(v, fd, error > 0 ? error : 0)) {
		l->core->refused++;
		close(fd);
		settled(&v->client);
		return;
	}
	update(o);
}

/**
 * shortage() - A client can't be accepted
 * @l:		Listener of a door
 * @error:	errno
 */
static void shortage(struct vu_listener *l, int error)
{
	limit_shortage(l->door->dev, error);
}

static const struct listener_ops to_guest = {
    .admit = admit,
    .shortage = shortage,
};

/* ---- what Python says ---- */

/**
 * door_backlog() - A listener has another backlog
 * @l:		Listener
 * @backlog:	As of listen(): so many may wait in the guest, and one more
 */
void door_backlog(struct vu_listener *l, int backlog)
{
	struct door *o = l->door;

	if (!o)
		return;
	o->most = backlog < 0 || backlog >= MAX_PENDING ? MAX_PENDING
							: (uint32_t)backlog + 1;
	update(o);
}

/**
 * door_open() - A new listener's clients are a guest's
 * @l:		Listener
 * @d:		The guest's device
 * @backlog:	As of listen()
 * @tag:	For their events
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
int door_open(struct vu_listener *l, struct vu_dev *d, int backlog,
	      uint32_t tag)
{
	struct door *o = calloc(1, sizeof(*o));
	const int one = 1;

	if (!o)
		return -VU_ERR_NOMEM;
	/* what it accepts has it, too */
	setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	*o = (struct door){.listener = l, .dev = d, .tag = tag};
	list_init(&o->link);
	list_add(&d->doors, &o->link);
	l->door = o;
	l->ops = &to_guest;
	door_backlog(l, backlog);
	return 0;
}

/**
 * door_caller() - Say where the clients of an IP go
 * @l:		Listener
 * @caller:	The IP and where to; first_port 0: Python is asked
 *
 * Returns: 0, or a negated enum vu_err
 */
int door_caller(struct vu_listener *l, const struct vu_caller *caller)
{
	if (!l->door)
		return -VU_ERR_STATE;
	if (caller->first_port)
		return callers_set(&l->door->callers, caller);
	callers_forget(&l->door->callers, caller);
	return 0;
}

/**
 * door_forget() - Python is asked about all clients
 * @l:		Listener
 */
void door_forget(struct vu_listener *l)
{
	if (l->door)
		callers_clear(&l->door->callers);
}

/**
 * door_close() - A listener goes; its pending clients stay
 * @l:		Listener
 */
void door_close(struct vu_listener *l)
{
	struct door *o = l->door;

	if (!o)
		return;
	l->door = NULL;
	o->listener = NULL;
	list_del(&o->link);
	callers_clear(&o->callers);
	update(o);
}

/**
 * door_walled() - A device goes: Python is asked about all clients
 * @d:		Device
 */
void door_walled(struct vu_dev *d)
{
	while (!list_empty(&d->doors)) {
		struct door *o = container_of(d->doors.next, struct door, link);

		list_del(&o->link);
		o->dev = NULL;
	}
}
