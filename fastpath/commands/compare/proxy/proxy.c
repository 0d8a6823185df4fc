// SPDX-License-Identifier: Apache-2.0
/*
 * proxy.c - the other proxy, in a comparison of hand-offs
 *
 * Theory of operation
 * ===================
 *
 *	proxy READY_FD NEAR VIP SERVER \
 *		plain|redirect|unix|socks5|ring|vsock|sidecar [PATH]
 *
 * Takes connections as hand-offs give them, and does the least that a proxy
 * does: a connection to NEAR it answers itself (port 7 echo, 9 discard, 19
 * chargen), as ztunnel answers its echo address; any other it makes by TCP,
 * and copies both ways. VIP is a service whose one endpoint is SERVER.
 * "plain" is no proxy but the server that NEAR is. "vsock" has no addresses,
 * but ports: those three are its own, and SERVER_PORT is SERVER's.
 *
 * It listens on PATH (unix, ring), on PATH_PORT for each port (vsock), on
 * port 15001 (redirect, as Istio's in-pod rules have it, and sidecar), on
 * 127.0.0.1:15080 (socks5, as Istio's ztunnel does) or on NEAR itself, says so
 * by a line on READY_FD, and serves until a signal.
 *
 * One thread. A connection has at most two flows, each from one end to
 * another, to nobody, or from nobody. What an end does not take is kept until
 * it does; nothing else of the flow is read meanwhile.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "flow.h"
#include "hear.h"

#define EVENTS	     64
#define BACKLOG	     4096
#define PROXY_MARK   0x539 /* what Istio's rules let pass: the proxy's own */
#define REDIRECT_TO  15001
#define SIDECAR_USER 1337 /* and its group: the same of a sidecar's own */
#define SOCKS5_AT    15080
#define ECHO_PORT    7
#define DISCARD_PORT 9
#define CHARGEN_PORT 19

/**
 * struct conn - A connection
 * @near:	Who handed it over
 * @far:	Where it goes, if that is elsewhere
 * @heard:	What came before its bytes was there
 * @dialing:	@far does not answer yet
 * @flow:	Its flows
 * @n_flows:	How many
 * @over:	To be freed
 * @next:	Of those that are to be freed
 */
struct conn {
	struct end near;
	struct end far;
	bool heard;
	bool dialing;
	struct flow flow[2];
	unsigned n_flows;
	bool over;
	struct conn *next;
};

static enum kind kind;
static struct in_addr near_ip, vip, server;
static int epoll_fd;
static struct conn *over;

/**
 * fail() - Say which call failed and end
 * @what:	Its name
 */
__attribute__((noreturn)) static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/**
 * rests() - Ask rings to wake us for what the flows wait for
 * @c:		Connection
 *
 * Returns: false if there is something to do already
 */
static bool rests(struct conn *c)
{
	unsigned want = 0;

	if (!c->near.ring)
		return true;
	for (unsigned i = 0; i < c->n_flows; i++) {
		const struct flow *f = &c->flow[i];

		if (f->to == &c->near && (f->kept || !f->from))
			want |= FPRING_WRITE;
		else if (f->from == &c->near && !f->kept && !f->ended)
			want |= FPRING_READ;
	}
	return c->near.link.gone || fpring_rest(&c->near.link, want);
}

/**
 * pump() - Move all bytes that can be moved
 * @c:		Connection
 *
 * Returns: false when it is over
 */
static bool pump(struct conn *c)
{
	unsigned open = 0;
	int moved, n;

	do {
		moved = 0;
		for (unsigned i = 0; i < c->n_flows; i++) {
			n = flow_step(&c->flow[i]);
			if (n < 0)
				return false;
			moved |= n;
		}
	} while (moved || !rests(c));
	for (unsigned i = 0; i < c->n_flows; i++)
		open += c->flow[i].from && !c->flow[i].ended;
	return open;
}

