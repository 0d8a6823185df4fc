/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls.h - TLS 1.3 sessions of a mesh, mutual, peers known by SPIFFE identity
 *
 * Each file knows only those above it:
 *
 * bio.c	a session's bytes and its socket
 * context.c	certificates, roots, revocation lists
 * peer.c	who the peer is
 * revoked.c	whether it was revoked after the handshake
 * session.c	one session
 * shake.c	handshakes, on a thread of their own
 *
 * Threads. A session is used by one thread at a time: the engine's, or the one
 * of shake.c between shaker_push() and shaker_take(). Certificates (struct
 * vu_tls) are counted by the engine's.
 */
#ifndef TLS_H
#define TLS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <sys/types.h>

#include <openssl/ssl.h>

#include "base/bytes.h"
#include "base/list.h"
#include "conn/core.h"
#include "vu_hbone.h"
#include "vu_request.h"

#define TLS_RECORD 16384	      /* bytes of plaintext in a full one */
#define TLS_MOST   (TLS_RECORD + 256) /* of ciphertext in any */

/**
 * struct vu_tls - Certificates
 * @ctx:	They as OpenSSL has them
 * @refs:	Who uses them
 */
struct vu_tls {
	SSL_CTX *ctx;
	unsigned refs;
};

/**
 * struct tls_names - Whom a peer has to be
 * @refs:	Who uses it
 * @n:		Entries of @names
 * @names:	One of these identities; or of this trust domain, if @domain
 * @domain:	@names has one entry, a trust domain
 */
struct tls_names {
	unsigned refs;
	unsigned n;
	bool domain;
	char *names[];
};

/**
 * enum tls_step - How far a handshake is
 * @TLS_READS:	It waits for bytes of the peer
 * @TLS_WRITES:	It waits until the socket takes bytes
 * @TLS_DONE:	The peer is who it has to be
 * @TLS_FAILED:	tls->reason says why
 */
enum tls_step { TLS_READS, TLS_WRITES, TLS_DONE, TLS_FAILED };

/**
 * struct tls_wire - A session's ciphertext, where it has no socket
 * @in:		That it has yet to read
 * @out:	That it wrote; a session writes no more at TLS_WIRE bytes
 * @ended:	No more comes in
 * @broken:	No more goes out
 */
struct tls_wire {
	struct bytes in;
	struct bytes out;
	bool ended;
	bool broken;
};

#define TLS_WIRE (64U << 10)

/**
 * struct tls - A session
 * @link:	In a shaker's queues
 * @owner:	Whose it is
 * @ssl:	OpenSSL's
 * @names:	Whom the peer has to be
 * @peer:	Who it is: its SPIFFE identity, or NULL
 * @wire:	In place of a socket, or NULL; not its own
 * @fd:		Its socket, not its own
 * @drained:	Its socket had less than was asked for: epoll says when it has
 *		more
 * @heard:	The peer has said something
 * @room:	SEALED bytes of the engine's, to put records behind each other
 * @sealed:	Records that the socket has yet to take, in @room or its own;
 *		or NULL
 * @from:	First byte of @sealed that has yet to be sent
 * @to:		Behind the last
 * @most:	Bytes that fit into @sealed
 * @step:	enum tls_step of the last step
 * @reason:	enum vu_reason
 */
struct tls {
	struct list link;
	void *owner;
	SSL *ssl;
	struct tls_names *names;
	char *peer;
	struct tls_wire *wire;
	int fd;
	bool drained;
	bool heard;
	uint8_t *room;
	uint8_t *sealed;
	size_t from;
	size_t to;
	size_t most;
	uint8_t step;
	uint8_t reason;
};

/**
 * struct shaker - A thread for handshakes
 * @lock:	Of the two queues
 * @work:	There is something to do
 * @todo:	Sessions that it has to look at
 * @done:	That it has looked at
 * @fd:		eventfd, readable when @done isn't empty
 * @runs:	The thread is there
 * @stops:	It shall end
 */
struct shaker {
	pthread_mutex_t lock;
	pthread_cond_t work;
	pthread_t thread;
	struct list todo;
	struct list done;
	int fd;
	bool runs;
	bool stops;
};

/* bio.c */
BIO *tls_bio(struct tls *t);

/* context.c */
int tls_context(const struct vu_tls_config *cfg, struct vu_tls **ret);
void tls_context_unref(struct vu_tls *c);

/* peer.c */
struct tls_names *tls_names(const char *const *names, unsigned n, bool domain);
void tls_names_unref(struct tls_names *n);
int tls_verify(int good, X509_STORE_CTX *store);

/* revoked.c */
bool tls_revoked(struct tls *t, struct vu_tls *c);

/* session.c */
struct tls *tls_new(struct vu_tls *c, struct tls_names *names, int fd,
		    bool server, void *owner);
void tls_free(struct tls *t);
void tls_shake(struct tls *t);
ssize_t tls_read(struct tls *t, void *buf, size_t len);
ssize_t tls_write(struct tls *t, const void *buf, size_t len);
int tls_flush(struct tls *t);
void tls_bye(struct tls *t);

/* shake.c */
void shaker_init(struct shaker *s);
int shaker_start(struct shaker *s);
void shaker_stop(struct shaker *s);
void shaker_free(struct shaker *s);
void shaker_push(struct shaker *s, struct tls *t);
struct tls *shaker_take(struct shaker *s);

#endif /* TLS_H */
