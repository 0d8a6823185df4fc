// SPDX-License-Identifier: Apache-2.0
/*
 * seqpacket.c - connections of a guest that keep message boundaries
 *
 * Theory of operation
 * ===================
 *
 * VIRTIO 1.2 section 5.10.6.6 "Seqpacket Sockets". Requests, credit and the end
 * of a connection are a stream's (vsock.c). What differs is that a message,
 * sent in as many packets as it takes, the last one marked EOM, is delivered
 * as a whole, or the connection ends with an error.
 *
 * Up. On the host a connection is a SOCK_SEQPACKET unix socket, which takes a
 * message by one sendmsg() or not at all. A message that came whole in one
 * burst leaves straight from guest memory. What can't leave, or isn't whole
 * yet, is kept in the connection, with a mark before each message:
 *
 *	mark, message, mark, message, ... mark, message so far
 *
 * A mark is a word: bytes << 2 | the flags of the message's last packet, 0
 * while that hasn't come. Kept bytes are no more than the window, as a
 * stream's. Marks are no more than its bytes: beyond that only a flood of
 * empty messages, which cost no credit, gets, and it ends the connection.
 *
 * A guest may have no more credit than its message's rest needs: so it hears
 * of credit as soon as less than half a window is left to it, not only after
 * half a window was used up.
 *
 * Down. One recvmsg() a message, into RX buffers of the guest; behind them
 * stands our scratch buffer, because a message that isn't read whole is lost.
 * What landed there is kept and follows as credit and buffers come; until it
 * is out nothing more is read. A message that is larger than the guest's
 * whole window or than the scratch buffer can't be delivered and ends the
 * connection.
 *
 * Linux keeps no MSG_EOR on unix sockets: the EOR flag of a guest's message
 * comes back from the engine's echo, and stays behind where the far end is a
 * unix socket. An empty message is, on a unix socket, what the end looks like:
 * it is passed on, but for the one behind which the sender shut down.
 */

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include <sys/ioctl.h>
#include <sys/socket.h>

#include "vsock.h"

#define TURN	  256	/* messages of one connection in one turn */
#define CHARGEN	  65536 /* bytes of a message */
#define SKB_SPARE 32	/* a unix socket takes SO_SNDBUF less this at most */

static_assert(VIRTIO_VSOCK_SEQ_EOM == 1 && VIRTIO_VSOCK_SEQ_EOR == 2,
	      "both fit below the length in a mark");
static_assert(SEQ_WINDOW_MAX < 1U << 28, "so does any length above them");

/**
 * struct message - A message, or the part of it that there is
 * @data:	Its bytes
 * @len:	How many
 * @flags:	VIRTIO_VSOCK_SEQ_ bits of its last packet; 0: more is to come
 */
struct message {
	const char *data;
	uint32_t len;
	uint32_t flags;
};

/* ---- messages that are kept ---- */

/**
 * mark_get() - Read a mark
 * @way:	Direction
 * @at:		Where it is, from way->off
 *
 * Returns: the mark
 */
static uint32_t mark_get(const struct way *way, uint32_t at)
{
	uint32_t mark;

	memcpy(&mark, way->data + way->off + at, SEQ_MARK);
	return mark;
}

/**
 * mark_put() - Write a mark
 * @way:	Direction
 * @at:		Where it goes, from way->off
 * @mark:	Mark
 */
static void mark_put(struct way *way, uint32_t at, uint32_t mark)
{
	memcpy(way->data + way->off + at, &mark, SEQ_MARK);
}

/**
 * seq_keep() - Keep a message, or a part of it
 * @way:	Direction; the part goes on with its last message, if that isn't
 *		whole yet
 * @iov:	Bytes
 * @n_iov:	Segments
 * @skip:	Leading bytes that are delivered already
 * @flags:	VIRTIO_VSOCK_SEQ_ bits; 0: more is to come
 *
 * Returns: false if out of memory; only way_drop() is left to do then
 */
