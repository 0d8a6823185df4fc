/* SPDX-License-Identifier: Apache-2.0 */
/*
 * outbox.h - what Python is told: queues of events, one a source
 */
#ifndef OUTBOX_H
#define OUTBOX_H

#include <pthread.h>

#include "base/list.h"
#include "vu.h"

/**
 * struct outbox_queue - What Python has not taken of one device or listener
 * @busy:	On the outbox' list of those that have events
 * @events:	Ring of events
 * @cap:	Its entries
 * @first:	The oldest
 * @count:	How many there are
 * @refs:	Who may push: the source, and each connection of it
 * @source:	The source's id
 * @last_word:	VU_EV_GONE comes when nobody may push any more
 */
struct outbox_queue {
	struct list busy;
	struct vu_event *events;
	unsigned cap;
	unsigned first;
	unsigned count;
	uint32_t refs;
	uint32_t source;
	bool last_word;
};

/**
 * struct outbox - All queues of an engine
 * @lock:	Python takes events while the engine runs
 * @busy:	Queues that have events, the next one first
 * @count:	Events in all of them
 * @lost:	Events that no memory was left for
 * @since_us:	The oldest's age, while none is signalled
 * @signalled:	@fd is readable
 * @urgent:	Somebody waits for what Python does about one
 * @fd:		eventfd, Python's wake-up
 */
struct outbox {
	pthread_mutex_t lock;
	struct list busy;
	unsigned count;
	uint64_t lost;
	uint64_t since_us;
	bool signalled;
	bool urgent;
	int fd;
};

int outbox_init(struct outbox *o);
void outbox_free(struct outbox *o);
struct outbox_queue *outbox_open(uint32_t source, bool last_word);
void outbox_ref(struct outbox *o, struct outbox_queue *q);
void outbox_unref(struct outbox *o, struct outbox_queue *q);
void outbox_push(struct outbox *o, struct outbox_queue *q,
		 struct vu_event *event, bool urgent);
bool outbox_signal(struct outbox *o);
bool outbox_crowded(const struct outbox_queue *q, uint32_t conns);
unsigned outbox_take(struct outbox *o, struct vu_event *ret_events,
		     unsigned max);

#endif /* OUTBOX_H */
