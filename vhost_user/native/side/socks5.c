// SPDX-License-Identifier: Apache-2.0
/*
 * socks5.c - ask another proxy by SOCKS5 for a connection
 *
 * Theory of operation
 * ===================
 *
 * RFC 1928, without authentication. The greeting and the request go out in one
 * write: whoever takes no other method than ours has nothing to choose. The
 * proxy answers both, in order:
 *
 *	us	05 01 00, 05 01 00 ATYP address port
 *	proxy	05 00,    05 REP 00 ATYP address port
 *
 * What comes behind that is the far end's, so no byte more is read than the
 * answers have: their lengths show one after the other. A proxy that is slow
 * is bounded by the dial's deadline, one that says something else is left.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "side/handoff.h"

#define VERSION 5
#define NO_AUTH 0
#define CONNECT 1
#define IPV4	1
#define DOMAIN	3
#define IPV6	4
#define REQUEST (3 + 4 + 16 + 2)
#define HEADS	6 /* the first answer, and the second up to its address */
#define REPLY	(HEADS + 1 + 255 + 2)

/**
 * struct socks5 - A connection that a proxy is asked for
 * @greeting:	What the engine knows of it
 * @len:	Bytes of @request
 * @have:	Bytes of @reply
 * @request:	What we say
 * @reply:	What it said so far
 */
struct socks5 {
	struct greeting greeting;
	uint16_t len;
	uint16_t have;
	uint8_t request[REQUEST];
	uint8_t reply[REPLY];
};

/* RFC 1928, section 6 "Replies": what the program's connect() fails with */
static const int errors[] = {
    [1] = ECONNREFUSED, /* general SOCKS server failure */
    [2] = EACCES,	/* connection not allowed by ruleset */
    [3] = ENETUNREACH,	/* network unreachable */
    [4] = EHOSTUNREACH, /* host unreachable */
    [5] = ECONNREFUSED, /* connection refused */
    [6] = ETIMEDOUT,	/* TTL expired */
    [7] = EOPNOTSUPP,	/* command not supported */
    [8] = EAFNOSUPPORT, /* address type not supported */
};

/**
 * verdict() - What does the answer say so far?
 * @s:		What was heard
 *
 * Returns: 0, or the errno that it refuses with
 */
static int verdict(const struct socks5 *s)
{
	const uint8_t *r = s->reply;

	if (s->have > 0 && r[0] != VERSION)
		return EPROTO;
	if (s->have > 1 && r[1] != NO_AUTH)
		return r[1] == 0xff ? EACCES : EPROTO;
	if (s->have > 2 && r[2] != VERSION)
		return EPROTO;
	if (s->have > 3 && r[3])
		return r[3] < sizeof(errors) / sizeof(*errors) ? errors[r[3]]
							       : EPROTO;
	if (s->have > 5 && r[5] != IPV4 && r[5] != IPV6 && r[5] != DOMAIN)
		return EPROTO;
	return 0;
}

/**
 * length() - How many bytes have the answers, as far as that shows?
 * @s:		What was heard, good so far
 *
 * Returns: bytes
 */
static uint16_t length(const struct socks5 *s)
{
	if (s->have < HEADS)
		return HEADS;
	if (s->reply[5] == IPV4)
		return HEADS + 4 + 2;
	if (s->reply[5] == IPV6)
		return HEADS + 16 + 2;
	if (s->have == HEADS)
		return HEADS + 1;
	return (uint16_t)(HEADS + 1 + s->reply[HEADS] + 2);
}

/**
 * hear() - Read the answers
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 */
static void hear(struct vu_conn *c)
{
	struct socks5 *s = (struct socks5 *)c->greeting;
	uint16_t most;

	while (s->have < (most = length(s))) {
		ssize_t n = recv(c->far.fd, s->reply + s->have,
				 (size_t)(most - s->have), MSG_DONTWAIT);
		int error = n < 0 ? errno : ECONNRESET;

		if (n < 0 && error == EINTR)
			continue;
		if (n < 0 && error == EAGAIN)
			return;
		if (n > 0) {
			s->have = (uint16_t)(s->have + n);
			error = verdict(s);
		}
		if (error) {
			conn_abort(c, error);
			return;
		}
	}
	conn_greeted(c);
	conn_opened(c); /* still readable: bytes may be behind the answer */
}

/**
 * say() - The proxy is connected: say all that we have to
 * @c:		Connection in CONN_DIALING; may be gone afterwards
 */
static void say(struct vu_conn *c)
{
	struct socks5 *s = (struct socks5 *)c->greeting;
	ssize_t n =
	    send(c->far.fd, s->request, s->len, MSG_NOSIGNAL | MSG_DONTWAIT);

	s->greeting.step = hear;
	if (n != s->len) /* nothing was sent before: there is room, or nobody */
		conn_abort(c, n < 0 && errno != EPIPE ? errno : ECONNRESET);
}

/**
 * socks5_greet() - Have a proxy asked once it is connected
 * @c:		Connection
 * @dst:	For a connection to this
 *
 * Returns: 0, or errno
 */
int socks5_greet(struct vu_conn *c, const union ip_port *dst)
{
	static const uint8_t head[] = {VERSION, 1,	 NO_AUTH,
				       VERSION, CONNECT, 0};
	bool ipv4 = dst->any.sa_family == AF_INET;
	struct socks5 *s = calloc(1, sizeof(*s));
	uint8_t *at;

	if (!s)
		return ENOMEM;
	at = s->request + sizeof(head);
	memcpy(s->request, head, sizeof(head));
	*at++ = ipv4 ? IPV4 : IPV6;
	if (ipv4) {
		memcpy(at, &dst->ipv4.sin_addr, 4);
		memcpy(at + 4, &dst->ipv4.sin_port, 2);
	} else {
		memcpy(at, &dst->ipv6.sin6_addr, 16);
		memcpy(at + 16, &dst->ipv6.sin6_port, 2);
	}
	s->len = (uint16_t)(at - s->request + (ipv4 ? 6 : 18));
	s->greeting.step = say;
	c->greeting = &s->greeting;
	return 0;
}
