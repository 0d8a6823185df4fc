/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls.h - TLS 1.3 sessions of a mesh, mutual, peers known by SPIFFE identity
 *
 * Each file knows only those above it:
 *
 * record.h	records: aead.c, keys.c, record.c
 * buffers.c	where records are, of all sessions
 * bio.c	a session's bytes and its socket, during the handshake
 * context.c	certificates, roots, revocation lists
 * peer.c	who the peer is
 * revoked.c	whether it was revoked after the handshake
 * write.c	records to the peer
 * read.c	records from the peer
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
#include "tls/record.h"
#include "vu_hbone.h"
#include "vu_request.h"

#define TLS_BUFFER (7 * TLS_MOST) /* records by one system call */
#define TLS_SLACK  128		  /* and behind them KeyUpdate, an alert */

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
 * struct tls_buffer - Where records are
 * @next:	In struct tls_buffers
 * @from:	First byte that is yet to be sent, or opened
 * @to:		Behind the last
 * @data:	Records
 */
struct tls_buffer {
	struct tls_buffer *next;
	size_t from;
	size_t to;
	uint8_t data[TLS_BUFFER + TLS_SLACK];
};

/**
 * struct tls_buffers - Buffers that no session uses now
 * @free:	The one that was used last is the next
 * @n:		How many
 */
struct tls_buffers {
	struct tls_buffer *free;
	unsigned n;
};

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
 * struct tls_message - A handshake message of the peer, of which parts are
 * there
 * @have:	Bytes of @head
 * @head:	Its type and length
 * @left:	Bytes that have yet to come behind that
 */
struct tls_message {
	uint8_t have;
	uint8_t head[4];
	uint32_t left;
};

/**
 * struct tls - A session
 * @link:	In a shaker's queues
 * @owner:	Whose it is
 * @ssl:	OpenSSL's; NULL: the handshake is over
 * @ctx:	Certificates that were believed in it
 * @leaf:	The peer's, or NULL
 * @shown:	The chain that it showed, or NULL
 * @names:	Whom the peer has to be
 * @peer:	Who it is: its SPIFFE identity, or NULL
 * @wire:	In place of a socket, or NULL; not its own
 * @buffers:	Of the engine's sessions
 * @fd:		Its socket, not its own
 * @server:	The peer connected to us
 * @drained:	Its socket had less than was asked for: epoll says when it has
 *		more
 * @ends:	Behind what it has comes its end: it is never drained
 * @heard:	The peer has said something
 * @over:	It says nothing more: close_notify
 * @broken:	It broke TLS, or we can't go on: nothing more goes out
 * @owes:	It asked for a KeyUpdate
 * @idle:	Records without payload that it sent behind each other
 * @in:		Keys of its records
 * @out:	Keys of ours
 * @rx:		Records of it, or NULL
 * @plain:	Of the one that was opened, plaintext that is yet to be read
 * @plain_len:	Bytes of it
 * @message:	Of it
 * @tx:		Records that the socket has yet to take, or NULL
 * @step:	enum tls_step of the last step
 * @reason:	enum vu_reason
 */
struct tls {
	struct list link;
	void *owner;
	SSL *ssl;
	SSL_CTX *ctx;
	X509 *leaf;
	STACK_OF(X509) * shown;
	struct tls_names *names;
	char *peer;
	struct tls_wire *wire;
	struct tls_buffers *buffers;
	int fd;
	bool server;
	bool drained;
	bool ends;
	bool heard;
	bool over;
	bool broken;
	bool owes;
	uint8_t idle;
	uint8_t step;
	uint8_t reason;
	struct tls_keys in;
	struct tls_keys out;
	struct tls_buffer *rx;
	const uint8_t *plain;
	size_t plain_len;
	struct tls_message message;
	struct tls_buffer *tx;
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

/* buffers.c */
struct tls_buffer *buffer_take(struct tls_buffers *b);
void buffer_give(struct tls_buffers *b, struct tls_buffer *buffer);
void buffers_free(struct tls_buffers *b);

/* bio.c */
ssize_t tls_receive(struct tls *t, void *buf, size_t len);
ssize_t tls_send(struct tls *t, const void *buf, size_t len);
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

/* write.c */
int tls_put(struct tls *t, const struct tls_content *c);
void tls_take_back(struct tls *t, size_t len);
ssize_t tls_write(struct tls *t, const void *buf, size_t len);
int tls_flush(struct tls *t);
void tls_alert(struct tls *t, uint8_t level, uint8_t what);

/* read.c */
bool tls_has(const struct tls *t);
ssize_t tls_peek(struct tls *t, const uint8_t **ret);
void tls_drop(struct tls *t, size_t n);
ssize_t tls_read(struct tls *t, void *buf, size_t len);

/* session.c */
void tls_keylog(const SSL *ssl, const char *line);
struct tls *tls_new(struct vu_tls *c, struct tls_names *names, int fd,
		    bool server, void *owner);
void tls_free(struct tls *t);
void tls_shake(struct tls *t);
void tls_bye(struct tls *t);

/* shake.c */
void shaker_init(struct shaker *s);
int shaker_start(struct shaker *s);
void shaker_stop(struct shaker *s);
void shaker_free(struct shaker *s);
void shaker_push(struct shaker *s, struct tls *t);
struct tls *shaker_take(struct shaker *s);

#endif /* TLS_H */
