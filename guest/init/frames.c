// SPDX-License-Identifier: Apache-2.0
/*
 * frames.c - frames to the host
 *
 * Theory of operation
 * ===================
 *
 * Frames are queued, and sent as the stream takes them. main.c describes them.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "init/init.h"

#define INIT_VERSION 3

static struct buffer to_host;
static int host = -1;

/**
 * frames_start() - Send on a stream from here on
 * @stream:	To the host
 */
void frames_start(int stream)
{
	host = stream;
	to_host.len = to_host.start = 0;
}

/**
 * frames_send() - Queue a frame for the host
 * @type:	What it is
 * @payload:	Its bytes
 * @len:	How many
 *
 * Whoever has much to send waits for an empty buffer first, and the few small
 * frames that can meet there fit: no room is a mistake of ours.
 */
void frames_send(enum frame type, const void *payload, size_t len)
{
	uint32_t header[2] = {(uint32_t)type, (uint32_t)len};

	if (!buffer_add(&to_host, header, sizeof(header)) ||
	    !buffer_add(&to_host, payload, len))
		finish("no room for a frame to the host");
}

/**
 * frames_send_u32() - Queue a frame that is one integer
 * @type:	What it is
 * @v:		The integer
 */
void frames_send_u32(enum frame type, uint32_t v)
{
	frames_send(type, &v, sizeof(v));
}

/**
 * frames_send_ready() - Queue the first frame: who we are
 */
void frames_send_ready(void)
{
	static const char path[] = "/sys/devices/system/clocksource/"
				   "clocksource0/current_clocksource";
	char payload[sizeof(uint32_t) + 256] = {INIT_VERSION};
	struct utsname uts;
	size_t len = sizeof(uint32_t);
	char clock[64] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		ssize_t n = read(fd, clock, sizeof(clock) - 1);

		clock[n > 0 ? n : 0] = '\0';
		clock[strcspn(clock, "\n")] = '\0';
		close(fd);
	}
	uname(&uts);
	len += (size_t)snprintf(payload + len, 128, "%.100s", uts.release) + 1;
	len += (size_t)snprintf(payload + len, 64, "%s", clock) + 1;
	len += (size_t)snprintf(payload + len, 64, "%s", sockets_who()) + 1;
	frames_send(FRAME_READY, payload, len);
}

/**
 * frames_idle() - Has all been sent?
 *
 * Returns: true if it has
 */
bool frames_idle(void)
{
	return to_host.len == 0;
}

/**
 * frames_flush() - Send what the stream takes now
 */
void frames_flush(void)
{
	while (to_host.len) {
		ssize_t n = send(host, to_host.data + to_host.start,
				 to_host.len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0)
			finish("the host closed the stream");
		buffer_take(&to_host, (size_t)n);
	}
}

/**
 * frames_drain() - Send all, however long the host takes
 */
void frames_drain(void)
{
	for (frames_flush(); to_host.len; frames_flush())
		poll(&(struct pollfd){.fd = host, .events = POLLOUT}, 1, -1);
}
