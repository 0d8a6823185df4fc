/* SPDX-License-Identifier: Apache-2.0 */
/*
 * h2.h - HTTP/2 sessions whose streams are tunnels (CONNECT), by nghttp2
 *
 * Each file knows only those above it:
 *
 * why.c	why a far side can't be reached, as a word of the answer
 * fields.c	what a request or a response says
 * flood.c	what a peer may say a second
 * send.c	frames to the peer
 * fault.c	frames of the peer that are one stream's fault
 * hear.c	what nghttp2 tells of the peer's frames
 * frames.c	bytes of the peer, by frames
 * session.c	one session
 *
 * No sockets and no TLS: bytes in by frames.c, out by h2->out.
 */
#ifndef H2_H
#define H2_H

#include <stdbool.h>
#include <stdint.h>

#include <sys/uio.h>

#include <nghttp2/nghttp2.h>

#include "base/quota.h"

#define H2_HEAD	      9	    /* bytes of a frame's header */
#define H2_HEAD_TYPE  3	    /* where its type is */
#define H2_UNKNOWN    0xfb  /* a type that no peer knows: it has no meaning */
#define H2_PREFACE    24    /* of a client's first words */
#define H2_DATA_MOST  16375 /* of a DATA frame of ours: a whole TLS record */
#define H2_SEALS      4096  /* bytes of one that isn't put with others */
#define H2_OUT_FULL   65536 /* bytes that wait; then sources do */
#define H2_OUT_SIZE   (H2_OUT_FULL + 3 * (H2_HEAD + 16384))
#define H2_WINDOW     (4 << 20)	 /* of a stream */
#define H2_WINDOW_ALL (16 << 20) /* of a session */
#define H2_FRAME_MOST (1 << 20)	 /* that we take */
#define H2_LIST_OURS  16384	 /* header list: of a client */
#define H2_LIST_MOST  65536	 /* of a server */
#define H2_QUEUE_MOST 256	 /* frames of ours that wait to be sent */
#define H2_LOOK	      13 /* bytes of a frame that are looked at, at most */
#define H2_GAPS	      8	 /* of streams that a client skipped */

/**
 * struct h2_fields - What a request or a response says
 * @status:	":status", 0: none
 * @size:	Of all, as RFC 9113 section 6.5.2 counts it
 * @method:	":method"
 * @authority:	":authority"
 * @baggage:	"baggage"
 * @forwarded:	"forwarded"
 * @traceparent: "traceparent"
 * @network:	"x-forwarded-network"
 * @error:	errno that "proxy-status" says, 0: none
 * @bad:	No HTTP, or more than we take
 */
struct h2_fields {
	int status;
	size_t size;
	char *method;
	char *authority;
	char *baggage;
	char *forwarded;
	char *traceparent;
	char *network;
	int error;
	bool bad;
};

/**
 * struct h2_stream - A stream
 * @id:		Its number; 0: none, or no more
 * @iov:	What is sent now
 * @n_iov:	Its segments
 * @off:	Bytes of it that were
 * @len:	Of so many
 * @ends:	END_STREAM comes behind what is sent
 * @ended:	It was sent
 * @heard:	Final headers of the peer have come
 * @over:	The peer's END_STREAM has
 * @bad:	What it said was no HTTP: it is reset
 * @refused:	Server: its answer is the end of it
 */
struct h2_stream {
	int32_t id;
	const struct iovec *iov;
	unsigned n_iov;
	size_t off;
	size_t len;
	bool ends;
	bool ended;
	bool heard;
	bool over;
	bool bad;
	bool refused;
};

/**
 * struct h2_gap - Streams that a client skipped
 * @from:	The first
 * @to:		The last
 */
struct h2_gap {
	uint32_t from;
	uint32_t to;
};

struct h2;

/**
 * struct h2_ops - What a session tells its owner
 *
 * None may call h2_send(), h2_produce(), h2_feed(), h2_pass() or h2_free():
 * nghttp2 is at work.
 *
 * @request:	Server: a stream was opened. Returns it, with its number; NULL:
 *		it is refused. The owner may take texts out of @f
 * @unsent:	Client: a request wasn't sent: its stream never was
 * @status:	Client: a stream's final status, and what comes with it
 * @data:	Bytes that didn't go by h2_pass()
 * @ended:	A stream's END_STREAM
 * @closed:	A stream is no more; enum nghttp2_error_code
 * @seal:	A DATA frame's header, and how many of the stream's next bytes
 *		are its payload. True: they are on their way; else they are put
 *		into h2->out
 * @lost:	Bytes of a stream were copied. True: they may be anything
 * @room:	The peer takes more: of a stream, NULL: of all
 * @settled:	The peer's first SETTINGS
 * @pong:	A PING was answered
 * @goaway:	The peer takes no new streams
 */
struct h2_ops {
	struct h2_stream *(*request)(void *owner, int32_t id,
				     struct h2_fields *f);
	void (*unsent)(void *owner, int32_t id);
	void (*status)(void *owner, struct h2_stream *s,
		       const struct h2_fields *f);
	void (*data)(void *owner, struct h2_stream *s, const uint8_t *data,
		     size_t len);
	void (*ended)(void *owner, struct h2_stream *s);
	void (*closed)(void *owner, struct h2_stream *s, uint32_t error);
	bool (*seal)(void *owner, struct h2_stream *s, const uint8_t *head,
		     size_t len);
	bool (*lost)(void *owner, struct h2_stream *s);
	void (*room)(void *owner, struct h2_stream *s);
	void (*settled)(void *owner);
	void (*pong)(void *owner);
	void (*goaway)(void *owner);
};

