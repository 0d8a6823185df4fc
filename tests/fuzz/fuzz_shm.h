/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_shm.h - calls loaded() behind each load of shared memory, and gives the
 * engine the time of fuzz_shm.c
 *
 * Included before all else (clang -include) in what fuzz_shm.c is linked with.
 */
#ifndef FUZZ_SHM_H
#define FUZZ_SHM_H

#include <time.h>

void loaded(const volatile void *at);
int fuzz_time(struct timespec *now);

#define clock_gettime(clock, now) fuzz_time(now)

#define __atomic_load_n(at, order)                                             \
	__extension__({                                                        \
		__auto_type value_ = __atomic_load_n(at, order);               \
                                                                               \
		loaded(at);                                                    \
		value_;                                                        \
	})

#endif /* FUZZ_SHM_H */
