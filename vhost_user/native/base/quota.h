/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quota.h - how much somebody may have: numbers in, granted out
 */
#ifndef QUOTA_H
#define QUOTA_H

#include <stdbool.h>
#include <stdint.h>

/**
 * struct bucket - A token bucket that holds a second's worth; all zero: full
 * @tokens:	What it holds, in us times the rate
 * @since_us:	When that was so
 */
struct bucket {
	uint64_t tokens;
	uint64_t since_us;
};

bool bucket_take(struct bucket *b, uint32_t rate, uint64_t now_us);
uint64_t quota_share(uint64_t most, uint64_t taken, uint64_t want);

#endif /* QUOTA_H */
