// SPDX-License-Identifier: Apache-2.0
/*
 * slice.c - how long the thread would have a CPU, once it has it
 *
 * Theory of operation
 * ===================
 *
 * Work that comes for us, and a sched_yield() of ours, find a neighbour on our
 * core: the thread of the handshakes, another engine, a server. It runs to the
 * end of its slice, unless ours is shorter; and what a yield costs us is a
 * slice of ours. By default all have the same, 1.4 ms on two CPUs. Our turns
 * are short, so we ask for short slices: as much CPU time as before, but soon.
 *
 * docs/measurements.md, "HBONE beside another sandbox", has what that is worth.
 */

#include <sched.h>
#include <unistd.h>

#include <sys/syscall.h>

#include "engine/engine.h"

#define SLICE_NS 200000 /* as long as our longest turn */

/**
 * struct attr - What sched_setattr() takes
 *
 * Spec: sched(7), sched_setattr(2); SCHED_ATTR_SIZE_VER0.
 */
struct attr {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns;
	uint64_t deadline_ns;
	uint64_t period_ns;
};

_Static_assert(sizeof(struct attr) == 48, "its first version");

/**
 * slice_shorten() - Ask for short slices of the calling thread's CPU
 *
 * Linux before 6.12 has one length for all, and whoever has given us a policy
 * knows better: then all stays as it is, as where a sandbox forbids it.
 */
void slice_shorten(void)
{
	struct attr attr = {.size = sizeof(attr)};

	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) ||
	    attr.policy != SCHED_OTHER)
		return;
	attr.runtime_ns = SLICE_NS;
	if (syscall(SYS_sched_setattr, 0, &attr, 0))
		return; /* nothing hangs on it */
}
