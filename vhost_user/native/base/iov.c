// SPDX-License-Identifier: Apache-2.0
/*
 * iov.c - bytes in segments: count and copy them
 */

#include <string.h>

#include "base/iov.h"

/**
 * iov_sum() - Count the bytes of segments
 * @iov:	Segments
 * @n:		How many
 *
 * Returns: bytes
 */
size_t iov_sum(const struct iovec *iov, unsigned n)
{
	size_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

/**
 * iov_copy() - Copy between an iovec and a flat buffer
 * @iov:	Segments
 * @n:		How many
 * @off:	Bytes of them to skip first
 * @buf:	The flat buffer
 * @len:	Bytes; fewer if the segments are short
 * @to_iov:	Copy from @buf to @iov, else from @iov to @buf
 */
void iov_copy(const struct iovec *iov, unsigned n, size_t off, void *buf,
	      size_t len, bool to_iov)
{
	char *flat = buf;

	for (unsigned i = 0; i < n && len; i++) {
		size_t span = iov[i].iov_len;
		char *seg = iov[i].iov_base;

		if (off >= span) {
			off -= span;
			continue;
		}
		span = span - off < len ? span - off : len;
		if (to_iov)
			memcpy(seg + off, flat, span);
		else
			memcpy(flat, seg + off, span);
		off = 0;
		flat += span;
		len -= span;
	}
}

/**
 * iov_move() - Copy from one iovec to another
 * @to:		Segments to fill from their start
 * @n_to:	How many
 * @from:	Segments to copy, no byte of them in @to
 * @n_from:	How many
 * @off:	Bytes of @from to skip first
 * @len:	Bytes; fewer if either is short
 */
void iov_move(const struct iovec *to, unsigned n_to, const struct iovec *from,
	      unsigned n_from, size_t off, size_t len)
{
	for (unsigned i = 0; i < n_to && len; i++) {
		size_t span = to[i].iov_len < len ? to[i].iov_len : len;

		while (n_from && off >= from->iov_len) {
			off -= from->iov_len;
			from++;
			n_from--;
		}
		iov_copy(from, n_from, off, to[i].iov_base, span, false);
		off += span;
		len -= span;
	}
}
