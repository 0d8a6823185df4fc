/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_hbone.h - tunnels without TLS's handshake, whose time is the input's
 *
 * Included before all else (clang -include) in what fuzz_hbone.c is linked
 * with: both sides have secrets that both know, and the records are real.
 */
#ifndef FUZZ_HBONE_H
#define FUZZ_HBONE_H

#include <time.h>

#include <openssl/ssl.h>

int fuzz_time(struct timespec *now);
int fuzz_shake(SSL *ssl);
void fuzz_alpn(const unsigned char **name, unsigned *len);

#define clock_gettime(clock, now)	     fuzz_time(now)
#define SSL_do_handshake(ssl)		     fuzz_shake(ssl)
#define SSL_get0_alpn_selected(ssl, name, n) fuzz_alpn(name, n)

#endif /* FUZZ_HBONE_H */
