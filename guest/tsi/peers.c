// SPDX-License-Identifier: Apache-2.0
/*
 * peers.c - UDP endpoints outside the guest, and the stream to the host
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md, section 9, is the specification. Each endpoint that a
 * program sends to gets a number, which is its slot in the table here plus a
 * multiple of the table's size: another multiple whenever the slot is given to
 * another endpoint, so that nothing that still uses the old number reaches the
 * new one. A hand goes round the table and gives away the first slot that was
 * not used since it last came by.
 *
 * The stream is opened when there is something to send, and again after it
 * broke; the host is told of a peer before the first datagram to it on each
 * stream. What the stream has no room for waits in a buffer, and what that has
 * no room for is dropped: that is what UDP does in a network, too.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "../tsi_protocol.h"
#include "tsi.h"

#define ANSWER_S   5	/* for the host to accept and greet us */
#define VERDICT_MS 1000 /* for the host to judge a peer */
#define RETRY_MS   1000 /* after a stream that could not be opened */
#define OUT_BYTES  (512 << 10)
#define MAX_ERRNO  4095
#define NONE	   UINT32_MAX

#define MAX_MESSAGE                                                            \
	(sizeof(struct tsi_header) + sizeof(struct tsi_datagram) +             \
	 TSI_MAX_DATAGRAM)

static struct datagrams *table;	  /* state.c has the memory */
static uint32_t heads[MAX_PEERS]; /* by hash: slot in the table, or NONE */
static uint32_t hand;

/**
 * struct stream - The stream
 * @source:	In the event loop
 * @fd:		Socket, -1 if there is none
 * @retry_ms:	Not before then is another one tried
 * @in_len:	Bytes in @in
 * @out_len:	Bytes in @out: the stream had no room
 * @in:		Start of a message that isn't here in full
 * @out:	What waits
 */
static struct stream {
	struct source source;
	int fd;
	int64_t retry_ms;
	size_t in_len;
	size_t out_len;
	uint8_t in[2 * MAX_MESSAGE];
	uint8_t out[OUT_BYTES];
} stream = {.fd = -1};

/* ---- the table ---- */

/**
 * hash() - Spread endpoints over heads[]
 * @dst:	Endpoint
 *
 * Returns: index into heads[]
 */
static uint32_t hash(const struct destination *dst)
{
	uint64_t high, low;

	memcpy(&high, dst->address.s6_addr, sizeof(high));
	memcpy(&low, dst->address.s6_addr + sizeof(high), sizeof(low));
	high ^= (uint64_t)dst->port << 48;
	low = (low ^ (high * UINT64_C(0x9e3779b97f4a7c15))) *
	      UINT64_C(0xff51afd7ed558ccd);
	return (uint32_t)(low >> 32) % MAX_PEERS;
}

/**
 * unlink_slot() - Take a slot off its chain
 * @slot:	Slot in use
 */
static void unlink_slot(uint32_t slot)
{
	uint32_t *link = &heads[hash(&table->peers[slot].dst)];

	while (*link != NONE && *link != slot)
		link = &table->peers[*link].next;
	if (*link == slot)
		*link = table->peers[slot].next;
}

/**
 * add() - Give an endpoint a number
 * @dst:	Endpoint
 *
 * Returns: its slot
 */
static struct peer *add(const struct destination *dst)
{
	uint32_t *head = &heads[hash(dst)];
	struct peer *peer;
	uint32_t slot, number;

	for (;;) {
		slot = hand++ % table->size;
		peer = &table->peers[slot];
		if (!peer->live || !peer->used)
			break;
		peer->used = false;
	}
	number = peer->live ? peer->number + table->size : slot;
	if (peer->live)
		unlink_slot(slot);
	*peer = (struct peer){
	    .dst = *dst,
	    .number = number,
	    .next = *head,
	    .live = true,
	};
	*head = slot;
	return peer;
}

/**
 * by_number() - The peer that has a number
 * @number:	Number, of which at least the bits in @mask are known
 * @mask:	Those
 *
 * Returns: the peer, or NULL
 */
static struct peer *by_number(uint32_t number, uint32_t mask)
{
	struct peer *peer;

	if (!table->size)
		return NULL;
	peer = &table->peers[number % table->size];
	if (!peer->live || (peer->number & mask) != (number & mask))
		return NULL;
	peer->used = true;
	return peer;
}

/**
 * peers_start() - Use the table, perhaps the one of the agent before this one
 *
 * Its stream was closed with it, so that the host knows none of the peers.
 */
