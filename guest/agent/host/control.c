// SPDX-License-Identifier: Apache-2.0
/*
 * control.c - the stream to the host: what both tell each other of connections
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md is the specification. The stream carries destinations
 * and their tokens (routes.c), listeners (listeners.c) and their clients
 * (callers.c), and why connections failed (failures.c). Nothing is waited for;
 * calls that need the greeting are kept (later.c).
 *
 * If the stream breaks, the next connect() tries to open another one.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/param.h>
#include <unistd.h>

#include "agent/tsi.h"

#define SEND_S	 1 /* for room in the stream */
#define LOOK_MS	 200
#define RETRY_MS 1000 /* after a stream that could not be opened */

/**
 * struct control - The stream
 * @source:	In the event loop
 * @phase:	How far it is
 * @fd:		Socket, unless CLOSED
 * @deadline_ms: It is to be OPEN by then
 * @error:	Why the last one didn't become OPEN
 * @retry_ms:	Not before then is another one tried
 * @welcome:	What the host granted, state.c has the memory
 * @in_len:	Bytes in @in
 * @in:		Start of a message that isn't here in full
 * @hearer:	Who is told
 */
static struct control {
	struct source source;
	enum phase phase;
	int fd;
	int64_t deadline_ms;
	int error;
	int64_t retry_ms;
	struct tsi_welcome *welcome;
	size_t in_len;
	uint8_t in[sizeof(struct tsi_header) + 512];
	const struct hearer *hearer;
} control = {.fd = -1};

/* ---- the stream ---- */

/**
 * stream_fail() - There is no stream any more, or it doesn't become one
 * @error:	errno, for who waits for it
 */
static void stream_fail(int error)
{
	loop_del(control.fd);
	close(control.fd);
	control.fd = -1;
	control.phase = CLOSED;
	control.error = error;
	control.in_len = 0;
	control.retry_ms = now_ms() + RETRY_MS;
	later_wake_all();
}

/**
 * stream_close() - The stream is of no use any more
 * @why:	For the log
 */
