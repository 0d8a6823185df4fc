/* SPDX-License-Identifier: Apache-2.0 */
/*
 * secret.h - memory for keys
 *
 * Pages of their own, so that a core dump can be without them.
 */
#ifndef TLS_SECRET_H
#define TLS_SECRET_H

#include <stddef.h>

#include <sys/mman.h>

#include <openssl/crypto.h>

/**
 * secret_new() - Make memory for keys
 * @size:	Bytes
 *
 * Returns: it, zeroed; NULL if out of memory
 */
static inline void *secret_new(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, size, MADV_DONTDUMP);
	return p;
}

/**
 * secret_free() - Forget keys
 * @p:		Their memory
 * @size:	Bytes
 */
static inline void secret_free(void *p, size_t size)
{
	OPENSSL_cleanse(p, size);
	munmap(p, size);
}

#endif /* TLS_SECRET_H */
