// SPDX-License-Identifier: Apache-2.0
/*
 * control.c - the stream to the host: what both tell each other of connections
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md is the specification. The stream carries destinations
 * and their tokens (routes.c), listeners (listeners.c) and their clients
 * (callers.c), and why connections failed (failures.c). Nothing is waited for
 * but the greeting.
 *
 * If the stream breaks, the next connect() tries to open another one.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/param.h>
#include <sys/time.h>
#include <unistd.h>

#include "agent/tsi.h"

#define ANSWER_S 5    /* for the host to accept */
#define SEND_S	 1    /* for room in the stream */
#define RETRY_MS 1000 /* after a stream that could not be opened */

/**
 * struct control - The stream
 * @source:	In the event loop
 * @fd:		Socket, -1 if there is none
 * @retry_ms:	Not before then is another one tried
 * @welcome:	What the host granted
 * @in_len:	Bytes in @in
 * @in:		Start of a message that isn't here in full
 * @hearer:	Who is told
 */
static struct control {
	struct source source;
	int fd;
	int64_t retry_ms;
	struct tsi_welcome welcome;
	size_t in_len;
	uint8_t in[sizeof(struct tsi_header) + 512];
	const struct hearer *hearer;
} control = {.fd = -1};

/* ---- the stream ---- */

/**
 * stream_close() - The stream is of no use any more
 * @why:	For the log
 */
static void stream_close(const char *why)
{
	if (control.fd < 0)
		return;
	complain("control stream: %s", why);
	loop_del(control.fd);
	close(control.fd);
	control.fd = -1;
	control.in_len = 0;
	control.retry_ms = now_ms() + RETRY_MS;
}

/**
 * stream_send() - Send a message
 * @fd:		Stream
 * @type:	enum tsi_type
 * @payload:	Payload
 * @len:	Bytes of it
 *
 * Returns: 0, or an errno
 */
static int stream_send(int fd, uint16_t type, const void *payload, size_t len)
{
	uint8_t msg[sizeof(struct tsi_header) + sizeof(struct tsi_listen)];
	struct tsi_header header = {.type = type, .len = (uint16_t)len};

	memcpy(msg, &header, sizeof(header));
	memcpy(msg + sizeof(header), payload, len);
	len += sizeof(header);
	if (send(fd, msg, len, MSG_NOSIGNAL) != (ssize_t)len)
		return errno ? errno : EPIPE;
	return 0;
}

/**
 * stream_greet() - Exchange HELLO and WELCOME
 * @fd:		Stream, blocking with timeouts
 *
 * Returns: 0, or an errno after complaining
 */
static int stream_greet(int fd)
{
	struct hello hello;
	struct tsi_header header;
	char text[sizeof(uint32_t) + TSI_MAX_TEXT + 1] = {0};

	hello_fill(&hello);
	if (send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
		return errno;
	if (!hello_read(fd, &header, sizeof(header)))
		return EPROTO;
	if (header.type == TSI_WELCOME &&
	    header.len == sizeof(control.welcome)) {
		if (!hello_read(fd, &control.welcome, header.len))
			return EPROTO;
		if (control.welcome.version == TSI_VERSION &&
		    control.welcome.first_token >= TSI_FIRST_TOKEN &&
		    control.welcome.window > 0)
			return 0;
	} else if (header.type == TSI_REFUSED &&
		   header.len >= sizeof(uint32_t) &&
		   header.len < sizeof(text)) {
		if (hello_read(fd, text, header.len))
			complain("the host refuses: %s",
				 text + sizeof(uint32_t));
		return EACCES;
	}
	return EPROTO;
}

/**
 * handle_failed() - A FAILED message
 * @payload:	Payload
 */
static void handle_failed(const void *payload)
{
	control.hearer->failed(payload);
}

/**
 * handle_listening() - A LISTENING message
 * @payload:	Payload
 */
static void handle_listening(const void *payload)
{
	const struct tsi_listening *listening = payload;
	int error = listening->error > MAX_ERRNO ? EIO : (int)listening->error;

	control.hearer->listening(listening->listener, listening->port, error);
}

/**
 * handle_caller() - A CALLER message: the host waits for our answer
 * @payload:	Payload
 */
static void handle_caller(const void *payload)
{
	const struct tsi_caller *caller = payload;
	const struct tsi_introduced answer = {.ports = caller->ports};
	bool v6 = caller->family != TSI_IPV4;
	struct in6_addr address = address_of(!v6, caller->address);

	if (callers_set(caller->ports, v6, &address) &&
	    stream_send(control.fd, TSI_INTRODUCED, &answer, sizeof(answer)))
		stream_close("the host doesn't read it");
}

/**
 * struct message - What the host may send after WELCOME
 * @type:	enum tsi_type
 * @len:	Bytes of payload
 * @handle:	Called with the payload
 */
static const struct message {
	uint16_t type;
	uint16_t len;
	void (*handle)(const void *payload);
} messages[] = {
    {TSI_FAILED, sizeof(struct tsi_failed), handle_failed},
    {TSI_LISTENING, sizeof(struct tsi_listening), handle_listening},
    {TSI_CALLER, sizeof(struct tsi_caller), handle_caller},
};

/**
 * message_of() - What handles a message
 * @header:	Its header
 *
 * Returns: row of messages[], or NULL if the host may not send it
 */
static const struct message *message_of(const struct tsi_header *header)
{
	for (size_t i = 0; i < sizeof(messages) / sizeof(messages[0]); i++)
		if (messages[i].type == header->type)
			return messages[i].len == header->len ? &messages[i]
							      : NULL;
	return NULL;
}

/**
 * stream_parse() - Handle the complete messages in the buffer
 *
 * Returns: NULL, or what is wrong with them
 */
static const char *stream_parse(void)
{
	const struct message *message;
	struct tsi_header header;
	uint32_t payload[16];
	size_t at = 0;

	while (control.in_len - at >= sizeof(header)) {
		memcpy(&header, control.in + at, sizeof(header));
		message = message_of(&header);
		if (!message || header.len > sizeof(payload))
			return "the host sent what it should not";
		if (control.in_len - at < sizeof(header) + header.len)
			break;
		memcpy(payload, control.in + at + sizeof(header), header.len);
		at += sizeof(header) + header.len;
		message->handle(payload);
	}
	control.in_len -= at;
	memmove(control.in, control.in + at, control.in_len);
	return NULL;
}

/**
 * stream_ready() - Read what the host sent
 * @source:	Unused: there is one stream
 * @events:	Unused: reading tells
 */
static void stream_ready(struct source *source, uint32_t events)
{
	ssize_t len;
	const char *wrong;

	(void)source;
	(void)events;
	while (control.fd >= 0) {
		len = recv(control.fd, control.in + control.in_len,
			   sizeof(control.in) - control.in_len, MSG_DONTWAIT);
		if (len < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (len <= 0) {
			stream_close("the host closed it");
			return;
		}
		control.in_len += (size_t)len;
		wrong = stream_parse();
		if (wrong)
			stream_close(wrong);
	}
}

/**
 * stream_open() - Open a stream
 *
 * Returns: 0, or an errno
 */
static int stream_open(void)
{
	const struct timeval answer = {.tv_sec = ANSWER_S};
	const struct timeval room = {.tv_sec = SEND_S};
	int fd = hello_socket();
	int error;

	if (fd < 0)
		return errno;
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &answer,
		   sizeof(answer));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &room, sizeof(room));
	error = hello_connect(fd, TSI_PORT);
	if (!error)
		error = stream_greet(fd);
	if (error) {
		close(fd);
		control.retry_ms = now_ms() + RETRY_MS;
		return error;
	}

	sock_set_connect_timeout(control.welcome.connect_timeout_ms);
	control.fd = fd;
	control.source.ready = stream_ready;
	loop_add(&control.source, fd, EPOLLIN);
	control.hearer->opened(&control.welcome);
	return 0;
}

