// SPDX-License-Identifier: Apache-2.0
/*
 * peer.c - processes that take connections by rings of shared memory
 *
 * Theory of operation
 * ===================
 *
 * A process is where it listens, and whose connections it is offered: with each
 * it is told who the program is, by what the host knows. One that is gone and
 * listens again is the same.
 */

#include <stdlib.h>
#include <string.h>

#include <netinet/in.h>
#include <sys/un.h>

#include "side/peer.h"

#define ROUNDS 0x1fffffU

/* Of all engines: an id is for one thing, whatever engine it is shown to */
static uint32_t named;

_Static_assert(sizeof(((struct vu_peer_config *)0)->identity) ==
		   sizeof(((struct fpring_hello *)0)->identity),
	       "what Python may say is what the process can be told");

/**
 * valid() - Check what Python said
 * @cfg:	Process
 *
 * Returns: true if all is in range
 */
static bool valid(const struct vu_peer_config *cfg)
{
	return fpring_bytes(cfg->ring_bytes, cfg->ring_bytes) &&
	       cfg->identity_len <= sizeof(cfg->identity) && cfg->path[0] &&
	       memchr(cfg->path, 0, sizeof(cfg->path));
}

/**
 * peer_add() - Offer connections to a process
 * @core:	What all connections share
 * @cfg:	Process
 *
 * Returns: its id, or a negated enum vu_err
 */
int peer_add(struct core *core, const struct vu_peer_config *cfg)
{
	uint32_t slot = 0;
	struct vu_peer *p;

	if (!valid(cfg))
		return -VU_ERR_INVAL;
	while (slot < VU_MAX_PEERS && core->peers[slot])
		slot++;
	if (slot == VU_MAX_PEERS)
		return -VU_ERR_FULL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -VU_ERR_NOMEM;
	p->cfg = *cfg;
	p->addr.ss_family = AF_UNIX;
	memcpy(((struct sockaddr_un *)(void *)&p->addr)->sun_path, cfg->path,
	       sizeof(cfg->path));
	/* not 0, which says none */
	p->id = (__atomic_fetch_add(&named, 1, __ATOMIC_RELAXED) % ROUNDS + 1) *
		    VU_MAX_PEERS +
		slot;
	core->peers[slot] = p;
	return (int)p->id;
}

/**
 * peer_free() - Offer it no more; its connections stay
 * @core:	What all connections share
 * @p:		Process
 */
void peer_free(struct core *core, struct vu_peer *p)
{
	core->peers[p->id % VU_MAX_PEERS] = NULL;
	free(p);
}

/**
 * peer_by_id() - Find a process
 * @core:	What all connections share
 * @id:		Its id
 *
 * Returns: it; NULL if it is gone
 */
struct vu_peer *peer_by_id(const struct core *core, uint32_t id)
{
	struct vu_peer *p = core->peers[id % VU_MAX_PEERS];

	return p && p->id == id ? p : NULL;
}

/**
 * peer_address() - Say an address as the process is told it
 * @addr:	sockaddr
 * @len:	Size of @addr
 *
 * Returns: that; family 0 if it is no IP address
 */
struct fpring_address peer_address(const void *addr, socklen_t len)
{
	struct fpring_address ret = {0};
	struct sockaddr_in6 in6 = {0};
	struct sockaddr_in in = {0};

	if (len >= sizeof(in))
		memcpy(&in, addr, sizeof(in));
	if (len >= sizeof(in6))
		memcpy(&in6, addr, sizeof(in6));
	if (in.sin_family == AF_INET) {
		ret.family = 4;
		ret.port = ntohs(in.sin_port);
		memcpy(ret.ip, &in.sin_addr, sizeof(in.sin_addr));
	} else if (in6.sin6_family == AF_INET6) {
		ret.family = 6;
		ret.port = ntohs(in6.sin6_port);
		memcpy(ret.ip, &in6.sin6_addr, sizeof(in6.sin6_addr));
	}
	return ret;
}

/**
 * source() - Say where a connection comes from
 * @p:		Process
 * @c:		Connection
 *
 * Returns: its near side's address; family 0 if it has none
 */
static struct fpring_address source(const struct vu_peer *p,
				    const struct vu_conn *c)
{
	const struct vu_peer_config *cfg = &p->cfg;
	struct fpring_address ret = {0};
	struct sockaddr_storage name;
	socklen_t len = sizeof(name);

	if (c->near.fd >= 0) {
		if (getpeername(c->near.fd, (struct sockaddr *)&name, &len))
			len = 0;
		return peer_address(&name, len);
	}
	if (c->shm->dst.family == 4 && cfg->has_ipv4) {
		ret.family = 4;
		memcpy(ret.ip, cfg->ipv4, sizeof(cfg->ipv4));
	} else if (c->shm->dst.family == 6 && cfg->has_ipv6) {
		ret.family = 6;
		memcpy(ret.ip, cfg->ipv6, sizeof(cfg->ipv6));
	}
	if (ret.family)
		ret.port = (uint16_t)c->peer_port;
	return ret;
}

/**
 * peer_introduce() - Say what a connection is
 * @p:		Process that is asked
 * @c:		Connection, with its memory
 * @ret:	Message
 */
void peer_introduce(const struct vu_peer *p, const struct vu_conn *c,
		    struct fpring_hello *ret)
{
	*ret = (struct fpring_hello){
	    .version = FPRING_VERSION,
	    .size = sizeof(*ret),
	    .up_bytes = c->shm->ring.out.size,
	    .down_bytes = c->shm->ring.in.size,
	    .conn = conn_id(c),
	    .dst = c->shm->dst,
	    .src = source(p, c),
	    .identity_len = p->cfg.identity_len,
	};
	memcpy(ret->magic, FPRING_MAGIC, sizeof(ret->magic));
	memcpy(ret->identity, p->cfg.identity, p->cfg.identity_len);
}
