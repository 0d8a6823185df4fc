// SPDX-License-Identifier: Apache-2.0
/*
 * decision.c - where CONNECTs go that say what one said before
 *
 * Theory of operation
 * ===================
 *
 * Python decides about a CONNECT once. Whoever says the same again, word by
 * word, is answered the same way, without Python: the same identity, from the
 * same IP to the same address of ours, with the same authority, baggage and
 * "forwarded", but for the client's port in that, which each connection has
 * anew. All of it is the key, so nothing that Python may have looked at is
 * another one. (A "traceparent" is for nobody but a log.)
 *
 * Peers choose most of a key: the hash is seeded, and a table has a bound.
 * Above that the least recently used decision goes, and is Python's to make
 * again.
 *
 * What Python keeps about a decision it may forget when that is in no table any
 * more and the last event with its tag is out, which VU_EV_FORGOT tells.
 */

#include <stdlib.h>
#include <string.h>

#include "side/decision.h"

#define BUCKETS	  4096U /* about one decision each, at most */
#define PORT_MOST 5	/* digits */

/**
 * struct decisions - Decisions of a gate
 * @recent:	All, the least recently used first
 * @count:	How many
 * @seed:	Of the hash
 * @buckets:	By hash
 */
struct decisions {
	struct list recent;
	uint32_t count;
	uint64_t seed;
	struct decision *buckets[BUCKETS];
};

/**
 * struct visit - A connection that a decision made, until it is established
 * @client:	Who came, for events
 * @decision:	Which
 */
struct visit {
	struct client client;
	struct decision *decision;
};

/* ---- the table ---- */

/**
 * decisions_new() - Make a table
 * @seed:	Which no peer knows
 *
 * Returns: it; NULL if out of memory
 */
struct decisions *decisions_new(uint64_t seed)
{
	struct decisions *t = calloc(1, sizeof(*t));

	if (t) {
		list_init(&t->recent);
		t->seed = seed;
	}
	return t;
}

/**
 * search() - Find a key's decision
 * @t:		Table
 * @k:		Key
 * @hash:	Its hash
 *
 * Returns: it, or NULL
 */
static struct decision *search(const struct decisions *t,
			       const struct saying *k, uint64_t hash)
{
	struct decision *d = t->buckets[hash % BUCKETS];

	while (d && (d->hash != hash || d->len != k->len ||
		     memcmp(d->key, k->bytes, k->len)))
		d = d->next;
	return d;
}

/**
 * decision_find() - Was a CONNECT that says the same decided?
 * @t:		Table
 * @s:		Stream of a gate
 * @ret_port:	The client's port, as "forwarded" has it; else 0
 *
 * Returns: the decision, or NULL
 */
struct decision *decision_find(struct decisions *t, const struct stream *s,
			       uint16_t *ret_port)
{
	struct decision *d;
	struct saying k;

	if (!t->count)
		return NULL;
	*ret_port = saying_of(s, &k);
	d = search(t, &k, saying_hash(&k, t->seed));
	if (d)
		list_move(&t->recent, &d->recent);
	return d;
}

/**
 * decision_drop() - Decide so no more
 * @d:		Decision; may be gone afterwards
 */
void decision_drop(struct decision *d)
{
	struct decisions *t = d->table;
	struct decision **link;

	list_del(&d->link);
	d->dev = NULL;
	if (!t)
		return;
	link = &t->buckets[d->hash % BUCKETS];
	while (*link != d)
		link = &(*link)->next;
	*link = d->next;
	list_del(&d->recent);
	t->count--;
	d->table = NULL;
	decision_unref(d);
}

/**
 * decisions_clear() - Forget all decisions
 * @t:		Table
 */
void decisions_clear(struct decisions *t)
{
	while (!list_empty(&t->recent))
		decision_drop(
		    container_of(t->recent.next, struct decision, recent));
}

/**
 * decisions_free() - Free a table
 * @t:		Table, or NULL
 */
void decisions_free(struct decisions *t)
{
	if (t)
		decisions_clear(t);
	free(t);
}

/**
 * decision_new() - Decide about all CONNECTs that say what one says
 * @t:		Table; one about the same leaves it
 * @s:		Stream of a gate
 * @core:	What all connections share
 * @outbox:	Where its connections' events go
 *
 * Returns: the decision, to be filled in; NULL if out of memory
 */
struct decision *decision_new(struct decisions *t, const struct stream *s,
			      struct core *core, struct outbox_queue *outbox)
{
	struct decision *d, *old;
	struct saying k;
	uint64_t hash;

	saying_of(s, &k);
	hash = saying_hash(&k, t->seed);
	d = calloc(1, sizeof(*d) + k.len);
	if (!d)
		return NULL;
	old = search(t, &k, hash);
	if (!old && t->count >= VU_MAX_DECISIONS)
		old = container_of(t->recent.next, struct decision, recent);
	if (old)
		decision_drop(old);
	*d = (struct decision){
	    .next = t->buckets[hash % BUCKETS],
	    .table = t,
	    .refs = 1,
	    .core = core,
	    .outbox = outbox,
	    .hash = hash,
	    .len = k.len,
	};
	memcpy(d->key, k.bytes, k.len);
	list_init(&d->recent);
	list_init(&d->link);
	outbox_ref(outbox);
	t->buckets[hash % BUCKETS] = d;
	list_add(&t->recent, &d->recent);
	t->count++;
	return d;
}

/**
 * decision_unref() - Use a decision no more
 * @d:		Decision; gone afterwards if nobody does, which Python hears
 */
void decision_unref(struct decision *d)
{
	struct vu_event event = {.kind = VU_EV_FORGOT, .tag = d->tag};

	if (--d->refs)
		return;
	if (d->headers)
		headers_unref(d->headers);
	outbox_push(&d->core->outbox, d->outbox, &event, false);
	outbox_unref(&d->core->outbox, d->outbox);
	free(d);
}

/* ---- connections ---- */

/**
 * settled() - A connection is established, or over
 * @client:	Of its visit, freed
 */
static void settled(struct client *client)
{
	struct visit *v = container_of(client, struct visit, client);

	decision_unref(v->decision);
	free(v);
}

/**
 * decision_visits() - A connection was made by a decision: events tell of it
 * @d:		Decision
 * @t:		Tunnel that it came by
 * @c:		Connection, new
 *
 * Returns: false if out of memory
 */
bool decision_visits(struct decision *d, const struct tunnel *t,
		     struct vu_conn *c)
{
	struct visit *v = calloc(1, sizeof(*v));

	if (!v)
		return false;
	d->refs++;
	v->decision = d;
	v->client = (struct client){
	    .settled = settled,
	    .refused = stream_ask,
	    .tag = d->tag,
	    .src_len = t->src.len,
	    .dst_len = t->dst.len,
	};
	memcpy(v->client.src, t->src.addr, t->src.len);
	memcpy(v->client.dst, t->dst.addr, t->dst.len);
	c->client = &v->client;
	return true;
}
