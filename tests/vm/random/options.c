// SPDX-License-Identifier: Apache-2.0
/*
 * options.c - steps: options, names, flags, events
 */

#define _GNU_SOURCE
#include <asm/ioctls.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>

#include "random.h"

#define DRAIN_TRIES 100 /* of 5 ms, for what was sent to arrive */

/**
 * enum value - What an option's value is
 * @INT:	Any of a few numbers
 * @LEVEL:	A number from 1 to 50
 * @TIME:	struct timeval
 * @LINGER:	struct linger
 * @NAME:	Text
 * @READ:	It is only read
 * @SHOWN:	Same, and it differs from run to run
 */
enum value { INT, LEVEL, TIME, LINGER, NAME, READ, SHOWN };

/**
 * struct option - An option
 * @level:	Its level
 * @name:	Its number
 * @value:	What its value is
 * @text:	What it is called
 */
struct option {
	int level, name;
	enum value value;
	const char *text;
};

#define SOL(name, value) {SOL_SOCKET, name, value, #name}
#define TCP(name, value) {IPPROTO_TCP, name, value, #name}
#define IP4(name, value) {IPPROTO_IP, name, value, #name}
#define IP6(name, value) {IPPROTO_IPV6, name, value, #name}

static const struct option options[] = {
    SOL(SO_ERROR, READ),
    SOL(SO_ERROR, READ),
    SOL(SO_ERROR, READ),
    SOL(SO_TYPE, READ),
    SOL(SO_DOMAIN, READ),
    SOL(SO_PROTOCOL, READ),
    SOL(SO_ACCEPTCONN, READ),
    SOL(SO_PEERCRED, SHOWN),
    SOL(SO_COOKIE, SHOWN),
    SOL(SO_REUSEADDR, INT),
    SOL(SO_REUSEPORT, INT),
    SOL(SO_KEEPALIVE, INT),
    SOL(SO_OOBINLINE, INT),
    SOL(SO_BROADCAST, INT),
    SOL(SO_PRIORITY, LEVEL),
    SOL(SO_MARK, INT),
    SOL(SO_RCVLOWAT, LEVEL),
    SOL(SO_SNDLOWAT, INT),
    SOL(SO_RCVTIMEO, TIME),
    SOL(SO_SNDTIMEO, TIME),
    SOL(SO_LINGER, LINGER),
    SOL(SO_TIMESTAMP, INT),
    SOL(SO_PASSCRED, INT),
    SOL(SO_PEEK_OFF, LEVEL),
    SOL(SO_BUSY_POLL, INT),
    SOL(SO_ZEROCOPY, INT),
    SOL(SO_SELECT_ERR_QUEUE, INT),
    SOL(SO_BINDTODEVICE, READ),
    SOL(SO_NO_CHECK, INT),
    SOL(SO_LOCK_FILTER, READ),
    TCP(TCP_NODELAY, READ),
    TCP(TCP_MAXSEG, LEVEL),
    TCP(TCP_CORK, READ),
    TCP(TCP_KEEPIDLE, LEVEL),
    TCP(TCP_KEEPINTVL, LEVEL),
    TCP(TCP_KEEPCNT, LEVEL),
    TCP(TCP_SYNCNT, LEVEL),
    TCP(TCP_LINGER2, LEVEL),
    TCP(TCP_DEFER_ACCEPT, READ),
    TCP(TCP_WINDOW_CLAMP, READ),
    TCP(TCP_QUICKACK, READ),
    TCP(TCP_CONGESTION, NAME),
    TCP(TCP_USER_TIMEOUT, INT),
    TCP(TCP_THIN_LINEAR_TIMEOUTS, INT),
    TCP(TCP_FASTOPEN, READ),
    TCP(TCP_FASTOPEN_CONNECT, READ),
    TCP(TCP_TIMESTAMP, SHOWN),
    TCP(TCP_NOTSENT_LOWAT, READ),
    TCP(TCP_SAVE_SYN, INT),
    TCP(TCP_REPAIR, READ),
    TCP(TCP_INQ, INT),
    TCP(TCP_ULP, NAME),
    IP4(IP_TOS, INT),
    IP4(IP_TTL, LEVEL),
    IP4(IP_HDRINCL, READ),
    IP4(IP_OPTIONS, READ),
    IP4(IP_MTU_DISCOVER, LEVEL),
    IP4(IP_RECVERR, INT),
    IP4(IP_PKTINFO, INT),
    IP4(IP_MTU, READ),
    IP4(IP_FREEBIND, INT),
    IP4(IP_MINTTL, LEVEL),
    IP4(IP_BIND_ADDRESS_NO_PORT, INT),
    IP4(IP_MULTICAST_TTL, INT),
    IP4(IP_MULTICAST_LOOP, INT),
    IP6(IPV6_V6ONLY, INT),
    IP6(IPV6_UNICAST_HOPS, LEVEL),
    IP6(IPV6_TCLASS, INT),
    IP6(IPV6_MTU, READ),
    IP6(IPV6_MTU_DISCOVER, READ),
    IP6(IPV6_RECVPKTINFO, INT),
    IP6(IPV6_ADDRFORM, READ),
    {IPPROTO_UDP, 1, INT, "UDP_CORK"},
    {IPPROTO_TCP, 99, INT, "99 of TCP"},
    {IPPROTO_IP, 99, INT, "99 of IP"},
    {IPPROTO_IPV6, 99, INT, "99 of IPv6"},
    {SOL_SOCKET, 999, INT, "999"},
    {999, 1, INT, "1 of 999"},
};

