/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hbone.h - sides that are streams of tunnels: HTTP/2 CONNECT over mutual TLS
 *
 * Each file knows only those above it:
 *
 * answer.c	answers of other networks; answer.h
 * group.c	what tunnels of one pool or listener have in common; headers
 * out.c	a tunnel's bytes to its peer
 * source.c	a stream, and its bytes from the peer
 * hbone.c	a stream as a side of a connection
 * loan.c	a CONNECT on offer to a guest
 * told.c	what a tunnel tells its streams
 * ask.c	CONNECTs of ours
 * in.c		a tunnel's bytes from its peer
 * due.c	what is due for a tunnel
 * wire.c	a tunnel's ciphertext, where a stream carries it; remote.h
 * tunnel.c	the life of a tunnel
 * remote.c	its TCP connection, if we make it
 * carrier.c	or a stream of another tunnel's, as which it is a side
 * turns.c	tunnels take turns
 * pool.c	tunnels that we make
 * saying.c	what a CONNECT says, as a key; decision.h
 * decision.c	where those go that say what one said before
 * gate.c	tunnels that others make
 */
#ifndef HBONE_H
#define HBONE_H

#include "base/ids.h"
#include "conn/conn.h"
#include "h2/h2.h"
#include "side/answer.h"
#include "side/listener.h"
#include "side/remote.h"
#include "side/stock.h"

#define PART_US	  10000000    /* a peer may end a stream that we have let go */
#define KEPT_MOST (64U << 20) /* of a tunnel; then all its streams wait */

struct group;
struct stream;

/**
 * struct vu_headers - Headers of requests or responses
 * @refs:	Who uses them
 * @authority:	Each as in struct vu_headers_config, or NULL
 */
struct vu_headers {
	unsigned refs;
	char *authority;
	char *baggage;
	char *before;
	char *after;
	char *network;
};

/**
 * struct hbone - What all tunnels of an engine share
 * @core:	What all connections share
 * @shaker:	Handshakes
 * @buffers:	Of all sessions
 * @tls:	Certificates by id
 * @headers:	Headers by id
 * @answers:	Of peers on other networks
 * @pools:	Pools by id
 * @tunnels:	Tunnels by id
 * @busy:	Tunnels that have something to do
 * @flushes:	Tunnels that have something to send
 * @timers:	Tunnels by what is due next
 * @random:	For traceparent
 * @shake_tag:	What epoll reports a handshake as
 * @tunnel_tag:	And a tunnel, with its id in front
 */
struct hbone {
	struct core *core;
	struct shaker shaker;
	struct tls_buffers buffers;
	struct ids tls;
	struct ids headers;
	struct answers answers;
	struct ids pools;
	struct ids tunnels;
	struct list busy;
	struct list flushes;
	struct list timers;
	uint64_t random;
	uint64_t shake_tag;
	uint64_t tunnel_tag;
};

/**
 * struct group_ops - What a pool or a gate is told of its tunnels
 * @request:	A CONNECT; NULL: refuse it
 * @spare:	A tunnel is there, or has room for one more stream
 * @refused:	A stream was refused: try another tunnel. False: it can't
 * @ended:	A tunnel is no more, or never was
 * @unused:	Nobody uses the group any more: free it
 */
struct group_ops {
	struct h2_stream *(*request)(struct tunnel *t, int32_t id,
				     struct h2_fields *f);
	void (*spare)(struct group *g, struct tunnel *t);
	bool (*refused)(struct group *g, struct stream *s);
	void (*ended)(struct group *g, struct tunnel *t);
	void (*unused)(struct group *g);
};

/**
 * struct group - What tunnels of one pool or listener have in common
 * @ops:	What it is told
 * @hbone:	What all tunnels share
 * @refs:	Its owner, each tunnel, and each stream that waits
 * @outbox:	Where their events go
 * @tls:	Certificates of the next one
 * @names:	Whom their peers have to be
 * @all:	Tunnels
 * @server:	The peers are clients
 * @gone:	Its owner is gone: no more tunnels
 * @want:	Server: VU_WANT_ bits
 * @max_streams: Streams of a tunnel
 * @max_tunnels: Tunnels
 * @idle_us:	Without streams, one ends after so long; 0: never
 * @connect_us:	TCP, TLS and HTTP/2 have to be there by then
 * @ping_us:	A PING each so often
 * @silence_us:	One that isn't answered for so long ends it
 * @stats:	Counters
 * @peer:	Who was the last that failed, or NULL
 */
struct group {
	const struct group_ops *ops;
	struct hbone *hbone;
	unsigned refs;
	struct outbox_queue *outbox;
	struct vu_tls *tls;
	struct tls_names *names;
	struct list all;
	bool server;
	bool gone;
	uint32_t want;
	uint32_t max_streams;
	uint32_t max_tunnels;
	uint64_t idle_us;
	uint64_t connect_us;
	uint64_t ping_us;
	uint64_t silence_us;
	struct vu_hbone_stats stats;
	char *peer;
};

