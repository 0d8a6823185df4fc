/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_hbone.h - the part of vu.h about HBONE: connections as HTTP/2 CONNECT
 *		streams in tunnels of mutual TLS, to other nodes and from them
 *
 * Threads, ids and failures are as vu_engine.h has them for all calls.
 *
 * A tunnel is one TCP connection with TLS 1.3 and HTTP/2. A pool makes tunnels
 * to one address and gives each connection a stream of one. A listener of
 * vu_hbone_listen() takes tunnels; each CONNECT is a VU_EV_REQUEST of it.
 */
#ifndef VU_HBONE_H
#define VU_HBONE_H

#include <stddef.h>
#include <stdint.h>

#include "vu_conn.h"
#include "vu_engine.h"
#include "vu_reason.h"

/* ---- certificates ---- */

/**
 * struct vu_tls_config - Who we are, and whom we believe; all PEM, with a NUL
 * @chain:	Our certificate, and those above it
 * @key:	Its private key
 * @roots:	What peers' chains end in
 * @crls:	Revocation lists, or NULL; whom none speaks of is good, and one
 *		that is past its next update counts
 */
struct vu_tls_config {
	const char *chain;
	const char *key;
	const char *roots;
	const char *crls;
};

/**
 * vu_tls_add() - Have certificates for tunnels
 * @engine:	Engine
 * @cfg:	Certificates, copied
 *
 * TLS 1.3 with AES-GCM, x25519, P-256 and P-384, ALPN h2, mutual, without
 * resumption. The first call starts the engine's thread for handshakes.
 *
 * Returns: their id, not 0,
 *	-VU_ERR_INVAL, if a PEM has nothing that fits, or @key isn't @chain's
 *	-VU_ERR_FULL, if there are 65536
 *	-VU_ERR_NOMEM, if out of memory
 *	-VU_ERR_SYS, if the thread can't be started; errno says why
 */
int vu_tls_add(struct vu_engine *engine, const struct vu_tls_config *cfg);

/**
 * vu_tls_del() - Forget certificates; tunnels, pools and listeners keep theirs
 * @engine:	Engine
 * @tls:	Id
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there are no such certificates
 */
int vu_tls_del(struct vu_engine *engine, uint32_t tls);

/* ---- request and response headers ---- */

/**
 * struct vu_headers_config - What a CONNECT says; each may be NULL
 * @authority:	":authority" of a request
 * @baggage:	"baggage" of a request or a response
 * @forwarded_before: "forwarded" of a request up to the client's port, which C
 *		adds for each connection
 * @forwarded_after: And behind it
 * @forwarded_network: "x-forwarded-network" of a request
 */
struct vu_headers_config {
	const char *authority;
	const char *baggage;
	const char *forwarded_before;
	const char *forwarded_after;
	const char *forwarded_network;
};

/**
 * vu_headers_add() - Have headers for requests or responses
 * @engine:	Engine
 * @cfg:	Headers, copied
 *
 * A request also has a fresh "traceparent".
 *
 * Returns: their id, not 0,
 *	-VU_ERR_INVAL, if a value has bytes that no header may have, or all are
 *		longer than 8 KiB
 *	-VU_ERR_FULL, if there are 65536
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_headers_add(struct vu_engine *engine,
		   const struct vu_headers_config *cfg);

/**
 * vu_headers_del() - Forget headers; requests that wait keep theirs
 * @engine:	Engine
 * @headers:	Id
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there are no such headers
 */
int vu_headers_del(struct vu_engine *engine, uint32_t headers);

/* ---- tunnels to others ---- */

/**
 * struct vu_hbone_target - What is in vu_target.addr for VU_TARGET_HBONE
 * @pool:	Id of vu_pool_add()
 * @headers:	Id of vu_headers_add()
 */
struct vu_hbone_target {
	uint32_t pool;
	uint32_t headers;
};

