/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * wire.h - messages between tsi-agent, or tsi_inet, and the host's TSI service
 *
 * docs/tsi-protocol.md is the specification; fastpath/tsi/protocol.py is the
 * other end. All integers are little-endian. A message is a header and
 * `len` bytes of payload; each type has one size, REFUSED's text excepted.
 */
#ifndef TSI_PROTOCOL_H
#define TSI_PROTOCOL_H

#ifdef __KERNEL__
#include <linux/build_bug.h>
#include <linux/types.h>
#else
#include <assert.h>
#include <stdint.h>
#endif

/* The control stream is a connection to this port of this CID */
#define TSI_HOST_CID 2U
#define TSI_PORT     21587U /* "TS" */

/* And the datagram stream to this one */
#define TSI_DATAGRAM_PORT 21588U

#define TSI_MAGIC    0x41495354U /* "TSIA" on the wire */
#define TSI_VERSION  1U
#define TSI_MAX_TEXT 200U

/* No token is below: those are ports */
#define TSI_FIRST_TOKEN 0x10000U

/* Where init leaves the key, for root */
#define TSI_KEY_FILE "/run/tsi.key"

/* Ports that the host connects to listeners from: a range of 65536 of them for
 * each client IP, the first and the last one for those that have none */
#define TSI_FIRST_PEER_PORT 0x80000000U
#define TSI_PEER_RANGES	    0x4000U
#define TSI_UNNAMED_PORT    TSI_FIRST_PEER_PORT /* for AF_INET listeners */
#define TSI_UNNAMED_V6_PORT                                                    \
	(TSI_FIRST_PEER_PORT + ((TSI_PEER_RANGES - 1) << 16))

/* tsi_listen.flags */
#define TSI_V6ONLY 1U

/* A code of TSI_REFUSED: not the sandbox's key */
#define TSI_NOT_THE_KEY 5U

/**
 * enum tsi_type - Message types: 16 to 31 are listeners', 32 to 47 datagrams'
 * @TSI_HELLO:		guest to host, first message: struct tsi_hello
 * @TSI_WELCOME:	host to guest, the answer: struct tsi_welcome
 * @TSI_REFUSED:	host to guest, the stream ends: u32 code, then text
 * @TSI_ROUTE:		guest to host: struct tsi_route
 * @TSI_FAILED:		host to guest: struct tsi_failed
 * @TSI_LISTEN:		guest to host: struct tsi_listen
 * @TSI_LISTENING:	host to guest, the answer: struct tsi_listening
 * @TSI_CALLER:		host to guest: struct tsi_caller
 * @TSI_UNLISTEN:	guest to host: struct tsi_unlisten
 * @TSI_INTRODUCED:	guest to host, the answer to CALLER: struct
 *			tsi_introduced
 * @TSI_GRANT:		datagram stream: the answer to HELLO: struct tsi_grant
 * @TSI_PEER:		guest to host: struct tsi_peer
 * @TSI_VERDICT:	host to guest: struct tsi_verdict
 * @TSI_DATAGRAM:	both: struct tsi_datagram, then the data
 * @TSI_UNREACHABLE:	host to guest: struct tsi_unreachable
 */
enum tsi_type {
	TSI_HELLO = 1,
	TSI_WELCOME = 2,
	TSI_REFUSED = 3,
	TSI_ROUTE = 4,
	TSI_FAILED = 5,
	TSI_LISTEN = 16,
	TSI_LISTENING = 17,
	TSI_CALLER = 18,
	TSI_UNLISTEN = 19,
	TSI_INTRODUCED = 20,
	TSI_GRANT = 32,
	TSI_PEER = 33,
	TSI_VERDICT = 34,
	TSI_DATAGRAM = 35,
	TSI_UNREACHABLE = 36,
};

/**
 * enum tsi_family - Address family in a message, Linux's numbers don't matter
 * @TSI_IPV4:	The first four bytes of the address count, the rest is 0
 * @TSI_IPV6:	All sixteen do; never a v4-mapped address
 */
enum tsi_family {
	TSI_IPV4 = 4,
	TSI_IPV6 = 6,
};

/**
 * struct tsi_header - What every message starts with
 * @type:	enum tsi_type
 * @len:	Bytes that follow
 */
struct tsi_header {
	uint16_t type;
	uint16_t len;
};
static_assert(sizeof(struct tsi_header) == 4, "wire layout");

#define TSI_KEY_BYTES 16U

/* Streams come from a port up to this: the kernel gives them to those only that
 * may bind TCP's */
#define TSI_LAST_PRIVILEGED_PORT 1023U

/**
 * struct tsi_hello - Who speaks
 * @magic:	TSI_MAGIC
 * @version_min: Oldest version the agent speaks
 * @version_max: Newest one
 * @key:	What init had from the host; may be left out where it had none
 */
struct tsi_hello {
	uint32_t magic;
	uint16_t version_min;
	uint16_t version_max;
	uint8_t key[TSI_KEY_BYTES];
};
static_assert(sizeof(struct tsi_hello) == 24, "wire layout");

/**
 * struct tsi_welcome - What the agent may use
 * @version:	The one both use from here on
 * @reserved:	0
 * @first_token: First token that belongs to this stream
 * @token_count: How many do, in sequence
 * @window:	The latest so many registered tokens can be connected to
 * @connect_timeout_ms: The host has settled every connect by then
 * @ipv4:	The pod's address in network order; 0: has none
 * @ipv6:	Same; all 0: has none
 */
