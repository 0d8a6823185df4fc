// SPDX-License-Identifier: Apache-2.0
/*
 * conn.c - the life of a connection
 *
 * Theory of operation
 * ===================
 *
 * How a connection begins is its sides' business (side/target.c, vsock/tx.c),
 * and that it is over is said by its pipes (flow.c) or its sides.
 *
 * Whatever ends a connection, three hear of it, in this order: Python by an
 * event, the far side, the near side.
 */

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>

#include <linux/netfilter_ipv4.h>

#include "base/clock.h"
#include "conn/conn.h"

#define SHARED 4 /* sockets that take as long to close as memory to unmap */

/**
 * conn_wake() - A connection has something to do
 * @c:		Connection
 */
void conn_wake(struct vu_conn *c)
{
	list_add(&c->core->run, &c->run);
}

/**
 * conn_hurry() - The same, even if it waits for RX buffers
 * @c:		Connection
 */
void conn_hurry(struct vu_conn *c)
{
	list_move(&c->core->run, &c->run);
}

/* ---- events ---- */

/**
 * conn_names() - Give an event a socket's two addresses
 * @event:	Event
 * @fd:		Its near side's socket
 */
void conn_names(struct vu_event *event, int fd)
{
	struct sockaddr_storage name;
	socklen_t len = sizeof(name);

	if (!getpeername(fd, (struct sockaddr *)&name, &len) &&
	    len <= sizeof(event->src)) {
		memcpy(event->src, &name, len);
		event->src_len = (uint16_t)len;
	}
	len = sizeof(name);
	if (!getsockname(fd, (struct sockaddr *)&name, &len) &&
	    len <= sizeof(event->dst)) {
		memcpy(event->dst, &name, len);
		event->dst_len = (uint16_t)len;
	}
}

/**
 * put_original() - Give an event the destination that a client had before NAT
 * @event:	Event, with the socket's addresses
 * @fd:		Its near side's socket
 *
 * A REDIRECT to us leaves its trace in the kernel's connection table only.
 * Where there is none the socket's own address stays: it is the destination.
 */
static void put_original(struct vu_event *event, int fd)
{
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	socklen_t len = sizeof(in);

	/* an IPv4 client of an IPv6 listener is in the IPv4 table */
	if (!getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, &in, &len)) {
		memcpy(event->dst, &in, sizeof(in));
		event->dst_len = sizeof(in);
		return;
	}
	len = sizeof(in6);
	if (event->dst_len == sizeof(in6) &&
	    !getsockopt(fd, SOL_IPV6, SO_ORIGINAL_DST, &in6, &len))
		memcpy(event->dst, &in6, sizeof(in6));
}

/**
 * put_client() - Give an event what is known of a client
 * @event:	Event
 * @client:	Client
 */
static void put_client(struct vu_event *event, const struct client *client)
{
	event->tag = client->tag;
	event->src_len = client->src_len;
	event->dst_len = client->dst_len;
	memcpy(event->src, client->src, sizeof(event->src));
	memcpy(event->dst, client->dst, sizeof(event->dst));
}

/**
 * conn_post() - Tell Python about a connection, if it wants to hear
 * @c:		Connection
 * @kind:	What happened
 * @error:	errno, or 0
 */
void conn_post(struct vu_conn *c, enum vu_event_kind kind, int error)
{
	struct vu_event event = {
	    .conn = conn_id(c),
	    .up_bytes = c->asked ? c->down_bytes : c->up_bytes,
	    .down_bytes = c->asked ? c->up_bytes : c->down_bytes,
	    .kind = kind,
	    .error = error,
	    .peer_port = c->peer_port,
	    .port = c->port,
	    .cid = c->dev ? c->cid : 0,
	    .reason = c->reason,
	    .answer = kind == VU_EV_OPENED ? c->answer : 0,
	};
	int fd =
	    c->near.ops->socket ? c->near.ops->socket(&c->near) : c->near.fd;

	if (kind == VU_EV_FAILED || kind == VU_EV_CLOSED) {
		if (c->reported)
			return;
		c->reported = true;
	}
	if (kind != VU_EV_REQUEST && !(c->want & (1U << kind)))
		return;
	event.duration_us = clock_us() - c->start_us;
	if (c->client)
		put_client(&event, c->client);
	else if (fd >= 0)
		conn_names(&event, fd);
	if (kind == VU_EV_REQUEST && !c->client && fd >= 0)
		put_original(&event, fd);
	outbox_push(&c->core->outbox, c->outbox, &event,
		    kind == VU_EV_REQUEST || kind == VU_EV_FAILED);
}