bool seq_keep(struct way *way, const struct iovec *iov, unsigned n_iov,
	      size_t skip, uint32_t flags)
{
	uint32_t mark = way->len ? mark_get(way, way->tail) : SEQ_FLAGS;
	uint32_t before = way->len;

	if (mark & SEQ_FLAGS) {
		mark = 0;
		if (!way_append(
			way,
			&(struct iovec){.iov_base = &mark, .iov_len = SEQ_MARK},
			1, 0))
			return false;
		way->tail = before;
		before = way->len;
	}
	if (!way_append(way, iov, n_iov, skip))
		return false;
	mark_put(way, way->tail, (mark + ((way->len - before) << 2)) | flags);
	return true;
}

/**
 * seq_room() - May a burst be kept?
 * @c:		Its connection
 * @b:		Burst
 *
 * Returns: false if there are more marks than bytes in a window
 */
bool seq_room(const struct vu_conn *c, const struct burst *b)
{
	return SEQ_MARK + c->up.len + b->len <=
	       (SEQ_MARK + 1) * (uint64_t)c->buf_alloc;
}

/**
 * seq_head() - Look at the first message that is kept
 * @way:	Direction
 * @ret:	The message
 *
 * Returns: false if there is none
 */
static bool seq_head(const struct way *way, struct message *ret)
{
	uint32_t mark;

	if (!way->len)
		return false;
	mark = mark_get(way, 0);
	*ret = (struct message){
	    .data = way->data + way->off + SEQ_MARK,
	    .len = mark >> 2,
	    .flags = mark & SEQ_FLAGS,
	};
	return true;
}

/**
 * seq_advance() - Forget what was delivered of the first message
 * @way:	Direction
 * @n:		Bytes of it
 * @whole:	It, or the rest of it, is delivered
 */
static void seq_advance(struct way *way, uint32_t n, bool whole)
{
	uint32_t step = whole ? SEQ_MARK + n : n;
	uint32_t mark = mark_get(way, 0);

	way->off += step;
	way->len -= step;
	way->tail = way->tail ? way->tail - step : 0;
	if (!whole)
		mark_put(way, 0, mark - (n << 2));
	else if (!way->len)
		way_drop(way);
}

/**
 * seq_payload() - Count the bytes that are kept
 * @way:	Direction
 *
 * Returns: bytes, without the marks
 */
uint32_t seq_payload(const struct way *way)
{
	uint32_t sum = 0;

	for (uint32_t at = 0; at < way->len;) {
		uint32_t len = mark_get(way, at) >> 2;

		sum += len;
		at += SEQ_MARK + len;
	}
	return sum;
}

/* ---- both ways ---- */

/**
 * seq_socket() - Make a connection's socket fit for messages
 * @c:		Connection with far.fd
 *
 * Messages up to the window must fit into the socket. Where the system's limit
 * (net.core.wmem_max) says no, the window becomes smaller: the program in the
 * guest gets EMSGSIZE then.
 *
 * Returns: 0, or -errno
 */
int seq_socket(struct vu_conn *c)
{
	int size = (int)(c->buf_alloc / 2 + SKB_SPARE); /* Linux doubles it */
	socklen_t len = sizeof(size);
	uint32_t most;

	if (setsockopt(c->far.fd, SOL_SOCKET, SO_SNDBUF, &size, len) ||
	    getsockopt(c->far.fd, SOL_SOCKET, SO_SNDBUF, &size, &len))
		return -errno;
	most = (uint32_t)size - SKB_SPARE;
	limit_shrink(c, most);
	return 0;
}

/**
 * message_error() - End a connection whose message can't be delivered
 * @c:		Connection; gone afterwards
 * @error:	errno
 */
static void message_error(struct vu_conn *c, int error)
{
	c->dev->stats.message_errors++;
	conn_abort(c->dev->engine, c, error);
}

