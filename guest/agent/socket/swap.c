// SPDX-License-Identifier: Apache-2.0
/*
 * swap.c - make the program's socket one of another kind
 *
 * Theory of operation
 * ===================
 *
 * socket() has to choose before the program says what the socket is for. Most
 * connect to somewhere else, so that it is a vsock socket; one that binds,
 * listens or connects to loopback turns out to be a TCP socket of the guest.
 * The reverse happens to a TCP socket that the program bound first and then
 * connects, or that it brought from before the agent. And a vsock socket can't
 * be disconnected: connect(AF_UNSPEC) gives the program another one.
 *
 * The new socket gets the options of the old one, and takes its place under the
 * program's descriptors (exchange.c).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "agent/tsi.h"

#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62
#endif

/**
 * copy_options() - Carry SOL_SOCKET options over
 * @from:	Socket
 * @to:		Socket
 */
static void copy_options(int from, int to)
{
	static const int names[] = {SO_REUSEADDR, SO_KEEPALIVE,
				    SO_OOBINLINE, SO_BROADCAST,
				    SO_PRIORITY,  SO_BINDTOIFINDEX};
	static const int times[] = {SO_RCVTIMEO, SO_SNDTIMEO};
	struct timeval limit;
	struct linger linger;
	socklen_t len;
	int value;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		len = sizeof(value);
		if (!getsockopt(from, SOL_SOCKET, names[i], &value, &len) &&
		    value)
			setsockopt(to, SOL_SOCKET, names[i], &value,
				   sizeof(value));
	}
	for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		len = sizeof(limit);
		if (!getsockopt(from, SOL_SOCKET, times[i], &limit, &len))
			setsockopt(to, SOL_SOCKET, times[i], &limit,
				   sizeof(limit));
	}
	len = sizeof(linger);
	if (!getsockopt(from, SOL_SOCKET, SO_LINGER, &linger, &len) &&
	    linger.l_onoff)
		setsockopt(to, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

/**
 * open_namespace() - A process's network namespace, if it isn't ours
 * @pid:	Process
 *
 * Returns: descriptor for setns(), -1 if it is ours or can't be told
 */
static int open_namespace(pid_t pid)
{
	struct stat ours, theirs;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	if (stat("/proc/self/ns/net", &ours) || stat(path, &theirs) ||
	    (ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev))
		return -1;
	return open(path, O_RDONLY | O_CLOEXEC);
}

/**
 * make_inet() - A socket of IP's in the network namespace of the target
 * @tid:	Thread of the target
 * @family:	AF_INET or AF_INET6
 * @type:	SOCK_STREAM or SOCK_DGRAM
 *
 * Returns: the socket; -1 with errno set otherwise
 */
static int make_inet(pid_t tid, int family, int type)
{
	int theirs = open_namespace(tid);
	int ours = -1, fd;

	if (theirs >= 0) {
		ours = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
		if (ours < 0 || setns(theirs, CLONE_NEWNET))
			complain("cannot enter the network namespace of %d",
				 tid);
	}
	fd = socket(family, type | SOCK_CLOEXEC, 0);
	if (theirs >= 0) {
		int error = errno;

		if (ours >= 0) {
			setns(ours, CLONE_NEWNET);
			close(ours);
		}
		close(theirs);
		errno = error;
	}
	return fd;
}

/**
 * can_bind() - Can a socket of the target have an address?
 * @tid:	Thread of the target
 * @address:	Address
 *
 * Returns: true if so
 */
static bool can_bind(pid_t tid, const struct in6_addr *address)
{
	struct destination any_port = {.address = *address};
	bool v6 = !IN6_IS_ADDR_V4MAPPED(address);
	struct sockaddr_storage sa;
	socklen_t len = (socklen_t)address_encode(v6, &any_port, &sa);
	int fd = make_inet(tid, v6 ? AF_INET6 : AF_INET, SOCK_DGRAM);
	bool can = fd >= 0 && !bind(fd, (struct sockaddr *)&sa, len);

	if (fd >= 0)
		close(fd);
	return can;
}

/**
 * swap_is_local() - Is an address one of the target's own?
 * @tid:	Thread of the target
 * @dst:	Address; its port doesn't count
 *
 * What can be bound is in the kernel's local table, unless it lets everything
 * be bound (ip_nonlocal_bind): even an address of a range that nobody has.
 *
 * Returns: true if it is
 */
bool swap_is_local(pid_t tid, const struct destination *dst)
{
	const struct in6_addr *address = &dst->address;
	struct in6_addr nobodys = {.s6_addr = {0x01, 0x00, [15] = 1}};
	bool v4 = IN6_IS_ADDR_V4MAPPED(address);

	if (v4 ? IN_MULTICAST(ntohl(address->s6_addr32[3])) ||
		     address->s6_addr32[3] == INADDR_NONE
	       : IN6_IS_ADDR_MULTICAST(address))
		return false;
	if (v4) {
		nobodys = *address;
		nobodys.s6_addr32[3] = htonl(0xf0000001); /* class E */
	}
	return can_bind(tid, address) && !can_bind(tid, &nobodys);
}

/**
 * swap_to_inet() - Make one of our sockets a TCP socket of the guest
 * @call:	Call that showed what it is for
 * @num:	Descriptor in the target
 * @fd:		The socket, ours; only to be closed afterwards
 * @label:	Its label
 *
 * Returns: 0: the call can go on natively; an errno otherwise
 */
int swap_to_inet(const struct call *call, int num, int fd, uint64_t label)
{
	int inet = make_inet(call->tid, label & LABEL_V6 ? AF_INET6 : AF_INET,
			     SOCK_STREAM);
	int error;

	if (inet < 0)
		return errno;
	copy_options(fd, inet);
	kept_apply(inet, label);
	if (sock_is_nonblocking(fd))
		sock_set_nonblocking(inet, true);
	error = exchange(call, num, fd, inet, false);
	close(inet);
	debug("fd %d of %d is native now: %s", num, call->tid, strerror(error));
	return error;
}

/**
 * swap_exchange() - Put a socket in another one's place, in one process
 * @call:	Call of the process
 * @num:	Descriptor that it names the socket by
 * @from:	The socket, ours
 * @to:		What takes its place; gets the same SOL_SOCKET options
 *
 * Returns: 0, or an errno; nothing has changed then
 */
int swap_exchange(const struct call *call, int num, int from, int to)
{
	copy_options(from, to);
	sock_set_nonblocking(to, sock_is_nonblocking(from));
	return exchange(call, num, from, to, true);
}

/**
 * swap_is_tcp() - Is this a TCP socket that could be swapped?
 * @fd:		Any file
 *
 * Returns: true if it is neither connected nor listening
 */
bool swap_is_tcp(int fd)
{
	struct tcp_info info;
	socklen_t len = sizeof(info);

	return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) &&
	       info.tcpi_state == TCP_CLOSE;
}

