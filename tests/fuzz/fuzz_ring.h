/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_ring.h - calls loaded() behind each load of shared memory
 *
 * Included before all else (clang -include) in what fuzz_ring.c is linked with.
 */
#ifndef FUZZ_RING_H
#define FUZZ_RING_H

void loaded(const volatile void *at);

#define __atomic_load_n(at, order)                                             \
	__extension__({                                                        \
		__auto_type value_ = __atomic_load_n(at, order);               \
                                                                               \
		loaded(at);                                                    \
		value_;                                                        \
	})

#endif /* FUZZ_RING_H */
