// SPDX-License-Identifier: Apache-2.0
/*
 * sockets.c - steps: how sockets begin and end, and how they change hands
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"

#define ACCEPT_MS 500 /* for the peer, if nothing came */
#define BACKLOG	  16
#define MAX_DIALS 3

static const int socket_flags[] = {0, 0, SOCK_NONBLOCK, SOCK_CLOEXEC,
				   SOCK_NONBLOCK | SOCK_CLOEXEC};

/* ---- names ---- */

/**
 * union name - Any address
 */
union name {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

/* Write an address, IPv6 if it has a colon; return its length */
static socklen_t name_of(union name *name, const char *host, long port)
{
	memset(name, 0, sizeof(*name));
	if (inet_pton(AF_INET, host, &name->in.sin_addr) == 1) {
		name->in.sin_family = AF_INET;
		name->in.sin_port = htons((uint16_t)port);
		return sizeof(name->in);
	}
	inet_pton(AF_INET6, host, &name->in6.sin6_addr);
	name->in6.sin6_family = AF_INET6;
	name->in6.sin6_port = htons((uint16_t)port);
	return sizeof(name->in6);
}

static int family_of(int fd)
{
	return get_option(fd, SOL_SOCKET, SO_DOMAIN);
}

/* Where the peer is, for a socket of that family */
static const char *host_for(struct step *step, int family)
{
	static char mapped[64];

	if (family != AF_INET6)
		return host4;
	if (once_in(step, 2))
		return host6;
	snprintf(mapped, sizeof(mapped), "::ffff:%s", host4);
	return mapped;
}

/* ---- how they end ---- */

static void forget(struct slot *slot)
{
	slot->fd = -1;
	slot->own_port = 0;
	slot->dials = 0;
	slot->sent = 0;
	slot->got = 0;
}

/* Close all descriptors of a slot */
static void clear(struct step *step)
{
	struct slot *slot = step->slot;

	if (slot->epoll >= 0)
		close(slot->epoll);
	if (slot->other >= 0)
		close(slot->other);
	if (slot->fd >= 0)
		close(slot->fd);
	slot->other = slot->epoll = -1;
	forget(slot);
	calm(step);
}

static void do_close(struct step *step)
{
	struct slot *slot = step->slot;

	call(step, "close");
	gave(step, close(slot->fd));
	forget(slot);
	if (slot->other >= 0 && once_in(step, 2)) {
		call(step, "close the other");
		gave(step, close(slot->other));
		slot->other = -1;
	}
	calm(step);
	ask(step, "drain");
}

static void do_shutdown(struct step *step)
{
	static const int ways[] = {SHUT_RD,   SHUT_WR,	 SHUT_WR, SHUT_WR,
				   SHUT_RDWR, SHUT_RDWR, 3,	  -1};
	int how = PICK(step, ways);

	call(step, "shutdown, %d", how);
	gave(step, shutdown(step->fd, how));
	if (!how || how == SHUT_RDWR)
		step->slot->own_port = 0;
	calm(step);
}

/* ---- connections ---- */

/* connect() to the peer, which accepts */
static void meet(struct step *step, const char *host)
{
	struct slot *slot = step->slot;
	union name name;
	socklen_t len = name_of(&name, host, slot->port);
	long ret;

	call(step, "connect, %s", strchr(host, '.') ? "IPv4" : "IPv6");
	guard();
	ret = connect(step->fd, &name.any, len);
	alarm_off();
	gave(step, ret);
	if (ret && errno != EINPROGRESS && errno != EINTR)
		return;
	slot->sent = slot->got = slot->waits = 0;
	ask(step, "accept %d", ACCEPT_MS);
}

static void connected_one(struct step *step, int family, int flags)
{
	int fd = socket(family, SOCK_STREAM | flags, 0);

	step->fd = step->slot->fd = fd;
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	meet(step, host_for(step, family));
}

/* A listener for the peer, and a client of it */
static void listening_one(struct step *step, int family, int backlog)
{
	struct slot *slot = step->slot;
	long at = (step->index * SLOTS + (slot - slots)) % PORTS;
	union name name;
	socklen_t len = name_of(
	    &name, family == AF_INET ? "0.0.0.0" : "::", FIRST_PORT + at);

	slot->fd = socket(family, SOCK_STREAM | PICK(step, socket_flags), 0);
	set_option(slot->fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set_option(slot->fd, IPPROTO_TCP, TCP_NODELAY, 1);
	call(step, "bind, the peer's");
	gave(step, bind(slot->fd, &name.any, len));
	call(step, "listen, %d", backlog);
	if (!gave(step, listen(slot->fd, backlog)))
		slot->own_port = FIRST_PORT + at;
	calm(step);
}

static void dial(struct step *step)
{
	struct slot *slot = step->slot;

	if (!slot->own_port || slot->dials == MAX_DIALS)
		return;
	slot->waits = 0;
	if (!ask(step, "dial %ld", slot->own_port))
		slot->dials++;
	calm(step);
}

/* Take a client: it is another slot's from here on, and so is its peer */
static void take(struct step *step)
{
	static const int flags[] = {0, SOCK_NONBLOCK, SOCK_CLOEXEC, 0x40};
	struct slot *from = step->slot,
		    *to = &slots[(from - slots + 1) % SLOTS];
	struct pollfd state = {.fd = step->fd, .events = POLLIN};
	int flag = PICK(step, flags), peers = from->control, fd;
	struct step aim = *step;

	aim.slot = to;
	if (from->dials) {
		clear(&aim);
		poll(&state, 1, WAIT_MS);
	}
	call(step, "accept4, 0x%x", flag);
	guard();
	fd = accept4(step->fd, NULL, NULL, flag);
	alarm_off();
	gave(step, fd < 0 ? -1 : 0);
	if (fd >= 0 && !from->dials)
		close(fd); /* our own client's */
	if (fd < 0 || !from->dials)
		return;
	from->dials--;
	from->control = to->control;
	to->control = peers;
	to->port = from->port;
	from->port = 0;
	to->fd = fd;
	to->waits = 0;
}

/**
 * begin() - Begin with another socket
 * @step:	Step
 */
void begin(struct step *step)
{
	static const int families[] = {AF_INET, AF_INET, AF_INET6};
	int family = PICK(step, families), flags = PICK(step, socket_flags);
	unsigned kind = below(step, 16);
	struct slot *slot = step->slot;

	clear(step);
	slot->port = peer("listen %d", BACKLOG);
	slot->waits = 0;
	if (kind < 9) {
		connected_one(step, family, flags);
	} else if (kind < 13) {
		listening_one(step, family, 8 + (int)below(step, 8));
		step->fd = slot->fd;
		if (kind == 12)
			return;
		dial(step);
		if (kind == 11)
			take(step);
	} else {
		call(step, "socket, %d 0x%x", family, flags);
		slot->fd = socket(family, SOCK_STREAM | flags, 0);
		gave(step, slot->fd < 0 ? -1 : 0);
		set_option(slot->fd, IPPROTO_TCP, TCP_NODELAY, 1);
	}
}

static void do_connect(struct step *step)
{
	static const char *const elsewhere[] = {
	    "127.0.0.1",       "0.0.0.0",    "224.0.0.1",
	    "255.255.255.255", "::1",	     "::",
	    "ff02::1",	       "fe80::1",    "::ffff:127.0.0.1",
	    "192.0.2.1",       "2001:db8::1"};
	static const int lengths[] = {0, 1, 2, 8, 15, 27, 129, -1};
	union name name;
	socklen_t len;
	const char *host;

	if (once_in(step, 2)) {
		meet(step, host_for(step, family_of(step->fd)));
		return;
	}
	if (once_in(step, 3)) {
		name_of(&name, host4, 1);
		name.any.sa_family = AF_UNSPEC;
		call(step, "connect, AF_UNSPEC");
		gave(step, connect(step->fd, &name.any, sizeof(name.in)));
		step->slot->own_port = 0;
		calm(step);
		return;
	}
	host = PICK(step, elsewhere);
	if (once_in(step, 3)) {
		len = name_of(&name, host, 9);
		len = (socklen_t)PICK(step, lengths);
		call(step, "connect, %s of %d bytes", host, (int)len);
	} else if (once_in(step, 2)) {
		len = name_of(&name, host_for(step, family_of(step->fd)),
			      peer("refuse"));
		call(step, "connect, refused");
	} else {
		len = name_of(&name, host, 9);
		call(step, "connect, %s", host);
	}
	guard();
	gave(step, connect(step->fd, &name.any, len));
	alarm_off();
	calm(step);
}

static void do_bind(struct step *step)
{
	static const char *const hosts[] = {
	    "0.0.0.0", "127.0.0.1", "::", "::1", "192.0.2.77", "224.0.0.1"};
	const char *host = PICK(step, hosts);
	union name name;
	socklen_t len = name_of(&name, host, 0);

	if (once_in(step, 6))
		len = below(step, 20);
	call(step, "bind, %s of %d bytes", host, (int)len);
	gave(step, bind(step->fd, &name.any, len));
}

static void do_listen(struct step *step)
{
	static const int backlogs[] = {8, 16, 128, 4096};
	int backlog = PICK(step, backlogs);

	call(step, "listen, %d", backlog);
	gave(step, listen(step->fd, backlog));
}

/* ---- descriptors ---- */

static void do_dup(struct step *step)
{
	struct slot *slot = step->slot;

	if (slot->other >= 0) {
		call(step, "close the other");
		gave(step, close(slot->other));
		slot->other = -1;
	} else {
		call(step, "dup");
		slot->other = once_in(step, 2)
				  ? dup(slot->fd)
				  : fcntl(slot->fd, F_DUPFD_CLOEXEC, 0);
		gave(step, slot->other < 0 ? -1 : 0);
	}
	calm(step);
}

/* Send the descriptor to ourselves, and have what comes in its place */
static void do_pass(struct step *step)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control_data = {0};
	struct iovec iov = {.iov_base = "", .iov_len = 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control_data,
			     .msg_controllen = sizeof(control_data)};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	struct slot *slot = step->slot;
	int pair[2];
	char byte;

	if (slot->fd < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return;
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &slot->fd, sizeof(int));
	call(step, "pass");
	gave(step, sendmsg(pair[0], &msg, 0));
	close(slot->fd);
	iov.iov_base = &byte;
	recvmsg(pair[1], &msg, 0);
	memcpy(&slot->fd, CMSG_DATA(cmsg), sizeof(int));
	close(pair[0]);
	close(pair[1]);
}

/* Have another program send a byte */
static void do_exec(struct step *step)
{
	struct slot *slot = step->slot;
	char fd[16], at[24];
	int status;
	pid_t child;

	if (step->fd < 0)
		return;
	snprintf(fd, sizeof(fd), "%d", step->fd);
	snprintf(at, sizeof(at), "%ld", slot->sent);
	call(step, "exec");
	child = fork();
	if (!child) {
		fcntl(step->fd, F_SETFD, 0);
		execl("/proc/self/exe", "tsi_random", "send", fd, at, NULL);
		_exit(255);
	}
	waitpid(child, &status, 0);
	errno = WEXITSTATUS(status);
	if (!gave(step, errno ? -1 : 0)) {
		slot->sent++;
		slot->waits++;
	}
	calm(step);
}

/**
 * send_one() - What that program does
 * @fd:		Descriptor
 * @at:		Offset of the byte
 *
 * Returns: its exit status, an errno
 */
int send_one(int fd, long at)
{
	char byte = pattern(at);

	return send(fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? 0 : errno;
}

const struct kind socket_kinds[] = {
    {begin, 3, false},	   {do_close, 3, false}, {do_shutdown, 5, true},
    {do_connect, 5, true}, {do_bind, 2, true},	 {do_listen, 2, true},
    {dial, 6, false},	   {take, 8, false},	 {do_dup, 3, false},
    {do_pass, 2, false},   {do_exec, 1, false},	 {0},
};
