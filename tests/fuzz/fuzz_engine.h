/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_engine.h - the engine's time is the input's
 *
 * Included before all else (clang -include) in what fuzz_engine.c is linked
 * with: a turn ends by time, too, and an input has to do the same each time.
 */
#ifndef FUZZ_ENGINE_H
#define FUZZ_ENGINE_H

#include <time.h>

int fuzz_time(struct timespec *now);

#define clock_gettime(clock, now) fuzz_time(now)

#endif /* FUZZ_ENGINE_H */
