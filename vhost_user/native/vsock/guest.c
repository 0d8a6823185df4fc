// SPDX-License-Identifier: Apache-2.0
/*
 * guest.c - the guest as a side of its connections
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 5.10 "Socket Device". As a sink the guest lends RX buffers
 * (rx.c); as a source it pushes (tx.c), and hears of credit when its bytes were
 * taken, never when we only keep them. What a pipe tells it becomes a SHUTDOWN.
 *
 * The end. With both directions done the connection lingers until the guest
 * lets go of the port (a RST). A guest that closes (both SHUTDOWN flags) gets
 * its RST when its bytes are out; if it doesn't wait for that, they go on as an
 * orphan's.
 */

#include <errno.h>

#include <sys/socket.h>

#include "side/hbone.h"
#include "side/socket.h"
#include "vsock/dev.h"

/**
 * taken() - Bytes from the guest have left us
 * @c:		Connection
 * @s:		Its near side
 * @n:		How many
 *
 * The guest hears of it with the next packet, at the latest when it is due.
 */
static void taken(struct vu_conn *c, struct side *s, size_t n)
{
	const struct credit *far = c->twin ? &c->twin->credit : NULL;
	struct vu_dev *d = c->dev;

	(void)s;
	dev_worked(d, d->doing, n);
	if (!far)
		c->credit.fwd_cnt += (uint32_t)n;
	if (!credit_due(&c->credit, far))
		return;
	if (credit_half_used(&c->credit, far) &&
	    c->credit.buf_alloc < d->cfg.buf_alloc)
		limit_used(c);
	owe(c, OWE_CREDIT);
}

/**
 * kept() - Other bytes of a connection are kept than before
 * @c:		Connection
 */
static void kept(struct vu_conn *c)
{
	if (!c->dev)
		return;
	limit_queued(c);
	if (c->type == SEQPACKET && !c->twin && credit_due_message(&c->credit))
		owe(c, OWE_CREDIT);
}

/**
 * shut() - A direction has ended: tell the guest
 * @c:		Connection
 * @s:		Its near side
 * @how:	SHUT_WR or SHUT_RD; what it is told goes by the pipes' states
 *
 * One that has closed waits for a RST, not for this; but what another guest
 * says is passed on.
 */
static void shut(struct vu_conn *c, struct side *s, int how)
{
	(void)s;
	(void)how;
	if (c->state == CONN_OPEN && (c->guest_shut != SHUT_BOTH || c->twin))
		owe(c, OWE_SHUTDOWN);
}

/**
 * opened() - A connection is established
 * @c:		Connection
 * @s:		Its near side
 */
static void opened(struct vu_conn *c, struct side *s)
{
	(void)s;
	c->dev->stats.opened++;
	if (c->state != CONN_REQUESTED)
		owe(c, OWE_RESPONSE);
}

/**
 * later() - Wait until the host's listener has room
 * @c:		Connection
 *
 * Returns: true
 */
static bool later(struct vu_conn *c)
{
	limit_hit(c->dev, VU_LIMIT_BACKLOG);
	list_add(&c->dev->retries, &c->run);
	list_add(&c->core->retrying, &c->dev->retrying);
	return true;
}

/**
 * over() - A connection ends, or never was
 * @c:		Connection
 * @error:	errno, or 0
 */
static void over(struct vu_conn *c, int error)
{
	if (c->state < CONN_OPEN)
		c->dev->stats.failed++;
	limit_shortage(c->dev, error);
}

/**
 * finished() - Both directions are done: only the guest's port is left
 * @c:		Connection
 */
static void finished(struct vu_conn *c)
{
	if (c->guest_shut == SHUT_BOTH || c->state == CONN_ORPHAN) {
		owe_reset(c);
		return;
	}
	conn_set(c, CONN_LINGER);
	if (c->told != SHUT_BOTH)
		owe(c, OWE_SHUTDOWN);
}

/**
 * fault() - A system call found no guest memory
 * @c:		Connection
 */
static void fault(struct vu_conn *c)
{
	c->dev->failure = VU_ERR_FAULT;
}

