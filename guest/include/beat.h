/* SPDX-License-Identifier: Apache-2.0 */
/*
 * beat.h - how init sees that an agent hangs
 */
#ifndef TSI_BEAT_H
#define TSI_BEAT_H

#include <stdint.h>

/**
 * struct beat - What the memory begins with that an agent leaves to the next
 * @turns:	Changes with whatever it does; odd while it is at work
 */
struct beat {
	uint32_t turns;
};

#endif /* TSI_BEAT_H */