struct tsi_welcome {
	uint16_t version;
	uint16_t reserved;
	uint32_t first_token;
	uint32_t token_count;
	uint32_t window;
	uint32_t connect_timeout_ms;
	uint8_t ipv4[4];
	uint8_t ipv6[16];
};
static_assert(sizeof(struct tsi_welcome) == 40, "wire layout");

/**
 * struct tsi_route - Give a destination a token, for good
 * @token:	The stream's next token: they are registered in rising order
 * @family:	enum tsi_family
 * @port:	TCP port
 * @address:	In network order
 */
struct tsi_route {
	uint32_t token;
	uint16_t family;
	uint16_t port;
	uint8_t address[16];
};
static_assert(sizeof(struct tsi_route) == 24, "wire layout");

/**
 * struct tsi_failed - Why a connection request was, or will be, reset
 * @guest_port:	The request's source port
 * @token:	Its destination port
 * @error:	Linux errno; ESTALE: the host doesn't know the token (any more)
 */
struct tsi_failed {
	uint32_t guest_port;
	uint32_t token;
	uint32_t error;
};
static_assert(sizeof(struct tsi_failed) == 12, "wire layout");

/**
 * struct tsi_listen - A program listens
 * @listener:	vsock port that listens
 * @backlog:	As given to listen()
 * @port:	TCP port
 * @family:	enum tsi_family of the socket
 * @flags:	TSI_V6ONLY
 * @reserved:	0
 * @address:	What it is bound to, in network order; family 6: v4-mapped
 *		addresses, too
 */
struct tsi_listen {
	uint32_t listener;
	uint32_t backlog;
	uint16_t port;
	uint16_t family;
	uint16_t flags;
	uint16_t reserved;
	uint8_t address[16];
};
static_assert(sizeof(struct tsi_listen) == 32, "wire layout");

/**
 * struct tsi_listening - What came of a listener
 * @listener:	vsock port
 * @port:	TCP port that it is reached at; 0: it isn't published
 * @reserved:	0
 * @error:	0, or why it can't be, an errno
 */
struct tsi_listening {
	uint32_t listener;
	uint16_t port;
	uint16_t reserved;
	uint32_t error;
};
static_assert(sizeof(struct tsi_listening) == 12, "wire layout");

/**
 * struct tsi_caller - Whose connections come from a range of ports
 * @ports:	The first of 65536
 * @family:	enum tsi_family of the listeners that they are for
 * @reserved:	0
 * @address:	The client's, in network order; family 6: v4-mapped ones, too
 */
struct tsi_caller {
	uint32_t ports;
	uint16_t family;
	uint16_t reserved;
	uint8_t address[16];
};
static_assert(sizeof(struct tsi_caller) == 24, "wire layout");

/**
 * struct tsi_unlisten - A listener is gone
 * @listener:	vsock port
 */
struct tsi_unlisten {
	uint32_t listener;
};
static_assert(sizeof(struct tsi_unlisten) == 4, "wire layout");

/**
 * struct tsi_introduced - The agent knows whose a range of ports is
 * @ports:	As in CALLER
 */
struct tsi_introduced {
	uint32_t ports;
};
static_assert(sizeof(struct tsi_introduced) == 4, "wire layout");

#define TSI_MAX_DATAGRAM 65507U	    /* bytes of data */
#define TSI_MAX_PEERS	 (1U << 20) /* most that GRANT may say */

/**
 * struct tsi_grant - What the agent may use of a datagram stream
 * @version:	The one both use from here on
 * @reserved:	0
 * @peers:	So many peers have a number at a time; a power of two
 */
struct tsi_grant {
	uint16_t version;
	uint16_t reserved;
	uint32_t peers;
};
static_assert(sizeof(struct tsi_grant) == 8, "wire layout");

/**
 * struct tsi_peer - Give a UDP endpoint a number
 * @peer:	Number; who had the same one modulo tsi_grant.peers has none now
 * @family:	enum tsi_family
 * @port:	UDP port
 * @address:	In network order
 */
struct tsi_peer {
	uint32_t peer;
	uint16_t family;
	uint16_t port;
	uint8_t address[16];
};
static_assert(sizeof(struct tsi_peer) == 24, "wire layout");

/**
 * struct tsi_verdict - Whether datagrams to a peer are carried
 * @peer:	Number
 * @error:	Linux errno of what is sent there; 0: it is carried
 */
struct tsi_verdict {
	uint32_t peer;
	uint32_t error;
};
static_assert(sizeof(struct tsi_verdict) == 8, "wire layout");

/**
 * struct tsi_datagram - Head of a datagram
 * @flow:	UDP port of the program's socket
 * @reserved:	0
 * @peer:	Number of the other end
 */
struct tsi_datagram {
	uint16_t flow;
	uint16_t reserved;
	uint32_t peer;
};
static_assert(sizeof(struct tsi_datagram) == 8, "wire layout");

/**
 * struct tsi_unreachable - A datagram didn't arrive
 * @flow:	UDP port of the program's socket
 * @reserved:	0
 * @peer:	Number of the other end
 * @error:	Linux errno
 */
struct tsi_unreachable {
	uint16_t flow;
	uint16_t reserved;
	uint32_t peer;
	uint32_t error;
};
static_assert(sizeof(struct tsi_unreachable) == 12, "wire layout");

#endif /* TSI_PROTOCOL_H */
