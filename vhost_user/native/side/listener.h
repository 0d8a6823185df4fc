/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.h - sockets that connections come in by
 */
#ifndef LISTENER_H
#define LISTENER_H

#include "conn/conn.h"

/**
 * struct vu_listener - A listening socket
 * @paused:	On the list of those that are out of descriptors, looked at
 *		again on the retry tick
 * @core:	What all connections share
 * @outbox:	Where their events go
 * @target:	Where its connections go
 * @want:	VU_WANT_ bits
 * @tag:	What epoll reports a client as
 */
struct vu_listener {
	struct list paused;
	struct core *core;
	struct outbox_queue *outbox;
	struct vu_target target;
	uint64_t tag;
	uint32_t want;
	int fd;
};

struct vu_listener *listener_new(struct core *core, uint32_t id, int fd,
				 uint32_t want, const struct vu_target *target,
				 uint64_t tag);
void listener_free(struct vu_listener *l);
void listener_accept(struct vu_listener *l, struct list *paused);
void listener_resume(struct vu_listener *l, struct list *paused);

#endif /* LISTENER_H */
