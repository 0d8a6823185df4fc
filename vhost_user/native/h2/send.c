// SPDX-License-Identifier: Apache-2.0
/*
 * send.c - frames to the peer
 *
 * Theory of operation
 * ===================
 *
 * nghttp2 decides which frames go out, and when windows let them. Their bytes
 * are put into h->out, behind each other, so that one TLS record takes several.
 * A long payload makes a record of its own: it is sealed from where its source
 * has it (h2_send()), and a short one is copied into h->out. nghttp2 sees its
 * length only (NGHTTP2_DATA_FLAG_NO_COPY).
 *
 * A stream has DATA for as long as h2_send() runs: then its provider defers.
 *
 * Should the memory that payload is read from be taken away meanwhile, the
 * frame is there already, and nghttp2 has counted it. It goes out as one of a
 * type that nobody knows, which a peer discards (RFC 9113, section 4.1). The
 * window has lost its bytes; the stream is reset soon.
 */

#include <string.h>

#include "base/iov.h"
#include "h2/h2.h"

/**
 * provide() - Say how many bytes a stream has
 * @session:	nghttp2's
 * @id:		Stream
 * @buf:	Unused: send_data() has them
 * @most:	Bytes that the windows let
 * @flags:	NGHTTP2_DATA_FLAG_ bits
 * @source:	Stream
 * @user:	Session
 *
 * Returns: bytes; NGHTTP2_ERR_DEFERRED: none now
 */
static ssize_t provide(nghttp2_session *session, int32_t id, uint8_t *buf,
		       size_t most, uint32_t *flags,
		       nghttp2_data_source *source, void *user)
{
	const struct h2 *h = user;
	const struct h2_stream *s = source->ptr;
	size_t n = s->len - s->off;

	(void)session;
	(void)id;
	(void)buf;
	if (!n && !s->ends)
		return NGHTTP2_ERR_DEFERRED;
	if (!n) {
		*flags |= NGHTTP2_DATA_FLAG_EOF;
		return 0;
	}
	if (h->to >= H2_OUT_FULL)
		return NGHTTP2_ERR_DEFERRED;
	*flags |= NGHTTP2_DATA_FLAG_NO_COPY;
	if (most > H2_DATA_MOST)
		most = H2_DATA_MOST;
	return (ssize_t)(n < most ? n : most);
}

/**
 * copy() - Put a DATA frame behind what waits
 * @h:		Session
 * @s:		Stream
 * @head:	Its header
 * @len:	Bytes of payload
 */
static void copy(struct h2 *h, struct h2_stream *s, const uint8_t *head,
		 size_t len)
{
	memcpy(h->out + h->to, head, H2_HEAD);
	iov_copy(s->iov, s->n_iov, s->off, h->out + h->to + H2_HEAD, len,
		 false);
	if (h->ops->lost(h->owner, s))
		h->out[h->to + H2_HEAD_TYPE] = H2_UNKNOWN;
	h->to += H2_HEAD + len;
}

/**
 * send_data() - Send a DATA frame
 * @session:	nghttp2's
 * @frame:	Frame
 * @head:	Its header
 * @len:	Bytes of payload
 * @source:	Stream
 * @user:	Session
 *
 * Returns: 0
 */
static int send_data(nghttp2_session *session, nghttp2_frame *frame,
		     const uint8_t *head, size_t len,
		     nghttp2_data_source *source, void *user)
{
	struct h2_stream *s = source->ptr;
	struct h2 *h = user;

	(void)session;
	(void)frame;
	if (len < H2_SEALS || !h->ops->seal(h->owner, s, head, len))
		copy(h, s, head, len);
	s->off += len;
	if (h->earned < UINT16_MAX)
		h->earned += 2; /* one of the stream, one of the session */
	return 0;
}

/**
 * is_fault() - Does RST_STREAM say that the peer did wrong?
 * @error:	Its code, enum nghttp2_error_code
 *
 * Returns: true if it does
 */
static bool is_fault(uint32_t error)
{
	return error == NGHTTP2_PROTOCOL_ERROR ||
	       error == NGHTTP2_FLOW_CONTROL_ERROR ||
	       error == NGHTTP2_STREAM_CLOSED ||
	       error == NGHTTP2_FRAME_SIZE_ERROR;
}

/**
 * sent() - Note what went out
 * @session:	nghttp2's
 * @frame:	Frame
 * @user:	Session
 *
 * Returns: 0
 */
static int sent(nghttp2_session *session, const nghttp2_frame *frame,
		void *user)
{
	struct h2 *h = user;
	struct h2_stream *s;

	if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code)
		h->broken = true;
	if (frame->hd.type == NGHTTP2_RST_STREAM)
		h->faults += is_fault(frame->rst_stream.error_code);
	if ((frame->hd.type != NGHTTP2_DATA &&
	     frame->hd.type != NGHTTP2_HEADERS) ||
	    !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
		return 0;
	s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	if (s)
		s->ended = true;
	return 0;
}

/**
 * send_setup() - Have nghttp2 send by this file
 * @calls:	nghttp2's callbacks
 */
void send_setup(nghttp2_session_callbacks *calls)
{
	nghttp2_session_callbacks_set_send_data_callback(calls, send_data);
	nghttp2_session_callbacks_set_on_frame_send_callback(calls, sent);
}

/**
 * h2_produce() - Put what is to be sent into h->out, while there is room
 * @h:		Session
 *
 * Returns: false if out of memory
 */