/**
 * struct vu_pool_config - Tunnels to one address
 * @tls:	Id of vu_tls_add()
 * @via:	A stream of that pool carries each, in place of TCP, with these
 *		headers: HBONE within HBONE. Then @addr_len, @src_len and @netns
 *		are 0. @pool 0: TCP does
 * @netns:	Id of vu_netns_add(): they are made in that namespace, from its
 *		address, with @src_len 0. One that is gone or has no address of
 *		that IP version fails them with ENETUNREACH. 0: our own
 * @addr_len:	Bytes used of @addr
 * @src_len:	Bytes used of @src; 0: any address of ours
 * @addr:	Where to: a sockaddr_in or sockaddr_in6
 * @src:	Address to come from, same
 * @names:	SPIFFE identities of which the peer must have one
 * @n_names:	How many
 * @max_streams: Streams of a tunnel; the peer may allow less
 * @max_tunnels: Tunnels
 * @idle_ms:	A tunnel without streams ends after so long
 * @connect_ms:	TCP, TLS and the peer's SETTINGS have to be there by then
 * @ping_ms:	A PING each so often
 * @silence_ms:	A tunnel ends when one is not answered for so long
 */
struct vu_pool_config {
	uint32_t tls;
	struct vu_hbone_target via;
	uint32_t netns;
	uint16_t addr_len;
	uint16_t src_len;
	uint8_t addr[28];
	uint8_t src[28];
	const char *const *names;
	uint32_t n_names;
	uint32_t max_streams;
	uint32_t max_tunnels;
	uint32_t idle_ms;
	uint32_t connect_ms;
	uint32_t ping_ms;
	uint32_t silence_ms;
};

/**
 * vu_pool_add() - Have tunnels to an address
 * @engine:	Engine
 * @cfg:	Configuration, copied
 *
 * None is made before a connection needs one. A connection gets a stream of one
 * that has room; if none has, another one is made, and the connection waits for
 * it. VU_EV_TUNNEL tells of each that is there, failed or ended.
 *
 * What a stream carries is for one connection, and ends with it. Why that
 * stream failed, or was lost, is why the connection does. A pool or headers of
 * @via that are gone by then refuse it: ECONNREFUSED.
 *
 * Returns: the pool's id, and source of its events,
 *	-VU_ERR_INVAL, if a number is 0, an address is none, no name is given,
 *		there is both a namespace and an address to come from, or either
 *		with @via
 *	-VU_ERR_GONE, if there are no such certificates
 *	-VU_ERR_FULL, if there are 65536 pools
 *	-VU_ERR_NOMEM, if out of memory
 */
int vu_pool_add(struct vu_engine *engine, const struct vu_pool_config *cfg);

/**
 * vu_pool_tls() - Have other certificates for tunnels that are yet to be made
 * @engine:	Engine
 * @pool:	Id
 * @tls:	Id of vu_tls_add()
 *
 * Tunnels that there are go on with theirs; one whose peer the new revocation
 * lists name ends (VU_REASON_REVOKED).
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such pool, or are no such certificates
 */
int vu_pool_tls(struct vu_engine *engine, uint32_t pool, uint32_t tls);

/**
 * vu_pool_del() - Make no more tunnels
 * @engine:	Engine
 * @pool:	Id
 *
 * Streams that there are go on, and the last one of a tunnel ends it. Who waits
 * for one fails with ECONNREFUSED. VU_EV_GONE is the last of its events.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such pool
 */
int vu_pool_del(struct vu_engine *engine, uint32_t pool);

/* ---- tunnels from others ---- */

/**
 * struct vu_hbone_config - How tunnels of others are taken
 * @tls:	Id of vu_tls_add()
 * @want:	VU_WANT_ bits
 * @trust_domain: Of which a client's SPIFFE identity must be
 * @max_tunnels: Tunnels at a time: one more is closed
 * @max_shakes:	Of them, such as shake hands: others wait in the backlog
 * @max_streams: Streams of a tunnel: one more is refused
 * @connect_ms:	TLS has to be there by then
 * @ping_ms:	As of struct vu_pool_config
 * @silence_ms:	Same
 */
struct vu_hbone_config {
	uint32_t tls;
	uint32_t want;
	const char *trust_domain;
	uint32_t max_tunnels;
	uint32_t max_shakes;
	uint32_t max_streams;
	uint32_t connect_ms;
	uint32_t ping_ms;
	uint32_t silence_ms;
};

