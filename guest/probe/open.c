// SPDX-License-Identifier: Apache-2.0
/*
 * open.c - round trips at a fixed rate: an open loop
 *
 * Theory of operation
 * ===================
 *
 * Request i is due at START + i / RATE, whatever became of those before, and
 * its time runs from then: not from when it could be sent. A path that stands
 * still for a while so has all requests of that while late, where a closed loop
 * has one ("coordinated omission").
 *
 * One connection to an echo, requests one behind the other; answers come in
 * their order, so answer i is whole with byte (i + 1) * SIZE.
 */

#define _GNU_SOURCE /* ppoll() */

#include "probe/probe.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000ULL

/**
 * wait_until() - Wait for a socket, or for a time
 * @s:		Socket
 * @events:	As of poll()
 * @at:		Time, ns; UINT64_MAX: none
 *
 * Returns: what the socket is ready for
 */
static short wait_until(int s, short events, uint64_t at)
{
	struct pollfd p = {.fd = s, .events = events};
	uint64_t now = now_ns(), left = at > now ? at - now : 0;
	struct timespec ts = {
	    .tv_sec = (time_t)(left / SECOND_NS),
	    .tv_nsec = (long)(left % SECOND_NS),
	};

	if (ppoll(&p, 1, at == UINT64_MAX ? NULL : &ts, NULL) < 0)
		fail("ppoll: %s", strerror(errno));
	return p.revents;
}

/**
 * receive() - Take what has come, and note which answers are whole
 * @s:		Socket
 * @ns:		Due times, which become how long each took
 * @got:	Bytes so far
 * @size:	Of an answer, bytes
 *
 * Returns: bytes with what has come
 */
static uint64_t receive(int s, uint64_t *ns, uint64_t got, size_t size)
{
	static char in[CHUNK];
	uint64_t more = receive_some(s, in, sizeof(in)), now = now_ns();

	for (uint64_t i = got / size; i < (got + more) / size; i++)
		ns[i] = now - ns[i];
	return got + more;
}

/**
 * time_open() - Time round trips at a fixed rate
 * @count:	Samples
 * @size:	Bytes each way
 * @rate:	Requests a second
 */
void time_open(uint64_t count, size_t size, uint64_t rate)
{
	uint64_t *ns = allocate(count * sizeof(*ns));
	char *out = allocate(size);
	int s = dial();
	uint64_t all = count * size, sent = 0, got = 0, start;

	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	start = now_ns();
	for (uint64_t i = 0; i < count; i++)
		ns[i] = start + i * SECOND_NS / rate;
	while (got < all) {
		uint64_t due = sent < all ? ns[sent / size] : UINT64_MAX;
		int late = sent % size || due <= now_ns();
		short ready = wait_until(
		    s, (short)(POLLIN | (late && sent < all ? POLLOUT : 0)),
		    late ? UINT64_MAX : due);

		if (ready & POLLOUT) {
			size_t at = (size_t)(sent % size);
			ssize_t n = send(s, out + at, size - at, MSG_DONTWAIT);

			if (n < 0 && errno != EAGAIN)
				fail("send: %s", strerror(errno));
			sent += n < 0 ? 0 : (uint64_t)n;
		}
		if (ready & (POLLIN | POLLHUP | POLLERR))
			got = receive(s, ns, got, size);
	}
	close(s);
	print_samples("open", ns, count);
	free(out);
	free(ns);
}
