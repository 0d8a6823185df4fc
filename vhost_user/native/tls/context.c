// SPDX-License-Identifier: Apache-2.0
/*
 * context.c - certificates, roots, revocation lists
 *
 * Theory of operation
 * ===================
 *
 * All of it is read once and never changed: a rotation makes new ones for new
 * sessions, and old sessions keep theirs (OpenSSL counts an SSL_CTX itself).
 * Nothing is resumed and no ticket is given, as Istio's ztunnel has it: each
 * tunnel is worth a whole handshake, in which revocation is looked at. So no
 * record is sealed by OpenSSL with the keys that are ours then (session.c).
 *
 * A revocation list counts for the issuer that signed it, of all certificates
 * of a chain. Whom no list speaks of is good, and a list that is past its next
 * update still counts (tls_verify()).
 */

#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>

#include "tls/tls.h"

#define SUITES "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
#define GROUPS "X25519:P-256:P-384"

static const unsigned char alpn[] = {2, 'h', '2'};

/**
 * choose() - Answer a client's ALPN
 * @ssl:	Session
 * @out:	What we choose
 * @out_len:	Its length
 * @in:		What the client offers
 * @in_len:	Its length
 * @arg:	Unused
 *
 * Returns: SSL_TLSEXT_ERR_OK; or the alert no_application_protocol
 */
static int choose(SSL *ssl, const unsigned char **out, unsigned char *out_len,
		  const unsigned char *in, unsigned in_len, void *arg)
{
	unsigned char *chosen;

	(void)arg;
	if (SSL_select_next_proto(&chosen, out_len, alpn, sizeof(alpn), in,
				  in_len) != OPENSSL_NPN_NEGOTIATED) {
		((struct tls *)SSL_get_app_data(ssl))->reason = VU_REASON_ALPN;
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	}
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

/**
 * settle() - Set what all sessions have in common
 * @ctx:	OpenSSL's context
 *
 * Returns: true, unless out of memory
 */
static bool settle(SSL_CTX *ctx)
{
	SSL_CTX_set_verify(
	    ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, tls_verify);
	SSL_CTX_set_alpn_select_cb(ctx, choose, NULL);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
	SSL_CTX_set_keylog_callback(ctx, tls_keylog);
	return SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) &&
	       SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) &&
	       SSL_CTX_set_ciphersuites(ctx, SUITES) &&
	       SSL_CTX_set1_groups_list(ctx, GROUPS) &&
	       SSL_CTX_set_num_tickets(ctx, 0) &&
	       !SSL_CTX_set_alpn_protos(ctx, alpn, sizeof(alpn));
}

/**
 * next() - Read the next certificate of a PEM
 * @bio:	PEM
 *
 * Returns: it, to be freed; NULL if there is none
 */
static X509 *next(BIO *bio)
{
	return PEM_read_bio_X509(bio, NULL, NULL, (char *)(uintptr_t) "");
}

/**
 * use_chain() - Take our certificate and those above it
 * @ctx:	OpenSSL's context
 * @bio:	PEM, leaf first
 *
 * Returns: true if there was one
 */
static bool use_chain(SSL_CTX *ctx, BIO *bio)
{
	X509 *leaf = next(bio), *above;
	bool ok = leaf && SSL_CTX_use_certificate(ctx, leaf) == 1;

	X509_free(leaf);
	while (ok && (above = next(bio))) {
		ok = SSL_CTX_add0_chain_cert(ctx, above) == 1;
		if (!ok)
			X509_free(above);
	}
	return ok;
}

/**
 * use_key() - Take our certificate's key
 * @ctx:	OpenSSL's context, with the certificate
 * @bio:	PEM
 *
 * Returns: true if it fits
 */
static bool use_key(SSL_CTX *ctx, BIO *bio)
{
	EVP_PKEY *key =
	    PEM_read_bio_PrivateKey(bio, NULL, NULL, (char *)(uintptr_t) "");
	bool ok = key && SSL_CTX_use_PrivateKey(ctx, key) == 1 &&
		  SSL_CTX_check_private_key(ctx) == 1;

	EVP_PKEY_free(key);
	return ok;
}

/**
 * use_roots() - Take what peers' chains end in
 * @ctx:	OpenSSL's context
 * @bio:	PEM
 *
 * Returns: true if there was one
 */
static bool use_roots(SSL_CTX *ctx, BIO *bio)
{
	X509_STORE *store = SSL_CTX_get_cert_store(ctx);
	bool any = false, ok = true;
	X509 *root;

	while (ok && (root = next(bio))) {
		any = true;
		ok = X509_STORE_add_cert(store, root) == 1;
		X509_free(root);
	}
	return any && ok;
}

/**
 * use_crls() - Take revocation lists
 * @ctx:	OpenSSL's context
 * @bio:	PEM; nothing in it revokes nothing
 *
 * Returns: true
 */
static bool use_crls(SSL_CTX *ctx, BIO *bio)
{
	X509_STORE *store = SSL_CTX_get_cert_store(ctx);
	bool any = false;
	X509_CRL *crl;

	while ((crl = PEM_read_bio_X509_CRL(bio, NULL, NULL, NULL))) {
		any |= X509_STORE_add_crl(store, crl) == 1;
		X509_CRL_free(crl);
	}
	if (any)
		X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK |
						X509_V_FLAG_CRL_CHECK_ALL);
	return true;
}

/**
 * use() - Take a PEM
 * @ctx:	OpenSSL's context
 * @pem:	Text, or NULL
 * @fn:		What to do with it
 *
 * Returns: what @fn does; false: there is none
 */
static bool use(SSL_CTX *ctx, const char *pem, bool (*fn)(SSL_CTX *, BIO *))
{
	BIO *bio = pem ? BIO_new_mem_buf(pem, -1) : NULL;
	bool ok = bio && fn(ctx, bio);

	BIO_free(bio);
	return ok;
}

/**
 * tls_context() - Make certificates
 * @cfg:	Certificates as PEM
 * @ret:	They, with one user
 *
 * Returns: 0, -VU_ERR_INVAL or -VU_ERR_NOMEM
 */
int tls_context(const struct vu_tls_config *cfg, struct vu_tls **ret)
{
	struct vu_tls *c = calloc(1, sizeof(*c));
	SSL_CTX *ctx = SSL_CTX_new(TLS_method());
	int err = 0;

	if (!c || !ctx || !settle(ctx))
		err = -VU_ERR_NOMEM;
	else if (!use(ctx, cfg->chain, use_chain) ||
		 !use(ctx, cfg->key, use_key) ||
		 !use(ctx, cfg->roots, use_roots) ||
		 (cfg->crls && !use(ctx, cfg->crls, use_crls)))
		err = -VU_ERR_INVAL;
	ERR_clear_error();
	if (err) {
		SSL_CTX_free(ctx);
		free(c);
		return err;
	}
	*c = (struct vu_tls){.ctx = ctx, .refs = 1};
	*ret = c;
	return 0;
}

/**
 * tls_context_unref() - Use certificates no more
 * @c:		Certificates; sessions keep what they need
 */
void tls_context_unref(struct vu_tls *c)
{
	if (--c->refs)
		return;
	SSL_CTX_free(c->ctx);
	free(c);
}
