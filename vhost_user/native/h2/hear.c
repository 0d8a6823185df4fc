// SPDX-License-Identifier: Apache-2.0
/*
 * hear.c - what nghttp2 tells of the peer's frames
 *
 * Theory of operation
 * ===================
 *
 * nghttp2 has checked each frame against RFC 9113 by then, and answers what
 * breaks it. Here it becomes what a tunnel has: a request, a status, bytes, an
 * end. nghttp2 works meanwhile, so that nothing is sent from here.
 *
 * Section 8.5 "The CONNECT Method": "frames other than DATA or stream
 * management frames (RST_STREAM, WINDOW_UPDATE, and PRIORITY) MUST NOT be sent
 * on a connected stream and MUST be treated as a stream error".
 */

#include "h2/h2.h"

/**
 * stream_of() - Find a stream
 * @h:		Session
 * @id:		Its number
 *
 * Returns: it; NULL if it is nobody's
 */
static struct h2_stream *stream_of(const struct h2 *h, int32_t id)
{
	return nghttp2_session_get_stream_user_data(h->session, id);
}

/**
 * refuse() - Answer a stream by RST_STREAM
 * @h:		Session
 * @id:		Its number
 * @error:	enum nghttp2_error_code
 */
static void refuse(struct h2 *h, int32_t id, uint32_t error)
{
	nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, id, error);
}

/**
 * on_begin() - A header block begins
 * @session:	nghttp2's
 * @frame:	Its first frame
 * @user:	Session
 *
 * Returns: 0
 */
static int on_begin(nghttp2_session *session, const nghttp2_frame *frame,
		    void *user)
{
	struct h2 *h = user;

	(void)session;
	(void)frame;
	fields_clear(&h->fields);
	return 0;
}

/**
 * on_header() - A field
 * @session:	nghttp2's
 * @frame:	Its frame
 * @name:	Its name
 * @name_len:	Length of that
 * @value:	Its value
 * @len:	Length of that
 * @flags:	Unused
 * @user:	Session
 *
 * Returns: 0
 */
static int on_header(nghttp2_session *session, const nghttp2_frame *frame,
		     const uint8_t *name, size_t name_len, const uint8_t *value,
		     size_t len, uint8_t flags, void *user)
{
	struct h2 *h = user;

	(void)session;
	(void)frame;
	(void)flags;
	fields_add(&h->fields, name, name_len, value, len);
	if (!h->server && h->fields.size > H2_LIST_OURS)
		h->fields.bad = true;
	return 0;
}

/**
 * on_bad_header() - A field that is none
 * @session:	nghttp2's
 * @frame:	Its frame
 * @name:	Its name
 * @name_len:	Length of that
 * @value:	Its value
 * @len:	Length of that
 * @flags:	Unused
 * @user:	Session
 *
 * Spec: RFC 9113 section 8.2.1: such a message is malformed.
 *
 * Returns: 0
 */
static int on_bad_header(nghttp2_session *session, const nghttp2_frame *frame,
			 const uint8_t *name, size_t name_len,
			 const uint8_t *value, size_t len, uint8_t flags,
			 void *user)
{
	struct h2 *h = user;

	(void)session;
	(void)frame;
	(void)name;
	(void)name_len;
	(void)value;
	(void)len;
	(void)flags;
	h->fields.bad = true;
	return 0;
}

/**
 * asked() - A request is whole
 * @h:		Session, a server's
 * @id:		Its stream
 */
static void asked(struct h2 *h, int32_t id)
{
	struct h2_stream *s;

	if (h->fields.bad) {
		refuse(h, id, NGHTTP2_PROTOCOL_ERROR);
		return;
	}
	s = h->streams < h->max_streams
		? h->ops->request(h->owner, id, &h->fields)
		: NULL;
	if (!s) {
		refuse(h, id, NGHTTP2_REFUSED_STREAM);
		return;
	}
	s->heard = true;
	h->streams++;
	nghttp2_session_set_stream_user_data(h->session, id, s);
}

/**
 * answered() - A response is whole
 * @h:		Session, a client's
 * @s:		Its stream
 */
static void answered(struct h2 *h, struct h2_stream *s)
{
	if (h->fields.bad || s->heard || !h->fields.status) {
		s->bad = true;
		refuse(h, s->id, NGHTTP2_PROTOCOL_ERROR);
	} else if (h->fields.status >= 200) {
		s->heard = true;
		h->ops->status(h->owner, s, &h->fields);
	}
}

/**
 * on_headers() - A header block is whole
 * @h:		Session
 * @frame:	Its frame
 */
static void on_headers(struct h2 *h, const nghttp2_frame *frame)
{
	int32_t id = frame->hd.stream_id;
	struct h2_stream *s = stream_of(h, id);

	if (s && !h->server) {
		answered(h, s);
	} else if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
		asked(h, id);
	} else if (s && !s->refused) { /* else a reset overtakes the answer */
		s->bad = true;
		refuse(h, id, NGHTTP2_PROTOCOL_ERROR);
	}
	fields_clear(&h->fields);
}

