/* SPDX-License-Identifier: Apache-2.0 */
/*
 * msgs.h - a queue of messages, the last of which may be incomplete
 */
#ifndef MSGS_H
#define MSGS_H

#include "base/bytes.h"

#define MSGS_MARK    ((uint32_t)sizeof(uint32_t)) /* bytes a message costs */
#define MSGS_LEN_MAX ((1U << 28) - 1)

/**
 * struct msgs - A queue of bytes with boundaries; all zero: empty
 * @bytes:	A mark before each message: its length << 2 | its flags
 * @tail:	Where the last message's mark is
 */
struct msgs {
	struct bytes bytes;
	uint32_t tail;
};

/**
 * struct msg - A message, or the part of it that there is
 * @iov:	Its bytes
 * @n_iov:	Segments
 * @len:	How many bytes
 * @flags:	Two bits of its last part; 0: more is to come
 */
struct msg {
	struct iovec iov[2];
	unsigned n_iov;
	uint32_t len;
	uint32_t flags;
};

bool msgs_put(struct msgs *m, const struct iovec *iov, unsigned n_iov,
	      size_t skip, uint32_t flags);
bool msgs_head(const struct msgs *m, struct msg *ret);
void msgs_advance(struct msgs *m, uint32_t n, bool whole);

#endif /* MSGS_H */
