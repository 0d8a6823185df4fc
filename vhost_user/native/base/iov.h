/* SPDX-License-Identifier: Apache-2.0 */
/*
 * iov.h - bytes in segments
 */
#ifndef IOV_H
#define IOV_H

#include <stdbool.h>
#include <stddef.h>

#include <sys/uio.h>

size_t iov_sum(const struct iovec *iov, unsigned n);
void iov_copy(const struct iovec *iov, unsigned n, size_t off, void *buf,
	      size_t len, bool to_iov);
void iov_move(const struct iovec *to, unsigned n_to, const struct iovec *from,
	      unsigned n_from, size_t off, size_t len);

#endif /* IOV_H */
