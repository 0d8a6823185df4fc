/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_netns.h - the part of vu.h about network namespaces that far sides are
 *		dialled in
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 */
#ifndef VU_NETNS_H
#define VU_NETNS_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_engine.h"

/* Namespaces of an engine; each of its devices may have one */
#define VU_MAX_NETNS 1024
/* What a namespace's id has as source of events: no other source's has it */
#define VU_NETNS_SOURCE 0x80000000U
/* Sockets of an IP version that are kept for dials to come, at most */
#define VU_MAX_STOCK 32

/**
 * enum vu_netns_what - What the maker of sockets is asked for
 * @VU_NETNS_READY:	Its first answer, unasked, once it is in the namespace;
 *			later, with a count of 0: whether it is there still
 * @VU_NETNS_STREAM:	Non-blocking TCP sockets, bound to an address and no
 *			port; all that an engine asks for
 * @VU_NETNS_SOCKET:	TCP sockets as socket() makes them
 * @VU_NETNS_DATAGRAM:	UDP sockets as socket() makes them
 * @VU_NETNS_CHANNEL:	Not answered: comes with one more socket to be asked by
 */
enum vu_netns_what {
	VU_NETNS_READY = 0,
	VU_NETNS_STREAM = 1,
	VU_NETNS_SOCKET = 2,
	VU_NETNS_DATAGRAM = 3,
	VU_NETNS_CHANNEL = 4,
};

/**
 * struct vu_netns_ask - A message to the maker
 * @what:	enum vu_netns_what
 * @version:	4 or 6
 * @count:	How many sockets; there come 64 at most
 * @unused:	0
 * @ip:		Address to bind to, in network order; of IPv4 the first 4 bytes
 */
struct vu_netns_ask {
	uint8_t what;
	uint8_t version;
	uint16_t count;
	uint32_t unused;
	uint8_t ip[16];
};

/**
 * struct vu_netns_answer - A message from it, with the sockets as SCM_RIGHTS
 * @error:	errno, if there is no socket
 * @what:	As asked
 * @version:	As asked
 * @count:	How many sockets
 */
struct vu_netns_answer {
	int32_t error;
	uint8_t what;
	uint8_t version;
	uint16_t count;
};

/**
 * struct vu_netns_config - Addresses that far sides are dialled from
 * @has_ipv4:	There is one of IPv4; else such dials fail with ENETUNREACH
 * @has_ipv6:	Same, of IPv6
 * @keep:	Sockets of each version to keep; 0, or too many: VU_MAX_STOCK
 * @ipv4:	In network order
 * @ipv6:	In network order
 */
struct vu_netns_config {
	bool has_ipv4;
	bool has_ipv6;
	uint16_t keep;
	uint8_t ipv4[4];
	uint8_t ipv6[16];
};

/**
 * vu_netns_add() - Have VU_TARGET_DIAL reach another network namespace
 * @engine:	Engine
 * @fd:		Unix SOCK_SEQPACKET socket to a process in it, the maker, which
 *		gives one struct vu_netns_answer for each struct vu_netns_ask;
 *		taken over on success
 * @cfg:	Addresses, copied
 *
 * Sockets of an IP version are kept once there was a dial. Without a maker
 * dials wait for vu_netns_renew() until they time out; where it answers
 * nonsense, those that wait fail with EPROTO. VU_EV_MAKER tells of both.
 *
 * Returns: the namespace's id, not 0,
 *	-VU_ERR_FULL, if there are VU_MAX_NETNS
 *	-VU_ERR_NOMEM, if out of memory
 *	-VU_ERR_SYS, if the socket can't be watched; errno says why
 */
int vu_netns_add(struct vu_engine *engine, int fd,
		 const struct vu_netns_config *cfg);

/**
 * vu_netns_renew() - Have another maker for a network namespace
 * @engine:	Engine
 * @netns:	Id
 * @fd:		As of vu_netns_add()
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such namespace
 *	-VU_ERR_SYS, if the socket can't be watched; errno says why
 */
int vu_netns_renew(struct vu_engine *engine, uint32_t netns, int fd);

/**
 * vu_netns_del() - Reach a network namespace no more
 * @engine:	Engine
 * @netns:	Id
 *
 * Its established connections stay. Dials to it, those that are under way and
 * those that come, fail with ENETUNREACH. So do those of pools' tunnels.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such namespace
 */
int vu_netns_del(struct vu_engine *engine, uint32_t netns);

/* ---- the maker, a process of its own ---- */

/**
 * vu_maker_run() - Make sockets for others, in our own network namespace
 * @control:	Unix SOCK_SEQPACKET socket to the parent
 *
 * Answers on it, and on each channel that comes by it. Whoever says nonsense is
 * heard no more. No engine is needed.
 *
 * Returns: 0 once the parent is gone,
 *	-VU_ERR_SYS, if the socket can't be watched; errno says why
 */
int vu_maker_run(int control);

#endif /* VU_NETNS_H */