/**
 * enum tunnel_state - How far a tunnel is
 * @TUNNEL_DIALS: TCP's connect() is under way, or what else carries it
 * @TUNNEL_SHAKES: TLS's handshake
 * @TUNNEL_OPEN: Streams may be opened
 * @TUNNEL_DRAINS: No more of them: the last one ends it
 * @TUNNEL_DOOMED: It is over: the next turn frees it
 */
enum tunnel_state {
	TUNNEL_DIALS,
	TUNNEL_SHAKES,
	TUNNEL_OPEN,
	TUNNEL_DRAINS,
	TUNNEL_DOOMED,
};

/**
 * struct tunnel_name - An address of a tunnel's socket
 * @len:	Bytes used of @addr; 0: none
 * @addr:	A sockaddr_in or sockaddr_in6
 */
struct tunnel_name {
	uint16_t len;
	uint8_t addr[28];
};

/**
 * struct tunnel - TCP, or a stream, TLS and HTTP/2 to a peer
 * @group:	Whose it is
 * @link:	In that
 * @busy:	On the list of those that have something to do
 * @flush:	Same, to send
 * @timer:	Same, by @due_us
 * @waiter:	It waits for a socket of another network namespace, or dials
 * @remote:	Where it goes, of a pool
 * @carrier:	What carries it, if TCP doesn't
 * @src:	Its client's address, of a gate
 * @dst:	Where that connected to
 * @streams:	Its streams
 * @blocked:	Of them, that wait until the peer's windows let more
 * @stuck:	Of them, that wait until the socket takes more
 * @closed:	Streams that were closed while a connection gave them bytes
 * @tls:	TLS, or NULL
 * @h2:		HTTP/2, or NULL
 * @id:		Its id
 * @fd:		Its socket; -1: none yet, or never
 * @state:	enum tunnel_state
 * @reason:	enum vu_reason, if doomed
 * @error:	errno, if doomed
 * @shaking:	Its TLS session is the other thread's
 * @edge:	epoll reported something meanwhile
 * @readable:	TLS may have bytes
 * @writable:	The socket may take bytes
 * @fills:	It was full once: epoll reports when it is writable again
 * @mute:	It takes nothing any more: the peer is read to its end
 * @crowded:	Some of them are for a VM that has much to take
 * @giving:	A connection gives bytes: it may not end meanwhile
 * @was_open:	It was there
 * @counted:	Its pool counts on it no more as one that comes
 * @parted:	Streams of it that nobody has any more
 * @kept:	Bytes of the peer that sinks have yet to take
 * @owed:	Of those that it sent, bytes that it has yet to hear of
 * @start_us:	Since when it is made
 * @idle_us:	Since when it has no streams
 * @ping_us:	When a PING is due
 * @asked_us:	When one was sent that isn't answered; 0: none
 * @cut_us:	When it ends, whatever it has; 0: never
 * @due_us:	When it has to be looked at
 */
struct tunnel {
	struct group *group;
	struct list link;
	struct list busy;
	struct list flush;
	struct list timer;
	struct waiter waiter;
	const struct remote *remote;
	struct carrier carrier;
	struct tunnel_name src;
	struct tunnel_name dst;
	struct list streams;
	struct list blocked;
	struct list stuck;
	struct list closed;
	struct tls *tls;
	struct h2 *h2;
	uint32_t id;
	int fd;
	uint8_t state;
	uint8_t reason;
	int error;
	bool shaking;
	bool edge;
	bool readable;
	bool writable;
	bool fills;
	bool mute;
	bool crowded;
	bool giving;
	bool was_open;
	bool counted;
	uint32_t parted;
	uint64_t kept;
	uint64_t owed;
	uint64_t start_us;
	uint64_t idle_us;
	uint64_t ping_us;
	uint64_t asked_us;
	uint64_t cut_us;
	uint64_t due_us;
};

/**
 * struct stream - A stream, or a connection that waits for one
 * @h2:		As HTTP/2 has it
 * @link:	In its tunnel, or in what it waits at
 * @blocked:	On its tunnel's list of those that wait
 * @c:		Connection; NULL: it has let go
 * @tunnel:	Its tunnel; NULL: it waits for one
 * @group:	Whose it is
 * @headers:	Of the request, or of the response; or NULL
 * @request:	Server: what the CONNECT said
 * @tries:	Tunnels that refused it
 * @status:	Server: what it was answered; 0: nothing yet
 * @closed:	It is no more, which its connection has yet to hear
 * @error:	Why, enum nghttp2_error_code
 * @kept:	Bytes of the peer that its sink has yet to take
 * @preface:	Before those, bytes that are ours
 * @parted_us:	Since when it has no connection
 */
