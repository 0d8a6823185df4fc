// SPDX-License-Identifier: Apache-2.0
/*
 * read.c - records from the peer
 *
 * Theory of operation
 * ===================
 *
 * Several records are received by one system call into a buffer of ours. Each
 * is opened there, and what it says copied from there once, or not at all
 * (tls_peek()). A guest sees nothing of it before its tag was found right.
 *
 * What has no payload (KeyUpdate, a ticket, an empty record) costs the peer
 * little and us a decryption: each comes back as -EINTR, so that the caller
 * counts it, and too many behind each other are an error.
 */

#include <errno.h>
#include <string.h>

#include "tls/tls.h"

#define IDLE_MOST     32     /* records without payload, as others have it */
#define TICKET	      4	     /* RFC 8446 section 4: NewSessionTicket */
#define TICKET_MOST   131338 /* section 4.6.1: its parts, each at its longest */
#define KEY_UPDATE    24
#define USER_CANCELED 90

/**
 * broke() - The peer broke TLS: tell it
 * @t:		Session
 * @alert:	SSL_AD_
 *
 * Returns: -EPROTO
 */
static ssize_t broke(struct tls *t, int alert)
{
	tls_alert(t, SSL3_AL_FATAL, (uint8_t)alert);
	t->broken = true;
	t->reason = VU_REASON_TLS;
	return -EPROTO;
}

/* ---- what has no payload ---- */

/**
 * begin_message() - A handshake message comes
 * @t:		Session, the message's type and length there
 *
 * We offer neither resumption nor certificates after the handshake: tickets are
 * left out, and a CertificateRequest is an error.
 *
 * Returns: 0, or the alert
 */
static int begin_message(struct tls *t)
{
	struct tls_message *m = &t->message;

	m->left =
	    (uint32_t)m->head[1] << 16 | (uint32_t)m->head[2] << 8 | m->head[3];
	if (m->head[0] == KEY_UPDATE)
		return m->left == 1 ? 0 : SSL_AD_DECODE_ERROR;
	if (m->head[0] == TICKET && !t->server)
		return m->left <= TICKET_MOST ? 0 : SSL_AD_DECODE_ERROR;
	return SSL_AD_UNEXPECTED_MESSAGE;
}

/**
 * end_message() - A handshake message is all there
 * @t:		Session
 * @last:	Its last byte
 * @more:	The record goes on behind it
 *
 * Returns: 0, or the alert
 */
static int end_message(struct tls *t, uint8_t last, bool more)
{
	t->message.have = 0;
	if (t->message.head[0] != KEY_UPDATE)
		return 0;
	if (last > 1)
		return SSL_AD_ILLEGAL_PARAMETER;
	if (more) /* section 5.1: its record ends with it */
		return SSL_AD_UNEXPECTED_MESSAGE;
	t->owes |= last; /* one answer does for several */
	return keys_update(&t->in) ? 0 : SSL_AD_INTERNAL_ERROR;
}

/**
 * hear_messages() - Take handshake messages, or parts of them
 * @t:		Session
 * @r:		Record
 *
 * Returns: 0, or the alert
 */
static int hear_messages(struct tls *t, const struct tls_record *r)
{
	struct tls_message *m = &t->message;
	int alert = r->len ? 0 : SSL_AD_UNEXPECTED_MESSAGE;

	for (size_t i = 0; i < r->len && !alert; i++) {
		if (m->have < sizeof(m->head)) {
			m->head[m->have++] = r->data[i];
			if (m->have < sizeof(m->head))
				continue;
			alert = begin_message(t);
		} else {
			m->left--;
		}
		if (!alert && !m->left)
			alert = end_message(t, r->data[i], i + 1 < r->len);
	}
	return alert;
}

/**
 * hear_alert() - Take an alert
 * @t:		Session
 * @r:		Record
 *
 * Section 6: all but two are fatal, whatever level they say.
 *
 * Returns: 0, or the alert that it is answered with
 */
static int hear_alert(struct tls *t, const struct tls_record *r)
{
	if (r->len != 2)
		return SSL_AD_DECODE_ERROR;
	if (r->data[1] == SSL_AD_CLOSE_NOTIFY) {
		t->over = true;
	} else if (r->data[1] != USER_CANCELED) {
		t->broken = true;
		t->reason = VU_REASON_ALERT;
	}
	return 0;
}

/**
 * hear() - Take what a record has
 * @t:		Session
 * @r:		Record
 *
 * Returns: 0, or the alert
 */
