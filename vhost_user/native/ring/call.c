// SPDX-License-Identifier: Apache-2.0
/*
 * call.c - interrupting the guest
 */

#include <errno.h>
#include <unistd.h>

#include "ring/ring.h"

/**
 * ring_call() - Interrupt the guest
 * @ring:	Ring with a call eventfd (a full counter is a pending interrupt)
 *
 * Returns: 1
 */
int ring_call(struct vu_ring *ring)
{
	const uint64_t one = 1;

	while (write(ring->call_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	return 1;
}
