// SPDX-License-Identifier: Apache-2.0
/*
 * frames.c - bytes of the peer, by frames
 *
 * Theory of operation
 * ===================
 *
 * The owner reads a frame's header into h->head, with the first bytes of the
 * payload where those matter (needs()), then the rest. It goes to nghttp2,
 * which checks and counts it (h2_feed()), but for what fault.c knows better.
 * Only the payload of a DATA
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
	if (!h->left) {
		h->have = 0;
		h->need = H2_HEAD;
	}
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
 * id_of() - Which stream is a frame of?
 * @head:	Its header
 *
 * Returns: the stream's number, 0: all of them
 */
static int32_t id_of(const uint8_t *head)
{
	return (head[5] & 0x7f) << 24 | head[6] << 16 | head[7] << 8 | head[8];
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

	if (head[H2_HEAD_TYPE] != NGHTTP2_DATA ||
	    head[4] & NGHTTP2_FLAG_PADDED || !length_of(head) || !id_of(head))
		return NULL;
	return nghttp2_session_get_stream_user_data(h->session, id_of(head));
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
	return find(h) == s && s->heard && !s->over;
}

/**
 * needs() - How much of a frame has to be there before it is looked at?
 * @h:		Session, with the frame's header
 *
 * Returns: bytes: the length of a DATA frame's padding, and the increment of a
 * WINDOW_UPDATE, are the first of the payload
 */
static uint32_t needs(const struct h2 *h)
{
	const uint8_t *head = h->head;

	if (head[H2_HEAD_TYPE] == NGHTTP2_DATA &&
	    head[4] & NGHTTP2_FLAG_PADDED && h->left)
		return H2_HEAD + 1;
	if (head[H2_HEAD_TYPE] == NGHTTP2_WINDOW_UPDATE && h->left == 4)
		return H2_HEAD + 4;
	return H2_HEAD;
}

/**
 * h2_head() - So many bytes of a frame as were needed are in h->head
 * @h:		Session
 * @now_us:	What time it is
 *
 * Returns: enum h2_in; H2_GOES with h->have < h->need: more are needed
 */
enum h2_in h2_head(struct h2 *h, uint64_t now_us)
{
	enum h2_in in;

	h->left = length_of(h->head);
	h->need = needs(h);
	if (h->have < h->need)
		return H2_GOES;
	if (flood_of(h, now_us)) {
		h2_goaway(h, NGHTTP2_ENHANCE_YOUR_CALM);
		return H2_FLOOD;
	}
	h->direct = NULL;
	fault_look(h, id_of(h->head));
	h->left += H2_HEAD;
	in = h2_feed(h, h->head, h->have);
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
