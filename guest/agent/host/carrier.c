// SPDX-License-Identifier: Apache-2.0
/*
 * carrier.c - the stream to the host that carries datagrams
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md, section 9, is the specification. The stream is opened
 * when there is something to send, and again after it broke. Until the host has
 * greeted us, and while the stream has no room, it waits in a buffer, and what
 * that has no room for is dropped: that is what UDP does in a network, too.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent/datagram.h"

#define ROOM_S	  5    /* for room in the stream for HELLO */
#define RETRY_MS  1000 /* after a stream that could not be opened */
#define OUT_BYTES (512 << 10)

#define MAX_MESSAGE                                                            \
	(sizeof(struct tsi_header) + sizeof(struct tsi_datagram) +             \
	 TSI_MAX_DATAGRAM)

/**
 * struct carrier - The stream
 * @source:	In the event loop
 * @phase:	How far it is
 * @fd:		Socket, unless CLOSED
 * @deadline_ms: It is to be OPEN by then
 * @retry_ms:	Not before then is another one tried
 * @in_len:	Bytes in @in
 * @out_len:	Bytes in @out: the stream had no room
 * @in:		Start of a message that isn't here in full
 * @out:	What waits
 * @told:	Who is told
 */
static struct carrier {
	struct source source;
	enum phase phase;
	int fd;
	int64_t deadline_ms;
	int64_t retry_ms;
	size_t in_len;
	size_t out_len;
	uint8_t in[2 * MAX_MESSAGE];
	uint8_t out[OUT_BYTES];
	const struct carried *told;
} carrier = {.fd = -1};

/**
 * stream_close() - The stream is of no use any more
 * @why:	For the log
 */
static void stream_close(const char *why)
{
	if (carrier.phase == CLOSED)
		return;
	complain("datagram stream: %s", why);
	loop_del(carrier.fd);
	close(carrier.fd);
	carrier.fd = -1;
	carrier.phase = CLOSED;
	carrier.in_len = 0;
	carrier.out_len = 0;
	carrier.retry_ms = now_ms() + RETRY_MS;
	carrier.told->gone();
	later_wake_all();
}

/**
 * carrier_send() - Send a message, or drop it; carrier_open() was called
 * @type:	enum tsi_type
 * @head:	Payload, first part
 * @head_len:	Bytes of it
 * @data:	Second part
 * @len:	Bytes of it
 *
 * Returns: true if it will arrive
 */
bool carrier_send(uint16_t type, const void *head, size_t head_len,
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

	if (carrier.out_len + total > sizeof(carrier.out))
		return false;
	if (!carrier.out_len && carrier.phase == OPEN) {
		sent = sendmsg(carrier.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent == (ssize_t)total)
			return true;
		if (sent < 0 && errno != EAGAIN) {
			stream_close(strerror(errno));
			return false;
		}
		if (sent < 0)
			sent = 0;
		loop_del(carrier.fd);
		loop_add(&carrier.source, carrier.fd, EPOLLIN | EPOLLOUT);
	}
	for (size_t i = 0; i < 3; i++) {
		size_t skip = (size_t)sent < iov[i].iov_len ? (size_t)sent
							    : iov[i].iov_len;

		sent -= (ssize_t)skip;
		memcpy(carrier.out + carrier.out_len,
		       (const uint8_t *)iov[i].iov_base + skip,
		       iov[i].iov_len - skip);
		carrier.out_len += iov[i].iov_len - skip;
	}
	return true;
}

/**
 * stream_flush() - Send what waits, as far as there is room
 */
static void stream_flush(void)
{
	ssize_t sent = send(carrier.fd, carrier.out, carrier.out_len,
			    MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0 && errno != EAGAIN) {
		stream_close(strerror(errno));
		return;
	}
	if (sent > 0) {
		carrier.out_len -= (size_t)sent;
		memmove(carrier.out, carrier.out + sent, carrier.out_len);
	}
	if (!carrier.out_len) {
		loop_del(carrier.fd);
		loop_add(&carrier.source, carrier.fd, EPOLLIN);
	}
}

/**
 * take_grant() - The host's answer to HELLO
 * @header:	Its header
 * @payload:	header->len bytes
 *
 * Returns: false if there is no stream
 */
