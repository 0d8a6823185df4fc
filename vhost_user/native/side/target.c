// SPDX-License-Identifier: Apache-2.0
/*
 * target.c - give a connection its far side
 *
 * Theory of operation
 * ===================
 *
 * A target says where a connection that was asked for goes: to a socket that
 * has to be connected, which may take a while, to a side that is there at once,
 * or to Python, which answers with another target.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <linux/vm_sockets.h>
#include <sys/epoll.h>
#include <sys/un.h>

#include "side/builtin.h"
#include "side/dial.h"
#include "side/handoff.h"
#include "side/hbone.h"
#include "side/netns.h"
#include "side/peer.h"
#include "side/socket.h"
#include "side/target.h"

/**
 * target_valid() - Check a target
 * @target:	Target
 *
 * Returns: true if its kind and address are in range
 */
bool target_valid(const struct vu_target *target)
{
	if (target->addr_len > sizeof(target->addr))
		return false;
	if ((target->netns || target->handoff) &&
	    target->kind != VU_TARGET_DIAL)
		return false;
	if (target->handoff && target->addr_len > sizeof(union ip_port))
		return false;
	if (target->peer && target->kind != VU_TARGET_RING)
		return false;
	if (target->kind == VU_TARGET_DIAL || target->kind == VU_TARGET_RING)
		return target->addr_len >= sizeof(sa_family_t);
	if (target->kind == VU_TARGET_VSOCK)
		return target->addr_len == sizeof(struct sockaddr_vm);
	if (target->kind == VU_TARGET_HBONE)
		return target->addr_len == sizeof(struct vu_hbone_target);
	return target->kind < VU_TARGET_VSOCK;
}

/**
 * target_event() - A far side's socket is connected, or has news of that
 * @c:		Connection in CONN_DIALING
 * @events:	EPOLL bits
 */
void target_event(struct vu_conn *c, uint32_t events)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (!c->greeting && !(events & (EPOLLOUT | EPOLLHUP | EPOLLERR)))
		return;
	if (getsockopt(c->far.fd, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	if (error)
		conn_abort(c, error);
	else
		dial_connected(c);
}

/**
 * dial() - Connect the far side
 * @c:		Connection; may be gone afterwards
 * @addr:	Where to
 * @len:	Size of @addr
 */
static void dial(struct vu_conn *c, const struct sockaddr *addr, socklen_t len)
{
	if (c->state != CONN_DIALING)
		conn_set(c, CONN_DIALING);
	dial_here(c, addr, len);
}

/**
 * dial_unix() - Connect the far side to "<path>_<port>"
 * @c:		Connection; may be gone afterwards
 * @target:	Target of kind VU_TARGET_UNIX
 */
static void dial_unix(struct vu_conn *c, const struct vu_target *target)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%.*s_%u",
			 (int)target->addr_len, (const char *)target->addr,
			 c->port);

	if (n < 0 || (size_t)n >= sizeof(addr.sun_path))
		conn_abort(c, ENAMETOOLONG);
	else
		dial(c, (struct sockaddr *)&addr, sizeof(addr));
}

/**
 * dial_address() - Connect the far side to the address of a target
 * @c:		Connection; may be gone afterwards
 * @target:	Target of kind VU_TARGET_DIAL; or VU_TARGET_VSOCK, then the
 *		port is the requested one
 */
static void dial_address(struct vu_conn *c, const struct vu_target *target)
{
	union {
		struct sockaddr any;
		struct sockaddr_vm vm;
		struct sockaddr_storage storage;
	} addr = {0};

	memcpy(&addr, target->addr, target->addr_len);
	if (target->kind == VU_TARGET_VSOCK)
		addr.vm.svm_port = c->port;
	if (target->handoff)
		handoff_dial(c, target);
	else if (target->netns)
		netns_dial(c, target->netns, &addr.any, target->addr_len);
	else
		dial(c, &addr.any, target->addr_len);
}

/**
 * target_retry() - Dial once more a unix listener that was full
 * @c:		Connection; may be gone afterwards
 * @target:	The target that its port has by now
 */
void target_retry(struct vu_conn *c, const struct vu_target *target)
{
	if (c->greeting && c->greeting->again)
		c->greeting->again(c);
	else if (!c->greeting && target->kind == VU_TARGET_UNIX)
		dial_unix(c, target);
	else
		conn_abort(c, ECONNREFUSED);
}

/**
 * builtin() - Have the engine play a connection's far side
 * @c:		Connection
 * @ops:	Which part
 */
static void builtin(struct vu_conn *c, const struct side_ops *ops)
{
	c->far.ops = ops;
	conn_opened(c);
}

/**
 * target_reach() - Give a requested connection its far side
 * @c:		Connection, new or HELD; may be gone afterwards
 * @target:	The far side
 */
void target_reach(struct vu_conn *c, const struct vu_target *target)
{
	c->target = (uint8_t)target->kind;
	if (c->type == SEQPACKET &&
	    (target->kind == VU_TARGET_ASK || target->kind == VU_TARGET_DIAL ||
	     target->kind == VU_TARGET_VSOCK ||
	     target->kind == VU_TARGET_RING ||
	     target->kind == VU_TARGET_HBONE)) {
		conn_abort(c, EPROTOTYPE);
		return;
	}
	switch (target->kind) {
	case VU_TARGET_ASK:
		conn_set(c, CONN_HELD);
		conn_post(c, VU_EV_REQUEST, 0);
		break;
	case VU_TARGET_UNIX:
		dial_unix(c, target);
		break;
	case VU_TARGET_DIAL:
	case VU_TARGET_VSOCK:
		dial_address(c, target);
		break;
	case VU_TARGET_RING:
		offer_make(c, target);
		break;
	case VU_TARGET_HBONE:
		pool_reach(c, target);
		break;
	case VU_TARGET_ECHO:
		builtin(c, &builtin_echo);
		break;
	case VU_TARGET_DISCARD:
		builtin(c, &builtin_discard);
		break;
	case VU_TARGET_CHARGEN:
		builtin(c, &builtin_chargen);
		break;
	default:
		conn_abort(c, target->error ? target->error : ECONNREFUSED);
	}
}

/**
 * target_socket() - Give a HELD connection a socket as its far side
 * @c:		Connection
 * @fd:		Connected socket, taken over on success
 *
 * Returns: 0, or -VU_ERR_SYS, if it can't be watched
 */
int target_socket(struct vu_conn *c, int fd)
{
	c->far = (struct side){.ops = socket_ops(c), .fd = fd};
	if (socket_watch(c, &c->far, false)) {
		c->far.fd = -1;
		return -VU_ERR_SYS;
	}
	conn_opened(c);
	return 0;
}
