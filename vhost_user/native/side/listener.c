// SPDX-License-Identifier: Apache-2.0
/*
 * listener.c - sockets that connections come in by
 *
 * Theory of operation
 * ===================
 *
 * The standard paths end here: TPROXY hands us TCP connections. A client is the
 * near side of its connection, a socket as any other, or one that a guest is
 * offered (vsock/door.c). One turn accepts a few: others wait too. Out of
 * descriptors, a listener pauses: its backlog waits until some are free.
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include "side/listener.h"
#include "side/socket.h"
#include "side/target.h"

#define ACCEPTS 16 /* in one turn */

/**
 * watch() - Have epoll report clients, or not
 * @l:		Listener
 * @op:		EPOLL_CTL_ADD or EPOLL_CTL_MOD
 * @events:	EPOLLIN, or 0
 *
 * Returns: 0, or -1 with errno
 */
static int watch(struct vu_listener *l, int op, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.u64 = l->tag};

	return epoll_ctl(l->core->epoll_fd, op, l->fd, &ev);
}

/**
 * admit() - Make a connection of an accepted socket
 * @l:		Listener
 * @fd:		Socket, taken over
 * @addr:	Its client's
 * @len:	Size of @addr
 */
static void admit(struct vu_listener *l, int fd,
		  const struct sockaddr_storage *addr, socklen_t len)
{
	const int one = 1;
	struct vu_conn *c = NULL;

	(void)addr;
	(void)len;
	if (!outbox_crowded(l->outbox, l->core->max_conns))
		c = conn_new(l->core, l->outbox);
	if (!c) {
		l->core->refused++;
		close(fd);
		return;
	}
	c->want = (uint8_t)l->want;
	c->near =
	    (struct side){.ops = socket_ops(c), .fd = fd, .writable = true};
	/* fails on a unix socket, which has no use for it */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (socket_watch(c, &c->near, false)) {
		l->core->refused++;
		conn_free(c);
		return;
	}
	target_reach(c, &l->target);
}

static const struct listener_ops to_target = {.admit = admit};

/**
 * listener_new() - Accept connections from a listening socket
 * @core:	What all connections share
 * @id:		Its id
 * @fd:		Listening socket, taken over on success
 * @want:	VU_WANT_ bits
 * @target:	Where its connections go, copied
 * @tag:	What epoll reports a client as
 *
 * Returns: the listener; NULL with errno
 */
struct vu_listener *listener_new(struct core *core, uint32_t id, int fd,
				 uint32_t want, const struct vu_target *target,
				 uint64_t tag)
{
	struct vu_listener *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	*l = (struct vu_listener){
	    .core = core,
	    .outbox = outbox_open(id, true),
	    .ops = &to_target,
	    .target = *target,
	    .want = want,
	    .tag = tag,
	    .fd = fd,
	};
	list_init(&l->paused);
	if (!l->outbox || watch(l, EPOLL_CTL_ADD, EPOLLIN)) {
		int error = l->outbox ? errno : ENOMEM;

		if (l->outbox)
			outbox_unref(&core->outbox, l->outbox);
		free(l);
		errno = error;
		return NULL;
	}
	return l;
}

/**
 * listener_free() - Close a listening socket; its connections stay
 * @l:		Listener
 */
void listener_free(struct vu_listener *l)
{
	list_del(&l->paused);
	outbox_unref(&l->core->outbox, l->outbox);
	if (l->fd >= 0)
		close(l->fd);
	free(l);
}

/**
 * listener_close() - Accept nobody for a reason, or not for that any more
 * @l:		Listener
 * @why:	LISTENER_ bit
 * @closed:	Whether it holds
 */
void listener_close(struct vu_listener *l, unsigned why, bool closed)
{
	unsigned now = closed ? l->closed | why : l->closed & ~why;

	if (!now != !l->closed)
		watch(l, EPOLL_CTL_MOD, now ? 0 : EPOLLIN);
	l->closed = now;
}

/**
 * listener_accept() - Accept what waits at a listener
 * @l:		Listener
 * @paused:	List of those that are out of descriptors
 */
void listener_accept(struct vu_listener *l, struct list *paused)
{
	for (unsigned i = 0; i < ACCEPTS && !l->closed; i++) {
		struct sockaddr_storage addr;
		socklen_t len = sizeof(addr);
		int fd = accept4(l->fd, (struct sockaddr *)&addr, &len,
				 SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			l->ops->admit(l, fd, &addr, len);
		} else if (errno == EAGAIN) {
			return;
		} else if (errno == EMFILE || errno == ENFILE ||
			   errno == ENOBUFS || errno == ENOMEM) {
			if (l->ops->shortage)
				l->ops->shortage(l, errno);
			list_add(paused, &l->paused);
			listener_close(l, LISTENER_SHORT, true);
		} /* else that client is gone already: the next one */
	}
}

/**
 * listener_resume() - Try again a listener that was out of descriptors
 * @l:		Listener, on the list of those
 * @paused:	That list
 */
void listener_resume(struct vu_listener *l, struct list *paused)
{
	list_del(&l->paused);
	listener_close(l, LISTENER_SHORT, false);
	listener_accept(l, paused);
}
