// SPDX-License-Identifier: Apache-2.0
/*
 * datagram.c - UDP sockets whose peers are outside the guest
 *
 * Theory of operation
 * ===================
 *
 * A UDP socket is the guest's own; relay.c says how its datagrams get out.
 * Trapped is what names an address, and here the name that the program uses is
 * exchanged for the stand-in's and back:
 *
 * - connect() connects the program's socket to the stand-in. From then on
 *   send(), recv(), read() and write() need nobody.
 * - sendto(), sendmsg() and sendmmsg() with an address: send.c.
 * - recvfrom(), recvmsg() and recvmmsg() that ask for the address: receive.c.
 * - getpeername() and getsockname() of a connected socket.
 *
 * Addresses inside the guest pass as they are, and sends to them go on
 * natively.
 *
 * A socket of another network namespace reaches nobody outside: its loopback
 * isn't ours. It is exchanged for one of ours when it is first pointed outside.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/datagram.h"

/* ---- sockets ---- */

/**
 * int_option() - An option of SOL_SOCKET
 * @fd:		Any file
 * @name:	Option
 *
 * Returns: its value, -1 if there is none
 */
static int int_option(int fd, int name)
{
	int value;
	socklen_t len = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, name, &value, &len) ? -1 : value;
}

/**
 * datagram_is_udp() - Is this a UDP socket?
 * @fd:		Any file
 * @ret_v6:	Of AF_INET6
 *
 * Returns: true if it is
 */
bool datagram_is_udp(int fd, bool *ret_v6)
{
	if (int_option(fd, SO_PROTOCOL) != IPPROTO_UDP)
		return false;
	*ret_v6 = int_option(fd, SO_DOMAIN) == AF_INET6;
	return true;
}

/**
 * datagram_socket() - Is the call about a UDP socket?
 * @call:	Call whose first argument is a descriptor
 * @ret_v6:	Of AF_INET6
 *
 * Returns: the socket, the caller's to close; -1 if it isn't
 */
int datagram_socket(const struct call *call, bool *ret_v6)
{
	int fd = target_fd(call, (int)call->args[0]);

	if (fd < 0)
		return -1;
	if (datagram_is_udp(fd, ret_v6) && notify_valid(call->id))
		return fd;
	close(fd);
	return -1;
}

/**
 * datagram_is_inside() - Is an endpoint the guest's own?
 * @call:	Call that names it
 * @dst:	Endpoint
 *
 * As with TCP the kernel's local table says so, before it gets its number.
 *
 * Returns: true if it is
 */
bool datagram_is_inside(const struct call *call, const struct destination *dst)
{
	return address_is_native(dst) ||
	       (!peers_know(dst) && swap_is_local(call->tid, dst));
}

/**
 * has_route() - Would a pod reach this endpoint, as far as families go?
 * @dst:	Endpoint
 *
 * Returns: true if the pod has an address of the family; DNS needs none
 */
static bool has_route(const struct destination *dst)
{
	return dst->port == DNS_PORT ||
	       control_has_family(IN6_IS_ADDR_V4MAPPED(&dst->address));
}

/**
 * datagram_point_outside() - Find what to send to instead of an endpoint
 * outside
 * @call:	The call
 * @fd:		In: the program's UDP socket. Out: perhaps another, in its place
 * @v6:		Of AF_INET6
 * @dst:	Endpoint
 * @ret_peer:	Its number
 * @ret_sa:	What to send to
 * @ret_len:	Its size
 *
 * Returns: 0, or an errno
 */
int datagram_point_outside(const struct call *call, int *fd, bool v6,
			   const struct destination *dst, uint32_t *ret_peer,
			   struct sockaddr_storage *ret_sa, socklen_t *ret_len)
{
	const int no = 0;
	struct destination stand_in;
	struct sockaddr_storage sa = {0};
	struct sockaddr_in name;
	int error;

	if (!has_route(dst))
		return ENETUNREACH;
	error = relay_stand_in(dst, ret_peer, &name);
	if (!error && !relay_is_here(*fd))
		error = swap_to_our_netns(call, (int)call->args[0], fd);
	if (error)
		return error;
	/* Our stand-ins are of IPv4; a socket that is bound keeps what it has
	 */
	if (v6)
		setsockopt(*fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
	memcpy(&sa, &name, sizeof(name));
	address_decode(&sa, sizeof(name), &stand_in);
	*ret_len = (socklen_t)address_encode(v6, &stand_in, ret_sa);
	return 0;
}

/* ---- connect() and names ---- */

/**
 * datagram_connect() - connect() to an endpoint outside
 * @call:	The call
 * @fd:		Socket, which the caller closes
 * @sa:		Address
 * @dst:	Same
 *
 * Asks nobody: resolvers connect UDP sockets just to see which source address
 * they get (RFC 6724).
 *
 * Returns: false if it is no UDP socket, or not for us: nothing is done
 */
bool datagram_connect(const struct call *call, int fd,
		      const struct sockaddr_storage *sa,
		      const struct destination *dst)
{
	struct sockaddr_storage to;
	socklen_t len;
	uint32_t peer;
	bool v6;
	int error, own;

	if (!datagram_is_udp(fd, &v6) || (sa->ss_family == AF_INET6 && !v6) ||
	    datagram_is_inside(call, dst))
		return false;
	own = dup(fd);
	error = own < 0 ? errno : 0;
	if (!error)
		error = datagram_point_outside(call, &own, v6, dst, &peer, &to,
					       &len);
	if (!error && connect(own, (struct sockaddr *)&to, len))
		error = errno;
	if (own >= 0)
		close(own);
	if (error == EINPROGRESS && later_keep(call, STREAM_KEY, HELLO_MS))
		return true;
	reply_error(call->id, error == EINPROGRESS ? ENETUNREACH : error);
	return true;
}

/**
 * datagram_name() - getpeername() and getsockname() of a UDP socket
 * @call:	The call
 * @ret_v6:	The socket is of AF_INET6
 * @ret_name:	What is to be shown
 *
 * Returns: false if the kernel shows the right thing
 */
bool datagram_name(const struct call *call, bool *ret_v6,
		   struct destination *ret_name)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	struct destination peer, own;
	int fd = datagram_socket(call, ret_v6);
	bool outside;

	if (fd < 0)
		return false;
	outside = !getpeername(fd, (struct sockaddr *)&sa, &len) &&
		  relay_stands_for(&sa, &peer);
	if (outside && call->nr == SYS_getsockname) {
		len = sizeof(sa);
		outside = !getsockname(fd, (struct sockaddr *)&sa, &len) &&
			  address_decode(&sa, len, &own);
		if (outside)
			peer = (struct destination){
			    .port = own.port,
			    .address = control_pod_address(
				IN6_IS_ADDR_V4MAPPED(&peer.address)),
			};
	}
	close(fd);
	if (outside)
		*ret_name = peer;
	return outside;
}
