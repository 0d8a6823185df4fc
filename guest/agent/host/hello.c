// SPDX-License-Identifier: Apache-2.0
/*
 * hello.c - how our streams to the host begin
 *
 * Theory of operation
 * ===================
 *
 * The host takes a stream only from a port that not every program can bind, and
 * only if HELLO has the key that it gave to init. Else any program could speak
 * for the guest: announce a listener and take another's clients. The port keeps
 * those out that are nobody here, at no cost for the host; the key those that
 * are root in a container.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "agent/tsi.h"

#define HELLO_ANSWER_MS 5000 /* for the host to accept and greet us */
#define LOOK_MS		200

/**
 * read_key() - The key, from where init has left it
 * @ret_key:	TSI_KEY_BYTES; zeros if there is none
 */
static void read_key(uint8_t *ret_key)
{
	int fd = open(TSI_KEY_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return;
	if (read(fd, ret_key, TSI_KEY_BYTES) != (ssize_t)TSI_KEY_BYTES)
		memset(ret_key, 0, TSI_KEY_BYTES);
	close(fd);
}

/**
 * wait_alive() - Wait for a stream, and show that we do
 * @fd:		Stream
 * @events:	poll events
 * @end_ms:	Until then at most
 *
 * Returns: true if it is ready
 */
static bool wait_alive(int fd, short events, int64_t end_ms)
{
	struct pollfd state = {.fd = fd, .events = events};

	while (poll(&state, 1, LOOK_MS) <= 0) {
		if (now_ms() >= end_ms)
			return false;
		loop_alive(); /* init would take us for one that hangs */
	}
	return true;
}

/**
 * hello_connect() - Connect a stream to the host
 * @fd:		From hello_socket()
 * @port:	Of the host
 *
 * Returns: 0, or an errno
 */
int hello_connect(int fd, uint32_t port)
{
	int error;

	sock_set_nonblocking(fd, true);
	error = sock_connect(fd, TSI_HOST_CID, port);
	if (error == EINPROGRESS)
		error = wait_alive(fd, POLLOUT, now_ms() + HELLO_ANSWER_MS) &&
				sock_peer_port(fd) != NO_PORT
			    ? 0
			    : ECONNREFUSED;
	sock_set_nonblocking(fd, false);
	return error;
}

/**
 * hello_read() - Read a part of the host's answer
 * @fd:		Stream
 * @ret_part:	Part
 * @len:	Bytes of it
 *
 * Returns: false if it doesn't come
 */
bool hello_read(int fd, void *ret_part, size_t len)
{
	int64_t end_ms = now_ms() + HELLO_ANSWER_MS;
	uint8_t *at = ret_part;

	while (len && wait_alive(fd, POLLIN, end_ms)) {
		ssize_t n = recv(fd, at, len, MSG_DONTWAIT);

		if (n <= 0)
			return false;
		at += n;
		len -= (size_t)n;
	}
	return !len;
}

/**
 * hello_socket() - A socket that the host takes a stream from
 *
 * Without the right to bind such a port it is one all the same, and the host
 * says no.
 *
 * Returns: the socket; -1 with errno set otherwise
 */
int hello_socket(void)
{
	static uint32_t last;
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int error = fd < 0 ? errno : EADDRINUSE;

	for (uint32_t i = 0; i < TSI_LAST_PRIVILEGED_PORT; i++) {
		if (error != EADDRINUSE)
			break;
		last = last % TSI_LAST_PRIVILEGED_PORT + 1;
		error = ports_bind(fd, last);
	}
	if (fd >= 0 && error)
		complain("no port up to %u: %s", TSI_LAST_PRIVILEGED_PORT,
			 strerror(error));
	return fd;
}

/**
 * hello_fill() - Make the message that a stream begins with
 * @ret_msg:	Message
 */
void hello_fill(struct hello *ret_msg)
{
	*ret_msg = (struct hello){
	    .header = {.type = TSI_HELLO, .len = sizeof(ret_msg->hello)},
	    .hello = {.magic = TSI_MAGIC,
		      .version_min = TSI_VERSION,
		      .version_max = TSI_VERSION},
	};
	read_key(ret_msg->hello.key);
}
