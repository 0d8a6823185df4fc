// SPDX-License-Identifier: Apache-2.0
/*
 * sock.c - the vsock sockets that programs take for TCP sockets
 *
 * Theory of operation
 * ===================
 *
 * Each socket carries its own label, and the agent keeps no table of sockets.
 * The agent doesn't see a program close a socket, nor fork, nor exit, so a
 * table could only guess when a row is stale; and an agent that is restarted
 * would have lost it.
 *
 * The label is kept in SO_VM_SOCKETS_BUFFER_MAX_SIZE, a 64-bit value that the
 * kernel stores per socket, gives back unchanged, and uses for one thing: as
 * an upper bound for a later SO_VM_SOCKETS_BUFFER_SIZE, which no TCP program
 * sets. The top byte is a mark that makes the value huge, hence harmless, and
 * tells our sockets from a program's own vsock sockets (the default is
 * 262144) and from all other files (the getsockopt() fails). Below it are the
 * family the program asked for, what connect() still owes it, and the values
 * of the TCP options that it may read back.
 *
 * The receive buffer is the window for bytes from the host; its size is
 * room.c's business.
 *
 * All else the kernel knows: whether a socket is connected and to which
 * token (getpeername), its local port (getsockname), its error.
 *
 * Facts of net/vmw_vsock/af_vsock.c that this file relies on:
 *
 * - A failed connect() leaves the socket "connecting" until a blocking
 *   connect() collects the error; only then can it be connected again. That
 *   call looks at the address only if the socket is not connecting, so that a
 *   call with an address of no family collects and never starts (sock_settle).
 * - A non-blocking connect() arms a timer with the socket's connect timeout
 *   (2 s unless set), which ends the attempt, and holds a reference to the
 *   socket until then, even if it is connected or closed long before: 1.4 KiB
 *   each. So the timeout is what the host needs to settle a connect, and not
 *   more, and less in a guest that connects so often that this would cost it
 *   its memory (limit()).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "agent/tsi.h"

#define HELD_SOCKETS  16384 /* by timers, at most: 22 MiB */
#define MIN_TIMEOUT_S 2	    /* but a connect has that long */

static uint32_t connect_timeout_s = 30;

/**
 * sock_set_connect_timeout() - Set what sockets made from now on wait
 * @timeout_ms:	For the host to answer a connection request
 */
void sock_set_connect_timeout(uint32_t timeout_ms)
{
	connect_timeout_s = (timeout_ms + 999) / 1000;
}

/**
 * limit() - The connect timeout for a socket that is made now
 *
 * Returns: the host's, or less at a rate of sockets that would let timers hold
 *	more than HELD_SOCKETS of them
 */
static struct timeval limit(void)
{
	static int64_t second;
	static uint32_t made, made_before;
	int64_t now = now_ms() / 1000;
	uint32_t rate, timeout_s;

	if (now != second) {
		made_before = now == second + 1 ? made : 0;
		made = 0;
		second = now;
	}
	rate = ++made > made_before ? made : made_before;
	timeout_s = HELD_SOCKETS / rate;
	if (timeout_s < MIN_TIMEOUT_S)
		timeout_s = MIN_TIMEOUT_S;
	if (timeout_s > connect_timeout_s)
		timeout_s = connect_timeout_s;
	return (struct timeval){.tv_sec = timeout_s};
}

/**
 * sock_create() - Make a socket
 * @family:	AF_INET or AF_INET6: what the program asked for
 * @nonblock:	Whether it is non-blocking
 *
 * Returns: the socket, the caller's to close; -1 with errno set otherwise
 */
int sock_create(int family, bool nonblock)
{
	int type = SOCK_STREAM | SOCK_CLOEXEC | (nonblock ? SOCK_NONBLOCK : 0);
	const struct timeval timeout = limit();
	int fd = socket(AF_VSOCK, type, 0);

	if (fd < 0)
		return -1;
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &timeout,
		   sizeof(timeout));
	sock_set_label(fd, family == AF_INET6 ? LABEL_V6 : 0);
	room_share(fd); /* the label is its bound */
	return fd;
}

/**
 * sock_label() - Is this one of our sockets?
 * @fd:		Any file
 * @ret_label:	Its label, without the mark
 *
 * Returns: true if it is
 */
bool sock_label(int fd, uint64_t *ret_label)
{
	uint64_t value;
	socklen_t len = sizeof(value);

	if (getsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, &value,
		       &len) ||
	    (value & LABEL_MARK_MASK) != LABEL_MARK)
		return false;
	*ret_label = value & ~LABEL_MARK_MASK;
	return true;
}

/**
 * sock_set_label() - Say what a socket carries
 * @fd:		Socket that no program has yet
 * @label:	LABEL_* bits and fields
 */
void sock_set_label(int fd, uint64_t label)
{
	uint64_t value = LABEL_MARK | label;

	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, &value,
		   sizeof(value));
}

/**
 * sock_change_label() - Change some of what a socket carries
 * @fd:		One of our sockets
 * @set:	LABEL_* bits and fields to set
 * @clear:	Those to clear before
 */
void sock_change_label(int fd, uint64_t set, uint64_t clear)
{
	uint64_t label;

	if (sock_label(fd, &label))
		sock_set_label(fd, (label & ~clear) | set);
}

