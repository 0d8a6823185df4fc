/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_hbone.h - tunnels without TLS, whose time is the input's
 *
 * Included before all else (clang -include) in what fuzz_hbone.c is linked
 * with: what the peer says is the input's plaintext.
 */
#ifndef FUZZ_HBONE_H
#define FUZZ_HBONE_H

#include <time.h>

#include <openssl/ssl.h>

int fuzz_time(struct timespec *now);
int fuzz_read(SSL *ssl, void *buf, int len);
int fuzz_write(SSL *ssl, const void *buf, int len);
int fuzz_error(int ret);
void fuzz_alpn(const unsigned char **name, unsigned *len);

#define clock_gettime(clock, now)	     fuzz_time(now)
#define SSL_do_handshake(ssl)		     ((ssl) != NULL)
#define SSL_read(ssl, buf, len)		     fuzz_read(ssl, buf, len)
#define SSL_write(ssl, buf, len)	     fuzz_write(ssl, buf, len)
#define SSL_get_error(ssl, ret)		     fuzz_error(ret)
#define SSL_get0_alpn_selected(ssl, name, n) fuzz_alpn(name, n)
#define SSL_shutdown(ssl)		     fuzz_error((ssl) != NULL)

#endif /* FUZZ_HBONE_H */
