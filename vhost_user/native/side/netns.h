/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netns.h - far sides whose sockets belong to another network namespace
 */
#ifndef NETNS_H
#define NETNS_H

#include "conn/conn.h"

struct vu_netns;

struct vu_netns *netns_new(struct core *core, uint32_t slot, int fd,
			   const struct vu_netns_config *cfg, uint64_t tag);
void netns_free(struct vu_netns *n);
int netns_renew(struct vu_netns *n, int fd);
struct vu_netns *netns_by_id(const struct core *core, uint32_t id);
uint32_t netns_id(const struct vu_netns *n);
void netns_event(struct vu_netns *n);
void netns_run(struct core *core);
void netns_dial(struct vu_conn *c, uint32_t id, const struct sockaddr *addr,
		socklen_t len);

#endif /* NETNS_H */
