/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.h - monotonic time
 */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>
#include <time.h>

/**
 * clock_us() - What time is it?
 *
 * Returns: monotonic time, us
 */
static inline uint64_t clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

#endif /* CLOCK_H */