static void stream_close(const char *why)
{
	if (control.phase == CLOSED)
		return;
	complain("control stream: %s", why);
	stream_fail(EPIPE);
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

	while (control.phase == OPEN && control.in_len - at >= sizeof(header)) {
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
	if (control.phase == OPEN) {
		control.in_len -= at;
		memmove(control.in, control.in + at, control.in_len);
	}
	return NULL;
}

/**
 * take_welcome() - The host's answer to HELLO
 *
 * Returns: 0; EAGAIN: it isn't here in full; or why there is no stream: an
 *	errno. EACCES: it was said why
 */
static int take_welcome(void)
{
	const uint8_t *payload = control.in + sizeof(struct tsi_header);
	struct tsi_welcome welcome;
	struct tsi_header header;
	size_t size;

	if (control.in_len < sizeof(header))
		return EAGAIN;
	memcpy(&header, control.in, sizeof(header));
	size = sizeof(header) + header.len;
	if (size > sizeof(control.in))
		return EPROTO;
	if (control.in_len < size)
		return EAGAIN;
	if (header.type == TSI_REFUSED && header.len >= sizeof(uint32_t)) {
		complain("the host refuses: %.*s",
			 (int)(header.len - sizeof(uint32_t)),
			 (const char *)payload + sizeof(uint32_t));
		return EACCES;
	}
	if (header.type != TSI_WELCOME || header.len != sizeof(welcome))
		return EPROTO;
	memcpy(&welcome, payload, sizeof(welcome));
	control.in_len -= size;
	memmove(control.in, control.in + size, control.in_len);
	if (welcome.version != TSI_VERSION || !welcome.window ||
	    welcome.first_token < TSI_FIRST_TOKEN)
		return EPROTO;
	*control.welcome = welcome;
	return 0;
}

/**
 * stream_hear() - Handle what is in the buffer
 *
 * Returns: false if there is no stream any more
 */
static bool stream_hear(void)
{
	const char *wrong;
	int error;

	if (control.phase == GREETING) {
		error = take_welcome();
		if (error == EAGAIN)
			return true;
		if (error) {
			stream_fail(error);
			return false;
		}
		control.phase = OPEN;
		sock_set_connect_timeout(control.welcome->connect_timeout_ms);
		control.hearer->opened(control.welcome);
		later_wake_all();
	}
	wrong = control.phase == OPEN ? stream_parse() : NULL;
	if (wrong)
		stream_close(wrong);
	return control.phase == OPEN;
}

/**
 * stream_read() - Read what the host sent
 */
static void stream_read(void)
{
	ssize_t len;

	do {
		len = recv(control.fd, control.in + control.in_len,
			   sizeof(control.in) - control.in_len, MSG_DONTWAIT);
		if (len < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (len <= 0 && control.phase == OPEN)
			stream_close("the host closed it");
		else if (len <= 0)
			stream_fail(EPROTO);
		if (len <= 0)
			return;
		control.in_len += (size_t)len;
	} while (stream_hear());
}

/**
 * stream_ready() - The host has accepted it, or says something
 * @source:	Unused: there is one stream
 * @events:	Unused: the phase tells
 */
static void stream_ready(struct source *source, uint32_t events)
{
	int error;

	(void)events;
	if (control.phase != CONNECTING) {
		stream_read();
		return;
	}
	error = hello_say(control.fd);
	if (error) {
		stream_fail(error);
		return;
	}
	control.phase = GREETING;
	loop_del(control.fd);
	loop_add(source, control.fd, EPOLLIN);
}

/**
 * stream_open() - Begin a stream
 */
static void stream_open(void)
{
	control.error = 0;
	control.fd = hello_start(TSI_PORT, SEND_S);
	if (control.fd < 0) {
		control.error = errno;
		control.retry_ms = now_ms() + RETRY_MS;
		return;
	}
	control.phase = CONNECTING;
	control.deadline_ms = now_ms() + HELLO_MS;
	control.source.ready = stream_ready;
	loop_add(&control.source, control.fd, EPOLLOUT);
}

/**
 * control_hear() - Say who is told, once there is the state
 * @hearer:	They
 */
void control_hear(const struct hearer *hearer)
{
	control.hearer = hearer;
	control.welcome = state_welcome();
}

/**
 * control_start() - Open the stream; nobody is to be served before
 *
 * Returns: 0, or an errno; EACCES: the host refuses, and it is said why
 */
int control_start(void)
{
	struct pollfd state;

	stream_open();
	while (control_is_opening()) {
		state.fd = control.fd;
		state.events = control.phase == CONNECTING ? POLLOUT : POLLIN;
		if (poll(&state, 1, LOOK_MS) > 0)
			stream_ready(&control.source, 0);
		loop_alive(); /* init would take us for one that hangs */
		control_tick();
	}
	return control.error;
}

/**
 * control_is_open() - Is there a stream?
 *
 * Returns: true if there is
 */
bool control_is_open(void)
{
	return control.phase == OPEN;
}

/**
 * control_is_opening() - Is there to be one?
 *
 * Returns: true if that isn't known yet; STREAM_KEY is woken then
 */
bool control_is_opening(void)
{
	return control.phase == CONNECTING || control.phase == GREETING;
}

/**
 * control_tick() - Give up a host that doesn't greet us, if it is time to
 */
void control_tick(void)
{
	if (control_is_opening() && now_ms() >= control.deadline_ms)
		stream_fail(ETIMEDOUT);
}

/**
 * control_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int control_timeout_ms(void)
{
	if (!control_is_opening())
		return -1;
	return ms_until(control.deadline_ms);
}

/**
 * control_keep() - Open a stream if there is none, unless that failed just now
 */
void control_keep(void)
{
	if (control.phase == CLOSED && now_ms() >= control.retry_ms)
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
	if (control.phase == OPEN &&
	    !stream_send(control.fd, TSI_ROUTE, route, sizeof(*route)))
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
	if (control.phase != OPEN)
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

	if (control.phase == OPEN &&
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
	return address_of(v4,
			  v4 ? control.welcome->ipv4 : control.welcome->ipv6);
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
