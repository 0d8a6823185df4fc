// SPDX-License-Identifier: Apache-2.0
/*
 * answer.c - what a program reads in its memory when its call returns
 */

#define _GNU_SOURCE
#include <errno.h>
#include <sys/param.h>
#include <sys/uio.h>

#include "agent/tsi.h"

/**
 * answer_name() - Give the program an address
 * @call:	Its call
 * @room:	How much room there is, as it says at its third argument
 * @v6:		For an AF_INET6 socket
 * @name:	Address and port
 *
 * The call's second argument is where the address goes, and the third where its
 * size does.
 *
 * Returns: 0, or an errno
 */
int answer_name(const struct call *call, int room, bool v6,
		const struct destination *name)
{
	struct sockaddr_storage sa;
	int size = (int)address_encode(v6, name, &sa);
	struct iovec ours[] = {
	    {.iov_base = &sa, .iov_len = (size_t)MIN(size, room)},
	    {.iov_base = &size, .iov_len = sizeof(size)},
	};

	if (room < 0)
		return EINVAL;
	return target_write_pair(call, call->args[1], call->args[2], ours);
}

/**
 * answer_option() - Hand a getsockopt() value to the program
 * @call:	getsockopt()
 * @value:	Value
 * @size:	Bytes of it; the program gets as many as it has room for
 *
 * Returns: 0, or the errno that getsockopt() fails with
 */
int answer_option(const struct call *call, const void *value, size_t size)
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
