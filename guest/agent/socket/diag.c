// SPDX-License-Identifier: Apache-2.0
/*
 * diag.c - the kernel's list of vsock sockets
 *
 * Theory of operation
 * ===================
 *
 * What calls don't tell of a socket, or of one that we have no descriptor of,
 * vsock_diag does, by inode. A kernel may be without it.
 */

#define _GNU_SOURCE
#include <sys/stat.h>
#include <unistd.h>

#include <linux/netlink.h>
#include <linux/sock_diag.h>

#include "agent/tsi.h"

#define DIAG_BYTES 32768 /* the largest part that the kernel sends */

/**
 * hand_on() - Hand on the sockets of a part of the list
 * @part:	Netlink messages
 * @len:	Bytes of them
 * @each:	Called with each socket
 * @context:	For it
 *
 * Returns: 0: the list has ended; 1: a part follows; -1: there is no list
 */
static int hand_on(const void *part, size_t len, diag_each each, void *context)
{
	const struct nlmsghdr *header = part;

	for (; NLMSG_OK(header, len); header = NLMSG_NEXT(header, len)) {
		if (header->nlmsg_type == NLMSG_DONE)
			return 0;
		if (header->nlmsg_type == NLMSG_ERROR)
			return -1;
		if (header->nlmsg_len >=
		    NLMSG_LENGTH(sizeof(struct vsock_diag_msg)))
			each(NLMSG_DATA(header), context);
	}
	return 1;
}

/**
 * diag_list() - Go through the kernel's vsock sockets
 * @each:	Called with each
 * @context:	For it
 *
 * Returns: false if there is no such list, or not to its end
 */
bool diag_list(diag_each each, void *context)
{
	const struct {
		struct nlmsghdr header;
		struct vsock_diag_req req;
	} ask = {
	    .header = {.nlmsg_len = sizeof(ask),
		       .nlmsg_type = SOCK_DIAG_BY_FAMILY,
		       .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
	    .req = {.sdiag_family = AF_VSOCK, .vdiag_states = UINT32_MAX},
	};
	static char part[DIAG_BYTES] __attribute__((aligned(NLMSG_ALIGNTO)));
	int more = -1;
	ssize_t len;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

	if (fd < 0)
		return false;
	if (send(fd, &ask, sizeof(ask), 0) == (ssize_t)sizeof(ask))
		do {
			len = recv(fd, part, sizeof(part), 0);
			more = len > 0
				   ? hand_on(part, (size_t)len, each, context)
				   : -1;
		} while (more > 0);
	close(fd);
	return more == 0;
}