struct stream {
	struct h2_stream h2;
	struct list link;
	struct list blocked;
	struct vu_conn *c;
	struct tunnel *tunnel;
	struct group *group;
	struct vu_headers *headers;
	struct h2_fields request;
	uint8_t tries;
	uint16_t status;
	bool closed;
	uint32_t error;
	uint32_t kept;
	uint32_t preface;
	uint64_t parted_us;
};

/* group.c */
int hbone_new(struct core *core, uint64_t shake_tag, uint64_t tunnel_tag);
int headers_new(const struct vu_headers_config *cfg, struct vu_headers **ret);
void headers_unref(struct vu_headers *h);
void group_ref(struct group *g);
void group_unref(struct group *g);
void group_free(struct group *g);
void group_tls(struct group *g, struct vu_tls *tls);
int reason_errno(enum vu_reason reason, int error);

/* out.c */
void tunnel_busy(struct tunnel *t);
void tunnel_doom(struct tunnel *t, enum vu_reason reason, int error);
int tunnel_watch(struct tunnel *t, int op, bool room);
void tunnel_later(struct tunnel *t);
void tunnel_unblock(struct list *waiting);
bool tunnel_lost(void *owner, struct h2_stream *h);
bool tunnel_seal(void *owner, struct h2_stream *h, const uint8_t *head,
		 size_t len);
bool tunnel_send(struct tunnel *t, bool all);

/* source.c */
struct stream *stream_new(struct group *g, struct tunnel *t, struct vu_conn *c);
void stream_free(struct stream *s);
struct side *stream_side(const struct stream *s);
struct vu_conn *stream_part(struct stream *s);
void stream_settle(struct tunnel *t);
void stream_taken(struct vu_conn *c, struct side *side, size_t n);
void stream_run(struct vu_conn *c, struct side *side);
void stream_keep(struct stream *s, const uint8_t *data, size_t len);
void stream_put(struct stream *s, const struct iovec *iov, unsigned n_iov,
		size_t len);
void stream_drop(struct stream *s);
bool stream_room(const struct stream *s, size_t most, struct room *ret);
ssize_t stream_pull(struct stream *s, const struct room *room);

/* hbone.c */
extern const struct side_ops hbone_side;
void stream_join(struct stream *s, struct vu_conn *c);
void stream_refuse(struct stream *s, int status);

/* loan.c */
bool stream_lent(const struct vu_conn *c);
bool stream_lend(struct vu_conn *from, struct vu_conn *to);
bool stream_ask(struct vu_conn *c);
int stream_preface(struct stream *s, const void *data, uint32_t len);

/* told.c */
void stream_ended(struct stream *s);
void stream_closed(struct stream *s, uint32_t error);
void stream_lost(struct stream *s, enum vu_reason reason, int error);
void stream_status(struct stream *s, const struct h2_fields *f);
void stream_hear(struct tunnel *t);
void stream_reap(struct tunnel *t, uint64_t now_us);

/* ask.c */
unsigned stream_port(const struct vu_conn *c);
int stream_request(struct tunnel *t, struct stream *s);

/* in.c */
extern const struct h2_ops tunnel_hears;
void tunnel_read(struct tunnel *t);

/* due.c */
void tunnel_schedule(struct tunnel *t);
int hbone_timers(struct hbone *hb);

/* tunnel.c */
void tunnel_tell(const struct tunnel *t);
struct tunnel *tunnel_new(struct group *g);
int tunnel_socket(struct tunnel *t, int fd, bool dials);
void tunnel_shake(struct tunnel *t);
void tunnel_event(struct tunnel *t, uint32_t events);
void tunnel_drain(struct tunnel *t, uint64_t deadline_us);
void tunnel_end(struct tunnel *t);
void hbone_shaken(struct hbone *hb);

/* turns.c */
void hbone_run(struct hbone *hb);
void hbone_flush(struct hbone *hb);
bool hbone_busy(const struct hbone *hb);
void hbone_free(struct hbone *hb);

/* pool.c */
struct vu_pool;
#define POOL_ID (1U << 30) /* in their ids; not in devices' and listeners' */
int pool_new(struct hbone *hb, const struct vu_pool_config *cfg);
struct group *pool_group(struct vu_pool *p);
void pool_close(struct vu_pool *p);
void pool_reach(struct vu_conn *c, const struct vu_target *target);

/* gate.c */
int gate_open(struct vu_listener *l, struct hbone *hb,
	      const struct vu_hbone_config *cfg);
void gate_close(struct vu_listener *l);
struct group *gate_group(const struct vu_listener *l);
struct decisions *gate_decisions(const struct group *g);
void gate_forget(struct vu_listener *l);

#endif /* HBONE_H */
