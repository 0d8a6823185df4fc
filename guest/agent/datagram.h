/* SPDX-License-Identifier: Apache-2.0 */
/*
 * datagram.h - what the parts of tsi-agent share that handle datagrams
 *
 * datagram.c, send.c, receive.c and messages.c are about the program's sockets;
 * relay.c, peers.c and carrier.c about the way to the host.
 */
#ifndef DATAGRAM_H
#define DATAGRAM_H

#include "agent/tsi.h"

/* ---- datagram.c ---- */

#define DNS_PORT 53 /* is carried whatever the policy */

bool datagram_is_udp(int fd, bool *ret_v6);
int datagram_socket(const struct call *call, bool *ret_v6);
bool datagram_is_inside(const struct call *call, const struct destination *dst);
int datagram_point_outside(const struct call *call, int *fd, bool v6,
			   const struct destination *dst, uint32_t *ret_peer,
			   struct sockaddr_storage *ret_sa, socklen_t *ret_len);
bool datagram_connect(const struct call *call, int fd,
		      const struct sockaddr_storage *sa,
		      const struct destination *dst);
bool datagram_name(const struct call *call, bool *ret_v6,
		   struct destination *ret_name);

/* ---- messages.c ---- */

#define MAX_DATA     65536 /* no datagram is larger */
#define MAX_CONTROL  4096
#define MAX_MESSAGES 64 /* of one sendmmsg() or recvmmsg() */

extern uint8_t messages_data[MAX_DATA];
extern struct mmsghdr messages_here[MAX_MESSAGES];

unsigned messages_read(const struct call *call);
int messages_iov(const struct call *call, const struct msghdr *hdr,
		 size_t *ret_count);
int messages_copy(const struct call *call, size_t count, size_t len, bool out,
		  size_t *ret_len);
size_t messages_room(size_t count);

/* ---- send.c ---- */

void send_trapped(const struct call *call);

/* ---- receive.c ---- */

void receive_trapped(const struct call *call);
void receive_drop_stale(void);
void receive_tick(void);
int receive_timeout_ms(void);

/* ---- relay.c ---- */

int relay_start(void);
void relay_adopt(void);
void relay_drain(void);
bool relay_is_here(int fd);
int relay_stand_in(const struct destination *dst, uint32_t *ret_peer,
		   struct sockaddr_in *ret_sa);
bool relay_stands_for(const struct sockaddr_storage *sa,
		      struct destination *ret_dst);

/* ---- peers.c ---- */

/**
 * struct peer - A UDP endpoint outside
 * @dst:	The endpoint
 * @number:	Its number
 * @next:	Next slot with the same hash, or NONE
 * @live:	The slot is in use
 * @used:	Since the hand came by
 * @told:	The host knows it
 * @judged:	And has said whether datagrams are carried
 * @error:	What it said: 0, or errno
 */
struct peer {
	struct destination dst;
	uint32_t number;
	uint32_t next;
	bool live;
	bool used;
	bool told;
	bool judged;
	int error;
};

/**
 * struct datagrams - What has to stay for programs that have UDP sockets
 * @port:	The relay's, network order; 0: there is no relay yet
 * @homes:	By flow: the address that its socket is at; 0: unknown
 * @size:	Of the table of peers; 0: there was no stream yet
 * @peers:	That table
 */
struct datagrams {
	in_port_t port;
	in_addr_t homes[1 << 16];
	uint32_t size;
	struct peer peers[MAX_PEERS];
};

/**
 * struct delivery - Where peers' datagrams go
 * @deliver:	One came for a program
 * @bounce:	A program's didn't arrive
 */
struct delivery {
	void (*deliver)(uint16_t flow, uint32_t peer, const void *data,
			size_t len);
	void (*bounce)(uint16_t flow, uint32_t peer, int error);
};

void peers_start(const struct delivery *delivery);
bool peers_know(const struct destination *dst);
int peers_number(const struct destination *dst, uint32_t *ret_peer);
bool peers_destination(uint32_t number, uint32_t mask,
		       struct destination *ret_dst);
int peers_verdict(uint32_t number, bool again);
int peers_send(uint16_t flow, uint32_t *number, uint32_t mask, const void *data,
	       size_t len);

/* ---- carrier.c ---- */

/**
 * struct carried - Who is told what happens on the datagram stream
 * @granted:	There is one; so many peers may have a number
 * @message:	A message; false: it should not have been sent
 * @gone:	There is none any more
 */
struct carried {
	void (*granted)(uint32_t peers);
	bool (*message)(const struct tsi_header *header,
			const uint8_t *payload);
	void (*gone)(void);
};

void carrier_tell(const struct carried *carried);
int carrier_open(void);
void carrier_tick(void);
int carrier_timeout_ms(void);
bool carrier_send(uint16_t type, const void *head, size_t head_len,
		  const void *data, size_t len);

#endif /* DATAGRAM_H */
