/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.h - what the files of the engine share; vu.h is the outside
 *
 * engine.c	the thread: waiting, polling, and a lock
 * conn.c	the connection table, dialling, the end of a connection
 * post.c	what Python is told of it
 * way.c	its sockets, and the bytes that they have no room for
 * vsock.c	connections whose near end is a guest, with rx.c and tx.c
 * seqpacket.c	those of them that keep message boundaries
 * event.c	what a driver is told that outlived its connections
 * sibling.c	connections between two guests
 * relay.c	connections whose near end is a socket
 * limits.c	what one VM may take
 *
 * A connection has a near end, which opened it, and a far end. Up is near to
 * far, down is far to near.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <pthread.h>
#include <sys/socket.h>

#include "vu.h"

#define HOST_CID       2
#define QUEUE_RX       0
#define QUEUE_TX       1
#define QUEUE_EVENT    2
#define QUEUES	       3
#define BATCH_IOV      1024 /* IOV_MAX */
#define BATCH_CHAINS   256
#define SCRATCH	       (256 * 1024) /* one turn of a relay, bytes */
#define RST_QUEUE      256
#define SEQ_WINDOW_MAX (16U << 20) /* bytes of a message */
#define HOLD_US	       2000	   /* see held_long() */

#ifndef container_of
#define container_of(ptr, type, member)                                        \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))
#endif

/* ---- doubly linked lists; an unlinked node points to itself ---- */

struct list {
	struct list *next;
	struct list *prev;
};

static inline void list_init(struct list *node)
{
	node->next = node->prev = node;
}

static inline bool list_empty(const struct list *node)
{
	return node->next == node;
}

static inline void list_del(struct list *node)
{
	node->next->prev = node->prev;
	node->prev->next = node->next;
	list_init(node);
}

