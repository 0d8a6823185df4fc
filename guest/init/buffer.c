// SPDX-License-Identifier: Apache-2.0
/*
 * buffer.c - bytes on their way, and integers among them
 */

#include <string.h>

#include "init/init.h"

/**
 * buffer_u32() - Read a little-endian integer
 * @p:		Four bytes
 *
 * Returns: the integer
 */
uint32_t buffer_u32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/**
 * buffer_take() - Drop bytes from the start of a buffer
 * @b:		Buffer
 * @n:		Bytes, at most @b->len
 */
void buffer_take(struct buffer *b, size_t n)
{
	b->start += n;
	b->len -= n;
	if (b->len == 0)
		b->start = 0;
}

/**
 * buffer_add() - Add bytes to the end of a buffer
 * @b:		Buffer
 * @data:	Bytes
 * @n:		How many
 *
 * Returns: false, with nothing added, if there is no room
 */
bool buffer_add(struct buffer *b, const void *data, size_t n)
{
	if (n > sizeof(b->data) - b->len)
		return false;
	if (n > sizeof(b->data) - b->start - b->len) {
		memmove(b->data, b->data + b->start, b->len);
		b->start = 0;
	}
	memcpy(b->data + b->start + b->len, data, n);
	b->len += n;
	return true;
}