/**
 * swap_to_vsock() - Make a TCP socket one of ours
 * @call:	connect()
 * @num:	Descriptor in the target
 * @fd:		In: the TCP socket, ours. Out: the new one, on success
 *
 * Returns: 0, or an errno
 */
int swap_to_vsock(const struct call *call, int num, uint32_t upper, int *fd)
{
	struct sockaddr_in6 name = {0};
	socklen_t name_len = sizeof(name), len = sizeof(int);
	int family = AF_INET, ours, error;
	uint16_t port = 0;
	uint64_t label;

	getsockopt(*fd, SOL_SOCKET, SO_DOMAIN, &family, &len);
	ours = sock_create(family, sock_is_nonblocking(*fd));
	if (ours < 0)
		return errno;
	copy_options(*fd, ours);
	if (sock_label(ours, &label))
		sock_set_label(ours, label | kept_of(*fd));
	/* The port is in the same place for IPv4 */
	if (!getsockname(*fd, (struct sockaddr *)&name, &name_len))
		port = ntohs(name.sin6_port);
	if (port && (!upper || ports_bind(ours, VSOCK_PORT(upper, port))))
		ports_bind_low(ours, port);
	error = exchange(call, num, *fd, ours, false);
	if (error) {
		close(ours);
		return error;
	}
	close(*fd);
	*fd = ours;
	return 0;
}

/**
 * swap_to_fresh() - Take a connection away from under its descriptors
 * @call:	connect() to AF_UNSPEC
 * @num:	Descriptor in the target
 * @fd:		The socket, ours
 * @label:	Its label
 *
 * Returns: 0, or an errno
 */
int swap_to_fresh(const struct call *call, int num, int fd, uint64_t label)
{
	int family = label & LABEL_V6 ? AF_INET6 : AF_INET;
	int fresh = sock_create(family, sock_is_nonblocking(fd));
	int error;

	if (fresh < 0)
		return errno;
	copy_options(fd, fresh);
	sock_set_label(fresh, label & ~(LABEL_UNREPORTED | LABEL_ABORTED |
					LABEL_LOCAL | LABEL_INBOUND));
	error = exchange(call, num, fd, fresh, false);
	close(fresh);
	return error;
}

/**
 * swap_to_our_netns() - Make a UDP socket of another network namespace ours
 * @call:	Call that showed what it is for
 * @num:	Descriptor in the target
 * @fd:		In: the socket, ours. Out: the new one, on success
 *
 * Its port, if it has one, is kept where it is free.
 *
 * Returns: 0, or an errno
 */
int swap_to_our_netns(const struct call *call, int num, int *fd)
{
	struct sockaddr_storage name = {0};
	socklen_t len = sizeof(name);
	struct destination own;
	int ours, error;

	if (getsockname(*fd, (struct sockaddr *)&name, &len))
		return errno;
	ours = socket(name.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (ours < 0)
		return errno;
	copy_options(*fd, ours);
	if (sock_is_nonblocking(*fd))
		sock_set_nonblocking(ours, true);
	if (address_decode(&name, len, &own) && own.port)
		bind(ours, (struct sockaddr *)&name, len);
	error = exchange(call, num, *fd, ours, false);
	if (error) {
		close(ours);
		return error;
	}
	close(*fd);
	*fd = ours;
	return 0;
}