/**
 * misfit() - A message can't be delivered
 * @c:		Connection
 */
static void misfit(struct vu_conn *c)
{
	c->dev->stats.message_errors++;
}

/**
 * lost() - Is what was read from its memory what the guest sent?
 * @c:		Connection
 *
 * Returns: true if it may be something else
 */
static bool lost(struct vu_conn *c)
{
	return c->dev && dev_failed(c->dev);
}

const struct side_ops guest_ops = {
    .give = rx_give,
    .room = rx_room,
    .fill = rx_fill,
    .taken = taken,
    .shut = shut,
    .opened = opened,
    .later = later,
    .over = over,
    .finished = finished,
    .reset = owe_reset,
    .freed = limit_close,
    .kept = kept,
    .window = limit_enlarge,
    .shrink = limit_shrink,
    .ring = limit_ring,
    .lost = lost,
    .crowded = limit_crowded,
    .full = limit_full,
    .fault = fault,
    .misfit = misfit,
};

/* ---- what the guest says ---- */

/**
 * guest_shutdown() - The guest sends, or takes, no more
 * @c:		Connection; may be gone afterwards
 * @flags:	VIRTIO_VSOCK_SHUTDOWN_ flags
 *
 * Spec: VIRTIO 1.2 section 5.10.6.5: the hints are permanent.
 */
void guest_shutdown(struct vu_conn *c, uint32_t flags)
{
	struct vu_conn *t = c->twin;

	c->guest_shut |= (uint8_t)(flags & SHUT_BOTH);
	if (c->state == CONN_LINGER && c->guest_shut == SHUT_BOTH) {
		owe_reset(c); /* both sides have let go */
		return;
	}
	if (c->state != CONN_OPEN)
		return;
	if (c->guest_shut == SHUT_BOTH && !t && !bytes_len(&c->up.kept.bytes)) {
		/* what the pipes would come to, without two system calls; but
		 * a server that shares our core hears first of who comes */
		c->closed = true;
		conn_hurry(c);
		return;
	}
	if (flags & VIRTIO_VSOCK_SHUTDOWN_SEND)
		pipe_end(c, &c->up);
	if (flags & VIRTIO_VSOCK_SHUTDOWN_RCV)
		pipe_break(t ? t : c, t ? &t->up : &c->down, 0);
	conn_hurry(c);
}

/**
 * error_of() - With what does a connection end that its guest resets?
 * @c:		Connection
 *
 * Returns: errno; 0: it was closed in good order before
 */
static int error_of(const struct vu_conn *c)
{
	if (c->guest_shut == SHUT_BOTH ||
	    (c->twin && c->twin->guest_shut == SHUT_BOTH))
		return 0;
	if (c->state == CONN_OPEN)
		return ECONNRESET;
	return c->state == CONN_REQUESTED ? ECONNREFUSED : ECONNABORTED;
}

/**
 * guest_gone() - The guest sent a RST
 * @c:		Connection; gone afterwards, but for bytes on their way up
 */
void guest_gone(struct vu_conn *c)
{
	bool nobody = c->twin && c->twin->state == CONN_ORPHAN;

	if (c->client && c->state == CONN_REQUESTED && c->client->refused(c))
		return;
	if (c->state == CONN_OPEN && c->guest_shut == SHUT_BOTH &&
	    bytes_len(&c->up.kept.bytes) && !nobody) {
		/* it closed long ago and gave up waiting for our RST */
		conn_unhash(c);
		list_del(&c->owe_link);
		c->owe = 0;
		conn_set(c, CONN_ORPHAN);
		return;
	}
	c->dev->work[c->dev->doing] += WORK_SOCKET;
	conn_drop(c, error_of(c));
}

/* ---- what the host asks of it ---- */

/**
 * make() - Make a connection that a host client asks for
 * @d:		Device
 * @type:	VIRTIO_VSOCK_TYPE_
 * @guest_port:	Port to ask for
 * @port:	Port on our side, 0: any
 *
 * Returns: the connection; NULL if the VM may not have it
 */