/**
 * settle() - Begin with a connection's bytes, or say that there is none
 * @c:		Connection
 * @error:	0 or errno
 *
 * Returns: false when it is over
 */
static bool settle(struct conn *c, int error)
{
	c->dialing = false;
	return !answer(kind, &c->near, error) && !error && pump(c);
}

/**
 * dial() - Connect to where a connection goes
 * @c:		Connection
 * @to:		That
 *
 * Returns: false when it is over
 */
static bool dial(struct conn *c, struct sockaddr_in *to)
{
	const int one = 1, mark = PROXY_MARK;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (to->sin_addr.s_addr == vip.s_addr)
		to->sin_addr = server;
	c->far.fd = fd;
	c->flow[0] = (struct flow){.from = &c->near, .to = &c->far};
	c->flow[1] = (struct flow){.from = &c->far, .to = &c->near};
	c->n_flows = 2;
	if (fd < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    (kind == REDIRECT &&
	     setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark))))
		return settle(c, errno);
	if (connect(fd, (struct sockaddr *)to, sizeof(*to)) &&
	    errno != EINPROGRESS)
		return settle(c, errno);
	c->dialing = true;
	return !end_watch(&c->far, epoll_fd, true);
}

/**
 * dialed() - What has become of a dial?
 * @c:		Connection
 * @events:	What epoll says of its far end
 *
 * Returns: false when it is over
 */
static bool dialed(struct conn *c, uint32_t events)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
		return true;
	if (getsockopt(c->far.fd, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	return settle(c, error);
}

/**
 * begin() - Hear where a connection goes, and have it go there
 * @c:		Connection
 *
 * Returns: false when it is over
 */
static bool begin(struct conn *c)
{
	struct sockaddr_in to;
	int err = hear(kind, &c->near, &to);

	if (err)
		return err == -EAGAIN;
	c->heard = true;
	if (kind == VSOCK)
		to.sin_addr = to.sin_port == htons(SERVER_PORT) ? vip : near_ip;
	if (to.sin_addr.s_addr != near_ip.s_addr)
		return dial(c, &to);
	switch (ntohs(to.sin_port)) {
	case ECHO_PORT:
		c->flow[0] = (struct flow){.from = &c->near, .to = &c->near};
		c->n_flows = 1;
		return settle(c, 0);
	case CHARGEN_PORT:
		c->flow[1] = (struct flow){.to = &c->near};
		/* fall through */
	case DISCARD_PORT:
		c->flow[0] =
		    (struct flow){.from = &c->near, .marked = kind == VSOCK};
		c->n_flows = c->flow[1].to ? 2 : 1;
		return settle(c, 0);
	default:
		return settle(c, ECONNREFUSED);
	}
}

/**
 * drop() - End a connection; others of this turn may still name it
 * @c:		Connection
 */
static void drop(struct conn *c)
{
	end_close(&c->near);
	end_close(&c->far);
	for (unsigned i = 0; i < c->n_flows; i++)
		free(c->flow[i].kept);
	c->over = true;
	c->next = over;
	over = c;
}

/**
 * take_in() - Take a connection from a listener
 * @listener:	Its socket
 */
static void take_in(int listener)
{
	const int one = 1;
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	struct conn *c;

	if (fd < 0) {
		if (errno != EAGAIN && errno != ECONNABORTED)
			fail("accept4");
		return;
	}
	c = calloc(1, sizeof(*c));
	if (!c)
		fail("calloc");
	c->near = (struct end){.conn = c, .fd = fd, .readable = true};
	c->far = (struct end){.conn = c, .fd = -1};
	if (kind != HEADER && kind != RING && kind != VSOCK)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (end_watch(&c->near, epoll_fd, false) || !begin(c))
		drop(c);
}

/**
 * turn() - Serve an end that epoll tells of
 * @e:		End
 * @events:	EPOLL bits
 */
static void turn(struct end *e, uint32_t events)
{
	struct conn *c = e->conn;
	bool goes_on;

	if (!c) {
		take_in(e->fd);
		return;
	}
	if (c->over)
		return;
	end_told(e, events);
	if (!c->heard)
		goes_on = begin(c);
	else if (c->dialing)
		goes_on = e != &c->far || dialed(c, events);
	else
		goes_on = pump(c);
	if (!goes_on)
		drop(c);
}

/**
 * listens() - Listen on a socket
 * @fd:		Socket
 * @addr:	Where
 * @len:	Its length
 */
static void listens(int fd, const void *addr, size_t len)
{
	struct end *e = calloc(1, sizeof(*e));
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = e};
	const int one = 1;

	if (!e || fd < 0)
		fail("socket");
	e->fd = fd;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, addr, (socklen_t)len) || listen(fd, BACKLOG))
		fail("bind");
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev))
		fail("epoll_ctl");
}

