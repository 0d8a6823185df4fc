// SPDX-License-Identifier: Apache-2.0
/*
 * ports.c - the vsock ports that our sockets are bound to
 *
 * Theory of operation
 * ===================
 *
 * What getsockname() shows of a port is its lower half (docs/tsi-protocol.md),
 * so that half is chosen as TCP would; the upper half makes it one that is
 * free.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/random.h>

#include "agent/tsi.h"

#define PORT_RANGE_FILE "/proc/sys/net/ipv4/ip_local_port_range"
#define BIND_TRIES	1000

/**
 * ports_bind() - Bind to a vsock port
 * @fd:		vsock socket
 * @port:	Port
 *
 * Returns: 0, or an errno
 */
int ports_bind(int fd, uint32_t port)
{
	struct sockaddr_vm addr = {
	    .svm_family = AF_VSOCK,
	    .svm_port = port,
	    .svm_cid = VMADDR_CID_ANY,
	};

	return bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ? errno : 0;
}

/**
 * ports_bind_low() - Bind to a port whose low half is given
 * @fd:		One of our sockets, not bound
 * @port:	What getsockname() will show
 *
 * The upper half makes it one that is free; a failure leaves the socket
 * unbound, and the kernel chooses a port when it connects.
 */
void ports_bind_low(int fd, uint16_t port)
{
	static uint16_t upper;

	for (int i = 0; i < BIND_TRIES; i++) {
		if (upper < FIRST_BOUND || ++upper == UINT16_MAX)
			upper = FIRST_BOUND;
		if (ports_bind(fd, VSOCK_PORT(upper, port)) != EADDRINUSE)
			return;
	}
}

/**
 * range_of() - The ports that TCP would choose from
 * @ret_first:	First of them
 *
 * Returns: how many
 */
static uint32_t range_of(uint32_t *ret_first)
{
	static uint32_t first = 32768, last = 60999;
	static bool known;
	FILE *file = known ? NULL : fopen(PORT_RANGE_FILE, "re");
	uint32_t from, to;

	if (file && fscanf(file, "%u %u", &from, &to) == 2 && from > 0 &&
	    from <= to && to <= UINT16_MAX) {
		first = from;
		last = to;
	}
	if (file)
		fclose(file);
	known = true;
	*ret_first = first;
	return last - first + 1;
}

/**
 * ports_bind_any() - Bind to a port that TCP could have chosen
 * @fd:		One of our sockets
 *
 * vsock's own choice would have any low half, a privileged port or 0 as well.
 * One that is used again soon might meet what the host still has of the
 * connection before, so they are taken in turn.
 *
 * Returns: 0, or an errno; EINVAL: it has a port
 */
int ports_bind_any(int fd)
{
	static uint64_t turn;
	uint32_t first, count = range_of(&first), upper;
	int error = EADDRINUSE;

	if (!turn && getrandom(&turn, sizeof(turn), 0) != sizeof(turn))
		turn = (uint64_t)now_ms();
	for (int i = 0; i < BIND_TRIES && error == EADDRINUSE; i++) {
		turn++;
		upper = (uint32_t)(turn / count % (FIRST_CALLER - FIRST_BOUND));
		error = ports_bind(
		    fd, VSOCK_PORT(FIRST_BOUND + upper,
				   first + (uint32_t)(turn % count)));
	}
	return error;
}
