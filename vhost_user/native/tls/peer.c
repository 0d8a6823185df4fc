// SPDX-License-Identifier: Apache-2.0
/*
 * peer.c - who the peer is
 *
 * Theory of operation
 * ===================
 *
 * The chain is OpenSSL's to check. A peer's name is the one URI of its
 * certificate's SAN (SPIFFE X.509-SVID, section 2: "MUST contain exactly one
 * URI SAN"), never a CN. A client expects certain identities, a server any of
 * its own trust domain. All this is done inside the handshake, so that the peer
 * hears an alert (certificate_unknown), and on its thread.
 */

#include <stdlib.h>
#include <string.h>

#include <openssl/x509v3.h>

#include "tls/tls.h"

#define SCHEME	   "spiffe://"
#define SCHEME_LEN (sizeof(SCHEME) - 1)

/* What OpenSSL says, and what we make of it */
static const struct {
	int error;
	uint8_t reason;
} meanings[] = {
    {X509_V_ERR_CERT_HAS_EXPIRED, VU_REASON_EXPIRED},
    {X509_V_ERR_CERT_NOT_YET_VALID, VU_REASON_EXPIRED},
    {X509_V_ERR_CERT_REVOKED, VU_REASON_REVOKED},
};

/**
 * tls_names() - Say whom peers have to be
 * @names:	Identities, or one trust domain; copied
 * @n:		How many
 * @domain:	It is a trust domain
 *
 * Returns: that, with one user; NULL if out of memory
 */
struct tls_names *tls_names(const char *const *names, unsigned n, bool domain)
{
	struct tls_names *t = calloc(1, sizeof(*t) + n * sizeof(char *));

	if (!t)
		return NULL;
	t->refs = 1;
	t->domain = domain;
	for (; t->n < n; t->n++) {
		t->names[t->n] = strdup(names[t->n]);
		if (!t->names[t->n]) {
			tls_names_unref(t);
			return NULL;
		}
	}
	return t;
}

/**
 * tls_names_unref() - Expect nobody any more
 * @t:		Names
 */
void tls_names_unref(struct tls_names *t)
{
	if (--t->refs)
		return;
	for (unsigned i = 0; i < t->n; i++)
		free(t->names[i]);
	free(t);
}

/**
 * expected() - Is a peer one of those that it has to be?
 * @t:		Names
 * @peer:	Its identity
 *
 * Returns: true if it is
 */
static bool expected(const struct tls_names *t, const char *peer)
{
	const char *rest = peer + SCHEME_LEN;

	for (unsigned i = 0; i < t->n; i++) {
		size_t len = strlen(t->names[i]);

		if (!t->domain && !strcmp(t->names[i], peer))
			return true;
		if (t->domain && !strncmp(t->names[i], rest, len) &&
		    rest[len] == '/' && rest[len + 1])
			return true;
	}
	return false;
}

/**
 * identity() - Find a certificate's SPIFFE identity
 * @cert:	Certificate
 *
 * Returns: it, to be freed; NULL if it has none, several, or a bad one
 */
static char *identity(X509 *cert)
{
	GENERAL_NAMES *names =
	    X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	const ASN1_IA5STRING *uri = NULL;
	char *ret = NULL;
	int uris = 0;

	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);

		if (name->type == GEN_URI) {
			uri = name->d.uniformResourceIdentifier;
			uris++;
		}
	}
	if (uris == 1) {
		const char *text = (const char *)ASN1_STRING_get0_data(uri);
		size_t len = (size_t)ASN1_STRING_length(uri);

		if (len > SCHEME_LEN &&
		    len < sizeof(((struct vu_hbone_request *)0)->peer) &&
		    !memcmp(text, SCHEME, SCHEME_LEN) && !memchr(text, 0, len))
			ret = strndup(text, len);
	}
	GENERAL_NAMES_free(names);
	return ret;
}

/**
 * judge() - Is this the peer that it has to be?
 * @t:		Session
 * @cert:	Its certificate; the chain is good
 *
 * Returns: true if it is; else t->reason says why not
 */
static bool judge(struct tls *t, X509 *cert)
{
	free(t->peer);
	t->peer = identity(cert);
	if (!t->peer)
		t->reason = VU_REASON_IDENTITY;
	else if (!expected(t->names, t->peer))
		t->reason = VU_REASON_NAME;
	else
		return true;
	return false;
}

/**
 * tls_verify() - Look at a certificate of the peer's chain
 * @good:	OpenSSL thinks so
 * @store:	It, and where it is in the chain
 *
 * Returns: 1 if it is; else the handshake ends with an alert
 */
int tls_verify(int good, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(
	    store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls *t = SSL_get_app_data(ssl);
	int error = X509_STORE_CTX_get_error(store);

	if (!good && (error == X509_V_ERR_UNABLE_TO_GET_CRL ||
		      error == X509_V_ERR_CRL_HAS_EXPIRED)) {
		X509_STORE_CTX_set_error(store, X509_V_OK);
		return 1;
	}
	if (good && X509_STORE_CTX_get_error_depth(store))
		return 1;
	if (good) {
		if (judge(t, X509_STORE_CTX_get_current_cert(store)))
			return 1;
		/* one that OpenSSL has no alert for: certificate_unknown */
		X509_STORE_CTX_set_error(store, X509_V_ERR_PERMITTED_VIOLATION);
		return 0;
	}
	t->reason = VU_REASON_CHAIN;
	for (size_t i = 0; i < sizeof(meanings) / sizeof(*meanings); i++) {
		if (meanings[i].error == error)
			t->reason = meanings[i].reason;
	}
	return 0;
}
