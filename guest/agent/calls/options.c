// SPDX-License-Identifier: Apache-2.0
/*
 * options.c - socket options that a vsock socket hasn't got
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
 * - ABSENT: EOPNOTSUPP, as a kernel says that has it switched off; programs
 *   then do without it.
 *
 * What isn't in the table fails with ENOPROTOOPT, as an option does that a
 * kernel wasn't built with. Nothing pretends to do what it can't: no
 * congestion control, no MD5, no TLS upper layer.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/tsi.h"

#ifndef TCP_FASTOPEN_CONNECT
#define TCP_FASTOPEN_CONNECT 30
#endif
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define USUAL_MSS 1460

enum kind { KEPT, TAKEN, FIXED, ABSENT };

/**
 * struct option - A row of the table
 * @level:	IPPROTO_*
 * @name:	Option
 * @kind:	See theory of operation
 * @shift:	KEPT: where in the label
 * @bits:	KEPT: how many; 1 bit is a truth value
 * @usual:	What reads give while nothing (or 0) is stored
 * @min:	Least value that can be set, of those with more than one bit
 */
struct option {
	int level;
	int name;
	enum kind kind;
	unsigned shift;
	unsigned bits;
	int usual;
	int min;
};

#define BIT_OF(flag) ((unsigned)__builtin_ctzll(flag))

static const struct option options[] = {
#define ROW(name, shift, bits, usual, min)                                     \
	{IPPROTO_TCP, name, KEPT, shift, bits, usual, min},
    TSI_TCP_OPTIONS(ROW)
#undef ROW
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
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, TAKEN, 0, 0, 0, 0},
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
 * find() - Look an option up
 * @level:	Level
 * @name:	Name
 *
 * Returns: its row, or NULL
 */
static const struct option *find(int level, int name)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (options[i].level == level && options[i].name == name)
			return &options[i];
	return NULL;
}

/**
 * field_mask() - An option's bits in the label
 * @option:	KEPT option
 *
 * Returns: mask, in place
 */
static uint64_t field_mask(const struct option *option)
{
	return ((UINT64_C(1) << option->bits) - 1) << option->shift;
}

/**
 * option_reply() - Hand a getsockopt() value to the program
 * @call:	getsockopt()
 * @value:	Value
 * @size:	Bytes of it; the program gets as many as it has room for
 *
 * Returns: 0, or the errno that getsockopt() fails with
 */
int option_reply(const struct call *call, const void *value, size_t size)
{
	int room;

	if (target_read(call, call->args[4], &room, sizeof(room)))
		return EFAULT;
	if (room < 0)
		return EINVAL;
	room = MIN(room, (int)size);
	if (target_write(call, call->args[3], value, (size_t)room) ||
	    target_write(call, call->args[4], &room, sizeof(room)))
		return EFAULT;
	return 0;
}

/**
 * set() - setsockopt() of a row
 * @call:	The call
 * @fd:		Socket
 * @option:	Row
 *
 * Returns: 0, or an errno
 */
static int set(const struct call *call, int fd, const struct option *option)
{
	size_t len = MIN((size_t)(uint32_t)call->args[4], sizeof(int));
	int value = 0;

	/* IP takes a single byte, too */
	if (len < sizeof(int) && (option->level != IPPROTO_IP || len == 0))
		return EINVAL;
	if (target_read(call, call->args[3], &value, len))
		return EFAULT;
	if (option->kind == FIXED)
		return ENOPROTOOPT;
	if (option->kind == ABSENT)
		return EOPNOTSUPP;
	if (option->kind == TAKEN)
		return 0;
	if (option->bits == 1)
		value = value != 0;
	else if (value < option->min || value >> option->bits)
		return EINVAL;
	sock_change_label(fd, (uint64_t)value << option->shift,
			  field_mask(option));
	return 0;
}

/**
 * get() - Value of a row
 * @label:	Socket's label
 * @option:	Row
 *
 * Returns: the value
 */
static int get(uint64_t label, const struct option *option)
{
	uint64_t stored = 0;

	if (option->kind == KEPT)
		stored = (label & field_mask(option)) >> option->shift;
	return stored ? (int)stored : option->usual;
}

