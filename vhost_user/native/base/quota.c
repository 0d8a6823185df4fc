// SPDX-License-Identifier: Apache-2.0
/*
 * quota.c - how much somebody may have: numbers in, granted out
 */

#include "base/quota.h"

#define TOKEN 1000000U /* us: tokens come as time times rate */
#define SHARE 8	       /* of what is free, one gets this part at most */

/**
 * bucket_take() - May there be one more, at a rate?
 * @b:		Bucket
 * @rate:	How many a second; 0: any number
 * @now_us:	The time
 *
 * Returns: true if there may; it is taken then
 */
bool bucket_take(struct bucket *b, uint32_t rate, uint64_t now_us)
{
	uint64_t full = (uint64_t)rate * TOKEN;
	uint64_t gained = now_us - b->since_us;

	if (!full)
		return true;
	/* a second fills it, from any level */
	b->tokens = gained >= TOKEN ? full : b->tokens + gained * rate;
	if (b->tokens > full)
		b->tokens = full;
	b->since_us = now_us;
	if (b->tokens < TOKEN)
		return false;
	b->tokens -= TOKEN;
	return true;
}

/**
 * quota_share() - How much does one get of what is free?
 * @most:	What all may have together
 * @taken:	What they have; may be more, after @most was lowered
 * @want:	What one wants
 *
 * An eighth of what is free at most: when it gets scarce, later ones get less
 * instead of nothing.
 *
 * Returns: what it gets
 */
uint64_t quota_share(uint64_t most, uint64_t taken, uint64_t want)
{
	uint64_t share = most > taken ? (most - taken) / SHARE : 0;

	return want < share ? want : share;
}
