/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dev.h - a virtio-vsock device: the guest as a side of connections
 *
 * Each file knows only those above it:
 *
 * route.c	which far side a port has
 * limits.c	what one VM may take
 * dev.c	a device and its rings, from start to end
 * owe.c	packets to the guest that are no payload
 * rx.c		payload to the guest
 * guest.c	the guest as a side of its connections
 * door.c	listeners whose clients are a guest's
 * visit.c	CONNECTs that are a guest's; visit.h
 * sibling.c	another guest as a far side
 * reset.c	what a driver is told that outlived its connections
 * tx.c		packets from the guest
 * turn.c	turns of a device
 */
#ifndef DEV_H
#define DEV_H

#include <linux/virtio_vsock.h>

#include "base/callers.h"
#include "base/clock.h"
#include "base/quota.h"
#include "conn/conn.h"
#include "side/listener.h"

#define QUEUE_RX    0
#define QUEUE_TX    1
#define QUEUE_EVENT 2
#define QUEUES	    3
#define RST_QUEUE   256
#define HDR	    sizeof(struct virtio_vsock_hdr)
#define HOLD_US	    2000 /* see turn.c */
#define SHUT_BOTH   (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)
#define SEQ_FLAGS   ((uint32_t)(VIRTIO_VSOCK_SEQ_EOM | VIRTIO_VSOCK_SEQ_EOR))
#define LIMITS	    (VU_LIMIT_BACKLOG + 1)

#define SEQ_WINDOW_MAX (16U << 20) /* bytes of a message */
/*
 * What one turn of a device may do for each of its rings, and for its
 * connections, in units of about 50 ns. What a system call costs differs, so
 * time is looked at, too: another's is at most 200 us late.
 */
#define WORK_TURN   1536U
#define WORK_CHAIN  1U /* and one for so many descriptors: */
#define WORK_DESCS  8U
#define WORK_KIB    1U	 /* a KiB copied, by us or by a system call */
#define WORK_CALL   16U	 /* a system call that moves bytes */
#define WORK_BURST  8U	 /* to find a connection that is in no cache */
#define WORK_KEEP   12U	 /* to keep what isn't taken */
#define WORK_SOCKET 128U /* to make a socket or to close one */
#define WORK_RINGS  512U /* to make a connection's rings */
#define WORK_RUNS   4U	 /* to look what a connection has to do */
#define WORK_TX_US  90U	 /* for the calls of each kind of work */
#define WORK_RUN_US 60U
#define WORK_LOOK   16U /* between two looks at the clock */

/**
 * enum work - What a turn's work is counted for
 */
enum work { WORK_RX, WORK_TX, WORK_RUN };

#define WORKS (WORK_RUN + 1)

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

#define RANGE_BITS  16 /* of a port: which one of its range */
#define RANGE_PORTS (1U << RANGE_BITS)
#define RANGES	    (1U << (32 - RANGE_BITS))

/**
 * struct routes - Targets by port
 * @buckets:	Those that are no fallback, about one a bucket
 * @n_buckets:	How many there are
 * @n:		Routes
 * @fallback:	That of all other ports
 */
struct routes {
	struct route **buckets;
	unsigned n_buckets;
	unsigned n;
	struct vu_target fallback;
};

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
 * struct vu_dev - A virtio-vsock device
 * @active:	On the engine's list of those that a turn looks at
 * @core:	What all connections share
 * @idle:	Turns since it last had work
 * @rings:	Rings that run, else NULL; a broken one is NULL too
 * @kick_fds:	What wakes us for each, -1 if nothing does
 * @cid_next:	Next of those with the same hash of the CID, see sibling.c
 * @groups:	Numbers of the groups that it is in, ascending
 * @begun:	The ring did not begin at its start; see reset.c
 * @reset_due:	The driver has to hear of TRANSPORT_RESET
 * @lost:	RSTs about the connections that were lost then
 * @features:	What the driver negotiated, as its rings were started with
 * @starved:	Connections with bytes for the guest, which has no RX buffer
 * @waiting:	Connections that have something to do when the work of this
 *		turn is done
 * @owing:	Connections with @owe
 * @parting:	Those whose RST nobody waits for
 * @retries:	Connections whose unix listener was full
 * @retrying:	On the list of devices that have some
 * @buckets:	Requests of the guest, and of host clients and siblings
 * @work:	What was done in this turn
 * @doing:	What it is counted for at the moment, besides WORK_RX
 * @unlooked:	Calls that moved bytes, since the clock was looked at
 * @calls_us:	When that was, the first time for this kind of work
 * @enlarged_bytes: Bytes that far sides may hold: enlarged sockets, rings
 * @ranges:	By ranges of ports on our side: connections that Python or a
 *		listener chose the port of; NULL: there was none
 * @doors:	Listeners whose clients are its guest's
 * @decisions:	Decisions by which CONNECTs are
 * @told_us:	When Python was last told of each limit
 * @failure:	enum vu_err that ends the device's rings and connections: a
 *		system call found no guest memory, or an interrupt hung
 * @rsts:	A ring buffer of RST_QUEUE RSTs, made with the first ring:
 *		@rst_count from @rst_first
 * @rx_small:	In this turn all RX buffers had room for a header only
 * @unshown:	Turns in a row that showed nothing, see turn.c
 */