/**
 * get_tcp_info() - getsockopt(TCP_INFO): the state is all there is to tell
 * @call:	The call
 * @fd:		Socket
 *
 * Returns: 0, or an errno
 */
static int get_tcp_info(const struct call *call, int fd)
{
	struct tcp_info info = {
	    .tcpi_state = TCP_CLOSE,
	    .tcpi_snd_mss = USUAL_MSS,
	    .tcpi_rcv_mss = USUAL_MSS,
	    .tcpi_pmtu = 1500,
	};
	struct pollfd state = {.fd = fd, .events = POLLRDHUP};
	struct sockaddr_vm peer;

	poll(&state, 1, 0);
	if (sock_is_listening(fd))
		info.tcpi_state = TCP_LISTEN;
	else if (sock_peer_port(fd) == NO_PORT)
		info.tcpi_state = sock_half_closed_peer(fd, &peer)
				      ? TCP_FIN_WAIT2
				      : TCP_CLOSE;
	else if (!(state.revents & POLLHUP))
		info.tcpi_state = state.revents & POLLRDHUP ? TCP_CLOSE_WAIT
							    : TCP_ESTABLISHED;
	return option_reply(call, &info, sizeof(info));
}

/**
 * setsockopt_trapped() - setsockopt() of what a vsock socket hasn't got
 * @call:	The call
 */
void setsockopt_trapped(const struct call *call)
{
	int level = (int)call->args[1], name = (int)call->args[2];
	int fd = target_fd(call, (int)call->args[0]);
	const struct option *option;
	uint64_t label;

	if (fd < 0 || !notify_valid(call->id) || !sock_label(fd, &label)) {
		reply_native(call->id);
	} else if (level == SOL_SOCKET && !find(level, name)) {
		/* SO_SNDTIMEO: the kernel keeps it, connect() looks at it */
		sock_change_label(fd, LABEL_SNDTIMEO, 0);
		reply_native(call->id);
	} else {
		option = find(level, name);
		reply_error(call->id,
			    option ? set(call, fd, option) : ENOPROTOOPT);
	}
	if (fd >= 0)
		close(fd);
}

/**
 * get_ours() - getsockopt() of one of our sockets
 * @call:	The call
 * @fd:		Socket
 * @label:	Its label
 *
 * Returns: 0, or an errno
 */
static int get_ours(const struct call *call, int fd, uint64_t label)
{
	int level = (int)call->args[1], name = (int)call->args[2];
	const struct option *option = find(level, name);
	int value;

	if (level == SOL_SOCKET && name == SO_DOMAIN)
		value = label & LABEL_V6 ? AF_INET6 : AF_INET;
	else if (level == SOL_SOCKET && name == SO_PROTOCOL)
		value = IPPROTO_TCP;
	else if (level == IPPROTO_TCP && name == TCP_INFO)
		return get_tcp_info(call, fd);
	else if (option)
		value = get(label, option);
	else
		return ENOPROTOOPT;
	return option_reply(call, &value, sizeof(value));
}

/**
 * getsockopt_trapped() - getsockopt() of what a vsock socket hasn't got
 * @call:	The call
 */
void getsockopt_trapped(const struct call *call)
{
	int fd = target_fd(call, (int)call->args[0]);
	uint64_t label;

	if (fd < 0 || !notify_valid(call->id) || !sock_label(fd, &label))
		reply_native(call->id);
	else if ((int)call->args[1] == SOL_SOCKET &&
		 (int)call->args[2] == SO_ERROR)
		connect_error_wanted(call, fd, label);
	else
		reply_error(call->id, get_ours(call, fd, label));
	if (fd >= 0)
		close(fd);
}

/**
 * options_apply() - Give a TCP socket the options that were kept
 * @inet_fd:	TCP socket
 * @label:	Where they are kept
 */
void options_apply(int inet_fd, uint64_t label)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		const struct option *option = &options[i];
		int value = get(label, option);

		if (option->kind == KEPT && (label & field_mask(option)))
			setsockopt(inet_fd, option->level, option->name, &value,
				   sizeof(value));
	}
}

/**
 * options_kept() - What a TCP socket's options are in a label
 * @inet_fd:	TCP socket
 *
 * Returns: the fields of KEPT options that aren't as usual
 */
uint64_t options_kept(int inet_fd)
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
