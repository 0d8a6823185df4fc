/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.h - sockets that connections come in by
 */
#ifndef LISTENER_H
#define LISTENER_H

#include "conn/conn.h"

struct door;
struct gate;
struct vu_listener;

/* Why a listener doesn't accept, or'ed */
#define LISTENER_SHORT 1U /* of descriptors: tried again on the retry tick */
#define LISTENER_PAUSED                                                        \
	2U		 /* Python said so, or has to know something first     \
			  */
#define LISTENER_FULL 4U /* so many clients wait already */

/**
 * struct listener_ops - What becomes of its clients
 * @admit:	Make a connection of an accepted socket, taken over
 * @shortage:	An errno: no descriptors, or no memory, to accept one
 */
struct listener_ops {
	void (*admit)(struct vu_listener *l, int fd,
		      const struct sockaddr_storage *addr, socklen_t len);
	void (*shortage)(struct vu_listener *l, int error);
};

/**
 * struct vu_listener - A listening socket
 * @paused:	On the list of those that are out of descriptors, looked at
 *		again on the retry tick
 * @core:	What all connections share
 * @outbox:	Where their events go
 * @ops:	What becomes of its clients
 * @door:	Its clients are a guest's; see vsock/door.c
 * @gate:	Its clients are tunnels; see gate.c
 * @target:	Where its connections go otherwise
 * @want:	VU_WANT_ bits
 * @closed:	LISTENER_ bits
 * @tag:	What epoll reports a client as
 */
struct vu_listener {
	struct list paused;
	struct core *core;
	struct outbox_queue *outbox;
	const struct listener_ops *ops;
	struct door *door;
	struct gate *gate;
	struct vu_target target;
	uint64_t tag;
	uint32_t want;
	unsigned closed;
	int fd;
};

struct vu_listener *listener_new(struct core *core, uint32_t id, int fd,
				 uint32_t want, const struct vu_target *target,
				 uint64_t tag);
void listener_free(struct vu_listener *l);
void listener_accept(struct vu_listener *l, struct list *paused);
void listener_resume(struct vu_listener *l, struct list *paused);
void listener_close(struct vu_listener *l, unsigned why, bool closed);

#endif /* LISTENER_H */
