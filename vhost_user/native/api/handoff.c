// SPDX-License-Identifier: Apache-2.0
/*
 * handoff.c - other proxies that connections are handed to
 */

#include <string.h>

#include <sys/un.h>

#include "api/api.h"
#include "side/handoff.h"

/**
 * valid() - Check what a hand-off shall be
 * @cfg:	As it was given
 *
 * Returns: true if its kind and lengths are in range
 */
static bool valid(const struct vu_handoff_config *cfg)
{
	union ip_port proxy = {0};

	if (cfg->identity_len > sizeof(cfg->identity) ||
	    cfg->addr_len > sizeof(cfg->addr))
		return false;
	if (cfg->kind == VU_HANDOFF_UNIX)
		return cfg->addr_len &&
		       cfg->addr_len <
			   sizeof(((struct sockaddr_un *)0)->sun_path);
	if (cfg->kind != VU_HANDOFF_SOCKS5 || cfg->addr_len > sizeof(proxy))
		return false;
	memcpy(&proxy, cfg->addr, cfg->addr_len);
	return (cfg->addr_len == sizeof(proxy.ipv4) &&
		proxy.any.sa_family == AF_INET) ||
	       (cfg->addr_len == sizeof(proxy.ipv6) &&
		proxy.any.sa_family == AF_INET6);
}

/**
 * vu_handoff_add() - see vu_handoff.h
 * @e:		Engine
 * @cfg:	The proxy
 *
 * Returns: the hand-off's id, or a negated enum vu_err
 */
int vu_handoff_add(struct vu_engine *e, const struct vu_handoff_config *cfg)
{
	int ret = -VU_ERR_FULL;
	struct vu_handoff *h;
	uint32_t slot = 0;

	if (!valid(cfg))
		return -VU_ERR_INVAL;
	loop_enter(e);
	while (slot < VU_MAX_HANDOFFS && e->core.handoffs[slot])
		slot++;
	if (slot < VU_MAX_HANDOFFS) {
		h = handoff_new(&e->core, slot, cfg);
		ret = h ? (int)handoff_id(h) : -VU_ERR_NOMEM;
	}
	loop_release(e);
	return ret;
}

/**
 * vu_handoff_del() - see vu_handoff.h
 * @e:		Engine
 * @handoff:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_handoff_del(struct vu_engine *e, uint32_t handoff)
{
	int ret = -VU_ERR_GONE;
	struct vu_handoff *h;

	loop_enter(e);
	h = handoff_by_id(&e->core, handoff);
	if (h) {
		handoff_free(h);
		ret = 0;
	}
	loop_release(e);
	return ret;
}
