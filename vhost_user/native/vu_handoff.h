/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_handoff.h - the part of vu.h about other proxies that connections are
 *		  handed to, and what those are told first
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 */
#ifndef VU_HANDOFF_H
#define VU_HANDOFF_H

#include <stdbool.h>
#include <stdint.h>

#include "vu_engine.h"

/* Hand-offs of an engine; each of its devices may have one */
#define VU_MAX_HANDOFFS 1024

/* Bytes of an identity: what SPIFFE-ID section 2.3 bounds it to */
#define VU_MAX_IDENTITY 2048

/**
 * enum vu_handoff_kind - What the other proxy speaks
 * @VU_HANDOFF_UNIX:	A stream unix socket. A PROXY protocol v2 header comes
 *			first: the guest's address and its destination
 * @VU_HANDOFF_SOCKS5:	TCP and SOCKS5 (RFC 1928), without authentication:
 *			CONNECT to the guest's destination; the connection is
 *			established when it says that it succeeded
 */
enum vu_handoff_kind {
	VU_HANDOFF_UNIX = 1,
	VU_HANDOFF_SOCKS5 = 2,
};

/**
 * struct vu_handoff_config - Another proxy
 * @kind:	enum vu_handoff_kind
 * @addr_len:	Bytes used of @addr
 * @identity_len: Bytes used of @identity; 0: the header has none
 * @has_ipv4:	UNIX: the guest has such an address; else its connections to
 *		IPv4 destinations fail with ENETUNREACH
 * @has_ipv6:	Same, of IPv6
 * @ipv4:	In network order
 * @ipv6:	In network order
 * @addr:	Where it listens: a path (UNIX), a sockaddr (SOCKS5)
 * @identity:	UNIX: what TLV 0xD0 of the header has
 */
struct vu_handoff_config {
	uint32_t kind;
	uint32_t addr_len;
	uint32_t identity_len;
	bool has_ipv4;
	bool has_ipv6;
	uint8_t ipv4[4];
	uint8_t ipv6[16];
	uint8_t addr[112];
	uint8_t identity[2048];
};

/**
 * vu_handoff_add() - Have VU_TARGET_DIAL tell another proxy where to
 * @engine:	Engine
 * @cfg:	The proxy, copied
 *
 * A guest's source port is the lower half of its vsock port. Of a connection
 * that came by a listener the source is its client.
 *
 * What a program's connect() fails with is what TCP would say. UNIX: a path
 * that nobody listens on is ECONNREFUSED, a full listener is dialled again
 * every 5 ms. SOCKS5: its reply (docs/handoffs.md); EPROTO if it speaks
 * otherwise, ECONNRESET if it ends before it has replied.
 *
 * Returns: the hand-off's id, not 0,
 *	-VU_ERR_INVAL, if a length or the kind is out of range
 *	-VU_ERR_FULL, if there are VU_MAX_HANDOFFS
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_handoff_add(struct vu_engine *engine,
		   const struct vu_handoff_config *cfg);

/**
 * vu_handoff_del() - Hand nothing over any more
 * @engine:	Engine
 * @handoff:	Id
 *
 * Its connections stay. Later ones, and those that wait for a unix listener
 * that is full, fail with ENETUNREACH.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such hand-off
 */
int vu_handoff_del(struct vu_engine *engine, uint32_t handoff);

#endif /* VU_HANDOFF_H */