/**
 * control_hear() - Say who is told, before all else
 * @hearer:	They
 */
void control_hear(const struct hearer *hearer)
{
	control.hearer = hearer;
}

/**
 * control_start() - Open the stream
 *
 * Returns: 0, or an errno; EACCES: the host refuses, and it is said why
 */
int control_start(void)
{
	return stream_open();
}

/**
 * control_is_open() - Is there a stream?
 *
 * Returns: true if there is
 */
bool control_is_open(void)
{
	return control.fd >= 0;
}

/**
 * control_keep() - Open a stream if there is none, unless that failed just now
 */
void control_keep(void)
{
	if (control.fd < 0 && now_ms() >= control.retry_ms)
		stream_open();
}

/**
 * control_reopen() - Close the stream; the next one need not wait
 * @why:	For the log
 */
void control_reopen(const char *why)
{
	stream_close(why);
	control.retry_ms = 0;
}

/* ---- what is told ---- */

/**
 * control_route() - Tell the host what a token stands for
 * @route:	Token and destination
 *
 * Returns: false if there is no stream any more
 */
bool control_route(const struct tsi_route *route)
{
	if (!stream_send(control.fd, TSI_ROUTE, route, sizeof(*route)))
		return true;
	stream_close("the host doesn't read it");
	return false;
}

/**
 * control_listen() - Tell the host of a listener
 * @listen:	Listener
 *
 * Returns: false if there is no stream
 */
bool control_listen(const struct tsi_listen *listen)
{
	if (control.fd < 0)
		return false;
	if (!stream_send(control.fd, TSI_LISTEN, listen, sizeof(*listen)))
		return true;
	stream_close("the host doesn't read it");
	return false;
}

/**
 * control_unlisten() - Tell the host that a listener is gone
 * @listener:	vsock port
 */
void control_unlisten(uint32_t listener)
{
	const struct tsi_unlisten msg = {.listener = listener};

	if (control.fd >= 0 &&
	    stream_send(control.fd, TSI_UNLISTEN, &msg, sizeof(msg)))
		stream_close("the host doesn't read it");
}

/* ---- the pod ---- */

/**
 * control_pod_address() - The pod's address
 * @v4:		The IPv4 one
 *
 * Returns: address, v4-mapped if IPv4; unspecified if it has none
 */
struct in6_addr control_pod_address(bool v4)
{
	return address_of(v4, v4 ? control.welcome.ipv4 : control.welcome.ipv6);
}

/**
 * control_has_family() - Has the pod an address of a family?
 * @v4:		IPv4, else IPv6
 *
 * Returns: true if it has
 */
bool control_has_family(bool v4)
{
	struct in6_addr own = control_pod_address(v4);

	return v4 ? own.s6_addr32[3] != 0 : !IN6_IS_ADDR_UNSPECIFIED(&own);
}
