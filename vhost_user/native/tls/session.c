// SPDX-License-Identifier: Apache-2.0
/*
 * session.c - one session
 *
 * Theory of operation
 * ===================
 *
 * The handshake is OpenSSL's, on the socket itself (bio.c). It tells the
 * traffic secrets that come of it, and is freed: records are ours from the
 * first one on that these protect (write.c, read.c). Neither side has sealed
 * one with them by then: there are no tickets of ours, there is no early data,
 * and what the peer sends next is still in the socket.
 */

#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/err.h>

#include "tls/secret.h"
#include "tls/tls.h"

/**
 * tls_new() - Make a session
 * @c:		Certificates
 * @names:	Whom the peer has to be
 * @fd:		Connected socket; stays the caller's
 * @server:	The peer connected to us
 * @owner:	Whose it is
 *
 * Returns: it; NULL if out of memory
 */
struct tls *tls_new(struct vu_tls *c, struct tls_names *names, int fd,
		    bool server, void *owner)
{
	struct tls *t = secret_new(sizeof(*t));
	BIO *bio;

	if (!t)
		return NULL;
	*t = (struct tls){
	    .owner = owner,
	    .ssl = SSL_new(c->ctx),
	    .names = names,
	    .fd = fd,
	    .server = server,
	};
	list_init(&t->link);
	names->refs++;
	bio = t->ssl ? tls_bio(t) : NULL;
	if (!bio) {
		tls_free(t);
		ERR_clear_error();
		return NULL;
	}
	SSL_set_bio(t->ssl, bio, bio);
	SSL_set_app_data(t->ssl, t);
	if (server)
		SSL_set_accept_state(t->ssl);
	else
		SSL_set_connect_state(t->ssl);
	return t;
}

/**
 * tls_free() - Free a session; its socket is the caller's
 * @t:		Session
 */
void tls_free(struct tls *t)
{
	list_del(&t->link);
	SSL_free(t->ssl);
	SSL_CTX_free(t->ctx);
	X509_free(t->leaf);
	sk_X509_pop_free(t->shown, X509_free);
	tls_names_unref(t->names);
	free(t->peer);
	keys_clear(&t->in);
	keys_clear(&t->out);
	buffer_give(t->buffers, t->rx);
	buffer_give(t->buffers, t->tx);
	secret_free(t, sizeof(*t));
}

/**
 * why() - Why did a handshake fail?
 * @t:		Session
 * @error:	What SSL_get_error() says
 *
 * Returns: enum vu_reason
 */
static enum vu_reason why(const struct tls *t, int error)
{
	unsigned long last = ERR_peek_error();
	int reason = ERR_GET_REASON(last);

	if (t->reason)
		return t->reason;
	if (error == SSL_ERROR_SYSCALL || error == SSL_ERROR_ZERO_RETURN ||
	    reason == SSL_R_UNEXPECTED_EOF_WHILE_READING)
		return VU_REASON_CLOSED;
	if (reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE)
		return VU_REASON_NOCERT;
	if (reason == SSL_R_TLSV1_ALERT_NO_APPLICATION_PROTOCOL)
		return VU_REASON_ALPN;
	if (reason >= SSL_AD_REASON_OFFSET)
		return VU_REASON_ALERT;
	return VU_REASON_TLS;
}

/**
 * tls_keylog() - Take a traffic secret
 * @ssl:	Session, in its handshake
 * @line:	NSS's format: label, the client's random and the secret, in
 *		hexadecimal
 *
 * Others than the two of application data are not kept.
 */
void tls_keylog(const SSL *ssl, const char *line)
{
	static const char *const labels[] = {"CLIENT_TRAFFIC_SECRET_0 ",
					     "SERVER_TRAFFIC_SECRET_0 "};
	struct tls *t = SSL_get_app_data(ssl);
	const char *hex = strrchr(line, ' ');

	for (int server = 0; hex && server < 2; server++) {
		struct tls_keys *k = t->server == server ? &t->out : &t->in;
		const char *label = labels[server];
		size_t len;

		if (!strncmp(line, label, strlen(label)) &&
		    OPENSSL_hexstr2buf_ex(k->secret, sizeof(k->secret), &len,
					  hex + 1, 0) == 1)
			k->len = (uint8_t)len;
	}
}

/**
 * take_over() - The handshake is over: go on without OpenSSL
 * @t:		Session
 *
 * Returns: false if out of memory, or OpenSSL has what it should not
 */
static bool take_over(struct tls *t)
{
	STACK_OF(X509) *shown = SSL_get_peer_cert_chain(t->ssl);

	if (SSL_has_pending(t->ssl) || !keys_start(&t->in, false) ||
	    !keys_start(&t->out, true))
		return false;
	t->ctx = SSL_get_SSL_CTX(t->ssl);
	SSL_CTX_up_ref(t->ctx);
	t->leaf = SSL_get1_peer_certificate(t->ssl);
	t->shown = shown ? X509_chain_up_ref(shown) : NULL;
	SSL_free(t->ssl);
	t->ssl = NULL;
	return true;
}

/**
 * agreed() - Is the handshake's result what it has to be?
 * @t:		Session
 *
 * Returns: true; else t->reason says why not
 */
static bool agreed(struct tls *t)
{
	const unsigned char *name;
	unsigned len;

	SSL_get0_alpn_selected(t->ssl, &name, &len);
	if (!len && !t->server)
		t->reason = VU_REASON_ALPN;
	else if (!take_over(t))
		t->reason = VU_REASON_SHORT;
	return !t->reason;
}

/**
 * tls_shake() - Go on with a handshake
 * @t:		Session; its step says how far it is
 */
void tls_shake(struct tls *t)
{
	int ret, error;

	ERR_clear_error();
	ret = SSL_do_handshake(t->ssl);
	if (ret == 1) {
		t->step = agreed(t) ? TLS_DONE : TLS_FAILED;
		ERR_clear_error();
		return;
	}
	error = SSL_get_error(t->ssl, ret);
	if (error == SSL_ERROR_WANT_READ) {
		t->step = TLS_READS;
	} else if (error == SSL_ERROR_WANT_WRITE) {
		t->step = TLS_WRITES;
	} else {
		t->reason = (uint8_t)why(t, error);
		t->step = TLS_FAILED;
	}
	ERR_clear_error();
}

/**
 * tls_bye() - Tell the peer that nothing more comes
 * @t:		Session, its handshake done
 */
void tls_bye(struct tls *t)
{
	tls_alert(t, SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY);
}
