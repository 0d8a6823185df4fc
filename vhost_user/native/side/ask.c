// SPDX-License-Identifier: Apache-2.0
/*
 * ask.c - CONNECTs of ours
 *
 * Theory of operation
 * ===================
 *
 * Python makes the headers once for a destination. A connection adds what is
 * its own: a traceparent (W3C Trace Context, section 3.2), and in "forwarded"
 * (RFC 7239) its client's port.
 */

#include <stdio.h>
#include <string.h>

#include <netinet/in.h>

#include "side/hbone.h"

#define TRACE_LEN 56
#define PORT_LEN  6
#define FORWARDED 8192
#define HEADERS	  6

/**
 * next_random() - Make a number for a traceparent
 * @hb:		Tunnels
 *
 * Returns: it (splitmix64)
 */
static uint64_t next_random(struct hbone *hb)
{
	uint64_t z = hb->random += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

/**
 * stream_port() - Which port does a connection's client have?
 * @c:		Connection
 *
 * Returns: its TCP port; of a guest, what its vsock port ends with; of what
 * carries a tunnel, that of the connection which that is made for
 */
unsigned stream_port(const struct vu_conn *c)
{
	union {
		struct sockaddr_storage storage;
		struct sockaddr_in in; /* as IPv6's, up to the port */
	} name = {0};
	socklen_t len = sizeof(name);
	int fd =
	    c->near.ops->socket ? c->near.ops->socket(&c->near) : c->near.fd;

	if (c->dev || c->peer_port)
		return (uint16_t)c->peer_port;
	if (fd < 0 || getpeername(fd, (struct sockaddr *)&name, &len) ||
	    (name.in.sin_family != AF_INET && name.in.sin_family != AF_INET6))
		return 0;
	return ntohs(name.in.sin_port);
}

/**
 * stream_request() - Open a connection's stream
 * @t:		Tunnel with room for one
 * @s:		Stream of a connection
 *
 * Returns: 0; -1 if it can't be
 */
int stream_request(struct tunnel *t, struct stream *s)
{
	char forwarded[FORWARDED + PORT_LEN];
	struct hbone *hb = t->group->hbone;
	const struct vu_headers *h = s->headers;
	char trace[TRACE_LEN];
	nghttp2_nv nv[HEADERS];
	size_t n;

	snprintf(trace, sizeof(trace), "00-%016llx%016llx-%016llx-00",
		 (unsigned long long)next_random(hb),
		 (unsigned long long)next_random(hb),
		 (unsigned long long)(next_random(hb) | 1));
	if (h->before)
		snprintf(forwarded, sizeof(forwarded), "%s%u%s", h->before,
			 stream_port(s->c), h->after ? h->after : "");
	n = fields_header(nv, 0, ":method", "CONNECT");
	n = fields_header(nv, n, ":authority", h->authority);
	n = fields_header(nv, n, "baggage", h->baggage);
	n = fields_header(nv, n, "forwarded", h->before ? forwarded : NULL);
	n = fields_header(nv, n, "traceparent", trace);
	n = fields_header(nv, n, "x-forwarded-network", h->network);
	t->group->stats.requests++;
	return h2_request(t->h2, &s->h2, nv, n);
}
