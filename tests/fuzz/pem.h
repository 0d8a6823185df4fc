/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pem.h - a certificate for a fuzzer
 */
#ifndef PEM_H
#define PEM_H

#include <string.h>

#include <openssl/pem.h>
#include <openssl/x509.h>

/* One text that is certificate, key and root: nobody looks at it */
static char *make_pem(void)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = X509_new();
	BIO *bio = BIO_new(BIO_s_mem());
	char *text;
	long len;

	X509_gmtime_adj(X509_getm_notBefore(cert), 0);
	X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
	X509_set_pubkey(cert, key);
	X509_sign(cert, key, EVP_sha256());
	PEM_write_bio_X509(bio, cert);
	PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL);
	len = BIO_get_mem_data(bio, &text);
	text = strndup(text, (size_t)len);
	BIO_free(bio);
	X509_free(cert);
	EVP_PKEY_free(key);
	return text;
}

#endif /* PEM_H */
