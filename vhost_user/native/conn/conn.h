/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conn.h - a connection: two sides, and two pipes between them
 *
 * Each file knows only those above it:
 *
 * pending.h	what a connection has before it is established
 * side.h	what a kind of side can do
 * state.c	the one door through which a connection changes its state
 * table.c	where connections are: slabs, ids, the hash by addresses
 * conn.c	the life of a connection
 * pipe.c	one direction: bytes that wait, and how it ends
 * flow.c	turns, and when it is over
 *
 * The near side opened the connection, the far side was asked for; but where a
 * guest is asked (@asked), it is the near side all the same. Up is near to far,
 * down is far to near.
 */
#ifndef CONN_H
#define CONN_H

#include <sys/socket.h>

#include "base/credit.h"
#include "base/list.h"
#include "base/msgs.h"
#include "base/outbox.h"
#include "conn/core.h"
#include "conn/pending.h"
#include "conn/side.h"
#include "vu.h"

#define HOST_CID  2
#define STREAM	  1 /* VIRTIO_VSOCK_TYPE_ */
#define SEQPACKET 2

struct vu_conn;
struct vu_dev;
struct waiter;
struct shm;

/* ---- pipes ---- */

/**
 * enum pipe_state - How far a direction is
 * @PIPE_FLOWS:	Its source may send
 * @PIPE_ENDING: Its source has ended; bytes are kept that the sink waits for
 * @PIPE_ENDED:	The sink knows that it ended
 * @PIPE_BROKEN: The sink takes no more, and the source knows
 */
enum pipe_state { PIPE_FLOWS, PIPE_ENDING, PIPE_ENDED, PIPE_BROKEN };

#define PIPE_STATES (PIPE_BROKEN + 1)

/**
 * struct pipe - One direction of a connection
 * @kept:	Bytes that the sink had no room for; messages of SEQPACKET
 * @state:	enum pipe_state
 */
struct pipe {
	struct msgs kept;
	uint8_t state;
};

/* ---- connections ---- */

/**
 * enum conn_state - The life of a connection; state.c has the arrows
 * @CONN_FREE:	A slot without one
 * @CONN_NEW:	Just made
 * @CONN_HELD:	Requested; Python has to answer
 * @CONN_DIALING: The far side's connect() is under way
 * @CONN_REQUESTED: We asked the guest and await its answer
 * @CONN_OPEN:	Bytes flow
 * @CONN_ORPHAN: The guest has let go; bytes that it sent still go up
 * @CONN_LINGER: Both directions ended; the guest has yet to let go of the ports
 * @CONN_DEAD:	Over; the RST waits for an RX buffer, or a close for its turn
 */
enum conn_state {
	CONN_FREE,
	CONN_NEW,
	CONN_HELD,
	CONN_DIALING,
	CONN_REQUESTED,
	CONN_OPEN,
	CONN_ORPHAN,
	CONN_LINGER,
	CONN_DEAD,
};

#define CONN_STATES (CONN_DEAD + 1)

/* What the engine owes the guest about a connection, or'ed; sent as RX buffers
 * come, lowest bit first */
#define OWE_REQUEST  1U
#define OWE_RESPONSE 2U
#define OWE_RST	     4U
#define OWE_SHUTDOWN 8U
#define OWE_CREDIT   16U
#define OWE_ASK	     32U /* CREDIT_REQUEST: ours, or a sibling asks */

/**
 * struct vu_conn - A connection
 * @run:	On the list of those that have something to do, or its device's
 *		of those that wait for RX buffers or for a full listener
 * @owe_link:	On its device's list of conns with @owe
 * @timer:	On one of the lists of deadlines
 * @hash_next:	Next in the hash bucket, or on the free list
 * @core:	What all connections share
 * @dev:	Device whose guest is the near side; NULL: a socket is
 * @twin:	The same connection as a sibling sees it; see vsock/sibling.c
 * @outbox:	Where its events go
 * @client:	Who has yet to be taken, or NULL
 * @waiter:	Its dial waits for a socket, or NULL; see side/stock.c
 * @greeting:	What its far side has to hear first, or NULL; freed with it
 * @shm:	Its far side's memory, or NULL; see side/ring.c
 * @netns:	Namespace that its far side was dialled in; 0: our own
 * @since_us:	When its deadline began to run
 * @type:	STREAM or SEQPACKET
 * @target:	enum vu_target_kind of the far side
 * @error:	First errno that broke a pipe
 * @told:	VIRTIO_VSOCK_SHUTDOWN_ flags that the guest was sent
 * @guest_shut:	Same, that it sent
 * @rx_chains:	RX buffers to take for the next read
 * @want:	VU_WANT_ bits of the device or listener
 * @reason:	enum vu_reason
 * @closed:	It is over, with @error: its guest has closed it and all bytes
 *		are out, or its far side breaks the rules
 * @reported:	Its end was posted
 * @ranged:	It is counted among those of its port's range
 * @asked:	We asked the guest for it: its far side opened it
 * @enlarged:	Bytes that its far side may hold more than a socket usually
 *		does; in its device's enlarged_bytes
 * @asks:	Times that credit was due and didn't come
 * @asked_at:	credit.tx_cnt when it was asked for last, if @asks
 * @answer:	What its far side said, as struct vu_event has it
 * @held:	Bytes of it in its device's queued_bytes
 */