/**
 * send_part() - Send the guest as much of a message as it has room for
 * @c:		Connection
 * @m:		Message
 * @ret_sent:	Bytes sent
 *
 * Returns: true if that is all of it
 */
static bool send_part(struct vu_conn *c, const struct message *m,
		      uint32_t *ret_sent)
{
	*ret_sent = 0;
	if (!m->len)
		return vsock_send_empty(c, m->flags);
	*ret_sent = (uint32_t)vsock_send_block(c, m->data, m->len, m->flags);
	return *ret_sent == m->len;
}

/* ---- up: from the guest ---- */

/**
 * give_credit() - Owe the guest a credit update if it may need one
 * @c:		Connection
 */
static void give_credit(struct vu_conn *c)
{
	if (c->fwd_cnt != c->fwd_sent &&
	    c->rx_cnt - c->fwd_sent > c->buf_alloc / 2)
		vsock_owe(c, OWE_CREDIT);
}

/**
 * not_taken() - The far end's socket took no message; errno says why
 * @c:		Connection; may be gone afterwards
 */
static void not_taken(struct vu_conn *c)
{
	if (errno == EAGAIN)
		conn_full(c->dev->engine, c, &c->far);
	else if (errno == EPIPE || errno == ECONNRESET)
		vsock_up_broken(c);
	else if (errno == EMSGSIZE)
		message_error(c, EMSGSIZE);
	else if (errno == EFAULT)
		c->dev->faulted = true;
	else if (errno != EINTR)
		conn_abort(c->dev->engine, c, errno);
}

/**
 * deliver_socket() - Write a burst that is a whole message to the far end
 * @c:		Connection with nothing kept; may be gone afterwards
 * @b:		Burst
 *
 * Returns: false if it is to be kept
 */
static bool deliver_socket(struct vu_conn *c, const struct burst *b)
{
	struct vu_engine *e = c->dev->engine;
	ssize_t n;

	if (!c->far.writable)
		return false;
	n = sendmsg(
	    c->far.fd,
	    &(struct msghdr){.msg_iov = e->tx_iov, .msg_iovlen = b->n_iov},
	    MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0)
		not_taken(c);
	else
		vsock_consumed(c, b->len);
	return n >= 0 || c->state != CONN_OPEN;
}

/**
 * seq_deliver() - Deliver a burst
 * @c:		Connection in CONN_OPEN; may be gone afterwards
 * @b:		Burst: a message, its end, or a part of it
 */
void seq_deliver(struct vu_conn *c, const struct burst *b)
{
	struct vu_engine *e = c->dev->engine;
	uint32_t flags = b->flags & SEQ_FLAGS;

	if (!b->len && !flags)
		return;
	if (flags && !c->up.len && !c->up.broken && c->far.fd >= 0 &&
	    deliver_socket(c, b))
		return;
	if (c->up.broken || (c->far.fd < 0 && c->target != VU_TARGET_ECHO)) {
		vsock_consumed(c, b->len);
		return;
	}
	if (!seq_room(c, b)) {
		message_error(c, ENOBUFS);
		return;
	}
	if (!seq_keep(&c->up, e->tx_iov, b->n_iov, 0, flags)) {
		conn_abort(e, c, ENOMEM);
		return;
	}
	give_credit(c);
	list_add(&e->run, &c->run);
}

/**
 * up_socket() - Write the first kept message to the far end
 * @c:		Connection; may be gone afterwards
 * @m:		The message
 *
 * Returns: true if it took it
 */