/* Append @node to @head; a node that is on a list already stays there */
static inline void list_add(struct list *head, struct list *node)
{
	if (!list_empty(node))
		return;
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

/* Move all nodes of @from to the end of @to */
static inline void list_splice(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	list_init(from);
}

/* ---- connections ---- */

/**
 * enum conn_state - The life of a connection
 * @CONN_FREE:	A slot without one
 * @CONN_HELD:	Requested; Python has to answer
 * @CONN_DIALING: The far end's connect() is under way
 * @CONN_REQUESTED: We asked the guest (vu_conn_open) and await its answer
 * @CONN_OPEN:	Bytes flow
 * @CONN_LINGER: Both directions ended; the guest has yet to let go of the ports
 * @CONN_DEAD:	Reset by us; the RST waits for an RX buffer
 */
enum conn_state {
	CONN_FREE,
	CONN_HELD,
	CONN_DIALING,
	CONN_REQUESTED,
	CONN_OPEN,
	CONN_LINGER,
	CONN_DEAD,
};

/* What the engine owes the guest about a connection, or'ed; sent as RX buffers
 * come, lowest bit first */
#define OWE_REQUEST  1U
#define OWE_RESPONSE 2U
#define OWE_RST	     4U
#define OWE_SHUTDOWN 8U
#define OWE_CREDIT   16U
#define OWE_ASK	     32U /* CREDIT_REQUEST: ours, or a sibling asks */

/**
 * struct end - One end of a connection that is a socket
 * @fd:		Socket, or -1
 * @readable:	read() may have bytes; cleared when it had none
 * @writable:	write() may take bytes; cleared when it took none
 * @fills:	It was full once: epoll reports when it is writable again
 * @hup:	A FIN or error is waiting behind the bytes
 */
struct end {
	int fd;
	bool readable;
	bool writable;
	bool fills;
	bool hup;
};

/**
 * struct way - One direction of a connection
 * @data:	Bytes that the other side had no room for
 * @off:	First of them in @data
 * @len:	How many
 * @cap:	Size of @data
 * @tail:	SEQPACKET: where the last message's mark is, from @off; @data
 *		holds a mark before each message, see seqpacket.c
 * @eof:	The source ended
 * @shut:	The sink knows
 * @broken:	The sink is gone: bytes are read and dropped
 */
struct way {
	char *data;
	uint32_t off;
	uint32_t len;
	uint32_t cap;
	uint32_t tail;
	bool eof;
	bool shut;
	bool broken;
};

/**
 * struct vu_conn - A connection
 * @run:	On the engine's run list, or its device's starved list
 * @owe_link:	On its device's list of conns with @owe
 * @timer:	On one of the engine's timeout lists
 * @hash_next:	Next in the hash bucket, or on the free list
 * @dev:	Near end is this guest; NULL: near end is @near
 * @twin:	The same connection as a sibling sees it: its guest is our far
 *		end; see sibling.c
 * @type:	VIRTIO_VSOCK_TYPE_; 0 without @dev
 * @target:	enum vu_target_kind of the far end
 * @guest_shut:	VIRTIO_VSOCK_SHUTDOWN_ flags that the guest sent
 * @rx_chains:	RX buffers to take for the next read
 * @want:	VU_WANT_ bits of the device or listener
 * @hybrid:	Write "OK <port>\n" to the far end when the guest accepts
 * @offered:	Until the guest accepts, another descriptor of the far end is
 *		its client's hope
 * @orphan:	The guest is gone; queued bytes still go up
 * @alone_us:	Orphan, or CONN_LINGER: since when
 * @reported:	Its end was posted
 * @rx_cnt:	Bytes received from the guest
 * @fwd_cnt:	Of them, bytes that left us
 * @fwd_sent:	@fwd_cnt as the guest last saw it
 * @buf_alloc:	Receive window that we offer the guest
 * @held:	Bytes of it in its device's queued_bytes
 * @tx_cnt:	Bytes sent to the guest
 * @peer_buf_alloc: Its receive window
 * @peer_fwd_cnt: Its @fwd_cnt
 * @asked_at:	@tx_cnt when it was asked for credit, if @asked
 * @edge:	Sibling: how far @rx_cnt may go, as the guest was told
 * @cid:	CID on our side: HOST_CID, or a sibling's
 * @enlarged:	Its socket holds a window, and so much is in its device's
 *		enlarged_bytes
 * @shut_told:	Sibling: VIRTIO_VSOCK_SHUTDOWN_ flags that we sent the guest
 */
struct vu_conn {
	struct list run;
	struct list owe_link;
	struct list timer;
	struct vu_conn *hash_next;
	struct vu_dev *dev;
	struct vu_conn *twin;
	struct end near;
	struct end far;
	struct way up;
	struct way down;
	uint64_t up_bytes;
	uint64_t down_bytes;
	uint64_t start_us;
	uint64_t alone_us;
	uint32_t index;
	uint32_t generation;
	uint32_t source;
	uint32_t peer_port;
	uint32_t port;
	uint32_t rx_cnt;
	uint32_t fwd_cnt;
	uint32_t fwd_sent;
	uint32_t buf_alloc;
	uint32_t held;
	uint32_t tx_cnt;
	uint32_t peer_buf_alloc;
	uint32_t peer_fwd_cnt;
	uint32_t asked_at;
	uint32_t edge;
	uint32_t cid;
	uint8_t state;
	uint8_t type;
	uint8_t target;
	uint8_t owe;
	uint8_t guest_shut;
	uint8_t shut_told;
	uint8_t rx_chains;
	uint8_t want;
	bool hybrid;
	bool offered;
	bool orphan;
	bool asked;
	bool reported;
	bool hashed;
	bool enlarged;
};

/**
 * struct route - A port's target
 * @port:	Port
 * @target:	Its target
 */
struct route {
	struct route *next;
	uint32_t port;
	struct vu_target target;
};

#define ROUTE_BUCKETS 1024

/**
 * struct rst - A RST to a connection that isn't (any more) in the table
 */
struct rst {
	uint64_t src_cid;
	uint32_t src_port;
	uint32_t dst_port;
	uint16_t type;
};

/**
 * struct bucket - A token bucket; see limits.c
 * @tokens:	What it holds
 * @since_us:	When that was so
 */
struct bucket {
	uint64_t tokens;
	uint64_t since_us;
};

#define LIMITS (VU_LIMIT_BACKLOG + 1)

/**
 * struct vu_dev - A virtio-vsock device
 * @rings:	Rings that run, else NULL; a broken one is NULL too
 * @kick_fds:	What wakes us for each, -1 if nothing does
 * @siblings:	Ids of the devices whose guests it may reach, one bit each
 * @begun:	The ring did not begin at its start; see event.c
 * @reset_due:	The driver has to hear of TRANSPORT_RESET
 * @lost:	RSTs about the connections that were lost then
 * @features:	What the driver negotiated, as its rings were started with
 * @starved:	Connections with bytes for the guest, which has no RX buffer
 * @owing:	Connections with @owe
 * @retries:	Connections whose unix listener was full
 * @buckets:	Requests of the guest, and of host clients and siblings
 * @work:	What was done for the RX and TX ring in this turn; see
 *		VSOCK_TURN_WORK
 * @enlarged_bytes: Sum of the windows that sockets were enlarged for
 * @told_us:	When Python was last told of each limit
 * @rsts:	A ring buffer of RSTs, @rst_count from @rst_first
 */
struct vu_dev {
	struct vu_engine *engine;
	struct vu_dev_config cfg;
	const struct vu_mem *mem;
	struct vu_ring *rings[QUEUES];
	uint64_t siblings;
	uint64_t features;
	struct list starved;
	struct list owing;
	struct list retries;
	struct bucket buckets[2];
	uint64_t work[QUEUE_TX + 1];
	uint64_t enlarged_bytes;
	uint64_t told_us[LIMITS];
	struct vu_dev_stats stats;
	struct vu_target fallback;
	struct route *routes[ROUTE_BUCKETS];
	int kick_fds[QUEUES];
	uint32_t bases[QUEUES]; /* where a stopped ring goes on */
	uint32_t id;
	uint32_t next_port;
	uint64_t held_us[QUEUES]; /* since when entries are held back, or 0 */
	bool rx_urgent;		  /* a driver or program waits for some */
	bool faulted;		  /* a system call found no guest memory */
	bool call_blocks;	  /* an interrupt had to be given up */
	bool begun[QUEUES];
	bool reset_due;
	struct rst *lost;
	unsigned n_lost;
	unsigned lost_cap;
	unsigned rst_first;
	unsigned rst_count;
	struct rst rsts[RST_QUEUE];
};

/**
 * struct vu_listener - A listening socket
 */
struct vu_listener {
	struct vu_target target;
	uint32_t want;
	uint32_t id;
	int fd;
	bool paused; /* out of descriptors: looked at again on the retry tick */
};

#define MAX_LISTENERS 64
#define LISTENER_ID   0x10000U /* listener ids start here, device ids at 0 */
#define SOURCES	      (VU_MAX_DEVICES + MAX_LISTENERS)

/**
 * struct event_queue - What Python has not taken of one device or listener
 * @events:	Ring of events
 * @cap:	Its entries
 * @first:	The oldest
 * @count:	How many there are
 */
struct event_queue {
	struct vu_event *events;
	unsigned cap, first, count;
};

/**
 * struct poller - Adaptive polling; see engine.c
 */
struct poller {
	uint32_t max_us;
	uint32_t window_us;
	uint32_t skip;
	uint32_t penalty;
	uint32_t yield_skip;
	uint32_t yield_penalty;
};

struct vu_engine {
	pthread_mutex_t lock;
	pthread_cond_t resumed;
	unsigned waiting; /* control calls at the lock, atomic */
	bool blocked;	  /* in epoll_wait() without the lock */
	bool stopping;
	int epoll_fd;
	int wake_fd;
	struct vu_engine_config cfg;
	struct poller poller;
	struct vu_engine_stats stats;
	struct list run;
	struct list forsaken;  /* connections to close; their guests are gone */
	struct list dialing;   /* by age: all have the same timeout */
	struct list orphans;   /* same */
	struct list lingering; /* same */
	struct list thirsty;   /* connections without credit */
	uint64_t thirsty_us;   /* since when there is one */
	uint64_t retried_us;   /* when what waits for the host was last tried */
	struct vu_dev *devs[VU_MAX_DEVICES];
	unsigned n_devs; /* highest id + 1 */
	struct vu_listener *listeners[MAX_LISTENERS];

	/* conn.c */
	struct vu_conn **slabs;
	unsigned n_slabs;
	struct vu_conn *free;
	struct vu_conn **buckets;
	uint32_t n_buckets;
	uint32_t n_hashed;
	uint64_t hash_seed;
	pthread_mutex_t event_lock;
	struct event_queue queues[SOURCES]; /* one a device, one a listener */
	unsigned event_count;		    /* in all of them */
	unsigned event_turn;		    /* the queue that is next */
	uint64_t event_since_us; /* the oldest's age, while none is signalled */
	bool event_signalled;	 /* event_fd is readable */
	bool event_urgent;
	int event_fd;

	/* One batch; nothing in it outlives a turn */
	struct iovec tx_iov[BATCH_IOV];	    /* payload from the guest */
	struct iovec rx_iov[BATCH_IOV];	    /* buffers of the guest */
	struct iovec rx_payload[BATCH_IOV]; /* the same behind the headers */
	struct vu_chain tx_chains[BATCH_CHAINS];
	struct vu_chain rx_chains[BATCH_CHAINS];
	char scratch[SCRATCH];
	char chargen[SCRATCH];
};

/* epoll tags of what isn't a connection: the lower half, a conn's index, is 0
 */
#define TAG_WAKE     (1ULL << 32)
#define TAG_KICK     (2ULL << 32) /* + device id << 40 */
#define TAG_LISTENER (3ULL << 32) /* + listener index << 40 */

uint64_t now_us(void);

/* engine.c */
void control_begin(struct vu_engine *e);
void control_end(struct vu_engine *e);

/* conn.c */
struct vu_conn *conn_new(struct vu_engine *e, uint32_t source);
void conn_close_far(struct vu_engine *e, struct vu_conn *c, bool abort);
void conn_free(struct vu_engine *e, struct vu_conn *c);
void conn_forsake(struct vu_engine *e, struct vu_conn *c);
void conn_reap(struct vu_engine *e);
struct vu_conn *conn_by_id(const struct vu_engine *e, uint64_t id);
struct vu_conn *conn_find(const struct vu_engine *e, const struct vu_dev *d,
			  uint32_t peer_port, uint64_t cid, uint32_t port);
int conn_hash(struct vu_engine *e, struct vu_conn *c);
void conn_unhash(struct vu_engine *e, struct vu_conn *c);
void conn_target(struct vu_engine *e, struct vu_conn *c,
		 const struct vu_target *target);
void conn_dial_settled(struct vu_engine *e, struct vu_conn *c);
void conn_opened(struct vu_engine *e, struct vu_conn *c);
void conn_excuse(const struct vu_conn *c, int error);
void conn_failed(struct vu_engine *e, struct vu_conn *c, int error);
void conn_abort(struct vu_engine *e, struct vu_conn *c, int error);
void conn_run(struct vu_engine *e, struct vu_conn *c);
void conn_retry(struct vu_engine *e, struct vu_conn *c);
const struct vu_target *route_find(const struct vu_dev *d, uint32_t port);
void conns_destroy(struct vu_engine *e);

/* post.c */
void conn_post(struct vu_engine *e, struct vu_conn *c, enum vu_event_kind kind,
	       int error);
int events_init(struct vu_engine *e);
void events_push(struct vu_engine *e, const struct vu_event *event,
		 bool urgent);
bool events_signal(struct vu_engine *e);
bool events_crowded(const struct vu_engine *e, uint32_t source, uint32_t conns);
void events_free(struct vu_engine *e);

/* way.c */
int end_watch(struct vu_engine *e, struct vu_conn *c, struct end *end, int op,
	      bool room);
int conn_watch(struct vu_engine *e, struct vu_conn *c, struct end *end);
void conn_full(struct vu_engine *e, struct vu_conn *c, struct end *end);
void conn_close_end(struct end *end, bool abort);
void conn_return_end(struct vu_engine *e, struct end *end);
bool way_append(struct way *way, const struct iovec *iov, unsigned n_iov,
		size_t skip);
int64_t way_drain(struct vu_engine *e, struct vu_conn *c, struct way *way,
		  struct end *sink);
void way_drop(struct way *way);
void iov_copy(const struct iovec *iov, unsigned n, size_t off, void *buf,
	      size_t len, bool to_iov);
void iov_move(const struct iovec *to, unsigned n_to, const struct iovec *from,
	      unsigned n_from, size_t off, size_t len);

struct virtio_vsock_hdr;

/* control.c */
void dev_drop_conns(struct vu_dev *d);

/* vsock.c, rx.c, tx.c */
size_t vsock_send(struct vu_conn *c, const struct iovec *iov, unsigned n_iov,
		  size_t len, uint32_t flags);
bool vsock_pending(const struct vu_dev *d);
void vsock_turn(struct vu_dev *d);
bool vsock_want_kicks(struct vu_dev *d);
void vsock_flush(struct vu_dev *d);
void vsock_show(struct vu_dev *d);
void vsock_show_ring(struct vu_dev *d, uint32_t queue);
bool vsock_holds(const struct vu_dev *d);
void vsock_owe(struct vu_conn *c, uint8_t owe);
void vsock_ask_credit(struct vu_engine *e);
void vsock_reset(struct vu_conn *c);
void vsock_stop_ring(struct vu_dev *d, uint32_t queue);
void vsock_run(struct vu_conn *c);
void vsock_broken(struct vu_dev *d, uint32_t queue, int err);
bool vsock_has_type(const struct vu_dev *d, uint16_t type);
uint32_t vsock_window(const struct vu_dev *d, uint16_t type);

/* event.c */
void event_lose(const struct vu_conn *c);
void event_forget(struct vu_dev *d);
void event_ring_started(struct vu_dev *d, uint32_t queue, uint32_t base);

/* seqpacket.c */
int seq_socket(struct vu_conn *c);

/* sibling.c */
struct vu_dev *sibling_find(const struct vu_dev *d, uint64_t cid);
void sibling_dial(struct vu_conn *c, struct vu_dev *to);
void sibling_part(struct vu_conn *c, int error);
bool sibling_packet(struct vu_conn *c, const struct virtio_vsock_hdr *hdr);
bool sibling_take(struct vu_conn *c, const struct virtio_vsock_hdr *hdr);
uint32_t sibling_window(struct vu_conn *c);
uint32_t sibling_shut(const struct vu_conn *c);
void sibling_run(struct vu_conn *c);

/* limits.c */
void limit_hit(struct vu_dev *d, enum vu_limit limit);
void limit_shortage(struct vu_dev *d, int error);
struct vu_conn *limit_conn(struct vu_dev *d, uint16_t type, bool to_guest);
void limit_used(struct vu_conn *c);
void limit_whole(struct vu_conn *c);
void limit_close(struct vu_conn *c);
bool limit_enlarge(struct vu_conn *c);
void limit_shrink(struct vu_conn *c, uint32_t most);
void limit_queued(struct vu_conn *c);

/* relay.c */
void relay_run(struct vu_engine *e, struct vu_conn *c);
void relay_accept(struct vu_engine *e, struct vu_listener *l);

#endif /* ENGINE_H */
