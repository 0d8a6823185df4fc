// SPDX-License-Identifier: Apache-2.0
/*
 * keys.c - keys of one direction
 *
 * Theory of operation
 * ===================
 *
 * A direction begins with application_traffic_secret_0, which OpenSSL tells
 * (session.c). Its key and IV are made of that (RFC 8446 section 7.3), and so
 * is the next secret (section 7.2). HKDF-Expand-Label is OpenSSL's
 * (EVP_KDF-TLS13_KDF). The hash tells the suite: context.c allows two.
 *
 * What is secret is here and nowhere else, and is overwritten when it is no
 * more.
 */

#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "tls/record.h"

#define SHA_256 32 /* bytes of its digest */

/**
 * expand() - HKDF-Expand-Label(secret, label, "", len)
 * @k:		Keys with a secret
 * @label:	Label, without its prefix
 * @ret:	Where to
 * @len:	Bytes of it
 *
 * Returns: false if OpenSSL fails
 */
static bool expand(struct tls_keys *k, const char *label, uint8_t *ret,
		   size_t len)
{
	const char *hash = k->len == SHA_256 ? "SHA256" : "SHA384";
	char *text = (char *)(uintptr_t)label;
	int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
	OSSL_PARAM params[] = {
	    OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
	    OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST,
					     (char *)(uintptr_t)hash, 0),
	    OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, k->secret,
					      k->len),
	    OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PREFIX,
					      (char *)(uintptr_t) "tls13 ", 6),
	    OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_LABEL, text,
					      strlen(text)),
	    OSSL_PARAM_construct_end(),
	};
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, OSSL_KDF_NAME_TLS1_3_KDF, NULL);
	EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);
	bool ok = ctx && EVP_KDF_derive(ctx, ret, len, params) == 1;

	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	return ok;
}

/**
 * keys_start() - Make key and IV of the secret
 * @k:		Keys, their secret there
 * @seals:	Records go out
 *
 * Returns: false if there is none, or out of memory
 */
bool keys_start(struct tls_keys *k, bool seals)
{
	size_t len = k->len == SHA_256 ? 16 : 32;
	uint8_t key[32];
	bool ok = k->len && expand(k, "key", key, len) &&
		  expand(k, "iv", k->iv, TLS_IV);
	struct aead *aead = ok ? aead_new(key, len, seals) : NULL;

	OPENSSL_cleanse(key, sizeof(key));
	aead_free(k->aead);
	k->aead = aead;
	k->seals = seals;
	k->seq = 0;
	return aead != NULL;
}

/**
 * keys_update() - Go on with the next secret
 * @k:		Keys, started
 *
 * Returns: false if out of memory
 */
bool keys_update(struct tls_keys *k)
{
	uint8_t next[TLS_SECRET];
	bool ok = expand(k, "traffic upd", next, k->len);

	if (ok)
		memcpy(k->secret, next, k->len);
	OPENSSL_cleanse(next, sizeof(next));
	return ok && keys_start(k, k->seals);
}

/**
 * keys_clear() - Forget keys
 * @k:		Keys
 */
void keys_clear(struct tls_keys *k)
{
	aead_free(k->aead);
	OPENSSL_cleanse(k, sizeof(*k));
}