void peers_start(void)
{
	table = state_datagrams();
	memset(heads, 0xff, sizeof(heads)); /* NONE */
	for (uint32_t slot = 0; slot < table->size; slot++) {
		struct peer *peer = &table->peers[slot];
		uint32_t *head = &heads[hash(&peer->dst)];

		if (!peer->live)
			continue;
		peer->told = peer->judged = false;
		peer->next = *head;
		*head = slot;
	}
}

/* ---- the stream ---- */

/**
 * stream_close() - The stream is of no use any more
 * @why:	For the log
 */
static void stream_close(const char *why)
{
	if (stream.fd < 0)
		return;
	complain("datagram stream: %s", why);
	loop_del(stream.fd);
	close(stream.fd);
	stream.fd = -1;
	stream.in_len = 0;
	stream.out_len = 0;
	stream.retry_ms = now_ms() + RETRY_MS;
	for (uint32_t i = 0; i < table->size; i++)
		table->peers[i].told = table->peers[i].judged = false;
}

/**
 * stream_send() - Send a message, or drop it
 * @type:	enum tsi_type
 * @head:	Payload, first part
 * @head_len:	Bytes of it
 * @data:	Second part
 * @len:	Bytes of it
 *
 * Returns: true if it will arrive
 */
static bool stream_send(uint16_t type, const void *head, size_t head_len,
			const void *data, size_t len)
{
	struct tsi_header header = {.type = type,
				    .len = (uint16_t)(head_len + len)};
	struct iovec iov[] = {
	    {.iov_base = &header, .iov_len = sizeof(header)},
	    {.iov_base = (void *)(uintptr_t)head, .iov_len = head_len},
	    {.iov_base = (void *)(uintptr_t)data, .iov_len = len},
	};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 3};
	size_t total = sizeof(header) + head_len + len;
	ssize_t sent = 0;

	if (stream.out_len + total > sizeof(stream.out))
		return false;
	if (!stream.out_len) {
		sent = sendmsg(stream.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent == (ssize_t)total)
			return true;
		if (sent < 0 && errno != EAGAIN) {
			stream_close(strerror(errno));
			return false;
		}
		if (sent < 0)
			sent = 0;
		loop_del(stream.fd);
		loop_add(&stream.source, stream.fd, EPOLLIN | EPOLLOUT);
	}
	for (size_t i = 0; i < 3; i++) {
		size_t skip = (size_t)sent < iov[i].iov_len ? (size_t)sent
							    : iov[i].iov_len;

		sent -= (ssize_t)skip;
		memcpy(stream.out + stream.out_len,
		       (const uint8_t *)iov[i].iov_base + skip,
		       iov[i].iov_len - skip);
		stream.out_len += iov[i].iov_len - skip;
	}
	return true;
}

/**
 * stream_flush() - Send what waits, as far as there is room
 */
static void stream_flush(void)
{
	ssize_t sent = send(stream.fd, stream.out, stream.out_len,
			    MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0 && errno != EAGAIN) {
		stream_close(strerror(errno));
		return;
	}
	if (sent > 0) {
		stream.out_len -= (size_t)sent;
		memmove(stream.out, stream.out + sent, stream.out_len);
	}
	if (!stream.out_len) {
		loop_del(stream.fd);
		loop_add(&stream.source, stream.fd, EPOLLIN);
	}
}

/**
 * plausible() - An errno that the host names
 * @error:	What it says
 *
 * Returns: it, or another one if it can't be
 */
static int plausible(uint32_t error)
{
	return error > MAX_ERRNO ? ECONNREFUSED : (int)error;
}

/**
 * handle_message() - Handle a message
 * @header:	Header
 * @payload:	header->len bytes
 *
 * Returns: false if the host should not have sent it
 */
static bool handle_message(const struct tsi_header *header,
			   const uint8_t *payload)
{
	struct tsi_verdict verdict;
	struct tsi_datagram datagram;
	struct tsi_unreachable unreachable;
	struct peer *peer;

	switch (header->type) {
	case TSI_VERDICT:
		if (header->len != sizeof(verdict))
			return false;
		memcpy(&verdict, payload, sizeof(verdict));
		peer = by_number(verdict.peer, UINT32_MAX);
		if (peer) {
			peer->judged = true;
			peer->error = plausible(verdict.error);
		}
		return true;
	case TSI_DATAGRAM:
		if (header->len < sizeof(datagram))
			return false;
		memcpy(&datagram, payload, sizeof(datagram));
		if (by_number(datagram.peer, UINT32_MAX))
			relay_deliver(datagram.flow, datagram.peer,
				      payload + sizeof(datagram),
				      header->len - sizeof(datagram));
		return true;
	case TSI_UNREACHABLE:
		if (header->len != sizeof(unreachable))
			return false;
		memcpy(&unreachable, payload, sizeof(unreachable));
		if (by_number(unreachable.peer, UINT32_MAX))
			relay_bounce(unreachable.flow, unreachable.peer,
				     plausible(unreachable.error));
		return true;
	default:
		return false;
	}
}

