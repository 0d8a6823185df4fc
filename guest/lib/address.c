// SPDX-License-Identifier: Apache-2.0
/*
 * address.c - addresses as programs write them, and as we do
 *
 * Theory of operation
 * ===================
 *
 * Inside the agent an endpoint is a struct destination: an IPv6 address, or an
 * IPv4 one in its v4-mapped form, and a port. An AF_INET6 socket can be pointed
 * at either kind, and shows the latter as v4-mapped, so that the family that
 * the program's socket has is all that is needed to go back.
 */

#define _GNU_SOURCE
#include <string.h>

#include "lib/lib.h"

/**
 * address_of() - An address as it travels
 * @v4:		Four bytes, else sixteen
 * @bytes:	In network order
 *
 * Returns: it, v4-mapped if IPv4
 */
struct in6_addr address_of(bool v4, const uint8_t *bytes)
{
	struct in6_addr address = {0};

	if (v4)
		address.s6_addr16[5] = 0xffff;
	memcpy(address.s6_addr + (v4 ? 12 : 0), bytes, v4 ? 4 : 16);
	return address;
}

/**
 * address_encode() - Write an address as the program expects it
 * @v6:		For an AF_INET6 socket
 * @dst:	Address and port
 * @ret_sa:	sockaddr
 *
 * Returns: its size
 */
size_t address_encode(bool v6, const struct destination *dst,
		      struct sockaddr_storage *ret_sa)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
	struct sockaddr_in in = {.sin_family = AF_INET};

	memset(ret_sa, 0, sizeof(*ret_sa));
	if (v6) {
		in6.sin6_port = htons(dst->port);
		in6.sin6_addr = dst->address;
		memcpy(ret_sa, &in6, sizeof(in6));
		return sizeof(in6);
	}
	in.sin_port = htons(dst->port);
	in.sin_addr.s_addr = dst->address.s6_addr32[3];
	memcpy(ret_sa, &in, sizeof(in));
	return sizeof(in);
}

/**
 * address_is_native() - Does a destination stay in the guest?
 * @dst:	Destination
 *
 * Returns: true for loopback, and for the unspecified address, which connect()
 *	takes for loopback
 */
bool address_is_native(const struct destination *dst)
{
	const struct in6_addr *addr = &dst->address;

	if (IN6_IS_ADDR_V4MAPPED(addr))
		return addr->s6_addr[12] == 127 || addr->s6_addr32[3] == 0;
	return IN6_IS_ADDR_LOOPBACK(addr) || IN6_IS_ADDR_UNSPECIFIED(addr);
}

/**
 * address_decode() - Understand an address
 * @sa:		sockaddr
 * @len:	Bytes of it
 * @ret_dst:	Destination
 *
 * Returns: true if it is an IPv4 or IPv6 address
 */
bool address_decode(const struct sockaddr_storage *sa, size_t len,
		    struct destination *ret_dst)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
	struct destination dst = {0};

	if (sa->ss_family == AF_INET && len >= sizeof(*in)) {
		dst.port = ntohs(in->sin_port);
		dst.address.s6_addr16[5] = 0xffff;
		dst.address.s6_addr32[3] = in->sin_addr.s_addr;
	} else if (sa->ss_family == AF_INET6 &&
		   len >= offsetof(struct sockaddr_in6, sin6_scope_id)) {
		dst.port = ntohs(in6->sin6_port);
		dst.address = in6->sin6_addr;
	} else {
		return false;
	}
	*ret_dst = dst;
	return true;
}

/**
 * address_hash() - A number to find a destination by
 * @dst:	Destination
 *
 * Returns: the number, its bits well spread
 */
uint32_t address_hash(const struct destination *dst)
{
	uint64_t address[2], high;

	memcpy(address, &dst->address, sizeof(address));
	high = address[0] ^ (uint64_t)dst->port << 48;
	return (uint32_t)(((address[1] ^ (high * 0x9e3779b97f4a7c15ULL)) *
			   0xff51afd7ed558ccdULL) >>
			  32);
}

/**
 * address_same() - Compare two destinations
 * @a:		One
 * @b:		Other
 *
 * Returns: true if they are equal
 */
bool address_same(const struct destination *a, const struct destination *b)
{
	return a->port == b->port &&
	       IN6_ARE_ADDR_EQUAL(&a->address, &b->address);
}