/* ---- the beginning ---- */

/**
 * conn_opened() - The far side is there: bytes may flow
 * @c:		Connection
 */
void conn_opened(struct vu_conn *c)
{
	if (c->far.ops->opened)
		c->far.ops->opened(c, &c->far);
	if (c->near.ops->opened)
		c->near.ops->opened(c, &c->near);
	conn_set(c, CONN_OPEN);
	conn_post(c, VU_EV_OPENED, 0);
	conn_client_settled(c);
	conn_wake(c);
}

/* ---- the end ---- */

/**
 * report() - Python and the near side hear how a connection ended
 * @c:		Connection
 * @error:	errno, or 0
 */
static void report(struct vu_conn *c, int error)
{
	bool was = c->state == CONN_OPEN || c->state == CONN_ORPHAN ||
		   c->state == CONN_LINGER;

	if (c->near.ops->over)
		c->near.ops->over(c, error);
	conn_post(c, was ? VU_EV_CLOSED : VU_EV_FAILED, error);
	conn_client_settled(c);
}

/**
 * close_far() - Let go of the far side
 * @c:		Connection
 * @error:	errno: its peer must see an error
 */
static void close_far(struct vu_conn *c, int error)
{
	if (c->far.ops->close)
		c->far.ops->close(c, &c->far, error);
}

/**
 * conn_abort() - End a connection, whatever its state
 * @c:		Connection; gone afterwards, or as good as
 * @error:	errno; 0: it ended in good order, both directions
 */
void conn_abort(struct vu_conn *c, int error)
{
	if (c->state == CONN_FREE || c->state == CONN_DEAD)
		return; /* its end ended it */
	report(c, error);
	close_far(c, error);
	if (c->state == CONN_FREE || c->state == CONN_DEAD)
		return;
	if (c->near.ops->close)
		c->near.ops->close(c, &c->near, error);
	list_del(&c->run);
	bytes_free(&c->up.kept.bytes);
	bytes_free(&c->down.kept.bytes);
	if (c->near.ops->kept)
		c->near.ops->kept(c);
	c->near.ops->reset(c);
}

/**
 * conn_drop() - End a connection whose near side knows
 * @c:		Connection; gone afterwards
 * @error:	errno; 0: it ended in good order
 */
void conn_drop(struct vu_conn *c, int error)
{
	report(c, error);
	close_far(c, error);
	conn_free(c);
}

/**
 * conn_finish() - Both directions of a connection ended in good order
 * @c:		Connection; all that is left is that the near side lets go
 */
void conn_finish(struct vu_conn *c)
{
	report(c, 0);
	close_far(c, 0);
	list_del(&c->run);
	c->near.ops->finished(c);
}

/**
 * conn_misfit() - End a connection whose message can't be delivered
 * @c:		Connection; gone afterwards, or as good as
 * @error:	errno
 */
void conn_misfit(struct vu_conn *c, int error)
{
	if (c->near.ops->misfit)
		c->near.ops->misfit(c);
	conn_abort(c, error);
}

/**
 * conn_forsake() - Let go of a connection whose guest is gone, soon
 * @c:		Connection; nobody's afterwards
 * @error:	errno
 *
 * A guest may leave with tens of thousands of connections, and to close a
 * socket takes microseconds: other guests' turns come in between.
 */
void conn_forsake(struct vu_conn *c, int error)
{
	static const struct side_ops nobody;

	report(c, error);
	conn_unhash(c);
	list_del(&c->run);
	list_del(&c->owe_link);
	if (c->near.ops->freed)
		c->near.ops->freed(c);
	c->near.ops = &nobody;
	if (c->twin)
		close_far(c, error);
	c->dev = NULL;
	if (c->state != CONN_DEAD) /* else its RST found no RX buffer */
		conn_set(c, CONN_DEAD);
	conn_rename(c);
	list_add(&c->core->forsaken, &c->run);
}

/**
 * conn_reap() - Close connections whose guest is gone
 * @core:	Table
 * @most:	So many; shared memory counts for several
 */
void conn_reap(struct core *core, unsigned most)
{
	while (most && !list_empty(&core->forsaken)) {
		struct vu_conn *c =
		    container_of(core->forsaken.next, struct vu_conn, run);
		unsigned cost = c->shm ? SHARED : 1;

		most = most > cost ? most - cost : 0;
		close_far(c, ECONNRESET);
		conn_free(c);
	}
}