static struct vu_conn *make(struct vu_dev *d, uint16_t type,
			    uint32_t guest_port, uint32_t port)
{
	struct vu_conn *c = limit_conn(d, type, true);

	if (!c)
		return NULL;
	c->near.ops = &guest_ops;
	c->peer_port = guest_port;
	c->port = port;
	c->asked = true;
	while (!c->port || conn_find(d->core, d, guest_port, c->cid, c->port))
		/* ports above 2^30, as the guest's own are below */
		c->port = d->next_port++ | 1U << 30;
	return c;
}

/**
 * guest_ask() - Ask the guest for a connection
 * @c:		Connection with a far side
 */
void guest_ask(struct vu_conn *c)
{
	conn_set(c, CONN_REQUESTED);
	owe(c, OWE_REQUEST);
}

/**
 * guest_open() - Ask the guest for a connection
 * @d:		Device
 * @guest_port:	Port to ask for
 * @port:	Port on our side, 0: any
 * @fd:		Host client's socket, taken over on success
 * @client:	What it is until the guest accepts; NULL: a socket as any other
 *
 * Returns: as vu_conn_open() and vu_conn_offer()
 */
int64_t guest_open(struct vu_dev *d, uint32_t guest_port, uint32_t port, int fd,
		   const struct side_ops *client)
{
	uint16_t type = VIRTIO_VSOCK_TYPE_STREAM;
	struct vu_conn *c;
	int kind = 0, fits;
	socklen_t len = sizeof(kind);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &len))
		return -VU_ERR_SYS;
	if (kind == SOCK_SEQPACKET)
		type = VIRTIO_VSOCK_TYPE_SEQPACKET;
	if (!dev_has_type(d, type) ||
	    (port && conn_find(d->core, d, guest_port, HOST_CID, port)))
		return -VU_ERR_STATE;
	c = make(d, type, guest_port, port);
	if (!c)
		return -VU_ERR_FULL;
	fits = type == VIRTIO_VSOCK_TYPE_SEQPACKET ? message_fit(c, fd)
						   : (int)c->credit.buf_alloc;
	c->far = (struct side){.ops = socket_ops(c), .fd = fd};
	if (fits < 0 || (port && limit_range(c)) || conn_hash(c) ||
	    socket_watch(c, &c->far, false)) {
		c->far.fd = -1;
		conn_free(c);
		return -VU_ERR_SYS;
	}
	limit_shrink(c, (uint32_t)fits);
	if (client)
		c->far.ops = client;
	guest_ask(c);
	return (int64_t)conn_id(c);
}

/**
 * guest_conn() - Make a connection to a guest that came by a tunnel
 * @d:		Device
 * @guest_port:	Port to ask for
 * @port:	Port on our side, which no connection to that has
 *
 * Returns: the connection, without a far side; NULL if the VM may not have it
 */
struct vu_conn *guest_conn(struct vu_dev *d, uint32_t guest_port, uint32_t port)
{
	struct vu_conn *c = make(d, VIRTIO_VSOCK_TYPE_STREAM, guest_port, port);

	if (c && (limit_range(c) || conn_hash(c))) {
		conn_free(c);
		return NULL;
	}
	return c;
}

/**
 * guest_adopt() - Ask the guest for a connection that came by a tunnel
 * @d:		Device
 * @guest_port:	Port to ask for
 * @port:	Port on our side
 * @from:	Connection that is HELD
 *
 * Returns: as vu_hbone_guest()
 */
int64_t guest_adopt(struct vu_dev *d, uint32_t guest_port, uint32_t port,
		    struct vu_conn *from)
{
	struct vu_conn *c;

	if (conn_find(d->core, d, guest_port, HOST_CID, port))
		return -VU_ERR_STATE;
	c = guest_conn(d, guest_port, port);
	if (!c)
		return -VU_ERR_FULL;
	if (!stream_lend(from, c)) {
		conn_free(c);
		return -VU_ERR_NOMEM;
	}
	guest_ask(c);
	return (int64_t)conn_id(c);
}
