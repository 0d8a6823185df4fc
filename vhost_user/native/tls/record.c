// SPDX-License-Identifier: Apache-2.0
/*
 * record.c - one record
 *
 * Theory of operation
 * ===================
 *
 *	23 | 3 3 | length | AEAD(content | type | zeroes) | tag
 *
 * Content is sealed straight out of where it is, which may be a guest's memory,
 * into the record. A record is opened where it is, in memory of ours, and
 * nobody sees a byte of it before its tag was found right.
 *
 * Spec: RFC 8446 section 5.1 to 5.4.
 */

#include <errno.h>

#include <openssl/ssl.h>

#include "tls/record.h"

/**
 * nonce_of() - Make the next record's nonce, and count the record
 * @k:		Keys
 * @ret:	TLS_IV bytes
 *
 * Section 5.3: the number, padded to the IV's length, is xored with the IV. It
 * never wraps: 2^64 records don't come in a lifetime.
 */
static void nonce_of(struct tls_keys *k, uint8_t *ret)
{
	for (unsigned i = 0; i < TLS_IV; i++) {
		unsigned right = TLS_IV - 1 - i;

		ret[i] = k->iv[i];
		if (right < 8)
			ret[i] ^= (uint8_t)(k->seq >> 8 * right);
	}
	k->seq++;
}

/**
 * seal_all() - Seal bytes out of segments
 * @a:		Cipher, begun
 * @iov:	Segments
 * @off:	Leading bytes to leave out
 * @len:	Bytes, that they have behind those
 * @out:	Where to
 *
 * Returns: false if that fails
 */
static bool seal_all(struct aead *a, const struct iovec *iov, size_t off,
		     size_t len, uint8_t *out)
{
	for (; len; iov++) {
		size_t n = iov->iov_len;

		if (off >= n) {
			off -= n;
			continue;
		}
		n = n - off < len ? n - off : len;
		if (!aead_update(a, out, (const char *)iov->iov_base + off, n))
			return false;
		off = 0;
		out += n;
		len -= n;
	}
	return true;
}

/**
 * record_seal() - Seal a record
 * @k:		Keys that seal
 * @type:	enum tls_type
 * @c:		Content, TLS_RECORD bytes at most
 * @out:	Room for TLS_OVER more
 *
 * Returns: bytes in @out; 0: OpenSSL fails
 */
size_t record_seal(struct tls_keys *k, uint8_t type,
		   const struct tls_content *c, uint8_t *out)
{
	size_t len = c->head_len + c->len, sealed = len + 1 + TLS_TAG;
	uint8_t *body = out + TLS_HEAD;
	uint8_t nonce[TLS_IV];

	out[0] = TLS_TYPE_DATA;
	out[1] = out[2] = 3;
	out[3] = (uint8_t)(sealed >> 8);
	out[4] = (uint8_t)sealed;
	nonce_of(k, nonce);
	if (!aead_begin(k->aead, nonce, out, TLS_HEAD) ||
	    !aead_update(k->aead, body, c->head, c->head_len) ||
	    !seal_all(k->aead, c->iov, c->off, c->len, body + c->head_len) ||
	    !aead_update(k->aead, body + len, &type, 1) ||
	    !aead_end(k->aead, body + len + 1))
		return 0;
	return TLS_HEAD + sealed;
}

/**
 * record_whole() - Is a record all there?
 * @bytes:	What has come
 * @have:	How many bytes
 *
 * Returns: true if it is, or so much of it that it is bad
 */
bool record_whole(const uint8_t *bytes, size_t have)
{
	return have >= TLS_HEAD &&
	       have - TLS_HEAD >= ((size_t)bytes[3] << 8 | bytes[4]);
}

/**
 * record_open() - Open a record, where it is
 * @k:		Keys that open
 * @bytes:	What has come
 * @have:	How many bytes
 * @ret:	The record
 *
 * Returns: 0; -EAGAIN: it is not all there; else it is bad, and this is the
 * alert, SSL_AD_
 */
int record_open(struct tls_keys *k, uint8_t *bytes, size_t have,
		struct tls_record *ret)
{
	uint8_t *body = bytes + TLS_HEAD, nonce[TLS_IV];
	size_t len;

	if (have && bytes[0] != TLS_TYPE_DATA)
		return SSL_AD_UNEXPECTED_MESSAGE;
	if (have < TLS_HEAD)
		return -EAGAIN;
	len = (size_t)bytes[3] << 8 | bytes[4];
	if (len > TLS_MOST)
		return SSL_AD_RECORD_OVERFLOW;
	if (len < TLS_TAG)
		return SSL_AD_BAD_RECORD_MAC;
	if (have - TLS_HEAD < len)
		return -EAGAIN;
	ret->size = TLS_HEAD + len;
	len -= TLS_TAG;
	nonce_of(k, nonce);
	if (!aead_open(k->aead, nonce, bytes, TLS_HEAD, body, len, body + len))
		return SSL_AD_BAD_RECORD_MAC;
	if (len > TLS_RECORD + 1)
		return SSL_AD_RECORD_OVERFLOW;
	while (len && !body[len - 1]) /* section 5.4: padding */
		len--;
	if (!len)
		return SSL_AD_UNEXPECTED_MESSAGE;
	ret->type = body[len - 1];
	ret->data = body;
	ret->len = len - 1;
	return 0;
}
