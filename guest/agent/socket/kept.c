// SPDX-License-Identifier: Apache-2.0
/*
 * kept.c - socket options that a vsock socket hasn't got
 *
 * Theory of operation
 * ===================
 *
 * Options of IP, IPv6 and TCP are about packets that aren't sent. Programs set
 * them all the same, and some fail if that fails. The table says what is done:
 *
 * - KEPT: the value is stored in the socket's label, read back, and applied
 *   should the socket become a TCP socket (swap.c). TCP_NODELAY and TCP_CORK
 *   are even true: vsock never delays a byte.
 * - TAKEN: accepted without effect; reads give Linux's default.
 * - FIXED: can be read only.
 * - INET: it is about bind() or what is accepted: the socket becomes a TCP
 *   socket now, as bind() would make it, and that has the option. connect()
 *   makes it a vsock socket again.
 * - ABSENT: EOPNOTSUPP, as a kernel says that has it switched off; programs
 *   then do without it.
 *
 * What isn't in the table fails with ENOPROTOOPT, as an option does that a
 * kernel wasn't built with. Nothing pretends to do what it can't: no
 * congestion control, no MD5, no TLS upper layer.
 */

#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "agent/socket/kept.h"
#include "agent/tsi.h"

#ifndef TCP_FASTOPEN_CONNECT
#define TCP_FASTOPEN_CONNECT 30
#endif
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif
#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78
#endif

#define BIT_OF(flag) ((unsigned)__builtin_ctzll(flag))

static const struct option options[] = {
    {IPPROTO_TCP, TCP_NODELAY, KEPT, 6, 1, 0, 0},
    {IPPROTO_TCP, TCP_CORK, KEPT, 7, 1, 0, 0},
    {IPPROTO_TCP, TCP_KEEPIDLE, KEPT, 16, 15, 7200, 1},
    {IPPROTO_TCP, TCP_KEEPINTVL, KEPT, 31, 15, 75, 1},
    {IPPROTO_TCP, TCP_KEEPCNT, KEPT, 46, 7, 9, 1},
    {IPPROTO_TCP, TCP_MAXSEG, TAKEN, 0, 0, USUAL_MSS, 0},
    {IPPROTO_TCP, TCP_SYNCNT, TAKEN, 0, 0, 6, 0},
    {IPPROTO_TCP, TCP_LINGER2, TAKEN, 0, 0, 60, 0},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, TAKEN, 0, 0, 0, 0},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, TAKEN, 0, 0, 0, 0},
    {IPPROTO_TCP, TCP_QUICKACK, TAKEN, 0, 0, 1, 0},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, TAKEN, 0, 0, 0, 0},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, TAKEN, 0, 0, 0, 0},
    {IPPROTO_TCP, TCP_FASTOPEN, TAKEN, 0, 0, 0, 0},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT, ABSENT, 0, 0, 0, 0},
    {IPPROTO_IP, IP_TOS, KEPT, LABEL_TOS_SHIFT, LABEL_TOS_BITS, 0, 0},
    {IPPROTO_IP, IP_TTL, TAKEN, 0, 0, 64, 0},
    {IPPROTO_IP, IP_MTU_DISCOVER, TAKEN, 0, 0, IP_PMTUDISC_WANT, 0},
    {IPPROTO_IP, IP_RECVERR, TAKEN, 0, 0, 0, 0},
    {IPPROTO_TCP, TCP_SAVE_SYN, INET, 0, 0, 0, 0},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, INET, 0, 0, 0, 0},
    {IPPROTO_IP, IP_FREEBIND, INET, 0, 0, 0, 0},
    {IPPROTO_IP, IP_TRANSPARENT, INET, 0, 0, 0, 0},
    {IPPROTO_IP, IP_RECVTOS, INET, 0, 0, 0, 0},
    {IPPROTO_IPV6, IPV6_FREEBIND, INET, 0, 0, 0, 0},
    {IPPROTO_IPV6, IPV6_TRANSPARENT, INET, 0, 0, 0, 0},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, INET, 0, 0, 0, 0},
    {IPPROTO_IPV6, IPV6_RECVTCLASS, INET, 0, 0, 0, 0},
    {IPPROTO_IP, IP_MTU, FIXED, 0, 0, 1500, 0},
    {IPPROTO_IPV6, IPV6_V6ONLY, KEPT, BIT_OF(LABEL_V6ONLY), 1, 0, 0},
    {IPPROTO_IPV6, IPV6_TCLASS, TAKEN, 0, 0, 0, 0},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, TAKEN, 0, 0, 64, 0},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER, TAKEN, 0, 0, IPV6_PMTUDISC_WANT, 0},
    {IPPROTO_IPV6, IPV6_RECVERR, TAKEN, 0, 0, 0, 0},
    /* reported of our sockets at SOL_SOCKET, where vsock refuses it */
    {SOL_SOCKET, SO_REUSEPORT, KEPT, BIT_OF(LABEL_REUSEPORT), 1, 0, 0},
};

/**
 * kept_find() - Look an option up
 * @level:	Level
 * @name:	Name
 *
 * Returns: its row, or NULL
 */
const struct option *kept_find(int level, int name)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (options[i].level == level && options[i].name == name)
			return &options[i];
	return NULL;
}

/**
 * kept_mask() - An option's bits in the label
 * @option:	KEPT option
 *
 * Returns: mask, in place
 */
uint64_t kept_mask(const struct option *option)
{
	return ((UINT64_C(1) << option->bits) - 1) << option->shift;
}

/**
 * kept_value() - Value of a row
 * @label:	Socket's label
 * @option:	Row
 *
 * Returns: the value
 */
int kept_value(uint64_t label, const struct option *option)
{
	uint64_t stored = 0;

	if (option->kind == KEPT)
		stored = (label & kept_mask(option)) >> option->shift;
	return stored ? (int)stored : option->usual;
}

/**
 * kept_apply() - Give a TCP socket the options that were kept
 * @inet_fd:	TCP socket
 * @label:	Where they are kept
 */
void kept_apply(int inet_fd, uint64_t label)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		const struct option *option = &options[i];
		int value = kept_value(label, option);

		if (option->kind == KEPT && (label & kept_mask(option)))
			setsockopt(inet_fd, option->level, option->name, &value,
				   sizeof(value));
	}
}

/**
 * kept_of() - What a TCP socket's options are in a label
 * @inet_fd:	TCP socket
 *
 * Returns: the fields of KEPT options that aren't as usual
 */
uint64_t kept_of(int inet_fd)
{
	uint64_t label = 0;

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		const struct option *option = &options[i];
		int value = 0;
		socklen_t len = sizeof(value);

		if (option->kind == KEPT &&
		    !getsockopt(inet_fd, option->level, option->name, &value,
				&len) &&
		    value != option->usual && !(value >> option->bits))
			label |= (uint64_t)value << option->shift;
	}
	return label;
}
