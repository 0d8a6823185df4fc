// SPDX-License-Identifier: Apache-2.0
/*
 * saying.c - what a CONNECT says, and who says it, as a key
 *
 * Theory of operation
 * ===================
 *
 * Two CONNECTs say the same if they do so word by word: the same identity, from
 * the same IP to the same address of ours, with the same authority, baggage and
 * "forwarded", but for the client's port in that, which each connection has
 * anew, and the same "x-forwarded-network", or none. So whatever Python looked
 * at when it decided about one is the other's, too. (A "traceparent" is for
 * nobody but a log.)
 *
 * Peers choose most of it: the hash is seeded.
 */

#include <string.h>

#include <netinet/in.h>

#include "side/decision.h"

#define PORT_MOST 5 /* digits */

/**
 * put() - Add a part to a key
 * @k:		Key, with room
 * @part:	Part
 * @len:	Its length, which goes in front: no two keys are alike by chance
 */
static void put(struct saying *k, const void *part, size_t len)
{
	uint16_t size = (uint16_t)len;

	memcpy(k->bytes + k->len, &size, sizeof(size));
	memcpy(k->bytes + k->len + sizeof(size), part, len);
	k->len += sizeof(size) + len;
}

/**
 * put_text() - Same, for a part that may not be there
 * @k:		Key
 * @text:	Text, or NULL
 */
static void put_text(struct saying *k, const char *text)
{
	put(k, text ? text : "", text ? strlen(text) : 0);
}

/**
 * find_port() - Find the client's port in "forwarded"
 * @text:	forwarded: for="IP:PORT" and what follows (RFC 7239)
 * @ret_port:	It
 * @ret_end:	Behind it
 *
 * Only what stands behind one of IPv4, or behind the "]" of IPv6, is a port.
 *
 * Returns: where it begins; NULL if there is none
 */
static const char *find_port(const char *text, uint16_t *ret_port,
			     const char **ret_end)
{
	const char *first = strchr(text, '"');
	const char *end = first ? strchr(first + 1, '"') : NULL;
	const char *at = end;
	unsigned port = 0;

	if (!end)
		return NULL;
	while (at[-1] >= '0' && at[-1] <= '9')
		at--;
	if (at == end || end - at > PORT_MOST || at[-1] != ':')
		return NULL;
	if (at[-2] != ']' && memchr(first, ':', (size_t)(at - 1 - first)))
		return NULL;
	for (const char *digit = at; digit < end; digit++)
		port = 10 * port + (unsigned)(*digit - '0');
	if (port > UINT16_MAX)
		return NULL;
	*ret_port = (uint16_t)port;
	*ret_end = end;
	return at;
}

/**
 * put_forwarded() - Add "forwarded" to a key, but for the client's port
 * @k:		Key
 * @text:	It, or NULL
 *
 * Returns: the port, 0 if there is none
 */
static uint16_t put_forwarded(struct saying *k, const char *text)
{
	uint16_t port = 0;
	const char *end;
	const char *at = text ? find_port(text, &port, &end) : NULL;

	if (!at) {
		put_text(k, text);
		return 0;
	}
	put(k, text, (size_t)(at - text));
	put_text(k, end);
	return port;
}

/**
 * put_ip() - Add a client's address to a key, but for its port
 * @k:		Key
 * @name:	Its address
 */
static void put_ip(struct saying *k, const struct tunnel_name *name)
{
	struct sockaddr_in6 ip = {0}; /* IPv4's, up to the port, begins alike */
	struct sockaddr_in *ipv4 = (struct sockaddr_in *)&ip;

	memcpy(&ip, name->addr, name->len);
	ipv4->sin_port = 0;
	put(k, &ip, name->len);
}

/**
 * saying_of() - What does a CONNECT say, and who says it?
 * @s:		Stream of a gate, its request one that fits
 * @ret:	Key
 *
 * Returns: the client's port, as "forwarded" has it; 0 if it doesn't
 */
uint16_t saying_of(const struct stream *s, struct saying *ret)
{
	const struct tunnel *t = s->tunnel;

	ret->len = 0;
	put_text(ret, t->tls->peer);
	put_ip(ret, &t->src);
	put(ret, t->dst.addr, t->dst.len);
	put_text(ret, s->request.authority);
	put_text(ret, s->request.baggage);
	put_text(ret, s->request.network ? "x-forwarded-network" : NULL);
	put_text(ret, s->request.network);
	return put_forwarded(ret, s->request.forwarded);
}

/**
 * saying_hash() - Hash that
 * @k:		Key
 * @seed:	Which no peer knows
 *
 * Returns: it
 */
uint64_t saying_hash(const struct saying *k, uint64_t seed)
{
	uint64_t h = seed ^ k->len, word;

	for (size_t at = 0; at < k->len; at += sizeof(word)) {
		size_t left = k->len - at;

		word = 0;
		memcpy(&word, k->bytes + at,
		       left < sizeof(word) ? left : sizeof(word));
		h = (h ^ word) * 0xff51afd7ed558ccdULL;
		h ^= h >> 32 ^ seed;
	}
	return h ^ h >> 29;
}
