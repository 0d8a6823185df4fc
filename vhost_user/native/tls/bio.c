// SPDX-License-Identifier: Apache-2.0
/*
 * bio.c - a session's bytes and its socket
 *
 * Theory of operation
 * ===================
 *
 * OpenSSL's own BIO for sockets would raise SIGPIPE, and asks a socket that it
 * has just emptied once more. This one knows that a short read means that it is
 * empty, and then waits for epoll, as side/stream.c does. A session that has
 * none moves its bytes in memory: who has it puts them there, and takes them.
 *
 * Records are put behind each other where the session has a buffer for them
 * (tls_write()): with a system call a record TCP sends as many packets, and
 * each of them wakes the peer.
 */

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <sys/socket.h>

#include "tls/tls.h"

static BIO_METHOD *method;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/**
 * wire_write() - Have ciphertext sent
 * @b:		BIO
 * @w:		Its session's bytes
 * @buf:	Bytes
 * @len:	How many
 *
 * Returns: bytes taken, or -1
 */
static int wire_write(BIO *b, struct tls_wire *w, const char *buf, int len)
{
	const struct iovec iov = {
	    .iov_base = (char *)(uintptr_t)buf,
	    .iov_len = (size_t)len,
	};

	BIO_clear_retry_flags(b);
	if (w->broken)
		return -1;
	if (bytes_len(&w->out) >= TLS_WIRE) {
		BIO_set_retry_write(b);
		return -1;
	}
	return bytes_put(&w->out, &iov, 1, 0) ? len : -1;
}

/**
 * wire_read() - Take ciphertext that has come
 * @b:		BIO
 * @t:		Its session
 * @buf:	Room
 * @len:	Bytes of it
 *
 * Returns: bytes; 0: that was all, ever; -1
 */
static int wire_read(BIO *b, struct tls *t, char *buf, int len)
{
	struct tls_wire *w = t->wire;
	uint32_t n = bytes_len(&w->in);
	struct iovec iov[2];
	unsigned n_iov;

	BIO_clear_retry_flags(b);
	if (n > (uint32_t)len)
		n = (uint32_t)len;
	if (!n && w->ended) {
		BIO_set_flags(b, BIO_FLAGS_IN_EOF);
		return 0;
	}
	if (!n) {
		t->drained = true;
		BIO_set_retry_read(b);
		return -1;
	}
	n_iov = bytes_peek(&w->in, 0, n, iov);
	for (unsigned i = 0; i < n_iov; buf += iov[i++].iov_len)
		memcpy(buf, iov[i].iov_base, iov[i].iov_len);
	bytes_drop(&w->in, n);
	t->heard = true;
	t->drained = !bytes_len(&w->in) && !w->ended;
	return (int)n;
}

/**
 * put() - Put ciphertext behind what the socket has yet to take
 * @b:		BIO
 * @t:		Its session, with a buffer
 * @buf:	Bytes
 * @len:	How many
 *
 * Returns: bytes taken, or -1
 */
static int put(BIO *b, struct tls *t, const char *buf, int len)
{
	BIO_clear_retry_flags(b);
	if ((size_t)len > t->most - t->to) {
		BIO_set_retry_write(b);
		return -1;
	}
	memcpy(t->sealed + t->to, buf, (size_t)len);
	t->to += (size_t)len;
	return len;
}

/**
 * bio_write() - Send ciphertext
 * @b:		BIO
 * @buf:	Bytes
 * @len:	How many
 *
 * Returns: bytes sent, or -1
 */
static int bio_write(BIO *b, const char *buf, int len)
{
	struct tls *t = BIO_get_data(b);
	ssize_t n;

	if (t->wire)
		return wire_write(b, t->wire, buf, len);
	if (t->sealed)
		return put(b, t, buf, len);
	n = send(t->fd, buf, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
	BIO_clear_retry_flags(b);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		BIO_set_retry_write(b);
	return (int)n;
}

/**
 * bio_read() - Receive ciphertext
 * @b:		BIO
 * @buf:	Room
 * @len:	Bytes of it
 *
 * Returns: bytes received; 0: that was all, ever; -1
 */
static int bio_read(BIO *b, char *buf, int len)
{
	struct tls *t = BIO_get_data(b);
	ssize_t n;

	BIO_clear_retry_flags(b);
	if (t->drained) {
		BIO_set_retry_read(b);
		return -1;
	}
	if (t->wire)
		return wire_read(b, t, buf, len);
	n = recv(t->fd, buf, (size_t)len, MSG_DONTWAIT);
	if (n < 0 && errno == EINTR) {
		BIO_set_retry_read(b);
	} else if (n < 0 && errno == EAGAIN) {
		t->drained = true;
		BIO_set_retry_read(b);
	} else if (n == 0) {
		BIO_set_flags(b, BIO_FLAGS_IN_EOF);
	} else if (n > 0) {
		t->heard = true;
		t->drained = n < len;
	}
	return (int)n;
}

/**
 * bio_ctrl() - Answer what OpenSSL asks of a BIO
 * @b:		BIO
 * @cmd:	Question
 * @num:	Unused
 * @ptr:	Unused
 *
 * Returns: 1: yes, 0: no
 */
static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
	(void)num;
	(void)ptr;
	if (cmd == BIO_CTRL_EOF)
		return BIO_test_flags(b, BIO_FLAGS_IN_EOF) != 0;
	return cmd == BIO_CTRL_FLUSH;
}

/**
 * make_method() - Tell OpenSSL of this kind of BIO
 */
static void make_method(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK,
				     "vhost_user socket");

	if (!m)
		return;
	BIO_meth_set_write(m, bio_write);
	BIO_meth_set_read(m, bio_read);
	BIO_meth_set_ctrl(m, bio_ctrl);
	method = m;
}

/**
 * tls_bio() - Make a session's BIO
 * @t:		Session, with its socket
 *
 * Returns: it; NULL if out of memory
 */
BIO *tls_bio(struct tls *t)
{
	BIO *b;

	pthread_once(&once, make_method);
	b = method ? BIO_new(method) : NULL;
	if (!b)
		return NULL;
	BIO_set_data(b, t);
	BIO_set_init(b, 1);
	return b;
}