/**
 * vu_hbone_listen() - Take tunnels from a listening socket
 * @engine:	Engine
 * @fd:		Listening socket, non-blocking, its only descriptor; taken over
 *		on success
 * @cfg:	Configuration, copied
 *
 * Each CONNECT is held, and VU_EV_REQUEST asks where it goes; what it said,
 * vu_hbone_request() tells. vu_conn_answer() gives it a target: "200" goes out
 * once that is reached, "503" if not. VU_TARGET_RESET with EACCES answers 401,
 * with EINVAL 400, else 503. What is no CONNECT with a host and a port gets 400
 * at once. It is a listener for vu_listener_ functions.
 *
 * Returns: the listener's id,
 *	-VU_ERR_INVAL, if a number is 0, or the trust domain is missing
 *	-VU_ERR_GONE, if there are no such certificates
 *	-VU_ERR_FULL, -VU_ERR_NOMEM, -VU_ERR_SYS, as vu_listener_add()
 */
int vu_hbone_listen(struct vu_engine *engine, int fd,
		    const struct vu_hbone_config *cfg);

/**
 * vu_hbone_tls() - Have other certificates for tunnels that are yet to come
 * @engine:	Engine
 * @listener:	Id of vu_hbone_listen()
 * @tls:	Id of vu_tls_add()
 *
 * Tunnels that there are are as of vu_pool_tls().
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such listener, or are no such certificates
 *	-VU_ERR_STATE, if it takes no tunnels
 */
int vu_hbone_tls(struct vu_engine *engine, uint32_t listener, uint32_t tls);

/**
 * vu_hbone_drain() - End the tunnels of a pool or listener, in good order
 * @engine:	Engine
 * @source:	Id of vu_pool_add() or vu_hbone_listen()
 * @deadline_ms: What is left then is cut
 *
 * Each tells its peer to open no more streams (GOAWAY), and ends with its last.
 * Close the listener first: new tunnels are none of those.
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such pool or listener
 *	-VU_ERR_STATE, if the listener takes no tunnels
 */
int vu_hbone_drain(struct vu_engine *engine, uint32_t source,
		   uint32_t deadline_ms);

/**
 * struct vu_hbone_stats - Counters of a pool's or a listener's tunnels
 * @tunnels:	That are there now, or shake hands
 * @streams:	On them now
 * @opened:	Tunnels that were there
 * @failed:	That never were
 * @shakes:	Handshakes under way
 * @requests:	Streams that were opened
 * @decided:	Of them, that vu_hbone_decide() had decided about
 * @faults:	Tunnels that were ended: VU_REASON_HTTP2
 * @floods:	Same: VU_REASON_FLOOD
 * @silent:	Same: VU_REASON_PING
 * @sent_bytes:	Plaintext that TLS took, bytes
 * @read_bytes:	And that it gave
 */
struct vu_hbone_stats {
	uint64_t tunnels;
	uint64_t streams;
	uint64_t opened;
	uint64_t failed;
	uint64_t shakes;
	uint64_t requests;
	uint64_t decided;
	uint64_t faults;
	uint64_t floods;
	uint64_t silent;
	uint64_t sent_bytes;
	uint64_t read_bytes;
};

/**
 * vu_hbone_stats() - Read the counters of a pool or listener
 * @engine:	Engine
 * @source:	Id of vu_pool_add() or vu_hbone_listen()
 * @ret:	Counters
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, if there is no such pool or listener
 *	-VU_ERR_STATE, if the listener takes no tunnels
 */
int vu_hbone_stats(struct vu_engine *engine, uint32_t source,
		   struct vu_hbone_stats *ret);

/**
 * vu_hbone_peer() - Who was at the other end of the last tunnel that failed?
 * @engine:	Engine
 * @source:	Id of vu_pool_add() or vu_hbone_listen()
 * @ret:	Its identity as its certificate has it, with a NUL; "" if it
 *		showed none
 * @size:	Of @ret, bytes; not 0
 *
 * Returns: 0 on success,
 *	-VU_ERR_GONE, -VU_ERR_STATE, as vu_hbone_stats()
 */
int vu_hbone_peer(struct vu_engine *engine, uint32_t source, char *ret,
		  size_t size);

#endif /* VU_HBONE_H */