struct vu_dev {
	struct list active;
	struct core *core;
	const struct vu_mem *mem;
	struct vu_ring *rings[QUEUES];
	struct list starved;
	struct list waiting;
	struct list owing;
	struct list parting;
	uint64_t held_us[QUEUES]; /* since when entries are held back, or 0 */
	uint32_t work[WORKS];
	enum work doing;
	uint32_t unlooked;
	uint64_t calls_us;
	unsigned idle;
	unsigned unshown;
	unsigned n_lost;
	unsigned rst_first;
	unsigned rst_count;
	bool rx_small;
	bool rx_urgent; /* a driver or program waits for some */
	uint8_t failure;
	bool reset_due;
	struct vu_dev_config cfg;
	struct vu_dev_stats stats;
	uint64_t features;
	struct list retries;
	struct list retrying;
	struct outbox_queue *outbox;
	struct bucket buckets[2];
	uint64_t enlarged_bytes;
	uint32_t *ranges;
	struct list doors;
	struct list decisions;
	uint64_t told_us[LIMITS];
	struct vu_dev *cid_next;
	uint32_t *groups;
	unsigned n_groups;
	int kick_fds[QUEUES];
	uint32_t bases[QUEUES]; /* where a stopped ring goes on */
	uint32_t id;
	uint32_t next_port;
	bool begun[QUEUES];
	struct rst *lost;
	unsigned lost_cap;
	struct rst *rsts;
	struct routes routes;
};

/**
 * dev_failed() - Did the front-end take the guest's memory away, or hang us?
 * @d:		Device
 *
 * Returns: true if it did, until dev_end()
 */
static inline bool dev_failed(const struct vu_dev *d)
{
	return d->failure || (d->mem && vu_mem_faulted(d->mem));
}

/**
 * dev_spent() - Has a device had its turn's work?
 * @d:		Device
 * @work:	For what
 *
 * Returns: true if it has, until its next turn
 */
static inline bool dev_spent(const struct vu_dev *d, enum work work)
{
	return d->work[work] >= WORK_TURN;
}

/**
 * dev_popped() - Count a chain that was taken
 * @d:		Device
 * @work:	For what
 * @chain:	The chain
 */
static inline void dev_popped(struct vu_dev *d, enum work work,
			      const struct vu_chain *chain)
{
	uint32_t descs = (uint32_t)chain->n_read + chain->n_write;

	d->work[work] += WORK_CHAIN + descs / WORK_DESCS;
}

/**
 * dev_doing() - Say what is worked on from now
 * @d:		Device
 * @work:	WORK_TX or WORK_RUN
 */
static inline void dev_doing(struct vu_dev *d, enum work work)
{
	d->doing = work;
	d->unlooked = 0;
	d->calls_us = 0;
}

/**
 * dev_worked() - Count a call that moved bytes
 * @d:		Device
 * @work:	For what
 * @len:	Bytes
 */
static inline void dev_worked(struct vu_dev *d, enum work work, size_t len)
{
	uint32_t units = WORK_CALL + (uint32_t)(len / 1024) * WORK_KIB;
	uint64_t most = d->doing == WORK_TX ? WORK_TX_US : WORK_RUN_US, now;

	d->work[work] += units;
	d->unlooked += units;
	if (d->unlooked < WORK_LOOK)
		return;
	d->unlooked = 0;
	now = clock_us();
	if (!d->calls_us)
		d->calls_us = now;
	else if (now - d->calls_us >= most)
		d->work[d->doing] = WORK_TURN;
}

/**
 * dev_rx_room() - Is there an RX buffer?
 * @d:		Device
 *
 * Returns: true if there is
 */
static inline bool dev_rx_room(const struct vu_dev *d)
{
	return d->rings[QUEUE_RX] && vu_ring_pending(d->rings[QUEUE_RX]);
}

/**
 * dev_has_type() - May the guest have connections of a type?
 * @d:		Device
 * @type:	VIRTIO_VSOCK_TYPE_
 *
 * Spec: VIRTIO 1.2 section 5.10.3. Streams need no feature bit.
 *
 * Returns: true if it may
 */
static inline bool dev_has_type(const struct vu_dev *d, uint16_t type)
{
	return type == VIRTIO_VSOCK_TYPE_STREAM ||
	       (type == VIRTIO_VSOCK_TYPE_SEQPACKET &&
		d->features >> VIRTIO_VSOCK_F_SEQPACKET & 1);
}

/* dev.c */
struct vu_dev *dev_new(struct core *core, uint32_t id,
		       const struct vu_dev_config *cfg);
void dev_free(struct vu_dev *d);
int dev_start_ring(struct vu_dev *d, uint32_t queue,
		   const struct vu_ring_config *cfg, uint64_t tag);
