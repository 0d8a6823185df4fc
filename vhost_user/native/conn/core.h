/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h - what all connections of an engine share
 */
#ifndef CORE_H
#define CORE_H

#include "base/list.h"
#include "base/outbox.h"
#include "vu.h"

#define SCRATCH (256 * 1024) /* one turn of one direction, bytes */

struct hbone;
struct vu_conn;
struct vu_dev;
struct vu_handoff;
struct vu_netns;
struct vu_peer;

/**
 * enum deadline - What ends when its time is up; one list each, by age
 * @DEADLINE_DIAL: A connection that isn't established
 * @DEADLINE_LINGER: A guest that doesn't let go of its ports
 * @DEADLINE_ORPHAN: Bytes that a host program doesn't take, of a guest that
 *		left
 */
enum deadline { DEADLINE_DIAL, DEADLINE_LINGER, DEADLINE_ORPHAN };

#define DEADLINES (DEADLINE_ORPHAN + 1)

#define BATCH_IOV    1024 /* IOV_MAX */
#define BATCH_CHAINS 256

/**
 * struct core - What all connections of an engine share
 * @epoll_fd:	Reports what happens to sockets
 * @active:	Devices that a turn looks at
 * @run:	Connections that have something to do
 * @forsaken:	Connections to close; their guests are gone
 * @deadlines:	Connections that have one
 * @retrying:	Devices with connections that wait for a full listener
 * @by_cid:	Devices that are in groups, by their guests' CIDs
 * @netns:	Network namespaces that far sides are dialled in
 * @hbone:	Tunnels
 * @serving:	Of @netns, those that have sockets for dials that wait
 * @handoffs:	Other proxies that far sides may be
 * @peers:	Processes that take connections by rings of shared memory
 * @dials:	Connections to them that wait: their listeners are full
 * @awake:	Memory of connections that is looked at without a wake-up
 * @thirsty:	Connections without credit
 * @thirsty_us:	Since when there is one
 * @refused:	Clients of listeners that found no room
 * @slabs:	Where connections live
 * @free:	Slots without one
 * @buckets:	Guests' connections, by their addresses
 * @tx_iov:	One batch; nothing in it outlives a turn: payload from the guest
 * @rx_iov:	Same: buffers of the guest
 * @rx_payload:	Same: they behind the headers
 * @scratch:	Same: what a socket had
 * @chargen:	RFC 864's bytes
 */
struct core {
	int epoll_fd;
	uint32_t max_conns;
	uint64_t conns;
	struct list active;
	struct list run;
	struct list forsaken;
	struct list deadlines[DEADLINES];
	struct list retrying;
	struct vu_dev *by_cid[VU_MAX_DEVICES];
	struct vu_netns *netns[VU_MAX_NETNS];
	struct hbone *hbone;
	struct list serving;
	struct vu_handoff *handoffs[VU_MAX_HANDOFFS];
	struct vu_peer *peers[VU_MAX_PEERS];
	struct list dials;
	struct list awake;
	struct list thirsty;
	uint64_t thirsty_us;
	uint64_t refused;
	struct outbox outbox;

	struct vu_conn **slabs;
	unsigned n_slabs;
	struct vu_conn *free;
	struct vu_conn **buckets;
	uint32_t n_buckets;
	uint32_t n_hashed;
	uint64_t hash_seed;

	struct iovec tx_iov[BATCH_IOV];
	struct iovec rx_iov[BATCH_IOV];
	struct iovec rx_payload[BATCH_IOV];
	struct vu_chain tx_chains[BATCH_CHAINS];
	struct vu_chain rx_chains[BATCH_CHAINS];
	char scratch[SCRATCH];
	char chargen[SCRATCH];
};

#endif /* CORE_H */
