// SPDX-License-Identifier: Apache-2.0
/*
 * messages.c - messages that programs send and receive, in our memory
 *
 * Theory of operation
 * ===================
 *
 * sendto(), sendmsg(), sendmmsg() and their opposites name one message or
 * several, each with an address and pieces of memory. They are read into
 * messages_here[], whichever the call is, and data is copied by way of
 * messages_data[]. One call is handled at a time, so that one of each is
 * enough.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sys/param.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "agent/datagram.h"

uint8_t messages_data[MAX_DATA];
struct mmsghdr messages_here[MAX_MESSAGES];

static struct iovec iovs[UIO_MAXIOV];

/**
 * messages_read() - Copy the messages_here that a call names
 * @call:	Send or receive call
 *
 * Returns: how many are in messages_here[]; 0: none that could have an address
 */
unsigned messages_read(const struct call *call)
{
	unsigned count = 1;
	bool named = false;

	messages_here[0] = (struct mmsghdr){0};
	switch (call->nr) {
	case SYS_sendmsg:
	case SYS_recvmsg:
		if (target_read(call, call->args[1], &messages_here[0].msg_hdr,
				sizeof(messages_here[0].msg_hdr)))
			return 0;
		break;
	case SYS_sendmmsg:
	case SYS_recvmmsg:
		count = MIN((unsigned)call->args[2], MAX_MESSAGES);
		if (target_read(call, call->args[1], messages_here,
				count * sizeof(messages_here[0])))
			return 0;
		break;
	case SYS_recvfrom:
		messages_here[0].msg_hdr.msg_name = (void *)call->args[4];
		break;
	default: /* sendto() */
		messages_here[0].msg_hdr.msg_name = (void *)call->args[4];
		messages_here[0].msg_hdr.msg_namelen = (socklen_t)call->args[5];
		break;
	}
	for (unsigned i = 0; i < count; i++)
		named |= messages_here[i].msg_hdr.msg_name != NULL;
	return named ? count : 0;
}

/**
 * messages_iov() - Copy where a message's data is
 * @call:	Send or receive call
 * @hdr:	Message
 * @ret_count:	Entries that are in iovs[]
 *
 * Returns: 0, or an errno
 */
int messages_iov(const struct call *call, const struct msghdr *hdr,
		 size_t *ret_count)
{
	if (call->nr == SYS_sendto || call->nr == SYS_recvfrom) {
		iovs[0] = (struct iovec){.iov_base = (void *)call->args[1],
					 .iov_len = call->args[2]};
		*ret_count = 1;
		return 0;
	}
	if (hdr->msg_iovlen > UIO_MAXIOV)
		return EMSGSIZE;
	*ret_count = hdr->msg_iovlen;
	return target_read(call, (uintptr_t)hdr->msg_iov, iovs,
			   hdr->msg_iovlen * sizeof(iovs[0]));
}

/**
 * messages_copy() - Copy a message's data from or to the program
 * @call:	Its call
 * @count:	Entries in iovs[]
 * @len:	At most so many bytes
 * @out:	To it
 * @ret_len:	Bytes that were copied
 *
 * Returns: 0, or EFAULT
 */
int messages_copy(const struct call *call, size_t count, size_t len, bool out,
		  size_t *ret_len)
{
	size_t done = 0;
	int error = 0;

	for (size_t i = 0; i < count && done < len && !error; i++) {
		uint64_t addr = (uintptr_t)iovs[i].iov_base;
		size_t part = MIN(iovs[i].iov_len, len - done);

		if (part)
			error = out ? target_write(call, addr,
						   messages_data + done, part)
				    : target_read(call, addr,
						  messages_data + done, part);
		done += part;
	}
	*ret_len = done;
	return error;
}

/**
 * messages_room() - Bytes that iovs[] names
 * @count:	Entries
 *
 * Returns: bytes, at most MAX_DATA
 */
size_t messages_room(size_t count)
{
	size_t room = 0;

	for (size_t i = 0; i < count; i++)
		room += MIN(iovs[i].iov_len, MAX_DATA - room);
	return room;
}
