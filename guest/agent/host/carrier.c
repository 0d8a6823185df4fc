// SPDX-License-Identifier: Apache-2.0
/*
 * carrier.c - the stream to the host that carries datagrams
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md, section 9, is the specification. The stream is opened
 * when there is something to send, and again after it broke. What it has no
 * room for waits in a buffer, and what that has no room for is dropped: that is
 * what UDP does in a network, too.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent/datagram.h"

#define ANSWER_S  5    /* for the host to accept and greet us */
#define RETRY_MS  1000 /* after a stream that could not be opened */
#define OUT_BYTES (512 << 10)

#define MAX_MESSAGE                                                            \
	(sizeof(struct tsi_header) + sizeof(struct tsi_datagram) +             \
	 TSI_MAX_DATAGRAM)

/**
 * struct carrier - The stream
 * @source:	In the event loop
 * @fd:		Socket, -1 if there is none
 * @retry_ms:	Not before then is another one tried
 * @in_len:	Bytes in @in
 * @out_len:	Bytes in @out: the stream had no room
 * @in:		Start of a message that isn't here in full
 * @out:	What waits
 * @told:	Who is told
 */
static struct carrier {
	struct source source;
	int fd;
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
	if (carrier.fd < 0)
		return;
	complain("datagram stream: %s", why);
	loop_del(carrier.fd);
	close(carrier.fd);
	carrier.fd = -1;
	carrier.in_len = 0;
	carrier.out_len = 0;
	carrier.retry_ms = now_ms() + RETRY_MS;
	carrier.told->gone();
}

/**
 * carrier_send() - Send a message, or drop it
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
	if (!carrier.out_len) {
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
 * stream_parse() - Handle the complete messages in the buffer
 *
 * Returns: false if one of them should not have been sent
 */
static bool stream_parse(void)
{
	struct tsi_header header;
	size_t at = 0;
	bool good = true;

	while (good && carrier.in_len - at >= sizeof(header)) {
		memcpy(&header, carrier.in + at, sizeof(header));
		if (header.len > MAX_MESSAGE - sizeof(header))
			return false;
		if (carrier.in_len - at < sizeof(header) + header.len)
			break;
		good = carrier.told->message(&header,
					     carrier.in + at + sizeof(header));
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
 * stream_ready() - Read and write what can be
 * @source:	Unused: there is one stream
 * @events:	epoll events
 */
static void stream_ready(struct source *source, uint32_t events)
{
	(void)source;
	if (carrier.fd >= 0 && (events & ~(uint32_t)EPOLLOUT))
		stream_read();
	if (carrier.fd >= 0 && carrier.out_len)
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
	struct hello msg;
	struct {
		struct tsi_header header;
		struct tsi_grant grant;
	} answer;

	hello_fill(&msg);
	if (send(fd, &msg, sizeof(msg), MSG_NOSIGNAL) != sizeof(msg) ||
	    !hello_read(fd, &answer, sizeof(answer)) ||
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
 * Returns: 0, or ENETUNREACH
 */
int carrier_open(void)
{
	const struct timeval answer = {.tv_sec = ANSWER_S};
	struct tsi_grant grant = {0};
	int fd, error;

	if (carrier.fd >= 0)
		return 0;
	if (now_ms() < carrier.retry_ms)
		return ENETUNREACH;
	carrier.retry_ms = now_ms() + RETRY_MS;
	fd = hello_socket();
	if (fd < 0)
		return ENETUNREACH;
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &answer,
		   sizeof(answer));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &answer, sizeof(answer));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &answer, sizeof(answer));
	error = hello_connect(fd, TSI_DATAGRAM_PORT);
	if (!error)
		error = greet(fd, &grant);
	if (error) {
		complain("datagram stream: %s", strerror(error));
		close(fd);
		return ENETUNREACH;
	}
	carrier.told->granted(grant.peers);
	carrier.fd = fd;
	carrier.source.ready = stream_ready;
	loop_add(&carrier.source, fd, EPOLLIN);
	return 0;
}