bool h2_produce(struct h2 *h)
{
	if (h->from == h->to) {
		h->from = h->to = 0;
	} else if (h->to >= H2_OUT_FULL && h->from) {
		memmove(h->out, h->out + h->from, h->to - h->from);
		h->to -= h->from;
		h->from = 0;
	}
	while (h->to < H2_OUT_FULL) {
		const uint8_t *data;
		ssize_t n = nghttp2_session_mem_send(h->session, &data);

		if (n < 0 || (size_t)n > H2_OUT_SIZE - h->to)
			return false;
		if (!n)
			return true;
		memcpy(h->out + h->to, data, (size_t)n);
		h->to += (size_t)n;
	}
	return true;
}

/**
 * h2_busy() - Does so much wait to be sent that the peer isn't heard?
 * @h:		Session
 *
 * One that asks and doesn't read what is answered waits for itself.
 *
 * Returns: true if it does
 */
bool h2_busy(const struct h2 *h)
{
	return nghttp2_session_get_outbound_queue_size(h->session) >
	       H2_QUEUE_MOST;
}

/**
 * h2_over() - Has a session ended?
 * @h:		Session
 *
 * Returns: true if nothing more is said, on either side
 */
bool h2_over(const struct h2 *h)
{
	return h->from == h->to && !nghttp2_session_want_read(h->session) &&
	       !nghttp2_session_want_write(h->session);
}

/**
 * h2_send() - Send a stream's bytes, as far as windows and room go
 * @h:		Session
 * @s:		Stream
 * @iov:	Bytes
 * @n_iov:	Segments
 * @off:	Leading bytes to leave out
 * @len:	Bytes with those
 *
 * Returns: bytes that are sealed, or in h->out now
 */
size_t h2_send(struct h2 *h, struct h2_stream *s, const struct iovec *iov,
	       unsigned n_iov, size_t off, size_t len)
{
	size_t n;

	s->iov = iov;
	s->n_iov = n_iov;
	s->off = off;
	s->len = len;
	/* fails if its window is 0, or was: then it isn't deferred by us */
	nghttp2_session_resume_data(h->session, s->id);
	h2_produce(h);
	n = s->off - off;
	s->iov = NULL;
	s->off = s->len = 0;
	return n;
}

/**
 * h2_request() - Open a stream
 * @h:		Session, a client's
 * @s:		Stream, zeroed
 * @nv:		Its headers
 * @n:		How many
 *
 * Returns: 0; -1 if it can't be: out of memory or of numbers
 */
int h2_request(struct h2 *h, struct h2_stream *s, const nghttp2_nv *nv,
	       size_t n)
{
	nghttp2_data_provider provider = {
	    .source.ptr = s,
	    .read_callback = provide,
	};
	int32_t id =
	    nghttp2_submit_request(h->session, NULL, nv, n, &provider, s);

	if (id < 0)
		return -1;
	s->id = id;
	h->streams++;
	return 0;
}

/**
 * h2_respond() - Answer a request
 * @h:		Session, a server's
 * @s:		Stream
 * @nv:		Headers
 * @n:		How many
 * @goes_on:	DATA follows; else it is over
 */
void h2_respond(struct h2 *h, struct h2_stream *s, const nghttp2_nv *nv,
		size_t n, bool goes_on)
{
	nghttp2_data_provider provider = {
	    .source.ptr = s,
	    .read_callback = provide,
	};

	if (!goes_on)
		s->ends = s->refused = true;
	nghttp2_submit_response(h->session, s->id, nv, n,
				goes_on ? &provider : NULL);
}

/**
 * h2_end() - Send END_STREAM behind what was sent
 * @h:		Session
 * @s:		Stream
 */
void h2_end(struct h2 *h, struct h2_stream *s)
{
	s->ends = true;
	if (s->id)
		nghttp2_session_resume_data(h->session, s->id);
}

/**
 * h2_reset() - End a stream in both directions
 * @h:		Session
 * @s:		Stream
 * @error:	enum nghttp2_error_code
 */
void h2_reset(struct h2 *h, struct h2_stream *s, uint32_t error)
{
	if (s->id)
		nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, s->id,
					  error);
}

/**
 * h2_taken() - A stream's sink took bytes: the peer may send as many more
 * @h:		Session
 * @s:		Stream
 * @n:		How many
 */
void h2_taken(struct h2 *h, struct h2_stream *s, size_t n)
{
	if (s->id)
		nghttp2_session_consume_stream(h->session, s->id, n);
}

/**
 * h2_taken_all() - The same for the session's window
 * @h:		Session
 * @n:		Bytes
 */
void h2_taken_all(struct h2 *h, size_t n)
{
	nghttp2_session_consume_connection(h->session, n);
}

/**
 * h2_ping() - Ask whether the peer is there
 * @h:		Session
 */
void h2_ping(struct h2 *h)
{
	nghttp2_submit_ping(h->session, NGHTTP2_FLAG_NONE, NULL);
}

/**
 * h2_notice() - Tell the peer to open no more streams, soon
 * @h:		Session, a server's
 *
 * Spec: RFC 9113 section 6.8: "GOAWAY frame with the last stream identifier
 * set to 2^31-1 and a NO_ERROR code". The PING's ACK says when it was read.
 */
void h2_notice(struct h2 *h)
{
	nghttp2_submit_shutdown_notice(h->session);
	h2_ping(h);
}

/**
 * h2_goaway() - Take no more streams
 * @h:		Session
 * @error:	enum nghttp2_error_code; NO_ERROR: those that there are go on,
 *		else all of it ends
 */
void h2_goaway(struct h2 *h, uint32_t error)
{
	h->quits = true;
	if (error) {
		nghttp2_session_terminate_session(h->session, error);
		return;
	}
	nghttp2_submit_goaway(
	    h->session, NGHTTP2_FLAG_NONE,
	    nghttp2_session_get_last_proc_stream_id(h->session), error, NULL,
	    0);
}
