// SPDX-License-Identifier: Apache-2.0
/*
 * session.c - one session
 *
 * Theory of operation
 * ===================
 *
 * SETTINGS and windows are those of Istio's ztunnel. WINDOW_UPDATEs are sent as
 * sinks take bytes, never by themselves.
 *
 * MAX_CONCURRENT_STREAMS. A stream above it gets REFUSED_STREAM, which its
 * client may try again elsewhere (RFC 9113 section 5.1.2); nghttp2 would end
 * the whole session once the SETTINGS are acknowledged. So nghttp2 is told of
 * no limit, the number in our SETTINGS frame is written when the frame is made,
 * and hear.c holds the peer to it.
 */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "h2/h2.h"

#define ENTRY 6 /* bytes of one of SETTINGS */
#define RESETS                                                                 \
	10000 /* a second, at once: flood.c counts them, nghttp2 less          \
	       */

/**
 * say_limit() - Write the number of streams into our SETTINGS
 * @h:		Session, a server's: they are the first frame in h->out
 */
static void say_limit(struct h2 *h)
{
	uint8_t *at = h->out + H2_HEAD;
	const uint8_t *end = at + (h->out[1] << 8 | h->out[2]);

	for (; at + ENTRY <= end; at += ENTRY) {
		if (at[1] != NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
			continue;
		at[2] = (uint8_t)(h->max_streams >> 24);
		at[3] = (uint8_t)(h->max_streams >> 16);
		at[4] = (uint8_t)(h->max_streams >> 8);
		at[5] = (uint8_t)h->max_streams;
	}
}

/**
 * greet() - Send our SETTINGS
 * @h:		Session
 *
 * Returns: false if out of memory
 */
static bool greet(struct h2 *h)
{
	const nghttp2_settings_entry server[] = {
	    {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, INT32_MAX},
	    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, H2_WINDOW},
	    {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, H2_FRAME_MOST},
	    {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, H2_LIST_MOST},
	};
	const nghttp2_settings_entry client[] = {
	    {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
	    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, H2_WINDOW},
	    {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, H2_FRAME_MOST},
	    {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, H2_LIST_OURS},
	};
	const nghttp2_settings_entry *ours = h->server ? server : client;
	size_t n = sizeof(server) / sizeof(*server);

	_Static_assert(sizeof(server) == sizeof(client), "as many of both");
	if (nghttp2_submit_settings(h->session, NGHTTP2_FLAG_NONE, ours, n) ||
	    nghttp2_session_set_local_window_size(h->session, NGHTTP2_FLAG_NONE,
						  0, H2_WINDOW_ALL) ||
	    !h2_produce(h))
		return false;
	if (h->server)
		say_limit(h);
	return true;
}

/**
 * make_session() - Have nghttp2 make a session
 * @h:		Session
 *
 * Returns: 0, or an error
 */
static int make_session(struct h2 *h)
{
	nghttp2_session_callbacks *calls = NULL;
	nghttp2_option *options = NULL;
	int ret = -1;

	if (!nghttp2_option_new(&options) &&
	    !nghttp2_session_callbacks_new(&calls)) {
		nghttp2_option_set_no_auto_window_update(options, 1);
		nghttp2_option_set_no_closed_streams(options, 1);
		nghttp2_option_set_stream_reset_rate_limit(options, RESETS,
							   RESETS);
		send_setup(calls);
		hear_setup(calls);
		ret = h->server ? nghttp2_session_server_new2(&h->session,
							      calls, h, options)
				: nghttp2_session_client_new2(
				      &h->session, calls, h, options);
	}
	nghttp2_session_callbacks_del(calls);
	nghttp2_option_del(options);
	return ret;
}

/**
 * h2_new() - Make a session; what it says first is in h->out
 * @ops:	What its owner is told
 * @owner:	For them
 * @server:	The peer is the client
 * @max_streams: Server: streams at a time
 *
 * Returns: it; NULL if out of memory
 */
struct h2 *h2_new(const struct h2_ops *ops, void *owner, bool server,
		  uint32_t max_streams)
{
	struct h2 *h = malloc(sizeof(*h));

	if (!h)
		return NULL;
	memset(h, 0, offsetof(struct h2, out));
	h->ops = ops;
	h->owner = owner;
	h->server = server;
	h->max_streams = max_streams;
	h->next = 1;
	h->need = H2_HEAD;
	if (server) { /* the client's preface, as if a header was before it */
		h->have = H2_HEAD;
		h->left = H2_PREFACE;
	}
	if (make_session(h) || !greet(h)) {
		h2_free(h);
		return NULL;
	}
	return h;
}

/**
 * h2_free() - Free a session; its streams are told nothing
 * @h:		Session
 */
void h2_free(struct h2 *h)
{
	if (h->session)
		nghttp2_session_del(h->session);
	fields_clear(&h->fields);
	free(h);
}

/**
 * h2_most() - How many streams may we open?
 * @h:		Session, a client's
 * @most:	As far as we care
 *
 * Returns: so many at a time; 0: none any more
 */
uint32_t h2_most(const struct h2 *h, uint32_t most)
{
	uint32_t peer = nghttp2_session_get_remote_settings(
	    h->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);

	if (h->quits || !nghttp2_session_check_request_allowed(h->session))
		return 0;
	if (!h->settled)
		return most;
	return peer < most ? peer : most;
}
