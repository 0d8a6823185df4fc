// SPDX-License-Identifier: Apache-2.0
/*
 * netns.c - network namespaces that far sides are dialled in
 */

#include <errno.h>

#include "api/api.h"
#include "side/netns.h"

/**
 * vu_netns_add() - see vu_netns.h
 * @e:		Engine
 * @fd:		To the maker
 * @cfg:	Addresses
 *
 * Returns: the namespace's id, or a negated enum vu_err
 */
int vu_netns_add(struct vu_engine *e, int fd, const struct vu_netns_config *cfg)
{
	int ret = -VU_ERR_FULL;
	struct vu_netns *n;
	uint32_t slot = 0;

	loop_enter(e);
	while (slot < VU_MAX_NETNS && e->core.netns[slot])
		slot++;
	if (slot < VU_MAX_NETNS) {
		n = netns_new(&e->core, slot, fd, cfg,
			      TAG_NETNS | (uint64_t)slot << TAG_SLOT);
		if (n)
			ret = (int)netns_id(n);
		else
			ret = errno == ENOMEM ? -VU_ERR_NOMEM : -VU_ERR_SYS;
	}
	loop_leave(e);
	return ret;
}

/**
 * vu_netns_renew() - see vu_netns.h
 * @e:		Engine
 * @netns:	Id
 * @fd:		To the new maker
 *
 * Returns: 0, or a negated enum vu_err
 */
int vu_netns_renew(struct vu_engine *e, uint32_t netns, int fd)
{
	int ret = -VU_ERR_GONE;
	struct vu_netns *n;

	loop_enter(e);
	n = netns_by_id(&e->core, netns);
	if (n)
		ret = netns_renew(n, fd) ? -VU_ERR_SYS : 0;
	loop_leave(e);
	return ret;
}

/**
 * vu_netns_del() - see vu_netns.h
 * @e:		Engine
 * @netns:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_netns_del(struct vu_engine *e, uint32_t netns)
{
	int ret = -VU_ERR_GONE;
	struct vu_netns *n;

	loop_enter(e);
	n = netns_by_id(&e->core, netns);
	if (n) {
		netns_free(n);
		ret = 0;
	}
	loop_leave(e);
	return ret;
}
