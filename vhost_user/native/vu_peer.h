/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_peer.h - the part of vu.h about processes that take connections by rings
 *	       of shared memory
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 * docs/ring.md has what such a process is told, and the memory's layout.
 */
#ifndef VU_PEER_H
#define VU_PEER_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_engine.h"

/* Of an engine: each of its devices may have one */
#define VU_MAX_PEERS 1024

/**
 * struct vu_peer_config - A process, and whose connections it is offered
 * @ring_bytes:	Of each of a connection's two rings, a power of two from 4096 to
 *		2^30; fewer if that is much of its device's max_queued_bytes
 * @identity_len: Bytes used of @identity
 * @has_ipv4:	Connections to IPv4 come from @ipv4; else it isn't said
 * @has_ipv6:	Same, of IPv6
 * @ipv4:	In network order
 * @ipv6:	In network order
 * @path:	Unix SOCK_SEQPACKET socket that it listens on, ended by a 0
 * @identity:	SPIFFE ID of the workload
 *
 * A guest's connection comes from the TCP port that is the lower half of its
 * vsock port; a listener's client from its own address, whatever is said here.
 */
struct vu_peer_config {
	uint32_t ring_bytes;
	uint32_t identity_len;
	bool has_ipv4;
	bool has_ipv6;
	uint8_t ipv4[4];
	uint8_t ipv6[16];
	char path[108];
	char identity[936];
};

/**
 * vu_peer_add() - Have VU_TARGET_RING reach a process
 * @engine:	Engine
 * @cfg:	Process, copied
 *
 * Nothing is connected before there is a connection for it. One unix socket is
 * for one connection; a full listener is tried again every 5 ms.
 *
 * Returns: its id, not 0,
 *	-VU_ERR_INVAL, if a size is out of its range, or there is no path
 *	-VU_ERR_FULL, if there are VU_MAX_PEERS
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_peer_add(struct vu_engine *engine, const struct vu_peer_config *cfg);

/**
 * vu_peer_del() - Reach a process no more
 * @engine:	Engine
 * @peer:	Id
 *
 * Its connections stay. Others, those that wait for its listener included, are
 * refused with ECONNREFUSED.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such process
 */
int vu_peer_del(struct vu_engine *engine, uint32_t peer);

#endif /* VU_PEER_H */
