// SPDX-License-Identifier: Apache-2.0
/*
 * message.c - sides that are SOCK_SEQPACKET sockets
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 5.10.6.6 "Seqpacket Sockets": a message is delivered as a
 * whole, or the connection ends with an error.
 *
 * To the socket. A SOCK_SEQPACKET unix socket takes a message by one sendmsg()
 * or not at all.
 *
 * From the socket. One recvmsg() a message, into the sink's buffers; behind
 * them stands our scratch buffer, because a message that isn't read whole is
 * lost. What landed there is kept and follows as credit and buffers come; until
 * it is out nothing more is read. A message that is larger than the guest's
 * whole window or than the scratch buffer can't be delivered and ends the
 * connection.
 *
 * Linux keeps no MSG_EOR on unix sockets: a guest's EOR stays behind here. An
 * empty message is, on a unix socket, what the end looks like: it is passed on,
 * but for the one behind which the sender shut down.
 */

#include <errno.h>
#include <poll.h>

#include <linux/virtio_vsock.h>
#include <sys/ioctl.h>

#include "side/socket.h"

#define MESSAGES  256 /* in one turn */
#define SKB_SPARE 32  /* a unix socket takes SO_SNDBUF less this at most */

/**
 * message_fit() - Make a socket fit for a connection's messages
 * @c:		Connection; its window may become smaller
 * @fd:		Socket
 *
 * Messages up to the window must fit into the socket. Where the system's limit
 * (net.core.wmem_max) says no, the window becomes smaller: the program in the
 * guest gets EMSGSIZE then.
 *
 * Returns: bytes that fit; -errno
 */
int message_fit(struct vu_conn *c, int fd)
{
	int size =
	    (int)(c->credit.buf_alloc / 2 + SKB_SPARE); /* Linux doubles it */
	socklen_t len = sizeof(size);

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, len) ||
	    getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &len))
		return -errno;
	return size - SKB_SPARE;
}

/**
 * give() - Write a message
 * @c:		Connection
 * @s:		Its side
 * @iov:	The message
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	VIRTIO_VSOCK_SEQ_ bits
 *
 * Returns: as side_ops.give
 */
static ssize_t give(struct vu_conn *c, struct side *s, const struct iovec *iov,
		    unsigned n_iov, size_t len, uint32_t flags)
{
	(void)flags;
	return socket_send(c, s, iov, n_iov, len);
}

/**
 * ended() - Was a message without bytes the end?
 * @s:		Side that gave one
 *
 * Returns: true if it sends no more, and nothing is left of what it sent
 */
static bool ended(const struct side *s)
{
	struct pollfd p = {.fd = s->fd, .events = POLLRDHUP};
	int queued = 0;

	if (poll(&p, 1, 0) < 0 || !(p.revents & (POLLRDHUP | POLLHUP)))
		return false;
	return ioctl(s->fd, FIONREAD, &queued) < 0 || !queued;
}

/**
 * receive() - Read a message into the sink's buffers, what is longer to scratch
 * @c:		Connection
 * @s:		Its side
 * @room:	Buffers; loses a segment if there is none left for scratch
 *
 * Returns: bytes of the message, -errno; -EMSGSIZE: it can't be delivered
 */
static ssize_t receive(struct vu_conn *c, struct side *s, struct room *room)
{
	struct iovec *iov = c->core->rx_payload;
	struct msghdr msg = {.msg_iov = iov};
	ssize_t n;

	if (room->n_payload == BATCH_IOV)
		room->len -= iov[--room->n_payload].iov_len;
	iov[room->n_payload] = (struct iovec){
	    .iov_base = c->core->scratch,
	    .iov_len = SCRATCH,
	};
	msg.msg_iovlen = room->n_payload + 1;
	n = recvmsg(s->fd, &msg, MSG_DONTWAIT);
	if (n < 0)
		return -errno;
	if (msg.msg_flags & MSG_TRUNC || n > SCRATCH ||
	    n > (ssize_t)c->credit.peer_buf_alloc)
		return -EMSGSIZE;
	return n;
}

/**
 * pass() - Give the sink a message that receive() read
 * @c:		Connection; may be gone afterwards
 * @p:		Pipe to it
 * @room:	Buffers
 * @n:		Bytes of the message
 */
static void pass(struct vu_conn *c, struct pipe *p, const struct room *room,
		 size_t n)
{
	struct side *sink = pipe_sink(c, p);
	struct iovec rest = {.iov_base = c->core->scratch};

	if (n && n <= room->len) {
		sink->ops->fill(c, room, n, VIRTIO_VSOCK_SEQ_EOM);
		return;
	}
	sink->ops->fill(c, room, n ? room->len : 0, 0);
	if (n)
		rest.iov_len = n - room->len;
	pipe_put(c, p, &rest, 1, rest.iov_len, VIRTIO_VSOCK_SEQ_EOM);
}

/**
 * pull() - Move a socket's messages to the other side
 * @c:		Connection, nothing kept; may be gone afterwards
 * @s:		Its side
 *
 * Stops after a turn's worth and runs again later: others wait too.
 */
static void pull(struct vu_conn *c, struct side *s)
{
	struct pipe *p = pipe_from(c, s);
	struct side *sink = pipe_sink(c, p);
	size_t total = 0;

	for (unsigned i = 0; s->readable && i < MESSAGES && total < SCRATCH;
	     i++) {
		struct room room;
		ssize_t n;

		if (!sink->ops->room(c, SIZE_MAX, &room))
			return;
		n = receive(c, s, &room);
		if (n < 0 || (!n && ended(s))) {
			sink->ops->fill(c, &room, 0, 0);
			if (n == -EMSGSIZE)
				conn_misfit(c, EMSGSIZE);
			else if (n < 0)
				socket_failed(c, s, (int)-n);
			else
				socket_ended(c, s);
			return;
		}
		pass(c, p, &room, (size_t)n);
		if (!conn_flows(c) || bytes_len(&p->kept.bytes))
			return;
		total += (size_t)n;
	}
	if (s->readable)
		conn_wake(c);
}

const struct side_ops socket_message = {
    .message = true,
    .give = give,
    .pull = pull,
    .shut = socket_shut,
    .close = socket_close,
    .opened = socket_opened,
    .finished = conn_free,
    .reset = conn_free,
};