struct vu_conn {
	/* looked at with each packet */
	struct list run;
	struct vu_dev *dev;
	struct vu_conn *hash_next;
	struct vu_conn *twin;
	uint32_t peer_port;
	uint32_t port;
	uint32_t cid;
	uint8_t state;
	uint8_t type;
	uint8_t target;
	uint8_t owe;
	struct side far;
	struct credit credit;
	uint32_t held;
	struct pipe up;
	uint64_t up_bytes;
	uint64_t down_bytes;
	struct pipe down;
	struct list owe_link;
	struct side near;
	struct core *core;
	/* seldom */
	struct list timer;
	struct outbox_queue *outbox;
	struct client *client;
	union {
		struct waiter *waiter;
		struct shm *shm;
	};
	struct greeting *greeting;
	uint64_t start_us;
	uint64_t since_us;
	uint32_t netns;
	uint32_t index;
	uint32_t generation;
	uint32_t asked_at;
	uint32_t enlarged;
	uint32_t answer;
	uint16_t asks;
	uint16_t error;
	uint8_t guest_shut;
	uint8_t told;
	uint8_t rx_chains;
	uint8_t want;
	uint8_t reason;
	bool closed : 1;
	bool reported : 1;
	bool hashed : 1;
	bool ranged : 1;
	bool asked : 1;
};

/* state.c */
void conn_set(struct vu_conn *c, enum conn_state state);
bool conn_flows(const struct vu_conn *c);

/* table.c */
void core_init(struct core *core, uint32_t max_conns);
void core_free(struct core *core);
struct vu_conn *conn_new(struct core *core, struct outbox_queue *outbox);
void conn_free(struct vu_conn *c);
void conn_client_settled(struct vu_conn *c);
void conn_greeted(struct vu_conn *c);
uint64_t conn_id(const struct vu_conn *c);
void conn_rename(struct vu_conn *c);
struct vu_conn *conn_by_id(const struct core *core, uint64_t id);
struct vu_conn *conn_find(const struct core *core, const struct vu_dev *d,
			  uint32_t peer_port, uint64_t cid, uint32_t port);
int conn_hash(struct vu_conn *c);
void conn_unhash(struct vu_conn *c);

/* conn.c */
void conn_wake(struct vu_conn *c);
void conn_hurry(struct vu_conn *c);
void conn_post(struct vu_conn *c, enum vu_event_kind kind, int error);
void conn_opened(struct vu_conn *c);
void conn_names(struct vu_event *event, int fd);
void conn_abort(struct vu_conn *c, int error);
void conn_drop(struct vu_conn *c, int error);
void conn_finish(struct vu_conn *c);
void conn_misfit(struct vu_conn *c, int error);
void conn_forsake(struct vu_conn *c, int error);
void conn_reap(struct core *core, unsigned most);

/* pipe.c */
struct side *pipe_source(struct vu_conn *c, const struct pipe *p);
struct side *pipe_sink(struct vu_conn *c, const struct pipe *p);
struct pipe *pipe_from(struct vu_conn *c, const struct side *source);
struct pipe *pipe_to(struct vu_conn *c, const struct side *sink);
void pipe_put(struct vu_conn *c, struct pipe *p, const struct iovec *iov,
	      unsigned n_iov, size_t len, uint32_t flags);
void pipe_keep(struct vu_conn *c, struct pipe *p, const struct iovec *iov);
void pipe_end(struct vu_conn *c, struct pipe *p);
void pipe_break(struct vu_conn *c, struct pipe *p, int error);
void pipe_run(struct vu_conn *c, struct pipe *p);

/* flow.c */
void conn_run(struct vu_conn *c);

#endif /* CONN_H */
