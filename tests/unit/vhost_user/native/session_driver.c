// SPDX-License-Identifier: Apache-2.0
/*
 * session_driver.c - a session after its handshake, without a socket
 */

#include <stdlib.h>
#include <string.h>

#include "tls/tls.h"

/**
 * struct driver - A session, and what it needs
 */
struct driver {
	struct tls t;
	struct tls_wire wire;
	struct tls_buffers buffers;
};

struct driver *driver_new(const uint8_t *secret, uint8_t len, uint64_t seq)
{
	struct driver *d = calloc(1, sizeof(*d));

	d->t.wire = &d->wire;
	d->t.buffers = &d->buffers;
	d->t.out.len = len;
	memcpy(d->t.out.secret, secret, len);
	if (!keys_start(&d->t.out, true))
		abort();
	d->t.out.seq = seq;
	return d;
}

ssize_t driver_write(struct driver *d, const void *buf, size_t len)
{
	return tls_write(&d->t, buf, len);
}

int driver_flush(struct driver *d)
{
	return tls_flush(&d->t);
}

size_t driver_take(struct driver *d, uint8_t *buf, size_t len)
{
	struct iovec iov[2];
	uint32_t n = bytes_len(&d->wire.out);
	unsigned n_iov = bytes_peek(&d->wire.out, 0, n, iov);
	size_t done = 0;

	if (n > len)
		abort();
	for (unsigned i = 0; i < n_iov; done += iov[i++].iov_len)
		memcpy(buf + done, iov[i].iov_base, iov[i].iov_len);
	bytes_drop(&d->wire.out, n);
	return done;
}

void driver_free(struct driver *d)
{
	keys_clear(&d->t.out);
	bytes_free(&d->wire.out);
	buffer_give(&d->buffers, d->t.tx);
	buffers_free(&d->buffers);
	free(d);
}
