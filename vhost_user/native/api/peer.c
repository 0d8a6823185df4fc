// SPDX-License-Identifier: Apache-2.0
/*
 * peer.c - processes that take connections by rings of shared memory
 */

#include "side/peer.h"
#include "api/api.h"

/**
 * vu_peer_add() - see vu_peer.h
 * @e:		Engine
 * @cfg:	Process
 *
 * Returns: its id, or a negated enum vu_err
 */
int vu_peer_add(struct vu_engine *e, const struct vu_peer_config *cfg)
{
	int ret;

	loop_enter(e);
	ret = peer_add(&e->core, cfg);
	loop_leave(e);
	return ret;
}

/**
 * vu_peer_del() - see vu_peer.h
 * @e:		Engine
 * @peer:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_peer_del(struct vu_engine *e, uint32_t peer)
{
	struct vu_peer *p;

	loop_enter(e);
	p = peer_by_id(&e->core, peer);
	if (p)
		peer_free(&e->core, p);
	loop_leave(e);
	return p ? 0 : -VU_ERR_GONE;
}
