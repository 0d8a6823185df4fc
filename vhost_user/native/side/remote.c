// SPDX-License-Identifier: Apache-2.0
/*
 * remote.c - a tunnel's TCP connection to where its pool's tunnels go
 *
 * Theory of operation
 * ===================
 *
 * In our own network namespace its socket is made here. In another one the
 * process there makes it, bound to the pod's IP (netns.c): a tunnel waits for
 * it as it waits for TCP, and no longer than its connect_us.
 *
 * What a stream carries: carrier.c.
 *
 * A tunnel that can't be made is doomed, and its pool hears of it with the next
 * turn, as of any other.
 */

#include <errno.h>
#include <string.h>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "side/hbone.h"
#include "side/netns.h"

/**
 * remote_init() - Note where a pool's tunnels go
 * @r:		That
 * @cfg:	Configuration, checked
 */
void remote_init(struct remote *r, const struct vu_pool_config *cfg)
{
	*r = (struct remote){
	    .netns = cfg->netns,
	    .addr_len = cfg->addr_len,
	    .src_len = cfg->src_len,
	};
	memcpy(&r->addr, cfg->addr, cfg->addr_len);
	memcpy(&r->src, cfg->src, cfg->src_len);
	if (!cfg->via.pool)
		return;
	r->via.kind = VU_TARGET_HBONE;
	r->via.addr_len = sizeof(cfg->via);
	memcpy(r->via.addr, &cfg->via, sizeof(cfg->via));
}

/**
 * begin() - Have a tunnel connect
 * @t:		Tunnel
 * @fd:		Its socket, taken over
 */
static void begin(struct tunnel *t, int fd)
{
	const struct remote *r = t->remote;
	int error = 0;

	if (connect(fd, (const struct sockaddr *)&r->addr, r->addr_len) &&
	    errno != EINPROGRESS)
		error = errno;
	if (tunnel_socket(t, fd, true) && !error)
		error = errno;
	if (error)
		tunnel_doom(t, VU_REASON_DIAL, error);
}

/**
 * ready() - A socket is there, or will never be; or its namespace is gone
 * @w:		Tunnel's
 * @fd:		Socket, taken over; -1: there is none
 * @error:	errno, if there is none
 */
static void ready(struct waiter *w, int fd, int error)
{
	struct tunnel *t = container_of(w, struct tunnel, waiter);

	if (fd < 0) {
		tunnel_doom(t, VU_REASON_DIAL, error);
		return;
	}
	netns_dialing(t->group->hbone->core, t->remote->netns, w);
	begin(t, fd);
}

/**
 * make() - Make a socket in our own network namespace
 * @r:		Where it shall go
 *
 * Returns: the socket; -1 with errno
 */
static int make(const struct remote *r)
{
	const int one = 1;
	int fd = socket(r->addr.ss_family,
			SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	return fd;
}

/**
 * tunnel_dial() - Have a tunnel connect
 * @t:		Tunnel, new
 * @r:		Where to; lives as long as its group
 */
void tunnel_dial(struct tunnel *t, const struct remote *r)
{
	int fd;

	t->remote = r;
	t->waiter.ready = ready;
	if (r->netns) {
		netns_get(t->group->hbone->core, r->netns, r->addr.ss_family,
			  &t->waiter);
		return;
	}
	fd = make(r);
	if (fd < 0) {
		tunnel_doom(t, VU_REASON_DIAL, errno);
		return;
	}
	if (r->src_len &&
	    bind(fd, (const struct sockaddr *)&r->src, r->src_len)) {
		t->fd = fd; /* closed with it */
		tunnel_doom(t, VU_REASON_DIAL, errno);
		return;
	}
	begin(t, fd);
}
