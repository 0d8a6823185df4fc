// SPDX-License-Identifier: Apache-2.0
/*
 * answer.c - who answered CONNECTs to other networks, and what they said
 *
 * Theory of operation
 * ===================
 *
 * Who is behind a gateway, only the answer tells, and a connection may have
 * ended before Python hears of it. So its event has the answer's number, and
 * the answer outlives it. Those of one workload are the same, and are kept
 * once; of a peer that says something else each time the last ones are.
 */

#include <stdlib.h>
#include <string.h>

#include "side/answer.h"
#include "vu_request.h"

#define BAGGAGE_MOST (sizeof(((struct vu_hbone_answer *)0)->baggage) - 1)

/**
 * clear() - Forget an answer
 * @it:		Answer
 */
static void clear(struct answer *it)
{
	free(it->peer);
	free(it->baggage);
	*it = (struct answer){0};
}

/**
 * answers_put() - Keep an answer
 * @a:		Answers
 * @peer:	The server's SPIFFE identity
 * @baggage:	"baggage", or NULL
 *
 * Returns: its number; 0 if it says too much, or out of memory
 */
uint32_t answers_put(struct answers *a, const char *peer, const char *baggage)
{
	struct answer *it;
	uint32_t id;

	baggage = baggage ? baggage : "";
	if (strlen(baggage) > BAGGAGE_MOST)
		return 0;
	for (size_t i = 0; i < ANSWERS; i++) {
		it = &a->all[i];
		if (it->id && !strcmp(it->peer, peer) &&
		    !strcmp(it->baggage, baggage))
			return it->id;
	}
	id = a->last + 1 ? a->last + 1 : 1;
	it = &a->all[id % ANSWERS];
	clear(it);
	it->peer = strdup(peer);
	it->baggage = strdup(baggage);
	if (!it->peer || !it->baggage) {
		clear(it);
		return 0;
	}
	it->id = a->last = id;
	return id;
}

/**
 * answers_get() - Find an answer
 * @a:		Answers
 * @id:		Its number
 *
 * Returns: it; NULL if it is kept no more
 */
const struct answer *answers_get(const struct answers *a, uint32_t id)
{
	const struct answer *it = &a->all[id % ANSWERS];

	return id && it->id == id ? it : NULL;
}

/**
 * answers_free() - Forget all answers
 * @a:		Answers
 */
void answers_free(struct answers *a)
{
	for (size_t i = 0; i < ANSWERS; i++)
		clear(&a->all[i]);
}
