// SPDX-License-Identifier: Apache-2.0
/*
 * session.c - one session
 *
 * Theory of operation
 * ===================
 *
 * OpenSSL works on the socket itself (bio.c), but for records that are written
 * together. A write is encrypted out of the caller's buffer, a read is
 * decrypted and then copied into the caller's, which may be a guest's memory.
 * It never retries by itself (SSL_MODE_AUTO_RETRY): messages without payload,
 * which a peer may send by thousands, come back as -EAGAIN, so that the caller
 * counts them.
 */

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <sys/socket.h>

#include <openssl/err.h>

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
	struct tls *t = calloc(1, sizeof(*t));
	BIO *bio;

	if (!t)
		return NULL;
	*t = (struct tls){
	    .owner = owner,
	    .ssl = SSL_new(c->ctx),
	    .names = names,
	    .fd = fd,
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
	tls_names_unref(t->names);
	free(t->peer);
	if (t->sealed != t->room)
		free(t->sealed);
	free(t);
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
 * tls_shake() - Go on with a handshake
 * @t:		Session; its step says how far it is
 */
void tls_shake(struct tls *t)
{
	int ret, error;

	ERR_clear_error();
	ret = SSL_do_handshake(t->ssl);
	if (ret == 1) {
		const unsigned char *name;
		unsigned len;

		SSL_get0_alpn_selected(t->ssl, &name, &len);
		t->step = TLS_DONE;
		if (!len && !SSL_is_server(t->ssl)) {
			t->reason = VU_REASON_ALPN;
			t->step = TLS_FAILED;
		}
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
 * forget() - Forget errors of the calls before, if there are any
 *
 * To clear what is empty costs as much as a small record does.
 */
static void forget(void)
{
	if (ERR_peek_error())
		ERR_clear_error();
}

/**
 * failed() - What does a failed read or write mean?
 * @t:		Session
 * @ret:	What it returned
 *
 * Returns: 0: the peer has ended; -EAGAIN; -ECONNRESET; -EPROTO
 */
static ssize_t failed(struct tls *t, int ret)
{
	int error = SSL_get_error(t->ssl, ret);
	int reason = ERR_GET_REASON(ERR_peek_error());
	bool eof = reason == SSL_R_UNEXPECTED_EOF_WHILE_READING;

	forget();
	if (error == SSL_ERROR_SSL && reason >= SSL_AD_REASON_OFFSET)
		t->reason = VU_REASON_ALERT;
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
		return -EAGAIN;
	if (error == SSL_ERROR_ZERO_RETURN || eof)
		return 0;
	return error == SSL_ERROR_SYSCALL ? -ECONNRESET : -EPROTO;
}

/**
 * tls_read() - Read plaintext
 * @t:		Session
 * @buf:	Where to; may be a guest's memory
 * @len:	Bytes that fit, not 0
 *
 * Returns: bytes read; 0: the peer has ended; -EAGAIN: none now, and unless
 * t->drained there may be some with the next call; -ECONNRESET, -EPROTO
 */
ssize_t tls_read(struct tls *t, void *buf, size_t len)
{
	int n;

	if (t->drained && !SSL_has_pending(t->ssl))
		return -EAGAIN;
	forget();
	n = SSL_read(t->ssl, buf, len < INT_MAX ? (int)len : INT_MAX);
	return n > 0 ? n : failed(t, n);
}

/**
 * tls_flush() - Send records that the socket didn't take
 * @t:		Session
 *
 * Returns: 0: there are none any more; -EAGAIN; another -errno: it takes no
 * more
 */
int tls_flush(struct tls *t)
{
	while (t->from < t->to) {
		ssize_t n = send(t->fd, t->sealed + t->from, t->to - t->from,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			t->from += (size_t)n;
	}
	if (t->sealed != t->room)
		free(t->sealed);
	t->sealed = NULL;
	t->from = t->to = 0;
	return 0;
}

/**
 * keep() - Take records that the socket didn't take out of the engine's buffer
 * @t:		Session
 *
 * Returns: false if out of memory
 */
static bool keep(struct tls *t)
{
	size_t len = t->to - t->from;
	uint8_t *own;

	if (!t->sealed || t->sealed != t->room)
		return true;
	own = malloc(len);
	if (!own)
		return false;
	memcpy(own, t->sealed + t->from, len);
	t->sealed = own;
	t->from = 0;
	t->to = t->most = len;
	return true;
}

/**
 * seal() - Write one record
 * @t:		Session
 * @buf:	Bytes
 * @len:	How many, not 0
 *
 * Returns: as tls_write()
 */
static ssize_t seal(struct tls *t, const void *buf, size_t len)
{
	ssize_t ret;
	int n;

	forget();
	n = SSL_write(t->ssl, buf, len < TLS_RECORD ? (int)len : TLS_RECORD);
	ret = n > 0 ? n : failed(t, n);
	return ret ? ret : -ECONNRESET;
}

/**
 * tls_write() - Write plaintext
 * @t:		Session
 * @buf:	Bytes; after -EAGAIN, the same ones again, or more
 * @len:	How many, not 0
 *
 * What doesn't fit into one record is sealed into several, as far as there is
 * room, and sent by one system call. The socket may take a part of it: the rest
 * waits for tls_flush(), or for the next call.
 *
 * Returns: bytes taken; -EAGAIN; -ENOMEM: it is broken; another -errno: it
 * takes no more
 */
ssize_t tls_write(struct tls *t, const void *buf, size_t len)
{
	int error = tls_flush(t);
	size_t done = 0;
	ssize_t n;

	if (error)
		return error;
	if (len > TLS_RECORD) {
		t->sealed = t->room;
		t->most = SEALED;
	}
	do {
		n = seal(t, (const uint8_t *)buf + done, len - done);
		if (n > 0)
			done += (size_t)n;
	} while (n > 0 && done < len && t->sealed &&
		 t->most - t->to >= TLS_MOST);
	tls_flush(t);
	if (!keep(t))
		return -ENOMEM;
	return done ? (ssize_t)done : n;
}

/**
 * tls_bye() - Tell the peer that nothing more comes
 * @t:		Session, its handshake done
 */
void tls_bye(struct tls *t)
{
	SSL_shutdown(t->ssl);
	tls_flush(t);
	ERR_clear_error();
}
