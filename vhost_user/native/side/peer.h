/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer.h - processes that take connections by rings of shared memory
 *
 * peer.c	who they are, and what they are told of a connection
 * memory.c	a connection's memory
 * offer.c	a connection is offered to one
 * ring.c	its rings are the connection's far side
 */
#ifndef PEER_H
#define PEER_H

#include <fastpath_ring.h>

#include "conn/conn.h"

/**
 * struct vu_peer - A process
 * @id:		Its id
 * @addr:	Where it listens
 * @cfg:	What Python said
 */
struct vu_peer {
	uint32_t id;
	struct sockaddr_storage addr;
	struct vu_peer_config cfg;
};

/**
 * struct shm - The memory that a connection shares with a process
 * @awake:	On the list of those that are looked at without a wake-up
 * @dial:	On that of those who wait for a full listener
 * @c:		Connection
 * @ring:	Its rings, as we see them
 * @mem:	Memory, or NULL
 * @len:	Bytes of it
 * @bell:	eventfd by which the process wakes us, or -1
 * @peer:	The process's id
 * @dst:	Where the program connected to
 * @idle:	Turns without work
 * @stuck:	The near side took less than there was; it runs us when it can
 * @full:	There are more bytes for the process than there was room
 * @gone:	The process has closed its socket
 */
struct shm {
	struct list awake;
	struct list dial;
	struct vu_conn *c;
	struct fpring ring;
	void *mem;
	size_t len;
	int bell;
	uint32_t peer;
	struct fpring_address dst;
	uint8_t idle;
	bool stuck : 1;
	bool full : 1;
	bool gone : 1;
};

extern const struct side_ops ring_ops;

/* peer.c */
int peer_add(struct core *core, const struct vu_peer_config *cfg);
void peer_free(struct core *core, struct vu_peer *p);
struct vu_peer *peer_by_id(const struct core *core, uint32_t id);
struct fpring_address peer_address(const void *addr, socklen_t len);
void peer_introduce(const struct vu_peer *p, const struct vu_conn *c,
		    struct fpring_hello *ret);

/* memory.c */
struct shm *shm_new(struct vu_conn *c, uint32_t peer);
int shm_make(struct shm *m, uint32_t ring_bytes, int ret_fds[2]);
void shm_free(struct shm *m);

/* offer.c */
void offer_make(struct vu_conn *c, const struct vu_target *target);
void offer_retry(struct core *core);

/* ring.c */
void ring_close(struct vu_conn *c, struct side *s, int error);
bool ring_look(struct core *core);
bool ring_rest(struct core *core);
void ring_turn(struct core *core);

#endif /* PEER_H */
