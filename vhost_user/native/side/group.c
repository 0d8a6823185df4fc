// SPDX-License-Identifier: Apache-2.0
/*
 * group.c - what tunnels of one pool or listener have in common; headers
 *
 * Theory of operation
 * ===================
 *
 * A pool and a gate are both a group of tunnels with the same certificates,
 * limits, counters and outbox. It lives until its owner and its last tunnel are
 * gone: only then nothing comes from it any more.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <sys/random.h>

#include "base/clock.h"
#include "side/hbone.h"

#define HEADERS_MOST 8192 /* bytes, so that they fit into one HEADERS frame */

/* What a program sees of a connection that failed because of its tunnel */
static const struct {
	enum vu_reason reason;
	int error;
} errors[] = {
    {VU_REASON_TIME, ETIMEDOUT},    {VU_REASON_PING, ETIMEDOUT},
    {VU_REASON_CLOSED, ECONNRESET}, {VU_REASON_ALERT, ECONNRESET},
    {VU_REASON_HTTP2, ECONNRESET},  {VU_REASON_FLOOD, ECONNRESET},
    {VU_REASON_LOST, ECONNRESET},   {VU_REASON_RESET, ECONNRESET},
    {VU_REASON_401, EACCES},	    {VU_REASON_SHORT, ENOMEM},
};

/**
 * reason_errno() - What does a program see?
 * @reason:	Why its connection has no stream
 * @error:	errno of what failed, or 0
 *
 * Returns: errno: TCP's own, as far as there is one; else ECONNREFUSED
 */
int reason_errno(enum vu_reason reason, int error)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		if (errors[i].reason == reason)
			return errors[i].error;
	}
	return error ? error : ECONNREFUSED;
}

/**
 * hbone_new() - Have tunnels
 * @core:	What all connections share
 * @shake_tag:	What epoll reports a handshake as
 * @tunnel_tag:	And a tunnel
 *
 * Returns: 0, or -VU_ERR_NOMEM
 */
int hbone_new(struct core *core, uint64_t shake_tag, uint64_t tunnel_tag)
{
	struct hbone *hb = calloc(1, sizeof(*hb));

	if (!hb)
		return -VU_ERR_NOMEM;
	*hb = (struct hbone){
	    .core = core,
	    .shake_tag = shake_tag,
	    .tunnel_tag = tunnel_tag,
	};
	shaker_init(&hb->shaker);
	list_init(&hb->busy);
	list_init(&hb->flushes);
	list_init(&hb->timers);
	if (getrandom(&hb->random, sizeof(hb->random), 0) < 0)
		hb->random = (uint64_t)(uintptr_t)hb ^ clock_us();
	core->hbone = hb;
	return 0;
}

/* ---- headers ---- */

/**
 * copy() - Copy a header's value
 * @text:	Value, or NULL
 * @ret:	The copy, or NULL
 * @left:	Bytes that all may have together, and still may
 *
 * Returns: 0, -VU_ERR_INVAL or -VU_ERR_NOMEM
 */
static int copy(const char *text, char **ret, size_t *left)
{
	size_t len;

	if (!text)
		return 0;
	len = strlen(text);
	if (len > *left ||
	    !nghttp2_check_header_value((const uint8_t *)text, len))
		return -VU_ERR_INVAL;
	*left -= len;
	*ret = strdup(text);
	return *ret ? 0 : -VU_ERR_NOMEM;
}

/**
 * headers_new() - Make headers
 * @cfg:	Headers
 * @ret:	They, with one user
 *
 * Returns: 0, -VU_ERR_INVAL or -VU_ERR_NOMEM
 */
int headers_new(const struct vu_headers_config *cfg, struct vu_headers **ret)
{
	struct vu_headers *h = calloc(1, sizeof(*h));
	size_t left = HEADERS_MOST;
	int err;

	if (!h)
		return -VU_ERR_NOMEM;
	h->refs = 1;
	err = copy(cfg->authority, &h->authority, &left);
	err = err ? err : copy(cfg->baggage, &h->baggage, &left);
	err = err ? err : copy(cfg->forwarded_before, &h->before, &left);
	err = err ? err : copy(cfg->forwarded_after, &h->after, &left);
	err = err ? err : copy(cfg->forwarded_network, &h->network, &left);
	if (err)
		headers_unref(h);
	else
		*ret = h;
	return err;
}

/**
 * headers_unref() - Use headers no more
 * @h:		Headers
 */
void headers_unref(struct vu_headers *h)
{
	if (--h->refs)
		return;
	free(h->authority);
	free(h->baggage);
	free(h->before);
	free(h->after);
	free(h->network);
	free(h);
}

/* ---- groups ---- */

/**
 * group_ref() - Use a group
 * @g:		Group
 */
void group_ref(struct group *g)
{
	g->refs++;
}

/**
 * group_unref() - Use a group no more
 * @g:		Group; gone afterwards if nobody does
 */
void group_unref(struct group *g)
{
	if (!--g->refs)
		g->ops->unused(g);
}

/**
 * group_free() - Let go of what a group has
 * @g:		Group that nobody uses
 */
void group_free(struct group *g)
{
	if (g->outbox)
		outbox_unref(&g->hbone->core->outbox, g->outbox);
	if (g->tls)
		tls_context_unref(g->tls);
	if (g->names)
		tls_names_unref(g->names);
	free(g->peer);
}

/**
 * group_tls() - Have other certificates for the next tunnel
 * @g:		Group
 * @tls:	Certificates
 *
 * A tunnel whose peer their lists name ends.
 */
void group_tls(struct group *g, struct vu_tls *tls)
{
	const struct list *head = &g->all;

	tls->refs++;
	if (g->tls)
		tls_context_unref(g->tls);
	g->tls = tls;
	for (const struct list *at = head->next; at != head; at = at->next) {
		struct tunnel *t = container_of(at, struct tunnel, link);

		if ((t->state == TUNNEL_OPEN || t->state == TUNNEL_DRAINS) &&
		    tls_revoked(t->tls, tls))
			tunnel_doom(t, VU_REASON_REVOKED, 0);
	}
}
