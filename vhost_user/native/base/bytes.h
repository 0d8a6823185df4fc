/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bytes.h - a queue of bytes in a ring buffer
 */
#ifndef BYTES_H
#define BYTES_H

#include <stdbool.h>
#include <stdint.h>

#include <sys/uio.h>

/**
 * struct buffer - What holds the bytes of a queue
 * @at:		Where the first byte is
 * @len:	How many there are
 * @cap:	Size of @data, a power of two
 * @tail:	msgs.c: where the last message's mark is
 * @data:	They, and room
 */
struct buffer {
	uint32_t at;
	uint32_t len;
	uint32_t cap;
	uint32_t tail;
	char data[];
};

/**
 * struct bytes - A queue of bytes; all zero: empty
 * @buffer:	NULL while it is: a connection has two that hardly ever hold any
 */
struct bytes {
	struct buffer *buffer;
};

uint32_t bytes_len(const struct bytes *b);
bool bytes_put(struct bytes *b, const struct iovec *iov, unsigned n_iov,
	       size_t skip);
unsigned bytes_peek(const struct bytes *b, uint32_t off, uint32_t len,
		    struct iovec ret[2]);
void bytes_drop(struct bytes *b, uint32_t n);
void bytes_free(struct bytes *b);

#endif /* BYTES_H */