static bool up_socket(struct vu_conn *c, const struct message *m)
{
	if (!m->flags || !c->far.writable)
		return false;
	if (send(c->far.fd, m->data, m->len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		not_taken(c);
		return false;
	}
	vsock_consumed(c, m->len);
	seq_advance(&c->up, m->len, true);
	return true;
}

/**
 * up_echo() - Send the guest its first kept message, as far as there is one
 * @c:		Connection
 * @m:		The message
 *
 * Returns: true if it is sent
 */
static bool up_echo(struct vu_conn *c, const struct message *m)
{
	uint32_t sent;
	bool all;

	if (c->owe & OWE_RESPONSE || (!m->len && !m->flags))
		return false;
	all = send_part(c, m, &sent) && m->flags;
	vsock_consumed(c, sent);
	seq_advance(&c->up, sent, all);
	return all;
}

/**
 * seq_run_up() - Move a connection's kept messages up
 * @c:		Connection
 *
 * Returns: false if the connection has ended
 */
bool seq_run_up(struct vu_conn *c)
{
	struct message m = {0};
	unsigned budget = TURN;

	while (seq_head(&c->up, &m) && budget) {
		if (!(c->far.fd >= 0 ? up_socket(c, &m) : up_echo(c, &m)))
			break;
		budget--;
	}
	if (c->state != CONN_OPEN)
		return false;
	if (!budget)
		list_add(&c->dev->engine->run, &c->run);
	if (c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND &&
	    seq_head(&c->up, &m) && !m.flags) {
		message_error(c, EPROTO); /* its end will never come */
		return false;
	}
	give_credit(c);
	return true;
}

/* ---- down: to the guest ---- */

/**
 * seq_send_kept() - Send the guest what is kept for it
 * @c:		Connection
 * @way:	Where it is kept; empty afterwards if all is sent
 *
 * Returns: bytes sent
 */
uint32_t seq_send_kept(struct vu_conn *c, struct way *way)
{
	struct message m;
	uint32_t total = 0;
	bool all = true;

	while (all && seq_head(way, &m)) {
		uint32_t sent;

		all = send_part(c, &m, &sent);
		seq_advance(way, sent, all);
		total += sent;
	}
	return total;
}

/**
 * follow() - Send the guest a message's rest, or keep what it has no room for
 * @c:		Connection with nothing kept; may be gone afterwards
 * @m:		The rest
 *
 * Returns: true if all is sent
 */
static bool follow(struct vu_conn *c, const struct message *m)
{
	struct iovec iov;
	uint32_t sent;

	if (send_part(c, m, &sent))
		return true;
	iov.iov_base = (char *)(uintptr_t)(m->data + sent);
	iov.iov_len = m->len - sent;
	if (!seq_keep(&c->down, &iov, 1, 0, m->flags))
		conn_abort(c->dev->engine, c, ENOMEM);
	return false;
}

/**
 * ended() - Was a message without bytes the end?
 * @c:		Connection whose far end gave one
 *
 * Returns: true if the far end sends no more, and nothing is left of what it
 * sent
 */
static bool ended(const struct vu_conn *c)
{
	struct pollfd p = {.fd = c->far.fd, .events = POLLRDHUP};
	int queued = 0;

	if (poll(&p, 1, 0) < 0 || !(p.revents & (POLLRDHUP | POLLHUP)))
		return false;
	return ioctl(c->far.fd, FIONREAD, &queued) < 0 || !queued;
}

/**
 * receive() - Read a message into RX buffers, what is longer into scratch
 * @c:		Connection
 * @b:		RX buffers; loses a segment if there is none left for scratch
 *
 * Returns: bytes of the message, -errno; -EMSGSIZE: it was cut
 */
static ssize_t receive(struct vu_conn *c, struct rx_batch *b)
{
	struct vu_engine *e = c->dev->engine;
	struct msghdr msg = {.msg_iov = e->rx_payload};
	ssize_t n;

	if (b->n_payload == BATCH_IOV)
		b->room -= e->rx_payload[--b->n_payload].iov_len;
	e->rx_payload[b->n_payload] =
	    (struct iovec){.iov_base = e->scratch, .iov_len = SCRATCH};
	msg.msg_iovlen = b->n_payload + 1;
	n = recvmsg(c->far.fd, &msg, MSG_DONTWAIT);
	if (n < 0)
		return -errno;
	return msg.msg_flags & MSG_TRUNC || n > SCRATCH ? -EMSGSIZE : n;
}

/**
 * pass() - Give the guest a message that receive() read
 * @c:		Connection; may be gone afterwards
 * @b:		RX buffers
 * @n:		Bytes of the message
 *
 * Returns: true if all is sent
 */
static bool pass(struct vu_conn *c, const struct rx_batch *b, size_t n)
{
	struct message rest = {.data = c->dev->engine->scratch,
			       .flags = VIRTIO_VSOCK_SEQ_EOM};

	if (n && n <= b->room) {
		vsock_rx_commit(c, b, n, VIRTIO_VSOCK_SEQ_EOM);
		c->rx_chains -= c->rx_chains > 1;
		return true;
	}
	vsock_rx_commit(c, b, n ? b->room : 0, 0);
	if (n) {
		rest.len = (uint32_t)(n - b->room);
		c->rx_chains =
		    (uint8_t)(b->n_chains < 64 ? 2 * b->n_chains : 128);
	}
	return follow(c, &rest);
}

/**
 * stopped() - The far end gave no message
 * @c:		Connection; may be gone afterwards
 * @n:		0: it sends no more; or -errno
 */
static void stopped(struct vu_conn *c, ssize_t n)
{
	c->far.readable = n == -EINTR;
	if (n == 0)
		vsock_down_ended(c);
	else if (n == -EMSGSIZE)
		message_error(c, EMSGSIZE);
	else if (n == -EFAULT)
		c->dev->faulted = true;
	else if (n != -EAGAIN && n != -EINTR)
		conn_abort(c->dev->engine, c, (int)-n);
}

/**
 * down_socket() - Send the guest what its far end has
 * @c:		Connection with nothing kept; may be gone afterwards
 *
 * Stops after a turn's worth and runs again later: others wait too.
 */
static void down_socket(struct vu_conn *c)
{
	size_t total = 0;

	for (unsigned i = 0; c->far.readable && i < TURN && total < SCRATCH;
	     i++) {
		struct rx_batch b;
		ssize_t n;

		if (!vsock_rx_begin(c, c->rx_chains, SIZE_MAX, &b))
			return;
		if (!b.room) {
			vsock_rx_commit(c, &b, 0, 0);
			continue;
		}
		n = receive(c, &b);
		if (n > (ssize_t)c->peer_buf_alloc)
			n = -EMSGSIZE;
		if (n < 0 || (!n && ended(c))) {
			vsock_rx_commit(c, &b, 0, 0);
			stopped(c, n);
			return;
		}
		if (!pass(c, &b, (size_t)n))
			return;
		total += (size_t)n;
	}
	if (c->far.readable)
		list_add(&c->dev->engine->run, &c->run);
}

/**
 * down_chargen() - Send the guest messages until its window is full
 * @c:		Connection with nothing kept; may be gone afterwards
 */
static void down_chargen(struct vu_conn *c)
{
	struct vu_engine *e = c->dev->engine;
	struct message m = {.data = e->chargen, .flags = VIRTIO_VSOCK_SEQ_EOM};

	m.len = c->peer_buf_alloc < CHARGEN ? c->peer_buf_alloc : CHARGEN;
	for (size_t total = 0; total < SCRATCH; total += m.len) {
		if (!m.len || vsock_credit(c) < m.len) {
			vsock_await_credit(c);
			return;
		}
		if (!follow(c, &m))
			return;
	}
	list_add(&e->run, &c->run);
}

/**
 * seq_run_down() - Move a connection's messages down for one turn
 * @c:		Connection; may be gone afterwards
 */
void seq_run_down(struct vu_conn *c)
{
	seq_send_kept(c, &c->down);
	if (c->down.len)
		return;
	if (c->far.fd >= 0)
		down_socket(c);
	else if (c->target == VU_TARGET_CHARGEN)
		down_chargen(c);
}