static int hear(struct tls *t, const struct tls_record *r)
{
	if (t->message.have && r->type != TLS_TYPE_HANDSHAKE)
		return SSL_AD_UNEXPECTED_MESSAGE; /* section 5.1 */
	if (r->type == TLS_TYPE_DATA && r->len) {
		t->plain = r->data;
		t->plain_len = r->len;
		t->idle = 0;
		return 0;
	}
	if (++t->idle > IDLE_MOST)
		return SSL_AD_UNEXPECTED_MESSAGE;
	switch (r->type) {
	case TLS_TYPE_DATA:
		return 0;
	case TLS_TYPE_HANDSHAKE:
		return hear_messages(t, r);
	case TLS_TYPE_ALERT:
		return hear_alert(t, r);
	default:
		return SSL_AD_UNEXPECTED_MESSAGE;
	}
}

/* ---- reading ---- */

/**
 * room() - Make room for at least one record
 * @t:		Session
 *
 * Returns: it; NULL if out of memory
 */
static struct tls_buffer *room(struct tls *t)
{
	struct tls_buffer *b = t->rx;

	if (!b)
		t->rx = b = buffer_take(t->buffers);
	if (!b)
		return NULL;
	if (sizeof(b->data) - b->to < TLS_HEAD + TLS_MOST) {
		memmove(b->data, b->data + b->from, b->to - b->from);
		b->to -= b->from;
		b->from = 0;
	}
	return b;
}

/**
 * receive() - Receive records, or parts of them
 * @t:		Session, all that has come opened
 *
 * Returns: bytes; 0: the peer has ended; -errno
 */
static ssize_t receive(struct tls *t)
{
	struct tls_buffer *b = t->drained ? t->rx : room(t);
	ssize_t n = -EAGAIN;

	if (!t->drained && !b)
		return -ENOMEM;
	if (!t->drained)
		n = tls_receive(t, b->data + b->to, sizeof(b->data) - b->to);
	if (n > 0) {
		b->to += (size_t)n;
	} else if (b && b->from == b->to) {
		buffer_give(t->buffers, b);
		t->rx = NULL;
	}
	return n;
}

/**
 * tls_has() - Is there a whole record, without the socket being asked?
 * @t:		Session
 *
 * Returns: true if there is; else what tls_peek() found is no more after its
 * next call
 */
bool tls_has(const struct tls *t)
{
	const struct tls_buffer *b = t->rx;

	return t->plain_len ||
	       (b && record_whole(b->data + b->from, b->to - b->from));
}

/**
 * tls_peek() - Look at plaintext
 * @t:		Session
 * @ret:	It; stays where it is for as long as tls_has()
 *
 * Returns: bytes; 0: the peer has ended; -EAGAIN: none now; -EINTR: a record
 * had none, call again; another -errno
 */
ssize_t tls_peek(struct tls *t, const uint8_t **ret)
{
	struct tls_record r;
	ssize_t n = 1;

	while (!t->plain_len && !t->over && !t->broken && n > 0) {
		struct tls_buffer *b = t->rx;
		int alert = b ? record_open(&t->in, b->data + b->from,
					    b->to - b->from, &r)
			      : -EAGAIN;

		if (alert == -EAGAIN) {
			n = receive(t);
			continue;
		}
		if (!alert) {
			b->from += r.size;
			alert = hear(t, &r);
		}
		if (alert)
			return broke(t, alert);
		n = t->plain_len || t->over || t->broken ? n : -EINTR;
	}
	*ret = t->plain;
	if (t->plain_len)
		return (ssize_t)t->plain_len;
	if (t->broken)
		return -EPROTO;
	return t->over ? 0 : n;
}

/**
 * tls_drop() - Be done with plaintext
 * @t:		Session
 * @n:		Bytes, of those that tls_peek() found
 */
void tls_drop(struct tls *t, size_t n)
{
	t->plain += n;
	t->plain_len -= n;
}

/**
 * tls_read() - Read plaintext
 * @t:		Session
 * @buf:	Where to; may be a guest's memory
 * @len:	Bytes that fit, not 0
 *
 * Returns: bytes read; or as tls_peek()
 */
ssize_t tls_read(struct tls *t, void *buf, size_t len)
{
	const uint8_t *plain;
	ssize_t n = tls_peek(t, &plain);

	if (n <= 0)
		return n;
	if ((size_t)n > len)
		n = (ssize_t)len;
	memcpy(buf, plain, (size_t)n);
	tls_drop(t, (size_t)n);
	return n;
}
