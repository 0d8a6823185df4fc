// SPDX-License-Identifier: GPL-2.0-only
/*
 * stream.c - the stream to the host
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md is the specification. One thread opens and reads the
 * stream (control.c); whoever has something to say writes to it. A message goes
 * out whole or not at all: its room is waited for first, outside of any other
 * lock, and a signal ends the wait.
 */

#include <linux/in6.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/virtio_vsock.h>
#include <net/af_vsock.h>

#include "inet.h"

#define ROOM	(5 * HZ) /* for a message, if the host is slow to read */
#define RESERVE 16384U

/**
 * struct stream - The stream
 * @write:	Held by who writes, opens or closes
 * @sock:	Socket, NULL if there is none
 * @ended:	It is of no use any more
 * @welcome:	What the host granted; of the last one, if there is none
 * @in_len:	Bytes in @in; these two are the thread's
 * @in:		Start of a message that isn't here in full
 */
static struct stream {
	struct mutex write;
	struct socket *sock;
	bool ended;
	struct tsi_welcome welcome;
	size_t in_len;
	u8 in[512];
} stream = {.write = __MUTEX_INITIALIZER(stream.write)};

/**
 * put() - Write some bytes
 * @sock:	Stream
 * @bytes:	Bytes
 * @len:	How many; there is room
 *
 * Returns: 0, or a negated errno
 */
static int put(struct socket *sock, void *bytes, size_t len)
{
	struct msghdr msg = {.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL};
	struct kvec vec = {.iov_base = bytes, .iov_len = len};
	int sent = kernel_sendmsg(sock, &msg, &vec, 1, len);

	if (sent == (int)len)
		return 0;
	return sent < 0 ? sent : -EPIPE;
}

/**
 * stream_begin() - Open it; there is none
 *
 * Returns: 0, or a negated errno
 */
int stream_begin(void)
{
	struct tsi_welcome welcome;
	struct socket *sock;
	int error =
	    hello_open(TSI_PORT, TSI_WELCOME, &welcome, sizeof(welcome), &sock);

	if (error)
		return error;
	if (welcome.version != TSI_VERSION ||
	    welcome.first_token < TSI_FIRST_TOKEN || !welcome.window ||
	    !welcome.token_count ||
	    welcome.token_count > U32_MAX - welcome.first_token) {
		sock_release(sock);
		return -EPROTO;
	}
	stream.welcome = welcome;
	stream.in_len = 0;
	mutex_lock(&stream.write);
	WRITE_ONCE(stream.ended, true); /* until stream_ready() */
	WRITE_ONCE(stream.sock, sock);
	mutex_unlock(&stream.write);
	return 0;
}

/**
 * stream_close() - Close it
 */
void stream_close(void)
{
	struct socket *sock;

	mutex_lock(&stream.write);
	sock = stream.sock;
	WRITE_ONCE(stream.sock, NULL);
	mutex_unlock(&stream.write);
	if (sock)
		sock_release(sock);
}

/**
 * stream_ready() - Let others use the stream that was begun
 */
void stream_ready(void)
{
	WRITE_ONCE(stream.ended, false);
}

/**
 * stream_is_open() - Is there one?
 *
 * Returns: true if there is
 */
bool stream_is_open(void)
{
	return READ_ONCE(stream.sock) && !READ_ONCE(stream.ended);
}

/**
 * stream_end() - Have its thread close it
 * @why:	For the log
 */
void stream_end(const char *why)
{
	mutex_lock(&stream.write);
	if (stream.sock) {
		pr_warn_ratelimited("tsi: control stream: %s\n", why);
		WRITE_ONCE(stream.ended, true);
		kernel_sock_shutdown(stream.sock, SHUT_RDWR);
	}
	mutex_unlock(&stream.write);
}

/**
 * reserve() - Room that a message leaves to others
 * @type:	Its type
 *
 * What a program causes leaves room for what has to be said whatever happens:
 * the end of a listener, an answer. The host tells of room when half of all is.
 *
 * Returns: bytes
 */
static size_t reserve(enum tsi_type type)
{
	const struct virtio_vsock_sock *trans =
	    vsock_sk(stream.sock->sk)->trans;

	if (type != TSI_ROUTE && type != TSI_LISTEN)
		return 0;
	return min(RESERVE, READ_ONCE(trans->peer_buf_alloc) / 4);
}

/**
 * stream_send() - Send a message
 * @type:	Type
 * @payload:	Payload
 * @len:	Bytes of it
 *
 * Returns: 0, or a negated errno: nothing was sent
 */
int stream_send(enum tsi_type type, const void *payload, size_t len)
{
	struct {
		struct tsi_header header;
		u8 payload[MAX_PAYLOAD];
	} __packed msg = {.header = {.type = type, .len = len}};
	unsigned long end = jiffies + ROOM;
	size_t size = sizeof(msg.header) + len;
	int error = -ENETUNREACH;

	memcpy(msg.payload, payload, len);
	mutex_lock(&stream.write);
	while (stream.sock &&
	       vsock_stream_has_space(vsock_sk(stream.sock->sk)) <
		   (s64)(size + reserve(type))) {
		mutex_unlock(&stream.write);
		if (time_after(jiffies, end) || signal_pending(current))
			return -ENETUNREACH;
		schedule_timeout_interruptible(msecs_to_jiffies(10));
		mutex_lock(&stream.write);
	}
	if (stream.sock)
		error = put(stream.sock, &msg, size);
	mutex_unlock(&stream.write);
	return error;
}

/**
 * parse() - Handle the complete messages that are here
 * @messages:	What the host may send
 * @count:	How many those are
 *
 * Returns: false if it sent another one
 */
static bool parse(const struct message *messages, size_t count)
{
	struct tsi_header header;
	u64 payload[MAX_PAYLOAD / sizeof(u64)];
	size_t at = 0, i;

	while (stream.in_len - at >= sizeof(header)) {
		memcpy(&header, stream.in + at, sizeof(header));
		for (i = 0; i < count && messages[i].type != header.type; i++)
			;
		if (i == count || messages[i].len != header.len)
			return false;
		if (stream.in_len - at < sizeof(header) + header.len)
			break;
		memcpy(payload, stream.in + at + sizeof(header), header.len);
		at += sizeof(header) + header.len;
		messages[i].handle(payload);
	}
	stream.in_len -= at;
	memmove(stream.in, stream.in + at, stream.in_len);
	return true;
}

/**
 * stream_read() - Wait for what the host says, and handle it
 * @messages:	What it may send
 * @count:	How many those are
 *
 * Returns: 0, or a negated errno: the stream is of no use any more
 */
int stream_read(const struct message *messages, size_t count)
{
	struct msghdr msg = {};
	struct kvec vec = {.iov_base = stream.in + stream.in_len,
			   .iov_len = sizeof(stream.in) - stream.in_len};
	int got = kernel_recvmsg(stream.sock, &msg, &vec, 1, vec.iov_len, 0);

	if (got <= 0)
		return got ?: -EPIPE;
	stream.in_len += got;
	return parse(messages, count) ? 0 : -EPROTO;
}

/**
 * stream_welcome() - What the host has granted
 * @ret_welcome: Set to it; all 0 if there was no stream yet
 */
void stream_welcome(struct tsi_welcome *ret_welcome)
{
	*ret_welcome = stream.welcome;
}

/**
 * stream_connect_timeout() - The host has answered a request by then
 *
 * Returns: jiffies
 */
long stream_connect_timeout(void)
{
	return msecs_to_jiffies(READ_ONCE(stream.welcome.connect_timeout_ms));
}
