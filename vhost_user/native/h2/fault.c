// SPDX-License-Identifier: Apache-2.0
/*
 * fault.c - frames of the peer that are one stream's fault
 *
 * Theory of operation
 * ===================
 *
 * For some frames nghttp2 ends the whole session where RFC 9113 ends one
 * stream, and it ignores a stream's number that goes back. So each frame is
 * looked at here before nghttp2 sees it:
 *
 *	section	frame			     error
 *	5.1	DATA, HEADERS behind the end STREAM_CLOSED
 *	8.1	DATA before the response     PROTOCOL_ERROR
 *	6.9	WINDOW_UPDATE of 0	     PROTOCOL_ERROR
 *	6.3	PRIORITY not of 5 bytes	     FRAME_SIZE_ERROR
 *	5.3.2	PRIORITY of 5 bytes	     none, it is ignored
 *	5.1.1	HEADERS of a skipped stream  PROTOCOL_ERROR, the session's
 *
 * The stream is reset, and nghttp2 takes a frame of it as one of a closed
 * stream: bytes count for the session's window, and field blocks are decoded
 * (5.4.2). One that means nothing any more becomes of a type that nobody knows.
 * Where RST_STREAM has no room yet, nghttp2 ends the session, which RFC 9113
 * lets it (5.4.1).
 *
 * A number that was used is no fault: we may have reset that stream while
 * trailers were under way. So the numbers are kept that the client skipped, of
 * the last H2_GAPS times that it did. HEADERS of what was skipped before are
 * ignored.
 */

#include "h2/h2.h"

#define PRIORITY_LEN 5
#define WINDOW_LEN   4

/**
 * goes_back() - Are HEADERS of a stream that the client skipped?
 * @h:		Session
 * @id:		Stream's number
 *
 * Returns: true if they are
 */
static bool goes_back(struct h2 *h, uint32_t id)
{
	uint32_t n = h->n_gaps < H2_GAPS ? h->n_gaps : H2_GAPS;

	if (!h->server || !(id & 1))
		return false;
	if (id >= h->next) {
		if (id > h->next)
			h->gaps[h->n_gaps++ % H2_GAPS] =
			    (struct h2_gap){.from = h->next, .to = id - 2};
		h->next = id + 2;
		return false;
	}
	for (uint32_t i = 0; i < n; i++) {
		if (id >= h->gaps[i].from && id <= h->gaps[i].to)
			return true;
	}
	return false;
}

/**
 * error_of() - What does a frame do wrong on a stream?
 * @h:		Session, with what is looked at
 * @s:		Stream
 *
 * Returns: enum nghttp2_error_code; NGHTTP2_NO_ERROR: nothing, or nghttp2 knows
 */
static uint32_t error_of(const struct h2 *h, const struct h2_stream *s)
{
	const uint8_t *by = h->head + H2_HEAD;
	bool none = !((by[0] & 0x7f) | by[1] | by[2] | by[3]);

	switch (h->head[H2_HEAD_TYPE]) {
	case NGHTTP2_DATA:
		if (!s->heard)
			return NGHTTP2_PROTOCOL_ERROR;
		return s->over ? NGHTTP2_STREAM_CLOSED : NGHTTP2_NO_ERROR;
	case NGHTTP2_HEADERS:
		return s->over ? NGHTTP2_STREAM_CLOSED : NGHTTP2_NO_ERROR;
	case NGHTTP2_PRIORITY:
		return NGHTTP2_FRAME_SIZE_ERROR;
	case NGHTTP2_WINDOW_UPDATE:
		if (h->left == WINDOW_LEN && none)
			return NGHTTP2_PROTOCOL_ERROR;
		return NGHTTP2_NO_ERROR;
	default:
		return NGHTTP2_NO_ERROR;
	}
}

/**
 * fault_look() - Look at a frame before nghttp2 does
 * @h:		Session, with what is looked at, and h->left its length
 * @id:		Stream's number
 */
void fault_look(struct h2 *h, int32_t id)
{
	uint8_t type = h->head[H2_HEAD_TYPE];
	struct h2_stream *s;
	uint32_t error;

	if (type == NGHTTP2_HEADERS && goes_back(h, (uint32_t)id)) {
		h2_goaway(h, NGHTTP2_PROTOCOL_ERROR);
		return;
	}
	if (type == NGHTTP2_PRIORITY && id && h->left == PRIORITY_LEN) {
		h->head[H2_HEAD_TYPE] = H2_UNKNOWN;
		return;
	}
	s = nghttp2_session_get_stream_user_data(h->session, id);
	error = s ? error_of(h, s) : NGHTTP2_NO_ERROR;
	if (error == NGHTTP2_NO_ERROR)
		return;
	s->bad = true;
	h2_reset(h, s, error);
	h2_produce(h); /* the stream is no more, if there was room */
	if (type == NGHTTP2_PRIORITY || type == NGHTTP2_WINDOW_UPDATE)
		h->head[H2_HEAD_TYPE] = H2_UNKNOWN;
}