/**
 * stream_parse() - Handle the complete messages in the buffer
 *
 * Returns: false if one of them should not have been sent
 */
static bool stream_parse(void)
{
	struct tsi_header header;
	size_t at = 0;
	bool good = true;

	while (good && stream.in_len - at >= sizeof(header)) {
		memcpy(&header, stream.in + at, sizeof(header));
		if (header.len > MAX_MESSAGE - sizeof(header))
			return false;
		if (stream.in_len - at < sizeof(header) + header.len)
			break;
		good = handle_message(&header, stream.in + at + sizeof(header));
		at += sizeof(header) + header.len;
	}
	stream.in_len -= at;
	memmove(stream.in, stream.in + at, stream.in_len);
	return good;
}

/**
 * stream_read() - Read once from the stream
 *
 * Returns: true if something came
 */
static bool stream_read(void)
{
	ssize_t len = recv(stream.fd, stream.in + stream.in_len,
			   sizeof(stream.in) - stream.in_len, MSG_DONTWAIT);

	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (len <= 0) {
		stream_close("the host closed it");
		return false;
	}
	stream.in_len += (size_t)len;
	if (!stream_parse()) {
		stream_close("the host sent what it should not");
		return false;
	}
	return true;
}

/**
 * stream_ready() - Read and write what can be
 * @source:	Unused: there is one stream
 * @events:	epoll events
 */
static void stream_ready(struct source *source, uint32_t events)
{
	(void)source;
	if (stream.fd >= 0 && (events & ~(uint32_t)EPOLLOUT))
		stream_read();
	if (stream.fd >= 0 && stream.out_len)
		stream_flush();
}

/**
 * greet() - Exchange HELLO and GRANT
 * @fd:		Stream, blocking with timeouts
 * @ret_grant:	What the host grants
 *
 * Returns: 0, or an errno
 */
static int greet(int fd, struct tsi_grant *ret_grant)
{
	const struct {
		struct tsi_header header;
		struct tsi_hello hello;
	} msg = {
	    .header = {.type = TSI_HELLO, .len = sizeof(msg.hello)},
	    .hello = {.magic = TSI_MAGIC,
		      .version_min = TSI_VERSION,
		      .version_max = TSI_VERSION},
	};
	struct {
		struct tsi_header header;
		struct tsi_grant grant;
	} answer;

	if (send(fd, &msg, sizeof(msg), MSG_NOSIGNAL) != sizeof(msg) ||
	    recv(fd, &answer, sizeof(answer), MSG_WAITALL) != sizeof(answer) ||
	    answer.header.type != TSI_GRANT ||
	    answer.header.len != sizeof(answer.grant))
		return ECONNREFUSED;
	if (answer.grant.version != TSI_VERSION || !answer.grant.peers ||
	    answer.grant.peers > TSI_MAX_PEERS ||
	    (answer.grant.peers & (answer.grant.peers - 1)))
		return EPROTO;
	*ret_grant = answer.grant;
	return 0;
}

/**
 * stream_open() - Open a stream, unless there is one
 *
 * Returns: 0, or ENETUNREACH
 */
static int stream_open(void)
{
	const struct timeval answer = {.tv_sec = ANSWER_S};
	struct tsi_grant grant = {0};
	int fd, error;

	if (stream.fd >= 0)
		return 0;
	if (now_ms() < stream.retry_ms)
		return ENETUNREACH;
	stream.retry_ms = now_ms() + RETRY_MS;
	fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return ENETUNREACH;
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &answer,
		   sizeof(answer));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &answer, sizeof(answer));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &answer, sizeof(answer));
	error = sock_connect(fd, TSI_HOST_CID, TSI_DATAGRAM_PORT);
	if (!error)
		error = greet(fd, &grant);
	if (error) {
		complain("datagram stream: %s", strerror(error));
		close(fd);
		return ENETUNREACH;
	}
	if (grant.peers > MAX_PEERS)
		grant.peers = MAX_PEERS;
	if (grant.peers != table->size) { /* numbers mean other slots now */
		memset(table->peers, 0, sizeof(table->peers));
		memset(heads, 0xff, sizeof(heads)); /* NONE */
		table->size = grant.peers;
	}
	stream.fd = fd;
	stream.source.ready = stream_ready;
	loop_add(&stream.source, fd, EPOLLIN);
	return 0;
}

