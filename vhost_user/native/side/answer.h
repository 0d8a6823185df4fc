/* SPDX-License-Identifier: Apache-2.0 */
/*
 * answer.h - who answered CONNECTs to other networks, and what they said
 */
#ifndef ANSWER_H
#define ANSWER_H

#include <stdint.h>

#define ANSWERS 64

/**
 * struct answer - What some CONNECTs were answered
 * @id:		Its number, not 0; 0: there is none
 * @peer:	The server's SPIFFE identity
 * @baggage:	"baggage"
 */
struct answer {
	uint32_t id;
	char *peer;
	char *baggage;
};

/**
 * struct answers - The last of them, each once
 * @last:	Number of the youngest
 * @all:	By their number
 */
struct answers {
	uint32_t last;
	struct answer all[ANSWERS];
};

uint32_t answers_put(struct answers *a, const char *peer, const char *baggage);
const struct answer *answers_get(const struct answers *a, uint32_t id);
void answers_free(struct answers *a);

#endif /* ANSWER_H */
