// SPDX-License-Identifier: Apache-2.0
/*
 * write.c - records to the peer
 *
 * Theory of operation
 * ===================
 *
 * Records are sealed behind each other into a buffer, out of where their bytes
 * are, and sent by one system call: with one a record TCP would send as many
 * packets, each of which wakes the peer. What the socket doesn't take stays,
 * and with it the buffer.
 *
 * A key is changed long before its cipher wears out, and where the peer asks
 * for it: KeyUpdate goes out before the next record with payload (RFC 8446
 * sections 4.6.3 and 5.5).
 */

#include <errno.h>

#include "tls/tls.h"

#define KEY_RECORDS (1U << 24) /* section 5.5: AES-GCM takes 2^24.5 of them */
#define KEY_UPDATE  24	       /* section 4: this handshake message */

/**
 * tls_flush() - Send records that the socket didn't take
 * @t:		Session
 *
 * Returns: 0: there are none any more; -EAGAIN; another -errno: it takes no
 * more
 */
int tls_flush(struct tls *t)
{
	struct tls_buffer *b = t->tx;

	if (!b)
		return 0;
	while (b->from < b->to) {
		ssize_t n = tls_send(t, b->data + b->from, b->to - b->from);

		if (n < 0 && n != -EINTR)
			return (int)n;
		if (n > 0)
			b->from += (size_t)n;
	}
	buffer_give(t->buffers, b);
	t->tx = NULL;
	return 0;
}

/**
 * put() - Seal a record behind the others
 * @t:		Session with room for it
 * @type:	enum tls_type
 * @c:		Content
 *
 * Returns: false: the session is broken
 */
static bool put(struct tls *t, uint8_t type, const struct tls_content *c)
{
	struct tls_buffer *b = t->tx;
	size_t n = record_seal(&t->out, type, c, b->data + b->to);

	b->to += n;
	t->broken |= !n;
	return n;
}

/**
 * renew() - Have another key for our records
 * @t:		Session with room for a record
 *
 * Returns: false: the session is broken
 */
static bool renew(struct tls *t)
{
	uint8_t message[] = {KEY_UPDATE, 0, 0, 1, 0 /* update_not_requested */};

	t->owes = false;
	if (!put(t, TLS_TYPE_HANDSHAKE,
		 &(struct tls_content){message, sizeof(message), NULL, 0, 0}))
		return false;
	t->broken |= !keys_update(&t->out);
	return !t->broken;
}

/**
 * room() - Make room for a record
 * @t:		Session
 *
 * Returns: 0; -EAGAIN; -ENOMEM, -EPROTO: it is broken; another -errno: the
 * socket takes no more
 */
static int room(struct tls *t)
{
	if (t->tx && t->tx->to + TLS_MOST > TLS_BUFFER) {
		int error = tls_flush(t);

		if (error)
			return error;
	}
	if (t->broken)
		return -EPROTO;
	if (!t->tx)
		t->tx = buffer_take(t->buffers);
	return t->tx ? 0 : -ENOMEM;
}

/**
 * tls_put() - Seal a record of payload, to be sent with others
 * @t:		Session
 * @c:		Payload, which may be in a guest's memory
 *
 * It waits for tls_flush(), or tls_write(), or more than there is room for.
 *
 * Returns: 0; -EAGAIN; another -errno, as tls_write()
 */
int tls_put(struct tls *t, const struct tls_content *c)
{
	int error = room(t);

	if (!error && (t->owes || t->out.seq >= KEY_RECORDS) && !renew(t))
		error = -ENOMEM;
	if (!error && !put(t, TLS_TYPE_DATA, c))
		error = -ENOMEM;
	return error;
}

/**
 * tls_take_back() - Unmake the record that tls_put() has just made
 * @t:		Session
 * @len:	Bytes of its content
 *
 * Nobody has seen it, so its number is the next one's.
 */
void tls_take_back(struct tls *t, size_t len)
{
	t->tx->to -= len + TLS_OVER;
	t->out.seq--;
}

/**
 * tls_write() - Write plaintext
 * @t:		Session
 * @buf:	Bytes; after -EAGAIN, the same ones again, or more
 * @len:	How many, not 0
 *
 * What doesn't fit into one record is sealed into several, which are sent by
 * one system call, as far as there is room. The socket may take a part of them:
 * the rest waits for tls_flush(), or for the next call.
 *
 * Returns: bytes taken; -EAGAIN; -ENOMEM: it is broken; another -errno: it
 * takes no more
 */
ssize_t tls_write(struct tls *t, const void *buf, size_t len)
{
	size_t done = 0;
	int error = 0;

	while (done < len && !error) {
		size_t n = len - done < TLS_RECORD ? len - done : TLS_RECORD;

		error =
		    tls_put(t, &(struct tls_content){(const char *)buf + done,
						     n, NULL, 0, 0});
		if (!error)
			done += n;
	}
	tls_flush(t);
	return done ? (ssize_t)done : error;
}

/**
 * tls_alert() - Tell the peer that this is the end
 * @t:		Session, its handshake done
 * @level:	SSL3_AL_
 * @what:	SSL_AD_
 *
 * As far as the socket takes it.
 */
void tls_alert(struct tls *t, uint8_t level, uint8_t what)
{
	uint8_t alert[] = {level, what};

	if (t->broken)
		return;
	if (!t->tx)
		t->tx = buffer_take(t->buffers);
	if (!t->tx)
		return;
	if (t->tx->to + TLS_OVER + sizeof(alert) <= sizeof(t->tx->data))
		put(t, TLS_TYPE_ALERT,
		    &(struct tls_content){alert, sizeof(alert), NULL, 0, 0});
	tls_flush(t);
}
