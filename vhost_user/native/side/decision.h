/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decision.h - where CONNECTs go that say what one said before
 */
#ifndef DECISION_H
#define DECISION_H

#include "side/hbone.h"
#include "vu_decide.h"

struct decision;
struct decisions;

/* A whole request, and two addresses */
#define SAYING_MOST (sizeof(struct vu_hbone_request) + 64)

/**
 * struct saying - What a CONNECT says, and who says it
 * @len:	Bytes
 * @bytes:	They
 */
struct saying {
	size_t len;
	uint8_t bytes[SAYING_MOST];
};

/**
 * struct decision - Where CONNECTs go that say the same
 * @recent:	Among those of its table: the least recently used first
 * @next:	Next in the bucket, or NULL
 * @table:	Table that it is in; NULL: none any more
 * @refs:	The table, and each connection that isn't established yet
 * @core:	What all connections share
 * @outbox:	Where its connections' events go, and what is told of its end
 * @tag:	Python's name for it
 * @headers:	Of the answer, or NULL
 * @target:	Where to, if it is no guest
 * @offer:	Ask the guest to take a stream's connection; NULL: it is no
 *		guest. Returns the connection; NULL if the guest can't have it
 * @link:	In its device
 * @dev:	The guest's device; NULL: it is removed
 * @guest_port:	Port that a program in the guest listens on
 * @first_port:	The first of 65536 on our side
 * @hash:	Of @key
 * @len:	Bytes of @key
 * @key:	What they say, and who says it
 */
struct decision {
	struct list recent;
	struct decision *next;
	struct decisions *table;
	unsigned refs;
	struct core *core;
	struct outbox_queue *outbox;
	uint32_t tag;
	struct vu_headers *headers;
	struct vu_target target;
	struct vu_conn *(*offer)(struct decision *d, struct stream *s,
				 uint16_t port);
	struct list link;
	struct vu_dev *dev;
	uint32_t guest_port;
	uint32_t first_port;
	uint64_t hash;
	size_t len;
	uint8_t key[];
};

/* saying.c */
uint16_t saying_of(const struct stream *s, struct saying *ret);
uint64_t saying_hash(const struct saying *k, uint64_t seed);

/* decision.c */
struct decisions *decisions_new(uint64_t seed);
void decisions_clear(struct decisions *t);
void decisions_free(struct decisions *t);
struct decision *decision_new(struct decisions *t, const struct stream *s,
			      struct core *core, struct outbox_queue *outbox);
struct decision *decision_find(struct decisions *t, const struct stream *s,
			       uint16_t *ret_port);
void decision_drop(struct decision *d);
void decision_unref(struct decision *d);
bool decision_visits(struct decision *d, const struct tunnel *t,
		     struct vu_conn *c);

#endif /* DECISION_H */