/* Write down bytes of an option's value */
static void text_of(char *text, size_t size, const unsigned char *value,
		    socklen_t len)
{
	size_t at = 0;

	*text = 0;
	for (socklen_t i = 0; i < len && i < 24 && at < size; i++)
		at += (size_t)snprintf(text + at, size - at, "%02x", value[i]);
}

static void do_get(struct step *step)
{
	static const socklen_t rooms[] = {4, 4, 4, 4, 16, 64, 1, 0, 3};
	const struct option *option = &PICK(step, options);
	unsigned char value[64] = {0};
	socklen_t len = PICK(step, rooms);
	char text[64];
	int ret;

	call(step, "getsockopt, %s of %u", option->text, len);
	ret = getsockopt(step->fd, option->level, option->name, value, &len);
	text_of(text, sizeof(text), value, len);
	if (ret || option->value == SHOWN)
		gave(step, ret);
	else
		gave_more(step, ret, " %u: %s", len, text);
}

static void do_info(struct step *step)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info.tcpi_state);
	int ret;

	call(step, "getsockopt, TCP_INFO");
	ret = getsockopt(step->fd, IPPROTO_TCP, TCP_INFO, &info, &len);
	if (ret)
		gave(step, ret);
	else
		gave_more(step, ret, " %d", info.tcpi_state);
}

static void do_set(struct step *step)
{
	static const int numbers[] = {0, 1, 1, 2, 5, -1, 1000, 1 << 20};
	static const char *const names[] = {"reno", "cubic", "nosuch", ""};
	static const socklen_t wrong[] = {0, 1, 2, 3, 5, 8};
	const struct option *option = &PICK(step, options);
	union {
		int number;
		struct timeval time;
		struct linger linger;
		char name[16];
	} value = {0};
	socklen_t len = sizeof(int);
	const char *detail = "";

	switch (option->value) {
	case INT:
		value.number = PICK(step, numbers);
		break;
	case LEVEL:
		value.number = 1 + (int)below(step, 50);
		break;
	case TIME:
		value.time.tv_usec = 1000 * (long)below(step, 50);
		len = sizeof(value.time);
		break;
	case LINGER:
		value.linger.l_onoff = (int)below(step, 2);
		value.linger.l_linger = (int)below(step, 2);
		len = sizeof(value.linger);
		break;
	case NAME:
		detail = PICK(step, names);
		strcpy(value.name, detail);
		len = (socklen_t)strlen(detail);
		break;
	default:
		return;
	}
	if (once_in(step, 8))
		len = PICK(step, wrong);
	call(step, "setsockopt, %s %d %s of %u", option->text, value.number,
	     detail, len);
	gave(step,
	     setsockopt(step->fd, option->level, option->name, &value, len));
	calm(step);
}

/* ---- names ---- */

static void do_name(struct step *step)
{
	static const socklen_t rooms[] = {128, 128, 16, 28, 8, 2, 0};
	struct sockaddr_storage name = {0};
	const struct sockaddr_in *in = (const void *)&name;
	const struct sockaddr_in6 *in6 = (const void *)&name;
	socklen_t room = PICK(step, rooms), len = room;
	bool peers = once_in(step, 2), some, here;
	int ret;

	call(step, "%s, room of %u", peers ? "getpeername" : "getsockname",
	     room);
	ret = (peers ? getpeername
		     : getsockname)(step->fd, (struct sockaddr *)&name, &len);
	if (ret || room < len) {
		gave_more(step, ret, " %d: %d", ret ? 0 : (int)len,
			  room > 1 ? name.ss_family : 0);
		return;
	}
	if (name.ss_family == AF_INET6) {
		some = !IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
		here = IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
	} else {
		some = in->sin_addr.s_addr;
		here = ntohl(in->sin_addr.s_addr) >> 24 == 127;
	}
	gave_more(step, ret, " %u: %d %s %s", len, name.ss_family,
		  !some	 ? "any"
		  : here ? "loopback"
			 : "some",
		  in->sin_port ? "port" : "0");
}

