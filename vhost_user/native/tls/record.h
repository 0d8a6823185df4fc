/* SPDX-License-Identifier: Apache-2.0 */
/*
 * record.h - records of TLS 1.3, sealed and opened, without a socket
 *
 * Each file knows only those above it:
 *
 * aead.c	AES-GCM
 * keys.c	keys of one direction
 * record.c	one record
 *
 * Spec: RFC 8446.
 */
#ifndef TLS_RECORD_H
#define TLS_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sys/uio.h>

#define TLS_RECORD 16384 /* bytes of plaintext in a full one */
#define TLS_MOST   16640 /* of ciphertext in any: 256 more */
#define TLS_HEAD   5	 /* of a record's header */
#define TLS_TAG	   16
#define TLS_IV	   12
#define TLS_SECRET 48 /* of the longest hash that we take, SHA-384 */
#define TLS_OVER   22 /* bytes that a record adds: header, type, tag */

/**
 * enum tls_type - What a record carries, RFC 8446 section 5.1
 */
enum tls_type {
	TLS_TYPE_CCS = 20,
	TLS_TYPE_ALERT = 21,
	TLS_TYPE_HANDSHAKE = 22,
	TLS_TYPE_DATA = 23,
};

/**
 * struct tls_keys - Keys of one direction
 * @aead:	The cipher with its key; NULL: there is none yet
 * @seq:	Number of the next record
 * @iv:		Of which a record's nonce is made
 * @len:	Bytes of @secret: 32: SHA-256 and AES-128-GCM; 48: SHA-384 and
 *		AES-256-GCM; 0: none
 * @secret:	application_traffic_secret_N
 * @seals:	Records go out
 */
struct tls_keys {
	struct aead *aead;
	uint64_t seq;
	uint8_t iv[TLS_IV];
	uint8_t len;
	uint8_t secret[TLS_SECRET];
	bool seals;
};

/**
 * struct tls_record - A record that was opened
 * @type:	enum tls_type, or what else the peer made it
 * @data:	Its plaintext, where its ciphertext was
 * @len:	Bytes of it
 * @size:	Bytes of the whole record
 */
struct tls_record {
	uint8_t type;
	uint8_t *data;
	size_t len;
	size_t size;
};

/**
 * struct tls_content - What a record is made of
 * @head:	Its first bytes
 * @head_len:	How many
 * @iov:	What comes behind them: segments with at least @off and @len
 *		bytes
 * @off:	Leading bytes of those to leave out
 * @len:	Bytes of them
 */
struct tls_content {
	const void *head;
	size_t head_len;
	const struct iovec *iov;
	size_t off;
	size_t len;
};

/* aead.c */
struct aead *aead_new(const uint8_t *key, size_t len, bool seals);
void aead_free(struct aead *a);
bool aead_begin(struct aead *a, const uint8_t *nonce, const uint8_t *aad,
		size_t len);
bool aead_update(struct aead *a, uint8_t *out, const void *in, size_t len);
bool aead_end(struct aead *a, uint8_t *ret_tag);
bool aead_open(struct aead *a, const uint8_t *nonce, const uint8_t *aad,
	       size_t aad_len, uint8_t *data, size_t len, const uint8_t *tag);

/* keys.c */
bool keys_start(struct tls_keys *k, bool seals);
bool keys_update(struct tls_keys *k);
void keys_clear(struct tls_keys *k);

/* record.c */
size_t record_seal(struct tls_keys *k, uint8_t type,
		   const struct tls_content *c, uint8_t *out);
bool record_whole(const uint8_t *bytes, size_t have);
int record_open(struct tls_keys *k, uint8_t *bytes, size_t have,
		struct tls_record *ret);

#endif /* TLS_RECORD_H */