/**
 * enum flood - What a peer says that costs us and not it
 */
enum flood { FLOOD_OPEN, FLOOD_RESET, FLOOD_ACK, FLOOD_WINDOW, FLOOD_EMPTY };

#define FLOODS (FLOOD_EMPTY + 1)

/**
 * struct h2 - A session
 * @session:	nghttp2's
 * @ops:	What its owner is told
 * @owner:	For them
 * @server:	The peer is the client
 * @max_streams: Server: streams at a time
 * @streams:	That there are
 * @earned:	WINDOW_UPDATEs that the peer may send for our DATA
 * @floods:	What else it may say
 * @faults:	Streams that its faults ended, which are yet to be counted
 * @next:	Server: the lowest stream that the client may open
 * @gaps:	Server: streams below that it didn't, the last of them
 * @n_gaps:	How often it skipped some
 * @fields:	Header block that comes in
 * @head:	Header of the frame that comes in, and what else is looked at
 * @have:	Bytes of it
 * @need:	Of so many
 * @left:	Bytes of its payload that have yet to come
 * @block:	Bytes of the header block's frames so far
 * @parts:	CONTINUATIONs of it
 * @direct:	Its payload goes by h2_pass() to this stream
 * @passed:	Bytes that nghttp2 took of the last h2_pass()
 * @passing:	It is at that: what comes of it is told by h2_passed()
 * @late_end:	Stream that ended meanwhile, or NULL
 * @late_close:	Stream that was closed meanwhile, or NULL
 * @late_error:	Why
 * @settled:	The peer's SETTINGS have come
 * @broken:	It broke HTTP/2, and was told so
 * @quits:	It opens, or takes, no more streams
 * @from:	First byte of @out that has yet to be sent
 * @to:		Behind the last
 * @out:	Bytes for the peer
 */
struct h2 {
	nghttp2_session *session;
	const struct h2_ops *ops;
	void *owner;
	bool server;
	bool settled;
	bool quits;
	bool broken;
	uint32_t max_streams;
	uint32_t streams;
	uint32_t earned;
	struct bucket floods[FLOODS];
	uint32_t faults;
	uint32_t next;
	struct h2_gap gaps[H2_GAPS];
	uint32_t n_gaps;
	struct h2_fields fields;
	uint8_t head[H2_LOOK];
	uint32_t have;
	uint32_t need;
	uint32_t left;
	uint32_t block;
	uint32_t parts;
	struct h2_stream *direct;
	size_t passed;
	bool passing;
	struct h2_stream *late_end;
	struct h2_stream *late_close;
	uint32_t late_error;
	size_t from;
	size_t to;
	uint8_t out[H2_OUT_SIZE];
};

/* why.c */
const char *why_text(int error);
int why_errno(const uint8_t *value, size_t len);

/* fields.c */
void fields_add(struct h2_fields *f, const uint8_t *name, size_t name_len,
		const uint8_t *value, size_t len);
bool fields_connect(const struct h2_fields *f);
size_t fields_header(nghttp2_nv *nv, size_t n, const char *name,
		     const char *value);
void fields_clear(struct h2_fields *f);

/* flood.c */
bool flood_of(struct h2 *h, uint64_t now_us);

/* send.c */
void send_setup(nghttp2_session_callbacks *calls);
size_t h2_send(struct h2 *h, struct h2_stream *s, const struct iovec *iov,
	       unsigned n_iov, size_t off, size_t len);
bool h2_produce(struct h2 *h);
bool h2_busy(const struct h2 *h);
bool h2_over(const struct h2 *h);
int h2_request(struct h2 *h, struct h2_stream *s, const nghttp2_nv *nv,
	       size_t n);
void h2_respond(struct h2 *h, struct h2_stream *s, const nghttp2_nv *nv,
		size_t n, bool goes_on);
void h2_end(struct h2 *h, struct h2_stream *s);
void h2_reset(struct h2 *h, struct h2_stream *s, uint32_t error);
void h2_taken(struct h2 *h, struct h2_stream *s, size_t n);
void h2_taken_all(struct h2 *h, size_t n);
void h2_ping(struct h2 *h);
void h2_notice(struct h2 *h);
void h2_goaway(struct h2 *h, uint32_t error);

/* fault.c */
void fault_look(struct h2 *h, int32_t id);

/* hear.c */
void hear_setup(nghttp2_session_callbacks *calls);

/**
 * enum h2_in - What a peer's bytes were
 * @H2_GOES:	Good
 * @H2_BAD:	No HTTP/2, and there is nobody to tell; or out of memory
 * @H2_FLOOD:	Too much: the peer is told, and h2_over() once that is sent
 */
enum h2_in { H2_GOES, H2_BAD, H2_FLOOD };

/* frames.c */
enum h2_in h2_head(struct h2 *h, uint64_t now_us);
enum h2_in h2_feed(struct h2 *h, const uint8_t *data, size_t len);
bool h2_goes_on(const struct h2 *h, const struct h2_stream *s);
enum h2_in h2_pass(struct h2 *h, size_t len);
bool h2_tells(const struct h2 *h);
void h2_passed(struct h2 *h);

/* session.c */
struct h2 *h2_new(const struct h2_ops *ops, void *owner, bool server,
		  uint32_t max_streams);
void h2_free(struct h2 *h);
uint32_t h2_most(const struct h2 *h, uint32_t most);

#endif /* H2_H */