/**
 * on_control() - A frame of the whole session
 * @h:		Session
 * @frame:	Frame
 */
static void on_control(struct h2 *h, const nghttp2_frame *frame)
{
	bool ack = frame->hd.flags & NGHTTP2_FLAG_ACK;

	if (frame->hd.type == NGHTTP2_SETTINGS && !ack) {
		if (!h->settled)
			h->ops->settled(h->owner);
		h->settled = true;
		h->ops->room(h->owner, NULL); /* windows may be larger */
	} else if (frame->hd.type == NGHTTP2_PING && ack) {
		h->ops->pong(h->owner);
	} else if (frame->hd.type == NGHTTP2_GOAWAY) {
		h->quits = true;
		h->ops->goaway(h->owner);
	}
}

/**
 * on_frame() - A frame is whole
 * @session:	nghttp2's
 * @frame:	Frame
 * @user:	Session
 *
 * Returns: 0
 */
static int on_frame(nghttp2_session *session, const nghttp2_frame *frame,
		    void *user)
{
	struct h2 *h = user;
	uint8_t type = frame->hd.type;
	struct h2_stream *s;

	(void)session;
	if (type == NGHTTP2_HEADERS)
		on_headers(h, frame);
	s = frame->hd.stream_id ? stream_of(h, frame->hd.stream_id) : NULL;
	if ((type == NGHTTP2_HEADERS || type == NGHTTP2_DATA) && s &&
	    frame->hd.flags & NGHTTP2_FLAG_END_STREAM && !s->over && !s->bad) {
		s->over = true;
		if (h->passing)
			h->late_end = s;
		else
			h->ops->ended(h->owner, s);
	} else if (type == NGHTTP2_WINDOW_UPDATE &&
		   (s || !frame->hd.stream_id)) {
		h->ops->room(h->owner, s);
	} else if (!frame->hd.stream_id) {
		on_control(h, frame);
	}
	return 0;
}

/**
 * on_data() - Payload of a DATA frame
 * @session:	nghttp2's
 * @flags:	Unused
 * @id:		Stream
 * @data:	Bytes; of h2_pass(), none that mean anything
 * @len:	How many
 * @user:	Session
 *
 * Returns: 0
 */
static int on_data(nghttp2_session *session, uint8_t flags, int32_t id,
		   const uint8_t *data, size_t len, void *user)
{
	struct h2 *h = user;
	struct h2_stream *s = stream_of(h, id);

	(void)session;
	(void)flags;
	h->passed += len;
	if (h->direct)
		return 0;
	if (s)
		h->ops->data(h->owner, s, data, len);
	else
		h2_taken_all(h, len);
	return 0;
}

/**
 * on_close() - A stream is no more
 * @session:	nghttp2's
 * @id:		Stream
 * @error:	enum nghttp2_error_code
 * @user:	Session
 *
 * Returns: 0
 */
static int on_close(nghttp2_session *session, int32_t id, uint32_t error,
		    void *user)
{
	struct h2 *h = user;
	struct h2_stream *s = stream_of(h, id);

	if (!s)
		return 0;
	nghttp2_session_set_stream_user_data(session, id, NULL);
	if (h->direct == s)
		h->direct = NULL;
	h->streams--;
	s->id = 0;
	if (h->passing) {
		h->late_close = s;
		h->late_error = error;
	} else {
		h->ops->closed(h->owner, s, error);
	}
	return 0;
}

/**
 * on_unsent() - A frame of ours can't be sent
 * @session:	nghttp2's
 * @frame:	Frame
 * @error:	Why
 * @user:	Session
 *
 * Returns: 0
 */
static int on_unsent(nghttp2_session *session, const nghttp2_frame *frame,
		     int error, void *user)
{
	struct h2 *h = user;

	(void)error;
	if (frame->hd.type != NGHTTP2_HEADERS || h->server)
		return 0;
	nghttp2_session_set_stream_user_data(session, frame->hd.stream_id,
					     NULL);
	h->streams--;
	h->ops->unsent(h->owner, frame->hd.stream_id);
	return 0;
}

/**
 * hear_setup() - Have nghttp2 tell this file
 * @calls:	nghttp2's callbacks
 */
void hear_setup(nghttp2_session_callbacks *calls)
{
	nghttp2_session_callbacks_set_on_begin_headers_callback(calls,
								on_begin);
	nghttp2_session_callbacks_set_on_header_callback(calls, on_header);
	nghttp2_session_callbacks_set_on_invalid_header_callback(calls,
								 on_bad_header);
	nghttp2_session_callbacks_set_on_frame_recv_callback(calls, on_frame);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(calls,
								  on_data);
	nghttp2_session_callbacks_set_on_stream_close_callback(calls, on_close);
	nghttp2_session_callbacks_set_on_frame_not_send_callback(calls,
								 on_unsent);
}
