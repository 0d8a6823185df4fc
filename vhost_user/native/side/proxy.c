// SPDX-License-Identifier: Apache-2.0
/*
 * proxy.c - the header that says whose a connection is, and where it was to go
 *
 * Theory of operation
 * ===================
 *
 * The PROXY protocol, versions 1 & 2 (HAProxy), section 2.2 "Binary header
 * format (version 2)": a signature, version and command, family, the length of
 * the rest, the two addresses, and fields of type, length and value.
 */

#include <assert.h>
#include <string.h>

#include "side/handoff.h"

#define VERSION_PROXY 0x21 /* version 2, command PROXY */
#define TCP_IPV4      0x11
#define TCP_IPV6      0x21
#define TLV_IDENTITY  0xd0 /* Istio's: the source's SPIFFE ID */
#define HEAD	      16   /* before the addresses */

static const uint8_t signature[12] = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d,
				      0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a};

/**
 * put() - Append bytes
 * @at:		Where to
 * @data:	Bytes
 * @len:	How many
 *
 * Returns: behind them
 */
static uint8_t *put(uint8_t *at, const void *data, size_t len)
{
	memcpy(at, data, len);
	return at + len;
}

/**
 * proxy_header() - Write a PROXY protocol version 2 header
 * @ret:	Room for PROXY_MOST bytes
 * @src:	The client's address
 * @dst:	The one that it asked for, of the same family
 * @identity:	Who the client is
 * @identity_len: Bytes of that; 0: not said
 *
 * Returns: its length
 */
size_t proxy_header(uint8_t *ret, const union ip_port *src,
		    const union ip_port *dst, const uint8_t *identity,
		    uint32_t identity_len)
{
	bool ipv4 = dst->any.sa_family == AF_INET;
	const uint8_t tlv[3] = {TLV_IDENTITY, (uint8_t)(identity_len >> 8),
				(uint8_t)identity_len};
	uint8_t *at = ret + HEAD;
	size_t len;

	assert(identity_len <= VU_MAX_IDENTITY);
	if (ipv4) {
		at = put(at, &src->ipv4.sin_addr, 4);
		at = put(at, &dst->ipv4.sin_addr, 4);
		at = put(at, &src->ipv4.sin_port, 2);
		at = put(at, &dst->ipv4.sin_port, 2);
	} else {
		at = put(at, &src->ipv6.sin6_addr, 16);
		at = put(at, &dst->ipv6.sin6_addr, 16);
		at = put(at, &src->ipv6.sin6_port, 2);
		at = put(at, &dst->ipv6.sin6_port, 2);
	}
	if (identity_len) {
		at = put(at, tlv, sizeof(tlv));
		at = put(at, identity, identity_len);
	}
	len = (size_t)(at - ret);
	memcpy(ret, signature, sizeof(signature));
	ret[12] = VERSION_PROXY;
	ret[13] = ipv4 ? TCP_IPV4 : TCP_IPV6;
	ret[14] = (uint8_t)((len - HEAD) >> 8);
	ret[15] = (uint8_t)(len - HEAD);
	return len;
}
