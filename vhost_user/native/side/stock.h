/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stock.h - sockets that were made before they are needed
 */
#ifndef STOCK_H
#define STOCK_H

#include "conn/conn.h"

/**
 * struct waiter - Who waits for a socket
 * @link:	In the stock, or wherever it is behind that
 * @ready:	Here is one, taken over; or -1 and an errno: there is none
 */
struct waiter {
	struct list link;
	void (*ready)(struct waiter *w, int fd, int error);
};

/**
 * struct stock - Sockets of one IP version
 * @waiting:	Who waits for one
 * @ask:	What the maker is asked; its version is 0 if there is no address
 * @asked:	It has yet to answer
 * @keep:	Sockets to have; it is filled up when half of them are gone
 * @n:		Entries of @fds
 * @fds:	Sockets
 */
struct stock {
	struct list waiting;
	struct vu_netns_ask ask;
	bool asked;
	unsigned keep;
	unsigned n;
	int fds[VU_MAX_STOCK];
};

void stock_dial(struct vu_conn *c, struct stock *k, const struct sockaddr *addr,
		socklen_t len);
void stock_get(struct stock *k, struct waiter *w);
unsigned stock_put(struct stock *k, struct msghdr *msg);
bool stock_serve(struct stock *k);
void stock_fail(struct stock *k, int error, unsigned most);
void stock_empty(struct stock *k);

#endif /* STOCK_H */