static bool take_grant(const struct tsi_header *header, const uint8_t *payload)
{
	struct tsi_grant grant;

	if (header->type != TSI_GRANT || header->len != sizeof(grant))
		return false;
	memcpy(&grant, payload, sizeof(grant));
	if (grant.version != TSI_VERSION || !grant.peers ||
	    grant.peers > TSI_MAX_PEERS || (grant.peers & (grant.peers - 1)))
		return false;
	carrier.phase = OPEN;
	carrier.told->granted(grant.peers);
	if (carrier.out_len) {
		loop_del(carrier.fd);
		loop_add(&carrier.source, carrier.fd, EPOLLIN | EPOLLOUT);
	}
	later_wake_all();
	return true;
}

/**
 * stream_parse() - Handle the complete messages in the buffer
 *
 * Returns: false if one of them should not have been sent
 */
static bool stream_parse(void)
{
	struct tsi_header header;
	const uint8_t *payload;
	size_t at = 0;
	bool good = true;

	while (good && carrier.in_len - at >= sizeof(header)) {
		memcpy(&header, carrier.in + at, sizeof(header));
		payload = carrier.in + at + sizeof(header);
		if (header.len > MAX_MESSAGE - sizeof(header))
			return false;
		if (carrier.in_len - at < sizeof(header) + header.len)
			break;
		good = carrier.phase == GREETING
			   ? take_grant(&header, payload)
			   : carrier.told->message(&header, payload);
		at += sizeof(header) + header.len;
	}
	carrier.in_len -= at;
	memmove(carrier.in, carrier.in + at, carrier.in_len);
	return good;
}

/**
 * stream_read() - Read once from the stream
 *
 * Returns: true if something came
 */
static bool stream_read(void)
{
	ssize_t len = recv(carrier.fd, carrier.in + carrier.in_len,
			   sizeof(carrier.in) - carrier.in_len, MSG_DONTWAIT);

	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (len <= 0) {
		stream_close("the host closed it");
		return false;
	}
	carrier.in_len += (size_t)len;
	if (!stream_parse()) {
		stream_close("the host sent what it should not");
		return false;
	}
	return true;
}

/**
 * stream_ready() - The host has accepted it; or read and write what can be
 * @source:	Unused: there is one stream
 * @events:	epoll events
 */
static void stream_ready(struct source *source, uint32_t events)
{
	int error;

	if (carrier.phase == CONNECTING) {
		error = hello_say(carrier.fd);
		if (error) {
			stream_close(strerror(error));
			return;
		}
		carrier.phase = GREETING;
		loop_del(carrier.fd);
		loop_add(source, carrier.fd, EPOLLIN);
		return;
	}
	if (events & ~(uint32_t)EPOLLOUT)
		stream_read();
	if (carrier.phase == OPEN && carrier.out_len)
		stream_flush();
}

/**
 * carrier_tell() - Say who is told, before all else
 * @carried:	They
 */
void carrier_tell(const struct carried *carried)
{
	carrier.told = carried;
}

/**
 * carrier_open() - Open a stream, unless there is one
 *
 * Returns: 0: messages may be sent from here on; or ENETUNREACH
 */
int carrier_open(void)
{
	if (carrier.phase != CLOSED)
		return 0;
	if (now_ms() < carrier.retry_ms)
		return ENETUNREACH;
	carrier.retry_ms = now_ms() + RETRY_MS;
	carrier.fd = hello_start(TSI_DATAGRAM_PORT, ROOM_S);
	if (carrier.fd < 0) {
		complain("datagram stream: %s", strerror(errno));
		return ENETUNREACH;
	}
	carrier.phase = CONNECTING;
	carrier.deadline_ms = now_ms() + HELLO_MS;
	carrier.source.ready = stream_ready;
	loop_add(&carrier.source, carrier.fd, EPOLLOUT);
	return 0;
}

/**
 * is_opening() - Has the host yet to greet us?
 *
 * Returns: true if so
 */
static bool is_opening(void)
{
	return carrier.phase == CONNECTING || carrier.phase == GREETING;
}

/**
 * carrier_tick() - Give up a host that doesn't greet us, if it is time to
 */
void carrier_tick(void)
{
	if (is_opening() && now_ms() >= carrier.deadline_ms)
		stream_close("the host doesn't answer");
}

/**
 * carrier_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int carrier_timeout_ms(void)
{
	if (!is_opening())
		return -1;
	return ms_until(carrier.deadline_ms);
}
