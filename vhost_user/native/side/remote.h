/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remote.h - what carries a pool's tunnels: TCP, or streams of another pool's
 */
#ifndef REMOTE_H
#define REMOTE_H

#include <netinet/in.h>

#include "tls/tls.h"
#include "vu_hbone.h"

struct tunnel;
struct vu_conn;

/**
 * struct remote - Where a pool's tunnels go
 * @via:	A stream of that carries each; kind 0: TCP does
 * @netns:	As of struct vu_pool_config
 * @addr_len:	Same
 * @src_len:	Same
 * @addr:	Same
 * @src:	Same
 */
struct remote {
	struct vu_target via;
	uint32_t netns;
	socklen_t addr_len;
	socklen_t src_len;
	struct sockaddr_storage addr;
	struct sockaddr_storage src;
};

/**
 * struct carrier - A stream that carries a tunnel
 * @c:		Connection whose near side the tunnel is; NULL: none, or it is
 *		over
 * @wire:	Ciphertext on its way
 * @used:	The tunnel has had its stream, the only one
 */
struct carrier {
	struct vu_conn *c;
	struct tls_wire wire;
	bool used;
};

/* wire.c */
void wire_flush(struct tunnel *t);
void wire_back(struct tunnel *t);
void wire_leave(struct tunnel *t);

/* remote.c */
void remote_init(struct remote *r, const struct vu_pool_config *cfg);
void tunnel_dial(struct tunnel *t, const struct remote *r);

/* carrier.c */
struct vu_conn *carrier_new(struct tunnel *t, unsigned port);

#endif /* REMOTE_H */
