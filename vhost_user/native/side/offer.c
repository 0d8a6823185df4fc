// SPDX-License-Identifier: Apache-2.0
/*
 * offer.c - a connection is offered to a process that takes it by rings
 *
 * Theory of operation
 * ===================
 *
 * One unix SOCK_SEQPACKET socket for one connection. We connect it, send what
 * the connection is with the descriptors of its memory, and wait for the
 * answer as long as a dial may take. From then on the socket carries wake-ups
 * for the process, and its end: that the other is gone.
 *
 * A listener whose backlog is full says EAGAIN: such dials are tried again by
 * a tick (timers.c), a bounded number each time.
 */

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/un.h>

#include "side/peer.h"
#include "side/socket.h"

#define RETRIES	  32  /* dials, at a tick */
#define MAX_ERRNO 133 /* that the process may give a program's connect() */

static const struct side_ops offered;

/**
 * send_hello() - Tell the process what the connection is
 * @c:		Connection with its memory
 * @p:		Process
 * @fds:	Descriptors for it
 *
 * The socket is new, and its buffer empty: it takes the message whole.
 *
 * Returns: 0, or errno
 */
static int send_hello(const struct vu_conn *c, const struct vu_peer *p,
		      const int fds[2])
{
	union {
		char room[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct fpring_hello hello;
	struct iovec iov = {.iov_base = &hello, .iov_len = sizeof(hello)};
	struct msghdr msg = {
	    .msg_iov = &iov,
	    .msg_iovlen = 1,
	    .msg_control = control.room,
	    .msg_controllen = sizeof(control.room),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(2 * sizeof(int));
	memcpy(CMSG_DATA(cmsg), fds, 2 * sizeof(int));
	peer_introduce(p, c, &hello);
	if (sendmsg(c->far.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) ==
	    sizeof(hello))
		return 0;
	return errno ? errno : EPROTO;
}

/**
 * ours() - Are we short of something, or is it the process?
 * @error:	errno
 *
 * What a unix socket says of its path is nothing that a program knows from a
 * connect() to an IP address.
 *
 * Returns: errno for the program
 */
static int ours(int error)
{
	switch (error) {
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case ENOBUFS:
	case ENOSPC:
		return error;
	default:
		return ECONNREFUSED;
	}
}

/**
 * introduce() - Give the process a connection's memory
 * @c:		Connection, its socket connected
 * @p:		Process
 *
 * Returns: 0, or errno
 */
static int introduce(struct vu_conn *c, const struct vu_peer *p)
{
	uint32_t bytes = p->cfg.ring_bytes;
	int fds[2] = {-1, -1}, error;

	if (c->near.ops->ring)
		bytes = c->near.ops->ring(c, bytes);
	error = shm_make(c->shm, bytes, fds);
	if (error)
		return error;
	error = send_hello(c, p, fds);
	close(fds[0]);
	return error ? error : -socket_watch(c, &c->far, false);
}

/**
 * try() - Offer a connection
 * @c:		Connection in CONN_DIALING with shm; may be gone afterwards
 */
static void try(struct vu_conn *c)
{
	const struct vu_peer *p = peer_by_id(c->core, c->shm->peer);
	int kind = SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC;
	int fd = p ? socket(AF_UNIX, kind, 0) : -1;
	int error = 0;

	if (fd < 0) {
		conn_abort(c, p ? ours(errno) : ECONNREFUSED);
		return;
	}
	if (connect(fd, (const struct sockaddr *)&p->addr,
		    sizeof(struct sockaddr_un)))
		error = errno;
	if (error == EAGAIN) {
		close(fd);
		list_add(&c->core->dials, &c->shm->dial);
		return;
	}
	c->far.fd = fd;
	if (!error)
		error = introduce(c, p);
	if (error)
		conn_abort(c, ours(error));
}

/**
 * offer_make() - Offer a connection to a process
 * @c:		Connection; may be gone afterwards
 * @target:	Target of kind VU_TARGET_RING
 */
void offer_make(struct vu_conn *c, const struct vu_target *target)
{
	if (c->state != CONN_DIALING)
		conn_set(c, CONN_DIALING);
	c->far = (struct side){.ops = &offered, .fd = -1};
	c->shm = shm_new(c, target->peer);
	if (!c->shm) {
		conn_abort(c, ENOMEM);
		return;
	}
	c->shm->dst = peer_address(target->addr, target->addr_len);
	try(c);
}

/**
 * offer_retry() - Offer once more what found a full listener
 * @core:	What all connections share
 */
void offer_retry(struct core *core)
{
	struct list now;

	list_init(&now);
	list_splice(&now, &core->dials);
	for (unsigned i = 0; i < RETRIES && !list_empty(&now); i++) {
		struct shm *m = container_of(now.next, struct shm, dial);

		list_del(&m->dial);
		if (m->c->state == CONN_DIALING)
			try(m->c);
	}
	list_splice_first(&core->dials, &now);
}

/**
 * answered() - Take what the process says
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 * @s:		Its far side
 * @events:	EPOLL bits, of the socket or the eventfd
 */
static void answered(struct vu_conn *c, struct side *s, uint32_t events)
{
	struct fpring_answer answer = {0};
	ssize_t n;

	(void)events;
	if (c->state != CONN_DIALING || s->fd < 0)
		return;
	n = recv(s->fd, &answer, sizeof(answer), MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		conn_abort(c, ECONNREFUSED);
	} else if (n != sizeof(answer) || answer.version != FPRING_VERSION ||
		   answer.error < 0 || answer.error > MAX_ERRNO) {
		conn_abort(c, EPROTO);
	} else if (answer.error) {
		conn_abort(c, answer.error);
	} else {
		s->ops = &ring_ops;
		conn_opened(c);
	}
}

/* Until the process has answered */
static const struct side_ops offered = {
    .event = answered,
    .close = ring_close,
};
