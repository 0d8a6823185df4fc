// SPDX-License-Identifier: Apache-2.0
/*
 * flood.c - what a peer may say a second
 *
 * Theory of operation
 * ===================
 *
 * A frame costs its sender less than it may cost us: a stream that is opened
 * and reset, a SETTINGS or PING that we answer, frames that carry nothing. So
 * each kind has a token bucket of a second's worth, far above what an honest
 * peer sends. Payload needs none: it is paced by windows. WINDOW_UPDATEs are
 * earned by the DATA that we send.
 *
 * A stream that the peer has us reset, by whatever fault, costs what one costs
 * that it resets itself: both take from one bucket ("MadeYouReset",
 * CVE-2025-8671). A DATA frame of nothing but padding carries nothing, either.
 *
 * Spec: RFC 9113, section 10.5 "Denial-of-Service Considerations".
 */

#include "h2/h2.h"

#define BLOCK_MOST   (2 * H2_LIST_MOST)	  /* bytes of a header block */
#define PARTS_MOST   (BLOCK_MOST / 16384) /* of it, in frames of any peer */
#define GOODBYE_MOST 16384 /* bytes of GOAWAY: nghttp2 keeps them */

/* A second */
static const uint32_t rates[FLOODS] = {
    [FLOOD_OPEN] = 10000,  [FLOOD_RESET] = 1000, [FLOOD_ACK] = 200,
    [FLOOD_WINDOW] = 2000, [FLOOD_EMPTY] = 1000,
};

/**
 * is_empty() - Has a DATA frame no payload?
 * @h:		Session, with the frame's header and length of its padding
 *
 * Returns: true if it has none
 */
static bool is_empty(const struct h2 *h)
{
	if (h->left && h->head[4] & NGHTTP2_FLAG_PADDED)
		return h->left <= 1U + h->head[H2_HEAD];
	return !h->left;
}

/**
 * kind_of() - What may a frame be a flood of?
 * @h:		Session, with the frame's header
 *
 * Returns: enum flood; -1: nothing
 */
static int kind_of(const struct h2 *h)
{
	switch (h->head[H2_HEAD_TYPE]) {
	case NGHTTP2_DATA:
		if (!is_empty(h) || h->head[4] & NGHTTP2_FLAG_END_STREAM)
			return -1;
		return FLOOD_EMPTY;
	case NGHTTP2_HEADERS:
		return FLOOD_OPEN;
	case NGHTTP2_RST_STREAM:
		return FLOOD_RESET;
	case NGHTTP2_SETTINGS:
	case NGHTTP2_PING:
		return FLOOD_ACK;
	case NGHTTP2_WINDOW_UPDATE:
		return FLOOD_WINDOW;
	default:
		return FLOOD_EMPTY;
	}
}

/**
 * is_endless() - Is a header block too long?
 * @h:		Session, with the header of a frame of it
 *
 * Returns: true if it is, in bytes or in frames
 */
static bool is_endless(struct h2 *h)
{
	if (h->head[H2_HEAD_TYPE] == NGHTTP2_HEADERS)
		h->block = h->parts = 0;
	else if (++h->parts > PARTS_MOST)
		return true;
	h->block += h->left;
	return h->block > BLOCK_MOST;
}

/**
 * flood_of() - Count a frame
 * @h:		Session, with the frame's header
 * @now_us:	What time it is
 *
 * Returns: true if it is one too many
 */
bool flood_of(struct h2 *h, uint64_t now_us)
{
	uint8_t type = h->head[H2_HEAD_TYPE];
	int kind = kind_of(h);

	if (h->left > H2_FRAME_MOST)
		return false; /* an error of another name */
	if ((type == NGHTTP2_HEADERS || type == NGHTTP2_CONTINUATION) &&
	    is_endless(h))
		return true;
	if (type == NGHTTP2_GOAWAY && h->left > GOODBYE_MOST)
		return true;
	for (; h->faults; h->faults--) {
		if (!bucket_take(&h->floods[FLOOD_RESET], rates[FLOOD_RESET],
				 now_us))
			return true;
	}
	if (kind < 0)
		return false;
	if (kind == FLOOD_WINDOW && h->earned) {
		h->earned--;
		return false;
	}
	return !bucket_take(&h->floods[kind], rates[kind], now_us);
}