/**
 * sock_connect() - connect() to a port of the host, or of this guest
 * @fd:		One of our sockets, non-blocking unless the caller may wait
 * @cid:	TSI_HOST_CID or VMADDR_CID_LOCAL
 * @port:	Port
 *
 * Returns: 0, or an errno
 */
int sock_connect(int fd, uint32_t cid, uint32_t port)
{
	struct sockaddr_vm addr = {
	    .svm_family = AF_VSOCK,
	    .svm_port = port,
	    .svm_cid = cid,
	};

	return connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ? errno : 0;
}

/**
 * sock_settle() - Collect a failed connect(): the socket is unconnected again
 * @fd:		One of our sockets with POLLERR: it does not block then
 *
 * Returns: the errno of the attempt
 */
int sock_settle(int fd)
{
	struct sockaddr_vm nowhere = {.svm_family = AF_UNSPEC};
	bool nonblock = sock_is_nonblocking(fd);
	int error = 0, pending = 0;
	socklen_t len = sizeof(pending);

	if (nonblock)
		sock_set_nonblocking(fd, false);
	watch_begin();
	if (connect(fd, (struct sockaddr *)&nowhere, sizeof(nowhere)))
		error = errno;
	watch_end();
	if (nonblock)
		sock_set_nonblocking(fd, true);

	/* EINVAL: it was unconnected already, with the error still pending */
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &pending, &len))
		pending = 0;
	if (error == EINVAL || error == 0)
		error = pending;
	return error ? error : ECONNRESET;
}

/**
 * sock_local_port() - The vsock port of our end
 * @fd:		One of our sockets
 *
 * Returns: the port, NO_PORT if it was never connected
 */
uint32_t sock_local_port(int fd)
{
	struct sockaddr_vm addr;
	socklen_t len = sizeof(addr);

	if (getsockname(fd, (struct sockaddr *)&addr, &len))
		return NO_PORT;
	return addr.svm_port;
}

/**
 * sock_peer() - The other end
 * @fd:		One of our sockets
 * @ret_addr:	Its address
 *
 * Returns: false if there is none
 */
bool sock_peer(int fd, struct sockaddr_vm *ret_addr)
{
	socklen_t len = sizeof(*ret_addr);

	return !getpeername(fd, (struct sockaddr *)ret_addr, &len);
}

/**
 * sock_peer_port() - The vsock port of the other end: a token
 * @fd:		One of our sockets
 *
 * Returns: the token, NO_PORT if it isn't connected
 */
uint32_t sock_peer_port(int fd)
{
	struct sockaddr_vm addr;

	return sock_peer(fd, &addr) ? addr.svm_port : NO_PORT;
}

/**
 * struct search - Whose peer is looked for
 * @inode:	The socket's
 * @peer:	Its peer, if it is connected
 */
struct search {
	uint32_t inode;
	struct sockaddr_vm peer;
};

/**
 * compare() - Is it the one, and established?
 * @msg:	A socket
 * @context:	The search
 */
static void compare(const struct vsock_diag_msg *msg, void *context)
{
	struct search *search = context;

	if (msg->vdiag_ino != search->inode ||
	    msg->vdiag_state != TCP_ESTABLISHED)
		return;
	search->peer.svm_cid = msg->vdiag_dst_cid;
	search->peer.svm_port = msg->vdiag_dst_port;
}

/**
 * sock_half_closed_peer() - The other end of a socket whose own end is closed
 * @fd:		One of our sockets for which sock_peer() knows none
 * @ret_addr:	Its address
 *
 * The kernel's getpeername() doesn't tell after a shutdown(), TCP's does.
 *
 * Returns: false if it isn't such a socket
 */
bool sock_half_closed_peer(int fd, struct sockaddr_vm *ret_addr)
{
	struct pollfd state = {.fd = fd};
	struct search search = {
	    .peer = {.svm_family = AF_VSOCK, .svm_port = NO_PORT}};
	struct stat status;

	poll(&state, 1, 0);
	if (state.revents & (POLLHUP | POLLERR) ||
	    sock_local_port(fd) == NO_PORT || fstat(fd, &status))
		return false;
	search.inode = (uint32_t)status.st_ino;
	diag_list(compare, &search);
	*ret_addr = search.peer;
	return search.peer.svm_port != NO_PORT;
}

/**
 * sock_is_listening() - Is this a listener?
 * @fd:		One of our sockets
 *
 * Returns: true if it is
 */
bool sock_is_listening(int fd)
{
	int value = 0;
	socklen_t len = sizeof(value);

	return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &len) &&
	       value;
}

/**
 * sock_is_nonblocking() - O_NONBLOCK, which programs change unseen
 * @fd:		Socket
 *
 * Returns: true if it is set
 */
bool sock_is_nonblocking(int fd)
{
	return fcntl(fd, F_GETFL) & O_NONBLOCK;
}

/**
 * sock_set_nonblocking() - Set or clear O_NONBLOCK
 * @fd:		Socket; the flag is the file's, the program sees it too
 * @on:		Set it
 *
 * F_SETFL replaces O_APPEND, O_ASYNC, O_DIRECT and O_NOATIME as well; none of
 * them but O_ASYNC means anything for a socket, so FIONBIO, which leaves the
 * others alone, does it in one call.
 */
void sock_set_nonblocking(int fd, bool on)
{
	int value = on;

	ioctl(fd, FIONBIO, &value);
}
