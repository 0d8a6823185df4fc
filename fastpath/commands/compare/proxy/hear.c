// SPDX-License-Identifier: Apache-2.0
/*
 * hear.c - where a connection is to go, as each kind of hand-off says it
 *
 * Theory of operation
 * ===================
 *
 * docs/handoff-protocol.md and docs/ring.md have the bytes. The engine writes
 * a header, or a request, by one call, and unix sockets and loopback keep that
 * in one piece: one that is cut short is no header.
 *
 * IPv4 only: so are the networks of `fastpath compare`.
 */

#include "hear.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <sys/socket.h>
#include <sys/un.h>

#define SO_ORIGINAL_DST_ 80 /* linux/netfilter_ipv4.h, which needs more */
#define PROXY_HEAD	 16U
#define PROXY_V4	 12U /* addresses and ports of TCP over IPv4 */
#define PROXY_MAX	 4096U
#define SOCKS_REQUEST	 13U

static const uint8_t signature[] = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a,
				    0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11};

/* Exactly so many bytes; else -EAGAIN, -EPROTO or -errno */
static int take(const struct end *e, void *buf, size_t len)
{
	ssize_t n = recv(e->fd, buf, len, 0);

	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EPROTO;
}

static void set(struct sockaddr_in *ret, const uint8_t *ip, const uint8_t *port)
{
	*ret = (struct sockaddr_in){.sin_family = AF_INET};
	memcpy(&ret->sin_addr, ip, sizeof(ret->sin_addr));
	memcpy(&ret->sin_port, port, sizeof(ret->sin_port));
}

static int hear_header(const struct end *e, struct sockaddr_in *ret)
{
	uint8_t head[PROXY_HEAD], rest[PROXY_MAX];
	int err = take(e, head, sizeof(head));
	size_t len;

	if (err)
		return err;
	len = (size_t)head[14] << 8 | head[15];
	if (memcmp(head, signature, sizeof(signature)) || len < PROXY_V4 ||
	    len > sizeof(rest) || take(e, rest, len))
		return -EPROTO;
	set(ret, rest + 4, rest + 10);
	return 0;
}

static int hear_socks5(const struct end *e, struct sockaddr_in *ret)
{
	static const uint8_t connect_v4[] = {5, 1, 0, 5, 1, 0, 1};
	uint8_t request[SOCKS_REQUEST];
	int err = take(e, request, sizeof(request));

	if (err)
		return err;
	if (memcmp(request, connect_v4, sizeof(connect_v4)))
		return -EPROTO;
	set(ret, request + 7, request + 11);
	return 0;
}

static int hear_ring(struct end *e, struct sockaddr_in *ret)
{
	struct fpring_hello hello;
	int err = fpring_take(e->fd, &e->link, &hello);
	uint16_t port;

	if (err)
		return err;
	e->ring = true;
	port = htons(hello.dst.port);
	set(ret, hello.dst.ip, (const uint8_t *)&port);
	return hello.dst.family == 4 ? 0 : -EPROTO;
}

/* Of PATH_PORT; the address is the proxy's own, or any other for the server */
static int hear_path(const struct end *e, struct sockaddr_in *ret)
{
	struct sockaddr_un at = {0};
	socklen_t len = sizeof(at);
	const char *port;

	if (getsockname(e->fd, (struct sockaddr *)&at, &len))
		return -errno;
	at.sun_path[sizeof(at.sun_path) - 1] = '\0';
	port = strrchr(at.sun_path, '_');
	if (!port)
		return -EPROTO;
	*ret = (struct sockaddr_in){.sin_family = AF_INET};
	ret->sin_port = htons((uint16_t)atoi(port + 1));
	return 0;
}

int hear(enum kind kind, struct end *e, struct sockaddr_in *ret)
{
	socklen_t len = sizeof(*ret);
	int failed;

	switch (kind) {
	case HEADER:
		return hear_header(e, ret);
	case SOCKS5:
		return hear_socks5(e, ret);
	case RING:
		return hear_ring(e, ret);
	case VSOCK:
		return hear_path(e, ret);
	case REDIRECT:
	case SIDECAR:
		failed = getsockopt(e->fd, SOL_IP, SO_ORIGINAL_DST_, ret, &len);
		break;
	case PLAIN:
	default:
		failed = getsockname(e->fd, (struct sockaddr *)ret, &len);
	}
	return failed ? -errno : 0;
}

int answer(enum kind kind, struct end *e, int error)
{
	const uint8_t said[] = {5, 0, 5, error ? 1 : 0, 0, 1, 0, 0, 0, 0, 0, 0};

	if (kind == RING)
		return fpring_answer(&e->link, error);
	if (kind == SOCKS5 &&
	    send(e->fd, said, sizeof(said), MSG_NOSIGNAL) != sizeof(said))
		return -ECONNRESET;
	return 0;
}
