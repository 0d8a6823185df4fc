// SPDX-License-Identifier: Apache-2.0
/*
 * revoked.c - peers whose certificate was revoked after the handshake
 *
 * Theory of operation
 * ===================
 *
 * A handshake looks at the lists that there are (context.c). When there are
 * others, each tunnel that is open is looked at again: ztunnel ends those whose
 * peer is on a list now. Nothing else of the chain counts here: one that has
 * expired meanwhile, or whose root is gone, goes on.
 *
 * There may be thousands of tunnels, so a chain is built anew only if a list of
 * an issuer's name has one of its serial numbers. That a list is the issuer's,
 * its signature tells: two may have one name.
 */

#include <openssl/x509_vfy.h>

#include "tls/tls.h"

/**
 * listed() - Is a certificate on a list of its issuer?
 * @store:	Lists
 * @cert:	Certificate
 * @issuer:	Who signed it; NULL: a list of its name will do
 *
 * Returns: true if it is
 */
static bool listed(X509_STORE_CTX *store, X509 *cert, X509 *issuer)
{
	STACK_OF(X509_CRL) *lists =
	    X509_STORE_CTX_get1_crls(store, X509_get_issuer_name(cert));
	EVP_PKEY *key = issuer ? X509_get0_pubkey(issuer) : NULL;
	bool found = false;

	for (int i = 0; !found && i < sk_X509_CRL_num(lists); i++) {
		X509_CRL *list = sk_X509_CRL_value(lists, i);
		X509_REVOKED *entry;

		found = X509_CRL_get0_by_cert(list, &entry, cert) == 1 &&
			(!issuer || (key && X509_CRL_verify(list, key) == 1));
	}
	sk_X509_CRL_pop_free(lists, X509_CRL_free);
	return found;
}

/**
 * any_listed() - Is one of a chain on a list of its issuer?
 * @store:	Lists
 * @chain:	Leaf first; may be NULL
 * @signed_by:	Look at lists' signatures, too: each is certified by the next
 *
 * Returns: true if one is
 */
static bool any_listed(X509_STORE_CTX *store, STACK_OF(X509) * chain,
		       bool signed_by)
{
	int n = sk_X509_num(chain) - signed_by;

	for (int i = 0; i < n; i++) {
		X509 *issuer = signed_by ? sk_X509_value(chain, i + 1) : NULL;

		if (listed(store, sk_X509_value(chain, i), issuer))
			return true;
	}
	return false;
}

/**
 * go_on() - Overlook what OpenSSL finds wrong with a chain
 * @good:	Unused
 * @store:	Unused
 *
 * Returns: 1
 */
static int go_on(int good, X509_STORE_CTX *store)
{
	(void)good;
	(void)store;
	return 1;
}

/**
 * tls_revoked() - Do lists name a session's peer, or who certified it?
 * @t:		Session; its handshake is over, and it is ours
 * @c:		Certificates, with the lists
 *
 * Returns: true if they do
 */
bool tls_revoked(struct tls *t, struct vu_tls *c)
{
	X509_STORE_CTX *store;
	bool revoked = false;

	if (t->ctx == c->ctx) /* the handshake saw the lists */
		return false;
	store = X509_STORE_CTX_new();
	if (store && t->leaf &&
	    X509_STORE_CTX_init(store, SSL_CTX_get_cert_store(c->ctx), t->leaf,
				t->shown) == 1 &&
	    (listed(store, t->leaf, NULL) ||
	     any_listed(store, t->shown, false))) {
		X509_VERIFY_PARAM_clear_flags(X509_STORE_CTX_get0_param(store),
					      X509_V_FLAG_CRL_CHECK |
						  X509_V_FLAG_CRL_CHECK_ALL);
		X509_STORE_CTX_set_verify_cb(store, go_on);
		X509_verify_cert(store); /* for its chain */
		revoked =
		    any_listed(store, X509_STORE_CTX_get0_chain(store), true);
	}
	X509_STORE_CTX_free(store);
	return revoked;
}
