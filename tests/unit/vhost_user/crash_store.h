/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crash_store.h - calls stored() behind each store to shared memory
 *
 * Included before all else (gcc -include) in what crash_ring.c is linked with.
 */
#ifndef CRASH_STORE_H
#define CRASH_STORE_H

void stored(void);

#define __atomic_store_n(at, value, order)                                     \
	(*(volatile __typeof__(*(at)) *)(at) = (value), stored())

#endif /* CRASH_STORE_H */
