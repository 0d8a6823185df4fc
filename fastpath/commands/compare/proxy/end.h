/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end.h - one end of a connection: a stream socket, or rings of shared memory
 *
 * Both are used without blocking. A call that fails returns a negated errno.
 */
#ifndef END_H
#define END_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sys/types.h>

#include "fastpath_ring.h"

struct conn;

/**
 * struct end - One end
 * @conn:	Whose; none: a listener
 * @fd:		Socket; of rings the unix socket; -1: there is none
 * @epoll_fd:	epoll that tells of it
 * @ring:	Bytes go by @link
 * @asks_room:	Of a socket: epoll is to tell of room, too
 * @readable:	Of a socket: not all that came was read, as far as is known
 * @hung_up:	Of a socket: its end has come, behind the bytes
 * @link:	Rings
 */
struct end {
	struct conn *conn;
	int fd;
	int epoll_fd;
	bool ring;
	bool asks_room;
	bool readable;
	bool hung_up;
	struct fpring_link link;
};

/**
 * end_watch() - Have epoll tell of an end, once for each edge
 * @e:		End
 * @epoll_fd:	epoll
 * @room:	Of room, too: it connects
 *
 * Returns: 0 or -errno
 */
int end_watch(struct end *e, int epoll_fd, bool room);

/**
 * end_told() - Note what epoll told
 * @e:		End
 * @events:	EPOLL bits
 */
void end_told(struct end *e, uint32_t events);

/**
 * end_read() - Read bytes
 * @e:		End
 * @buf:	Room for them
 * @len:	At most so many, not 0
 *
 * Returns: how many; 0: they have ended; -EAGAIN; -errno
 */
ssize_t end_read(struct end *e, void *buf, size_t len);

/**
 * end_write() - Write bytes
 * @e:		End
 * @buf:	Bytes
 * @len:	How many
 *
 * Returns: how many were taken; -EAGAIN: none now; -errno
 */
ssize_t end_write(struct end *e, const void *buf, size_t len);

/**
 * end_shut() - Write no more
 * @e:		End
 */
void end_shut(struct end *e);

/**
 * end_close() - Let go of it
 * @e:		End
 */
void end_close(struct end *e);

#endif /* END_H */
