/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handoff.h - far sides that are other proxies
 *
 * handoff.c	which there are, and how they are connected to
 * proxy.c	what a unix socket's is told first: a PROXY protocol header
 * socks5.c	what one that speaks SOCKS5 is told, and says
 */
#ifndef HANDOFF_H
#define HANDOFF_H

#include <netinet/in.h>

#include "conn/conn.h"

#define PROXY_MOST (16 + 36 + 3 + VU_MAX_IDENTITY) /* bytes of a header */

/**
 * union ip_port - An address and port
 * @any:	Its family
 * @ipv4:	One of IPv4
 * @ipv6:	One of IPv6
 */
union ip_port {
	struct sockaddr any;
	struct sockaddr_in ipv4;
	struct sockaddr_in6 ipv6;
	struct sockaddr_storage room;
};

/* handoff.c */
struct vu_handoff *handoff_new(struct core *core, uint32_t slot,
			       const struct vu_handoff_config *cfg);
void handoff_free(struct vu_handoff *h);
struct vu_handoff *handoff_by_id(const struct core *core, uint32_t id);
uint32_t handoff_id(const struct vu_handoff *h);
void handoff_dial(struct vu_conn *c, const struct vu_target *target);

/* proxy.c */
size_t proxy_header(uint8_t *ret, const union ip_port *src,
		    const union ip_port *dst, const uint8_t *identity,
		    uint32_t identity_len);

/* socks5.c */
int socks5_greet(struct vu_conn *c, const union ip_port *dst);

#endif /* HANDOFF_H */
