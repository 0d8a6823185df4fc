// SPDX-License-Identifier: Apache-2.0
/*
 * maker.c - make sockets for others, in the network namespace that we are in
 *
 * Theory of operation
 * ===================
 *
 * This is the whole life of a process in a pod's namespace, behind its start
 * (main.c). It shares no memory with an engine: a message asks for sockets,
 * another one brings them, and so no fault here is one there. A dial may not
 * cost more than one in our own namespace: four system calls for a socket, and
 * one message for 16 of them.
 */

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "vu.h"

#define MOST   64 /* sockets of an answer */
#define EVENTS 16

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

/**
 * bind_to() - Give a socket to dial with its address
 * @fd:		Socket
 * @ask:	What was asked for
 *
 * connect() takes the port: else there were 28,000 for all peers together.
 *
 * Returns: 0, or -1 with errno
 */
static int bind_to(int fd, const struct vu_netns_ask *ask)
{
	union {
		struct sockaddr any;
		struct sockaddr_in ipv4;
		struct sockaddr_in6 ipv6;
	} addr = {0};
	socklen_t len = sizeof(addr.ipv4);
	const int one = 1;

	if (ask->version == 4) {
		addr.ipv4.sin_family = AF_INET;
		memcpy(&addr.ipv4.sin_addr, ask->ip,
		       sizeof(addr.ipv4.sin_addr));
	} else {
		addr.ipv6.sin6_family = AF_INET6;
		memcpy(&addr.ipv6.sin6_addr, ask->ip, sizeof(ask->ip));
		len = sizeof(addr.ipv6);
	}
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one)))
		return -1;
	return bind(fd, &addr.any, len);
}

/**
 * make() - Make a socket
 * @ask:	What was asked for
 *
 * Returns: the socket, or -errno
 */
static int make(const struct vu_netns_ask *ask)
{
	int family = ask->version == 4 ? AF_INET : AF_INET6;
	int kind = ask->what == VU_NETNS_DATAGRAM ? SOCK_DGRAM : SOCK_STREAM;
	int fd, error;

	if (ask->version != 4 && ask->version != 6)
		return -EAFNOSUPPORT;
	if (ask->what == VU_NETNS_STREAM)
		kind |= SOCK_NONBLOCK;
	fd = socket(family, kind | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (ask->what == VU_NETNS_STREAM && bind_to(fd, ask)) {
		error = errno;
		close(fd);
		return -error;
	}
	return fd;
}

/**
 * fail() - Answer that there are no sockets
 * @to:		Who asks
 * @said:	The answer that could not be sent with them
 * @error:	Why: too many are under way, or memory is short
 *
 * Returns: false if nobody takes it
 */
static bool fail(int to, struct vu_netns_answer *said, int error)
{
	said->error = error;
	said->count = 0;
	return send(to, said, sizeof(*said), MSG_NOSIGNAL) == sizeof(*said);
}

/**
 * answer() - Make the sockets of a message, and send them
 * @to:		Who asks
 * @ask:	What for
 *
 * Returns: false if nobody takes them
 */
static bool answer(int to, const struct vu_netns_ask *ask)
{
	union {
		char room[CMSG_SPACE(MOST * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct vu_netns_answer said = {.what = ask->what,
				       .version = ask->version};
	struct iovec iov = {.iov_base = &said, .iov_len = sizeof(said)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	int fds[MOST], fd = 0;
	uint16_t n = 0;
	bool sent;

	while (n < ask->count && n < MOST && (fd = make(ask)) >= 0)
		fds[n++] = fd;
	said.count = n;
	if (n) {
		msg.msg_control = control.room;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(&control.align), fds, n * sizeof(int));
	} else {
		said.error = -fd;
	}
	sent = sendmsg(to, &msg, MSG_NOSIGNAL) == sizeof(said) ||
	       (n && errno != EPIPE && fail(to, &said, errno));
	while (n)
		close(fds[--n]);
	return sent;
}

/**
 * watch() - Have epoll report what one who asks says
 * @epoll_fd:	Where
 * @fd:		Socket to it
 *
 * Returns: 0, or -1 with errno
 */
static int watch(int epoll_fd, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};

	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev);
}

/**
 * serve() - Take a message, and answer it
 * @epoll_fd:	For a channel that comes with it
 * @from:	Who asks
 *
 * Returns: false if whoever asks is gone, or says nonsense
 */
static bool serve(int epoll_fd, int from)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct vu_netns_ask ask;
	struct iovec iov = {.iov_base = &ask, .iov_len = sizeof(ask)};
	struct msghdr msg = {
	    .msg_iov = &iov,
	    .msg_iovlen = 1,
	    .msg_control = control.room,
	    .msg_controllen = sizeof(control.room),
	};
	ssize_t len = recvmsg(from, &msg, MSG_CMSG_CLOEXEC);
	int fd = -1;

	if (len < 0)
		return errno == EINTR;
	if (CMSG_FIRSTHDR(&msg))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	if (len == sizeof(ask) && ask.what == VU_NETNS_CHANNEL)
		return fd >= 0 && !watch(epoll_fd, fd);
	if (fd >= 0)
		close(fd);
	return len == sizeof(ask) && answer(from, &ask);
}

/**
 * vu_maker_run() - see vu_netns.h
 * @control:	Socket to the parent
 *
 * Returns: 0, or -VU_ERR_SYS
 */
__attribute__((visibility("default"))) int vu_maker_run(int control)
{
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	bool there = epoll_fd >= 0 && !watch(epoll_fd, control);
	int ret = there ? 0 : -VU_ERR_SYS;

	while (there) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(epoll_fd, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;

			if (serve(epoll_fd, fd))
				continue;
			there &= fd != control;
			epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
			if (fd != control)
				close(fd);
		}
	}
	if (epoll_fd >= 0)
		close(epoll_fd); /* channels end with the process */
	return ret;
}
