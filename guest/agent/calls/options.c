// SPDX-License-Identifier: Apache-2.0
/*
 * options.c - setsockopt() and getsockopt() of what a vsock socket hasn't got
 *
 * Theory of operation
 * ===================
 *
 * kept.c says which options there are, and what is done about each kind. Here
 * the calls are answered.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/socket/kept.h"
#include "agent/tsi.h"

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
	if (option->kind == TAKEN || option->kind == INET)
		return 0;
	if (option->bits == 1)
		value = value != 0;
	else if (value < option->min || value >> option->bits)
		return EINVAL;
	sock_change_label(fd, (uint64_t)value << option->shift,
			  kept_mask(option));
	return 0;
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
	return answer_option(call, &info, sizeof(info));
}

/**
 * make_room() - Let a socket hold as much as the program wants to wait for
 * @call:	setsockopt(SO_RCVLOWAT)
 * @fd:		Socket
 */
static void make_room(const struct call *call, int fd)
{
	int least = 0;

	if ((uint32_t)call->args[4] >= sizeof(least) &&
	    !target_read(call, call->args[3], &least, sizeof(least)) &&
	    least >= LEAST_BYTES)
		room_for(fd, (uint64_t)least);
}

/**
 * setsockopt_trapped() - setsockopt() of what a vsock socket hasn't got
 * @call:	The call
 */
void setsockopt_trapped(const struct call *call)
{
	int level = (int)call->args[1], name = (int)call->args[2];
	int fd = target_fd(call, (int)call->args[0]);
	const struct option *option = kept_find(level, name);
	uint64_t label;
	int error;

	if (fd < 0 || !notify_valid(call->id) || !sock_label(fd, &label)) {
		reply_native(call->id);
	} else if (option && option->kind == INET &&
		   sock_local_port(fd) == NO_PORT) {
		error = swap_to_inet(call, (int)call->args[0], fd, label);
		later_go_on(call, error);
	} else if (level == SOL_SOCKET && name == SO_RCVLOWAT) {
		make_room(call, fd);
		reply_native(call->id);
	} else if (level == SOL_SOCKET && !option) {
		/* SO_SNDTIMEO: the kernel keeps it, connect() looks at it */
		sock_change_label(fd, LABEL_SNDTIMEO, 0);
		reply_native(call->id);
	} else {
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
	const struct option *option = kept_find(level, name);
	int value;

	if (level == SOL_SOCKET && name == SO_DOMAIN)
		value = label & LABEL_V6 ? AF_INET6 : AF_INET;
	else if (level == SOL_SOCKET && name == SO_PROTOCOL)
		value = IPPROTO_TCP;
	else if (level == IPPROTO_TCP && name == TCP_INFO)
		return get_tcp_info(call, fd);
	else if (option)
		value = kept_value(label, option);
	else
		return ENOPROTOOPT;
	return answer_option(call, &value, sizeof(value));
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
