/* SPDX-License-Identifier: Apache-2.0 */
/*
 * socket.h - sides that are sockets
 *
 * socket.c	what all of them have in common
 * stream.c	SOCK_STREAM sockets
 * message.c	SOCK_SEQPACKET sockets
 * client.c	sockets of host clients that a guest has yet to accept
 */
#ifndef SOCKET_H
#define SOCKET_H

#include "conn/conn.h"

#define SOCKET_NEAR (1ULL << 63) /* epoll tag: the near side, else the far */

/**
 * enum socket_error - What a system call's errno means for a side
 * @SOCKET_WAITS: Nothing now; epoll reports when it is over
 * @SOCKET_AGAIN: Nothing now; the next turn tries again
 * @SOCKET_FAULTS: The guest's memory is gone
 * @SOCKET_MISFIT: Never this message
 * @SOCKET_GONE: The socket takes, or has, no more
 */
enum socket_error {
	SOCKET_WAITS,
	SOCKET_AGAIN,
	SOCKET_FAULTS,
	SOCKET_MISFIT,
	SOCKET_GONE,
};

extern const struct side_ops socket_stream;
extern const struct side_ops socket_message;
extern const struct side_ops client_offered;
extern const struct side_ops client_hybrid;

/**
 * socket_ops() - Which kind of socket does a connection have?
 * @c:		Connection
 *
 * Returns: its operations
 */
static inline const struct side_ops *socket_ops(const struct vu_conn *c)
{
	return c->type == SEQPACKET ? &socket_message : &socket_stream;
}

/* socket.c */
int socket_watch(struct vu_conn *c, struct side *s, bool dialing);
void socket_event(struct vu_conn *c, struct side *s, uint32_t events);
enum socket_error socket_error(int error);
ssize_t socket_send(struct vu_conn *c, struct side *s, const struct iovec *iov,
		    unsigned n_iov, size_t len);
void socket_ended(struct vu_conn *c, struct side *s);
void socket_failed(struct vu_conn *c, struct side *s, int error);
void socket_shut(struct vu_conn *c, struct side *s, int how);
void socket_close(struct vu_conn *c, struct side *s, int error);
void socket_opened(struct vu_conn *c, struct side *s);

/* client.c */
void client_left(struct vu_conn *c);

/* message.c */
int message_fit(struct vu_conn *c, int fd);

#endif /* SOCKET_H */
