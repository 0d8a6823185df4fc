// SPDX-License-Identifier: Apache-2.0
/*
 * frames.c - bytes of the peer, by frames
 *
 * Theory of operation
 * ===================
 *
 * The owner reads a frame's header into h->head, then its payload. It goes to
 * nghttp2, which checks and counts it (h2_feed()). Only the payload of a DATA
 * frame without padding, of a stream of ours, can be read straight into the
 * sink's buffers: nghttp2 is told of the header, and of as many bytes as there
 * were (h2_pass()). It looks at their number only. What it didn't take, because
 * the stream has ended or a window is overrun, is not delivered. If the frame
 * ends the stream, that is told behind the bytes (h2_passed()).
 */

#include "h2/h2.h"

static const uint8_t nothing[H2_DATA_MOST];

/**
 * h2_feed() - Have nghttp2 take bytes
 * @h:		Session
 * @data:	Bytes of one frame
 * @len:	How many
 *
 * Returns: enum h2_in
 */
enum h2_in h2_feed(struct h2 *h, const uint8_t *data, size_t len)
{
	ssize_t n;

	if (len > h->left)
		return H2_BAD;
	h->left -= (uint32_t)len;
	if (!h->left)
		h->have = 0;
	n = nghttp2_session_mem_recv(h->session, data, len);
	return n == (ssize_t)len ? H2_GOES : H2_BAD;
}

/**
 * length_of() - How long is a frame's payload?
 * @head:	Its header
 *
 * Returns: bytes
 */
static uint32_t length_of(const uint8_t *head)
{
	return (uint32_t)head[0] << 16 | (uint32_t)head[1] << 8 | head[2];
}

/**
 * find() - To which stream may a frame's payload go directly?
 * @h:		Session, with the frame's header
 *
 * Returns: it, or NULL
 */
static struct h2_stream *find(const struct h2 *h)
{
	const uint8_t *head = h->head;
	uint32_t id = (uint32_t)head[5] << 24 | (uint32_t)head[6] << 16 |
		      (uint32_t)head[7] << 8 | head[8];

	if (head[3] != NGHTTP2_DATA || head[4] & NGHTTP2_FLAG_PADDED ||
	    !length_of(head) || id > INT32_MAX || !id)
		return NULL;
	return nghttp2_session_get_stream_user_data(h->session, (int32_t)id);
}

/**
 * h2_goes_on() - Is the frame that begins more payload of a stream?
 * @h:		Session, with the frame's header
 * @s:		Stream
 *
 * Returns: true if it is nothing but that
 */
bool h2_goes_on(const struct h2 *h, const struct h2_stream *s)
{
	return find(h) == s;
}

/**
 * h2_head() - A frame's header is in h->head
 * @h:		Session
 * @now_us:	What time it is
 *
 * Returns: enum h2_in
 */
enum h2_in h2_head(struct h2 *h, uint64_t now_us)
{
	enum h2_in in;

	h->left = length_of(h->head);
	if (flood_of(h, now_us)) {
		h2_goaway(h, NGHTTP2_ENHANCE_YOUR_CALM);
		return H2_FLOOD;
	}
	h->direct = NULL;
	h->left += H2_HEAD;
	in = h2_feed(h, h->head, H2_HEAD);
	if (in == H2_GOES)
		h->direct = find(h);
	return in;
}

/**
 * h2_pass() - Payload of the frame was read straight into the sink's buffers
 * @h:		Session with h->direct, which may be NULL afterwards
 * @len:	How many bytes
 *
 * h->passed is how many may be delivered: all of them, or none.
 *
 * Returns: enum h2_in
 */
enum h2_in h2_pass(struct h2 *h, size_t len)
{
	size_t all = len;

	h->passed = 0;
	h->passing = true;
	while (len) {
		size_t n = len < sizeof(nothing) ? len : sizeof(nothing);
		enum h2_in in = h2_feed(h, nothing, n);

		if (in != H2_GOES) {
			h->passing = false;
			h->passed = 0;
			return in;
		}
		len -= n;
	}
	h->passing = false;
	if (h->passed < all)
		h->passed = 0;
	return H2_GOES;
}

/**
 * h2_tells() - Has h2_passed() an end to tell of?
 * @h:		Session
 *
 * Returns: true if it has: payload has to be delivered before
 */
bool h2_tells(const struct h2 *h)
{
	return h->late_end || h->late_close;
}

/**
 * h2_passed() - What h2_pass() let through is delivered
 * @h:		Session
 */
void h2_passed(struct h2 *h)
{
	struct h2_stream *end = h->late_end, *closed = h->late_close;

	h->late_end = h->late_close = NULL;
	if (end)
		h->ops->ended(h->owner, end);
	if (closed)
		h->ops->closed(h->owner, closed, h->late_error);
}