void dev_stop_ring(struct vu_dev *d, uint32_t queue);
void dev_pause_ring(struct vu_dev *d, uint32_t queue);
void dev_broken(struct vu_dev *d, uint32_t queue, int err);
void dev_drop_conns(struct vu_dev *d);
void dev_end(struct vu_dev *d);
void dev_flush(struct vu_dev *d, uint32_t queue);

/* route.c */
const struct vu_target *route_find(const struct routes *r, uint32_t port);
int route_set(struct routes *r, uint32_t port, const struct vu_target *target);
bool route_clear(struct routes *r, uint32_t first, uint32_t last);
void route_free(struct routes *r);

/* limits.c */
void limit_hit(struct vu_dev *d, enum vu_limit limit);
void limit_shortage(struct vu_dev *d, int error);
struct vu_conn *limit_conn(struct vu_dev *d, uint16_t type, bool to_guest);
void limit_used(struct vu_conn *c);
void limit_whole(struct vu_conn *c);
void limit_close(struct vu_conn *c);
int limit_range(struct vu_conn *c);
uint32_t limit_enlarge(struct vu_conn *c);
uint32_t limit_ring(struct vu_conn *c, uint32_t want);
void limit_shrink(struct vu_conn *c, uint32_t most);
void limit_queued(struct vu_conn *c);
bool limit_crowded(struct vu_conn *c);
bool limit_full(struct vu_conn *c);

/* owe.c */
struct virtio_vsock_hdr owe_header(struct vu_conn *c, uint16_t op,
				   uint32_t flags, uint32_t len);
void owe(struct vu_conn *c, uint8_t bits);
void owe_reset(struct vu_conn *c);
void owe_refusal(struct vu_dev *d, const struct virtio_vsock_hdr *hdr);
bool owe_pop(struct vu_dev *d, unsigned at, struct vu_chain *ret_chain);
bool owe_control(struct vu_dev *d, struct virtio_vsock_hdr *hdr, bool urgent);
bool owe_send_rst(struct vu_dev *d, const struct rst *rst);
void owe_pay(struct vu_dev *d);
void owe_await_credit(struct vu_conn *c);
void owe_ask(struct core *core);

/* rx.c */
bool rx_room(struct vu_conn *c, size_t most, struct room *ret);
void rx_fill(struct vu_conn *c, const struct room *room, size_t len,
	     uint32_t flags);
ssize_t rx_give(struct vu_conn *c, struct side *s, const struct iovec *iov,
		unsigned n_iov, size_t len, uint32_t flags);
unsigned rx_payload(const struct iovec *iov, unsigned n, size_t max,
		    struct iovec *ret_iov, size_t *ret_len);

/* guest.c */
extern const struct side_ops guest_ops;
int64_t guest_open(struct vu_dev *d, uint32_t guest_port, uint32_t port, int fd,
		   const struct side_ops *client);
int64_t guest_adopt(struct vu_dev *d, uint32_t guest_port, uint32_t port,
		    struct vu_conn *from);
struct vu_conn *guest_conn(struct vu_dev *d, uint32_t guest_port,
			   uint32_t port);
void guest_ask(struct vu_conn *c);
void guest_shutdown(struct vu_conn *c, uint32_t flags);
void guest_gone(struct vu_conn *c);

/* door.c */
int door_open(struct vu_listener *l, struct vu_dev *d, int backlog,
	      uint32_t tag);
void door_backlog(struct vu_listener *l, int backlog);
int door_caller(struct vu_listener *l, const struct vu_caller *caller);
void door_forget(struct vu_listener *l);
void door_close(struct vu_listener *l);
void door_walled(struct vu_dev *d);

/* sibling.c */
struct vu_dev *sibling_find(const struct vu_dev *d, uint64_t cid);
int sibling_join(struct vu_dev *d, uint32_t group);
void sibling_forget(struct vu_dev *d);
void sibling_dial(struct vu_conn *c, struct vu_dev *to);
bool sibling_packet(struct vu_conn *c, const struct virtio_vsock_hdr *hdr);

/* reset.c */
void reset_lose(const struct vu_conn *c);
void reset_forget(struct vu_dev *d);
void reset_ring_started(struct vu_dev *d, uint32_t queue, uint32_t base);
bool reset_pending(const struct vu_dev *d);
bool reset_want_kicks(struct vu_dev *d);
void reset_turn(struct vu_dev *d);

/* tx.c */
void tx_turn(struct vu_dev *d);

/* turn.c */
bool turn_pending(const struct vu_dev *d);
void turn_begin(struct vu_dev *d);
void turn_end(struct vu_dev *d);
void turn_show(struct vu_dev *d);
bool turn_holds(const struct vu_dev *d);
bool turn_deaf(const struct vu_dev *d);
bool turn_want_kicks(struct vu_dev *d);
void turn_feed(struct vu_dev *d);
bool turn_retry(struct vu_dev *d);

#endif /* DEV_H */
