/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pending.h - what a connection has before it is established
 */
#ifndef PENDING_H
#define PENDING_H

#include <stdbool.h>
#include <stdint.h>

struct vu_conn;

/**
 * struct client - Who came by a listener for a guest that has yet to take it
 * @settled:	The guest took it, or it is over: let go of this
 * @refused:	The guest has no room: take the socket back. True: the
 *		connection is gone; false: it ends as any other
 * @tag:	What its listener stands for
 * @src_len:	Bytes used of @src
 * @dst_len:	Bytes used of @dst
 * @src:	Its address
 * @dst:	Where it connected to
 */
struct client {
	void (*settled)(struct client *client);
	bool (*refused)(struct vu_conn *c);
	uint32_t tag;
	uint16_t src_len;
	uint16_t dst_len;
	uint8_t src[28];
	uint8_t dst[28];
};

/**
 * struct greeting - What a far side says and hears before it is established
 * @step:	Its socket is connected, or has news: goes on, and opens the
 *		connection, or ends it
 * @again:	Dial again: the listener was full
 */
struct greeting {
	void (*step)(struct vu_conn *c);
	void (*again)(struct vu_conn *c);
};

#endif /* PENDING_H */
