/* SPDX-License-Identifier: Apache-2.0 */
/*
 * side.h - what a kind of side can do
 */
#ifndef CONN_SIDE_H
#define CONN_SIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sys/types.h>
#include <sys/uio.h>

struct vu_conn;
struct side;
struct room;
struct stream;
struct tunnel;

/**
 * struct side_ops - What a kind of side can do; NULL: nothing
 * @message:	Sink: it takes whole messages only
 * @give:	Sink: take bytes, or a message with its flags. Returns how many
 *		it took; -EAGAIN: none now, it runs the connection when it can;
 *		-EMSGSIZE: never this one; another -errno: it takes no more
 * @room:	Sink: lend buffers to read into; false: none now, same
 * @fill:	Sink: @len bytes are in them
 * @pull:	Source: move what it has to the sink, for a turn
 * @taken:	Source: the sink took so many bytes of it
 * @shut:	SHUT_WR: nothing more will be given; SHUT_RD: nothing more is
 *		taken
 * @close:	Let go of it; an errno: its peer must see an error
 * @opened:	The connection is established
 * @socket:	Socket with the names of its peer; NULL: @fd
 * @event:	What epoll says of its descriptors; NULL: as of a socket
 *
 * Of the near side, which the connection is accounted to:
 * @later:	Wait until the host's listener has room; false: it can't
 * @over:	The connection ends, or never was, because of an errno, or 0
 * @finished:	Both directions ended in good order
 * @reset:	It is over; say so. The connection is gone, or stays CONN_DEAD
 *		until that is said
 * @freed:	It is being freed
 * @kept:	Other bytes are kept than before
 * @window:	Bytes that its far side's socket may hold, 0: as usual
 * @shrink:	Offer a smaller window: its far side holds so little
 * @ring:	Bytes that each ring of its far side may have, of so many
 * @lost:	What was read from it just now may be anything: its memory is
 *		gone
 * @crowded:	Much is kept for those of whom it is one
 * @full:	As much as may be: what pushes more is to be reset
 * @fault:	A system call found no guest memory
 * @misfit:	A message can't be delivered
 */
struct side_ops {
	bool message;
	ssize_t (*give)(struct vu_conn *c, struct side *s,
			const struct iovec *iov, unsigned n_iov, size_t len,
			uint32_t flags);
	bool (*room)(struct vu_conn *c, size_t most, struct room *ret);
	void (*fill)(struct vu_conn *c, const struct room *room, size_t len,
		     uint32_t flags);
	void (*pull)(struct vu_conn *c, struct side *s);
	void (*taken)(struct vu_conn *c, struct side *s, size_t n);
	void (*shut)(struct vu_conn *c, struct side *s, int how);
	void (*close)(struct vu_conn *c, struct side *s, int error);
	void (*opened)(struct vu_conn *c, struct side *s);
	int (*socket)(const struct side *s);
	void (*event)(struct vu_conn *c, struct side *s, uint32_t events);
	bool (*later)(struct vu_conn *c);
	void (*over)(struct vu_conn *c, int error);
	void (*finished)(struct vu_conn *c);
	void (*reset)(struct vu_conn *c);
	void (*freed)(struct vu_conn *c);
	void (*kept)(struct vu_conn *c);
	uint32_t (*window)(struct vu_conn *c);
	void (*shrink)(struct vu_conn *c, uint32_t most);
	uint32_t (*ring)(struct vu_conn *c, uint32_t want);
	bool (*lost)(struct vu_conn *c);
	bool (*crowded)(struct vu_conn *c);
	bool (*full)(struct vu_conn *c);
	void (*fault)(struct vu_conn *c);
	void (*misfit)(struct vu_conn *c);
};

/**
 * struct side - One side of a connection
 * @ops:	What it is
 * @stream:	Its stream of a tunnel, or NULL; see side/hbone.c
 * @tunnel:	Or the tunnel that the connection carries; see side/carrier.c
 * @fd:		Its socket, or -1
 * @readable:	read() may have bytes; cleared when it had none
 * @writable:	write() may take bytes; cleared when it took none
 * @fills:	It was full once: epoll reports when it is writable again
 * @more:	A short read doesn't mean that it is empty
 * @hup:	Its peer neither sends nor takes any more
 */
struct side {
	const struct side_ops *ops;
	union {
		struct stream *stream;
		struct tunnel *tunnel;
	};
	int fd;
	bool readable : 1;
	bool writable : 1;
	bool fills : 1;
	bool more : 1;
	bool hup : 1;
};

/**
 * struct room - Buffers that a sink lends
 * @n_chains:	RX chains that they are in
 * @n_iov:	Entries of core.rx_iov: the chains' segments as they are
 * @n_payload:	Entries of core.rx_payload: the same behind the headers
 * @len:	Bytes of payload that fit
 */
struct room {
	unsigned n_chains;
	unsigned n_iov;
	unsigned n_payload;
	size_t len;
};

#endif /* CONN_SIDE_H */
