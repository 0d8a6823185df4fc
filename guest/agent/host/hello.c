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
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "agent/tsi.h"

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
 * make() - A socket that the host takes a stream from
 *
 * Without the right to bind such a port it is one all the same, and the host
 * says no.
 *
 * Returns: the socket; -1 with errno set otherwise
 */
static int make(void)
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
 * fill() - Make the message that a stream begins with
 * @ret_msg:	Message
 */
static void fill(struct tsi_hello *ret_msg)
{
	*ret_msg = (struct tsi_hello){
	    .magic = TSI_MAGIC,
	    .version_min = TSI_VERSION,
	    .version_max = TSI_VERSION,
	};
	read_key(ret_msg->key);
}

/**
 * hello_start() - Begin a stream to the host
 * @port:	Of the host
 * @send_s:	How long a send() waits for room
 *
 * Nothing is waited for: it is writable once hello_say() may be called.
 *
 * Returns: the socket; -1 with errno set otherwise
 */
int hello_start(uint32_t port, int send_s)
{
	const struct timeval room = {.tv_sec = send_s};
	int fd = make(), error;

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &room, sizeof(room));
	sock_set_nonblocking(fd, true);
	error = sock_connect(fd, TSI_HOST_CID, port);
	sock_set_nonblocking(fd, false);
	if (!error || error == EINPROGRESS)
		return fd;
	close(fd);
	errno = error;
	return -1;
}

/**
 * hello_say() - Greet the host
 * @fd:		From hello_start(), writable
 *
 * Returns: 0, or an errno
 */
int hello_say(int fd)
{
	struct {
		struct tsi_header header;
		struct tsi_hello hello;
	} msg = {.header = {.type = TSI_HELLO, .len = sizeof(msg.hello)}};

	if (sock_peer_port(fd) == NO_PORT)
		return ECONNREFUSED;
	fill(&msg.hello);
	if (send(fd, &msg, sizeof(msg), MSG_NOSIGNAL) != sizeof(msg))
		return errno ? errno : EPIPE;
	return 0;
}
