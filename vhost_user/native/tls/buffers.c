// SPDX-License-Identifier: Apache-2.0
/*
 * buffers.c - where records are, of all sessions
 *
 * Theory of operation
 * ===================
 *
 * A session has a buffer for each direction while there is something in it, and
 * mostly that is for less than a turn: then the next session gets the same one,
 * which the CPU's cache still has. A few are kept, the others freed.
 */

#include <stdlib.h>

#include "tls/tls.h"

#define KEPT                                                                   \
	4 /* of an engine: one each way, and some for what is cut short        \
	   */

/**
 * buffer_take() - Take a buffer
 * @b:		Buffers
 *
 * Returns: it, empty; NULL if out of memory
 */
struct tls_buffer *buffer_take(struct tls_buffers *b)
{
	struct tls_buffer *buffer = b->free;

	if (buffer) {
		b->free = buffer->next;
		b->n--;
	} else {
		buffer = malloc(sizeof(*buffer));
		if (!buffer)
			return NULL;
	}
	buffer->next = NULL;
	buffer->from = buffer->to = 0;
	return buffer;
}

/**
 * buffer_give() - Give a buffer back
 * @b:		Buffers
 * @buffer:	One, or NULL
 */
void buffer_give(struct tls_buffers *b, struct tls_buffer *buffer)
{
	if (!buffer)
		return;
	if (b->n == KEPT) {
		free(buffer);
		return;
	}
	buffer->next = b->free;
	b->free = buffer;
	b->n++;
}

/**
 * buffers_free() - Free all
 * @b:		Buffers, no session of theirs left
 */
void buffers_free(struct tls_buffers *b)
{
	while (b->free) {
		struct tls_buffer *next = b->free->next;

		free(b->free);
		b->free = next;
	}
	b->n = 0;
}