static void listen_unix(const char *path)
{
	const int type = kind == RING ? SOCK_SEQPACKET : SOCK_STREAM;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	unlink(path); /* of one before us, who was ended */
	strncpy(addr.sun_path, path, sizeof(addr.sun_path) - 1);
	listens(socket(AF_UNIX, type | SOCK_NONBLOCK, 0), &addr, sizeof(addr));
}

static void listen_tcp(struct in_addr ip, uint16_t port)
{
	const struct sockaddr_in addr = {
	    .sin_family = AF_INET, .sin_addr = ip, .sin_port = htons(port)};

	listens(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), &addr,
		sizeof(addr));
}

static void start(const char *path)
{
	static const uint16_t ports[] = {ECHO_PORT, DISCARD_PORT, CHARGEN_PORT,
					 SERVER_PORT};
	char own[sizeof(((struct sockaddr_un *)0)->sun_path)];

	switch (kind) {
	case HEADER:
	case RING:
		listen_unix(path);
		break;
	case SIDECAR:
		if (setgid(SIDECAR_USER) || setuid(SIDECAR_USER))
			fail("setuid");
		/* fall through */
	case REDIRECT:
		listen_tcp((struct in_addr){INADDR_ANY}, REDIRECT_TO);
		break;
	case SOCKS5:
		listen_tcp((struct in_addr){htonl(INADDR_LOOPBACK)}, SOCKS5_AT);
		break;
	case VSOCK:
		for (unsigned i = 0; i < 4; i++) {
			snprintf(own, sizeof(own), "%s_%u", path, ports[i]);
			listen_unix(own);
		}
		break;
	case PLAIN:
	default:
		for (unsigned i = 0; i < 3; i++)
			listen_tcp(near_ip, ports[i]);
	}
}

int main(int argc, char **argv)
{
	static const char *const kinds[] = {
	    "plain", "redirect", "unix", "socks5", "ring", "vsock", "sidecar"};
	struct epoll_event events[EVENTS];

	epoll_fd = epoll_create1(0);
	while (argc > 5 && kind <= SIDECAR && strcmp(argv[5], kinds[kind]))
		kind++;
	if (argc < 6 || kind > SIDECAR || !inet_aton(argv[2], &near_ip) ||
	    !inet_aton(argv[3], &vip) || !inet_aton(argv[4], &server) ||
	    ((kind == HEADER || kind == RING || kind == VSOCK) && argc < 7)) {
		fputs("usage: proxy READY_FD NEAR VIP SERVER KIND [PATH]\n",
		      stderr);
		return 2;
	}
	start(argv[6]);
	if (write(atoi(argv[1]), "\n", 1) != 1 || close(atoi(argv[1])))
		fail("READY_FD");
	for (;;) {
		int n = epoll_wait(epoll_fd, events, EVENTS, -1);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++)
			turn(events[i].data.ptr, events[i].events);
		while (over) {
			struct conn *c = over;

			over = c->next;
			free(c);
		}
	}
}
