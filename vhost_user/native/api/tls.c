// SPDX-License-Identifier: Apache-2.0
/*
 * tls.c - certificates and headers for an engine's tunnels
 */

#include <sys/epoll.h>

#include "api/api.h"
#include "side/hbone.h"

/**
 * start() - Have the thread for handshakes
 * @e:		Engine, stopped
 *
 * Returns: 0, or -VU_ERR_SYS
 */
static int start(struct vu_engine *e)
{
	struct hbone *hb = e->core.hbone;
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = TAG_SHAKEN};
	int ret = shaker_start(&hb->shaker);

	if (ret)
		return ret < 0 ? ret : 0;
	return epoll_ctl(e->core.epoll_fd, EPOLL_CTL_ADD, hb->shaker.fd, &ev)
		   ? -VU_ERR_SYS
		   : 0;
}

/**
 * vu_tls_add() - see vu_hbone.h
 * @e:		Engine
 * @cfg:	Certificates
 *
 * Returns: their id, or a negated enum vu_err
 */
int vu_tls_add(struct vu_engine *e, const struct vu_tls_config *cfg)
{
	struct vu_tls *tls;
	int ret = tls_context(cfg, &tls); /* takes its time: not in a turn */

	if (ret)
		return ret;
	loop_enter(e);
	ret = start(e);
	if (!ret)
		ret = ids_add(&e->core.hbone->tls, tls);
	if (ret < 0)
		tls_context_unref(tls);
	loop_leave(e);
	return ret;
}

/**
 * vu_tls_del() - see vu_hbone.h
 * @e:		Engine
 * @tls:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_tls_del(struct vu_engine *e, uint32_t tls)
{
	struct vu_tls *c;

	loop_enter(e);
	c = ids_del(&e->core.hbone->tls, tls);
	if (c)
		tls_context_unref(c);
	loop_leave(e);
	return c ? 0 : -VU_ERR_GONE;
}

/**
 * vu_headers_add() - see vu_hbone.h
 * @e:		Engine
 * @cfg:	Headers
 *
 * Returns: their id, or a negated enum vu_err
 */
int vu_headers_add(struct vu_engine *e, const struct vu_headers_config *cfg)
{
	struct vu_headers *h;
	int ret = headers_new(cfg, &h);

	if (ret)
		return ret;
	loop_enter(e);
	ret = ids_add(&e->core.hbone->headers, h);
	if (ret < 0)
		headers_unref(h);
	loop_leave(e);
	return ret;
}

/**
 * vu_headers_del() - see vu_hbone.h
 * @e:		Engine
 * @headers:	Id
 *
 * Returns: 0, or -VU_ERR_GONE
 */
int vu_headers_del(struct vu_engine *e, uint32_t headers)
{
	struct vu_headers *h;

	loop_enter(e);
	h = ids_del(&e->core.hbone->headers, headers);
	if (h)
		headers_unref(h);
	loop_leave(e);
	return h ? 0 : -VU_ERR_GONE;
}
