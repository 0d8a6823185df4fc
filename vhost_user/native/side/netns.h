/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netns.h - far sides whose sockets belong to another network namespace
 *
 * Each file knows only those above it:
 *
 * stock.c	sockets that were made before they are needed
 * supply.c	sockets from the maker in a network namespace
 * netns.c	namespaces, and dials in them
 */
#ifndef NETNS_H
#define NETNS_H

#include "side/stock.h"

/**
 * struct vu_netns - Where sockets of a network namespace come from
 * @serving:	On the list of those that have sockets for dials that wait
 * @core:	What all connections share
 * @id:		Its id
 * @fd:		To the maker; -1: it is gone
 * @tag:	What epoll reports an answer as
 * @outbox:	Where it is told that the maker is of no use
 * @dialing:	Tunnels that got a socket and aren't connected yet
 * @ipv4:	Sockets of IPv4
 * @ipv6:	Sockets of IPv6
 */
struct vu_netns {
	struct list serving;
	struct core *core;
	uint32_t id;
	int fd;
	uint64_t tag;
	struct outbox_queue *outbox;
	struct list dialing;
	struct stock ipv4;
	struct stock ipv6;
};

/* supply.c */
struct vu_netns *netns_by_id(const struct core *core, uint32_t id);
void supply_ask(struct vu_netns *n, struct stock *k);
void supply_lose(struct vu_netns *n);
void supply_serve(struct vu_netns *n, struct stock *k);
void supply_event(struct vu_netns *n);
void supply_run(struct core *core);

/* netns.c */
struct vu_netns *netns_new(struct core *core, uint32_t slot, int fd,
			   const struct vu_netns_config *cfg, uint64_t tag);
void netns_free(struct vu_netns *n);
int netns_renew(struct vu_netns *n, int fd);
uint32_t netns_id(const struct vu_netns *n);
void netns_dial(struct vu_conn *c, uint32_t id, const struct sockaddr *addr,
		socklen_t len);
void netns_get(struct core *core, uint32_t id, sa_family_t family,
	       struct waiter *w);
void netns_dialing(struct core *core, uint32_t id, struct waiter *w);

#endif /* NETNS_H */
