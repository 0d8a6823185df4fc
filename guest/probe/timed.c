// SPDX-License-Identifier: Apache-2.0
/*
 * timed.c - one thing after another, timed
 *
 * Theory of operation
 * ===================
 *
 * Samples go to an array that exists before the first one is taken; nothing is
 * printed while time is taken.
 */

#include "probe/probe.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WARM_UP_CONNECT 8U /* samples dropped */
#define WARM_UP_RTT	100U
#define PUT_END		'\xff'

/**
 * time_connect() - Time socket() and connect(); close() is not part of it
 * @count:	Samples
 */
void time_connect(uint64_t count)
{
	uint64_t *ns = allocate(count * sizeof(*ns));

	for (uint64_t i = 0; i < WARM_UP_CONNECT + count; i++) {
		uint64_t start = now_ns();
		int s = dial();
		uint64_t end = now_ns();

		close(s);
		if (i >= WARM_UP_CONNECT)
			ns[i - WARM_UP_CONNECT] = end - start;
	}
	print_samples("connect", ns, count);
	free(ns);
}

/**
 * time_rtt() - Time round trips on one connection to an echo
 * @count:	Samples
 * @size:	Bytes each way
 */
void time_rtt(uint64_t count, size_t size)
{
	uint64_t *ns = allocate(count * sizeof(*ns));
	char *buf = allocate(size);
	int s = dial();

	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	for (uint64_t i = 0; i < WARM_UP_RTT + count; i++) {
		uint64_t start = now_ns();

		send_all(s, buf, size);
		for (size_t got = 0; got < size;)
			got += receive_some(s, buf + got, size - got);
		if (i >= WARM_UP_RTT)
			ns[i - WARM_UP_RTT] = now_ns() - start;
	}
	close(s);
	print_samples("rtt", ns, count);
	free(buf);
	free(ns);
}

/**
 * time_up() - Time a transfer to a discard, from the first byte to its EOF
 * @bytes:	How many
 * @half_close:	Say by it that this is all; else by PUT_END
 *
 * The discard closes when it has read our end: all has arrived by then.
 */
void time_up(uint64_t bytes, bool half_close)
{
	char *buf = allocate(CHUNK);
	int s = dial();
	uint64_t start = now_ns();
	ssize_t got;

	for (uint64_t left = bytes; left;) {
		size_t n = left < CHUNK ? (size_t)left : CHUNK;

		if (n == left && !half_close)
			buf[n - 1] = PUT_END;
		send_all(s, buf, n);
		left -= n;
	}
	if (half_close && shutdown(s, SHUT_WR))
		fail("shutdown: %s", strerror(errno));
	while ((got = read(s, buf, CHUNK)) > 0)
		;
	if (got < 0)
		fail("read: %s", strerror(errno));
	print_bulk(half_close ? "up" : "put", bytes, now_ns() - start);
	close(s);
	free(buf);
}

/**
 * time_down() - Time a transfer from a chargen, from its first byte on
 * @bytes:	How many
 *
 * The connection's set-up is no part of it: the clock starts when the first
 * byte is here, and that piece does not count.
 */
void time_down(uint64_t bytes)
{
	char *buf = allocate(CHUNK);
	int s = dial();
	uint64_t got = 0, start;

	receive_some(s, buf, CHUNK);
	start = now_ns();
	while (got < bytes)
		got += receive_some(s, buf, CHUNK);
	print_bulk("down", got, now_ns() - start);
	close(s);
	free(buf);
}

/**
 * time_echo() - Time a transfer to an echo and back, both ways at once
 * @bytes:	How many each way
 *
 * One thread that does whatever its socket is ready for, so that neither
 * direction waits for the other.
 */
void time_echo(uint64_t bytes)
{
	char *out = allocate(CHUNK), *in = allocate(CHUNK);
	int s = dial();
	struct pollfd p = {.fd = s, .events = POLLIN | POLLOUT};
	uint64_t start = now_ns(), sent = 0, got = 0;

	while (got < bytes) {
		size_t n =
		    bytes - sent < CHUNK ? (size_t)(bytes - sent) : CHUNK;
		ssize_t did;

		if (poll(&p, 1, -1) < 0)
			fail("poll: %s", strerror(errno));
		if (p.revents & POLLOUT) {
			did = send(s, out, n, MSG_DONTWAIT);
			if (did < 0 && errno != EAGAIN)
				fail("send: %s", strerror(errno));
			sent += did < 0 ? 0 : (uint64_t)did;
			if (sent == bytes)
				p.events = POLLIN;
		}
		if (p.revents & (POLLIN | POLLHUP | POLLERR))
			got += receive_some(s, in, CHUNK);
	}
	print_bulk("echo", bytes, now_ns() - start);
	close(s);
	free(in);
	free(out);
}

/**
 * time_accept() - Time accepting, from the first connection on
 * @count:	How many more
 *
 * Each is closed when its client has hung up, as a server of short requests
 * does it.
 */
void time_accept(uint64_t count)
{
	int s = socket(peer.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_storage addr;
	uint64_t start = 0;
	socklen_t len;
	char byte;

	if (s < 0 || bind(s, (struct sockaddr *)&peer, peer_len) ||
	    listen(s, SOMAXCONN))
		fail("listen: %s", strerror(errno));
	for (uint64_t i = 0; i <= count; i++) {
		int conn;

		len = sizeof(addr);
		conn = accept(s, (struct sockaddr *)&addr, &len);
		if (conn < 0)
			fail("accept: %s", strerror(errno));
		if (i == 0)
			start = now_ns();
		while (read(conn, &byte, 1) > 0)
			;
		close(conn);
	}
	print_bulk("accept", count, now_ns() - start);
	close(s);
}
