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
 * OpenSSL reads a record's header, and then as much as that says (it has no
 * read-ahead): so nothing is left in it when the handshake is over.
 */

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <sys/socket.h>

#include "tls/tls.h"

static BIO_METHOD *method;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/**
 * wire_send() - Have ciphertext sent
 * @w:		Session's bytes
 * @buf:	Bytes
 * @len:	How many
 *
 * Returns: bytes taken, or -errno
 */
static ssize_t wire_send(struct tls_wire *w, const void *buf, size_t len)
{
	const struct iovec iov = {
	    .iov_base = (void *)(uintptr_t)buf,
	    .iov_len = len,
	};

	if (w->broken)
		return -EPIPE;
	if (bytes_len(&w->out) >= TLS_WIRE)
		return -EAGAIN;
	return bytes_put(&w->out, &iov, 1, 0) ? (ssize_t)len : -ENOMEM;
}

/**
 * wire_receive() - Take ciphertext that has come
 * @t:		Session
 * @buf:	Room
 * @len:	Bytes of it
 *
 * Returns: bytes; 0: that was all, ever; -EAGAIN
 */
static ssize_t wire_receive(struct tls *t, char *buf, size_t len)
{
	struct tls_wire *w = t->wire;
	uint32_t n = bytes_len(&w->in);
	struct iovec iov[2];
	unsigned n_iov;

	if (n > len)
		n = (uint32_t)len;
	if (!n && w->ended)
		return 0;
	t->drained = n == bytes_len(&w->in) && !w->ended;
	if (!n)
		return -EAGAIN;
	n_iov = bytes_peek(&w->in, 0, n, iov);
	for (unsigned i = 0; i < n_iov; buf += iov[i++].iov_len)
		memcpy(buf, iov[i].iov_base, iov[i].iov_len);
	bytes_drop(&w->in, n);
	t->heard = true;
	return (ssize_t)n;
}

/**
 * tls_send() - Send ciphertext
 * @t:		Session
 * @buf:	Bytes
 * @len:	How many
 *
 * Returns: bytes sent, or -errno
 */
ssize_t tls_send(struct tls *t, const void *buf, size_t len)
{
	ssize_t n;

	if (t->wire)
		return wire_send(t->wire, buf, len);
	n = send(t->fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/**
 * tls_receive() - Receive ciphertext
 * @t:		Session
 * @buf:	Room
 * @len:	Bytes of it
 *
 * Returns: bytes; 0: that was all, ever; -EAGAIN: none now; -EINTR: call again;
 * another -errno
 */
ssize_t tls_receive(struct tls *t, void *buf, size_t len)
{
	ssize_t n;

	if (t->drained)
		return -EAGAIN;
	if (t->wire)
		return wire_receive(t, buf, len);
	n = recv(t->fd, buf, len, MSG_DONTWAIT);
	if (n < 0) {
		t->drained = errno == EAGAIN;
		return -errno;
	}
	t->heard |= n > 0;
	t->drained = n && (size_t)n < len && !t->ends;
	return n;
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
	ssize_t n = tls_send(BIO_get_data(b), buf, (size_t)len);

	BIO_clear_retry_flags(b);
	if (n == -EAGAIN || n == -EINTR)
		BIO_set_retry_write(b);
	return n < 0 ? -1 : (int)n;
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
	ssize_t n = tls_receive(BIO_get_data(b), buf, (size_t)len);

	BIO_clear_retry_flags(b);
	if (n == -EAGAIN || n == -EINTR)
		BIO_set_retry_read(b);
	else if (n == 0)
		BIO_set_flags(b, BIO_FLAGS_IN_EOF);
	return n < 0 ? -1 : (int)n;
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