/* ---- flags ---- */

static void do_fcntl(struct step *step)
{
	int flags = fcntl(step->fd, F_GETFL), on = (int)below(step, 2);

	switch (below(step, 8)) {
	case 0:
		call(step, "fcntl, F_GETFL");
		gave(step, fcntl(step->fd, F_GETFL));
		break;
	case 1:
		call(step, "fcntl, F_GETFD");
		gave(step, fcntl(step->fd, F_GETFD));
		break;
	case 2:
		call(step, "fcntl, F_SETFD %d", on);
		gave(step, fcntl(step->fd, F_SETFD, on ? FD_CLOEXEC : 0));
		break;
	case 3:
		call(step, "fcntl, F_SETOWN");
		gave(step, fcntl(step->fd, F_SETOWN, getpid()));
		break;
	case 4:
		call(step, "ioctl, FIONBIO %d", on);
		gave(step, ioctl(step->fd, FIONBIO, &on));
		break;
	default:
		call(step, "fcntl, O_NONBLOCK %d", on);
		gave(step,
		     fcntl(step->fd, F_SETFL,
			   on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
	}
}

static void do_ioctl(struct step *step)
{
	static const struct {
		unsigned long request;
		const char *text;
	} requests[] = {
	    {FIONREAD, "FIONREAD"},	  {FIONREAD, "FIONREAD"},
	    {SIOCOUTQ, "SIOCOUTQ"},	  {SIOCOUTQNSD, "SIOCOUTQNSD"},
	    {SIOCATMARK, "SIOCATMARK"},	  {SIOCGSTAMP_OLD, "SIOCGSTAMP"},
	    {TIOCGWINSZ, "TIOCGWINSZ"},	  {SIOCGPGRP, "SIOCGPGRP"},
	    {SIOCPROTOPRIVATE, "private"}};
	unsigned which = below(step, COUNT(requests));
	int value = -1, ret = 0;

	for (int i = 0; i < DRAIN_TRIES; i++) {
		call(step, "ioctl, %s", requests[which].text);
		ret = ioctl(step->fd, requests[which].request, &value);
		if (ret || requests[which].request != SIOCOUTQ || !value)
			break;
		pause_ms(5);
	}
	if (ret || requests[which].request == SIOCGPGRP)
		gave(step, ret);
	else
		gave_more(step, ret, " %d", value);
}

/* ---- events ---- */

static void do_poll(struct step *step)
{
	static const short events[] = {
	    POLLIN,	POLLOUT, POLLIN | POLLOUT,
	    POLLRDHUP,	POLLPRI, POLLRDNORM | POLLWRNORM,
	    POLLRDBAND, 0};
	struct pollfd state = {.fd = step->fd};
	int ret;

	state.events = once_in(step, 3)
			   ? PICK(step, events)
			   : POLLIN | POLLPRI | POLLOUT | POLLRDHUP;
	call(step, "poll, 0x%x", (unsigned)state.events);
	ret = poll(&state, 1, 0);
	gave_more(step, ret, " 0x%x", (unsigned)state.revents);
}

static void do_epoll(struct step *step)
{
	static const uint32_t events[] = {EPOLLIN,
					  EPOLLIN | EPOLLOUT,
					  EPOLLIN | EPOLLOUT | EPOLLRDHUP,
					  EPOLLIN | EPOLLOUT | EPOLLONESHOT,
					  EPOLLRDHUP,
					  0};
	static const int changes[] = {EPOLL_CTL_ADD, EPOLL_CTL_MOD,
				      EPOLL_CTL_DEL};
	struct slot *slot = step->slot;
	struct epoll_event event = {.events = PICK(step, events)};
	int change = PICK(step, changes), ret;

	if (slot->epoll < 0) {
		slot->epoll = epoll_create1(EPOLL_CLOEXEC);
		change = EPOLL_CTL_ADD;
	}
	if (once_in(step, 3)) {
		call(step, "epoll_ctl, %d 0x%x", change, event.events);
		gave(step, epoll_ctl(slot->epoll, change, step->fd, &event));
	}
	call(step, "epoll_wait");
	event.events = 0;
	ret = epoll_wait(slot->epoll, &event, 1, 0);
	gave_more(step, ret, " 0x%x", event.events);
}

const struct kind option_kinds[] = {
    {do_get, 8, true},	 {do_set, 8, true},    {do_info, 3, true},
    {do_name, 4, true},	 {do_fcntl, 6, true},  {do_ioctl, 6, true},
    {do_poll, 12, true}, {do_epoll, 4, false}, {0},
};