/* ---- peers ---- */

/**
 * tell() - Make sure that the host knows a peer
 * @peer:	Peer
 *
 * Returns: 0, or an errno
 */
static int tell(struct peer *peer)
{
	bool v4 = IN6_IS_ADDR_V4MAPPED(&peer->dst.address);
	struct tsi_peer msg = {
	    .peer = peer->number,
	    .family = v4 ? TSI_IPV4 : TSI_IPV6,
	    .port = peer->dst.port,
	};

	if (stream_open())
		return ENETUNREACH;
	if (peer->told)
		return 0;
	memcpy(msg.address, peer->dst.address.s6_addr + (v4 ? 12 : 0),
	       v4 ? 4 : 16);
	if (!stream_send(TSI_PEER, &msg, sizeof(msg), NULL, 0))
		return ENOBUFS;
	peer->told = true;
	return 0;
}

/**
 * peers_number() - The number of an endpoint
 * @dst:	Endpoint
 * @ret_peer:	Its number, given now if it had none
 *
 * Returns: 0, or an errno
 */
int peers_number(const struct destination *dst, uint32_t *ret_peer)
{
	struct peer *peer;
	uint32_t slot;

	if (!table->size && stream_open())
		return ENETUNREACH;
	for (slot = heads[hash(dst)]; slot != NONE;
	     slot = table->peers[slot].next)
		if (table->peers[slot].dst.port == dst->port &&
		    IN6_ARE_ADDR_EQUAL(&table->peers[slot].dst.address,
				       &dst->address))
			break;
	peer = slot != NONE ? &table->peers[slot] : add(dst);
	peer->used = true;
	*ret_peer = peer->number;
	return 0;
}

/**
 * peers_destination() - Who has a number
 * @number:	Number, of which the bits in @mask are known
 * @mask:	Those
 * @ret_dst:	Who
 *
 * Returns: false if nobody has any more
 */
bool peers_destination(uint32_t number, uint32_t mask,
		       struct destination *ret_dst)
{
	const struct peer *peer = by_number(number, mask);

	if (peer)
		*ret_dst = peer->dst;
	return peer;
}

/**
 * peers_verdict() - Are datagrams to a peer carried?
 * @number:	Its number
 *
 * The first time the host is asked, and waited for; and each time that it says
 * no, so that it hears of each attempt.
 *
 * Returns: 0, or the errno that sendto() fails with
 */
int peers_verdict(uint32_t number)
{
	struct peer *peer = by_number(number, UINT32_MAX);
	int64_t deadline = now_ms() + VERDICT_MS;
	int error;

	if (!peer)
		return ENETUNREACH;
	if (peer->judged && peer->error)
		peer->told = peer->judged = false;
	error = tell(peer);
	while (!error && !peer->judged && stream.fd >= 0) {
		short out = stream.out_len ? POLLOUT : 0;
		struct pollfd state = {.fd = stream.fd, .events = POLLIN | out};
		int64_t left = deadline - now_ms();

		if (left <= 0 || poll(&state, 1, (int)left) <= 0)
			return 0; /* a slow host judges what it gets */
		stream_ready(&stream.source, (uint32_t)state.revents);
	}
	if (error)
		return error;
	return peer->judged ? peer->error : ENETUNREACH;
}

/**
 * peers_send() - Send a datagram to a peer
 * @flow:	Port of the socket that it came from
 * @number:	In: the peer's number, of which the bits in @mask are known.
 *		Out: all of it
 * @mask:	Those
 * @data:	Data
 * @len:	Bytes of it
 *
 * Returns: 0 if it is sent or lost, or why it can't arrive: errno
 */
int peers_send(uint16_t flow, uint32_t *number, uint32_t mask, const void *data,
	       size_t len)
{
	struct peer *peer = by_number(*number, mask);
	struct tsi_datagram head = {.flow = flow};
	int error;

	if (!peer)
		return ENETUNREACH;
	*number = peer->number;
	error = tell(peer);
	if (error)
		return error == ENOBUFS ? 0 : error;
	head.peer = peer->number;
	if (!stream_send(TSI_DATAGRAM, &head, sizeof(head), data, len))
		debug("datagram of port %u: dropped", flow);
	return 0;
}
