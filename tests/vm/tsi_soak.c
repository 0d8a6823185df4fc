// SPDX-License-Identifier: Apache-2.0
/*
 * tsi_soak.c - many short connections, and what is left of them in the guest
 *
 *	tsi_soak ROUNDS COUNT IN_FLIGHT ADDRESS:PORT...
 *
 * Theory of operation
 * ===================
 *
 * A round is COUNT connections to the destinations in turn, each one at a time
 * doing this: connect() that doesn't wait, a byte to an echo and back, close().
 * IN_FLIGHT of them are under way at any moment. The result of a round is one
 * line:
 *
 *	done FAILED ERRNO OWN_FDS AGENT_FDS AGENT_RSS KERNEL KERNEL_SOCKS
 *
 * ERRNO is that of the last failure, RSS in KiB, without the program's
 * file, whose pages count once they are run; agents are all processes that are
 * called tsi-agent. KERNEL is what the kernel has allocated and can't take
 * back, KiB; KERNEL_SOCKS, how many vsock sockets are among it. The figures are
 * taken once the agents have let go of what the kernel tells them late, or
 * after SETTLE_S, and once the kernel has let go of sockets: it keeps one until
 * the time for its connect() is over, long though it has been closed. The next
 * round begins when a line is read from stdin, so that whoever measures the
 * host can do it in between.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_IN_FLIGHT 1024
#define MAX_PEERS     8
#define STALL_MS      120000 /* longest wait for any connection to go on */
#define SETTLE_S      10
#define TIMERS_S      60  /* more than a connect() may take */
#define OWN_SOCKS     128 /* more than there are without programs */

/* One connection's socket: connecting, or waiting for its byte */
struct conn {
	int fd;
	bool connected;
};

static struct sockaddr_in peers[MAX_PEERS];
static unsigned n_peers;
static unsigned long failed;
static int last_error;

/**
 * die() - Say what can't be, and end
 * @what:	What
 */
static void __attribute__((noreturn)) die(const char *what)
{
	perror(what);
	exit(2);
}

/**
 * begin() - Start a connection
 * @epoll:	epoll descriptor
 * @c:		Where it goes
 * @peer:	To whom
 *
 * Returns: whether it is under way; otherwise the failure is counted
 */
static bool begin(int epoll, struct conn *c, const struct sockaddr_in *peer)
{
	struct epoll_event ev = {.events = EPOLLOUT, .data.ptr = c};

	c->connected = false;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		die("socket");
	if (!connect(c->fd, (const struct sockaddr *)peer, sizeof(*peer)) ||
	    errno == EINPROGRESS) {
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &ev))
			die("epoll_ctl");
		return true;
	}
	failed++;
	last_error = errno;
	close(c->fd);
	return false;
}

/**
 * go_on() - Take a connection one step further
 * @epoll:	epoll descriptor
 * @c:		Connection that epoll named
 *
 * Returns: whether it has ended, well or not
 */
static bool go_on(int epoll, struct conn *c)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
	socklen_t len = sizeof(int);
	int error = 0;
	char byte = 'x';

	if (!c->connected) {
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
		if (!error && write(c->fd, &byte, 1) == 1) {
			c->connected = true;
			if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &ev))
				die("epoll_ctl");
			return false;
		}
		error = error ? error : errno;
	} else {
		ssize_t n = read(c->fd, &byte, 1);

		error = n < 0 ? errno : n == 1 && byte == 'x' ? 0 : EPROTO;
	}
	if (error) {
		failed++;
		last_error = error;
	}
	close(c->fd);
	return true;
}

/**
 * play() - Make one round's connections
 * @count:	How many
 * @in_flight:	How many at a time
 */
static void play(unsigned long count, unsigned in_flight)
{
	static struct conn conns[MAX_IN_FLIGHT];
	struct epoll_event events[64];
	unsigned long begun = 0, ended = 0;
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	unsigned n_free = in_flight;
	struct conn *idle[MAX_IN_FLIGHT];

	if (epoll < 0)
		die("epoll_create1");
	for (unsigned i = 0; i < in_flight; i++)
		idle[i] = &conns[i];
	while (ended < count) {
		int n;

		for (; n_free && begun < count; begun++) {
			struct conn *c = idle[n_free - 1];

			if (begin(epoll, c, &peers[begun % n_peers]))
				n_free--;
			else
				ended++;
		}
		if (n_free == in_flight)
			continue;
		n = epoll_wait(epoll, events, 64, STALL_MS);
		if (n <= 0)
			die("no connection goes on");
		for (int i = 0; i < n; i++) {
			if (go_on(epoll, events[i].data.ptr)) {
				idle[n_free++] = events[i].data.ptr;
				ended++;
			}
		}
	}
	close(epoll);
}

/**
 * count_fds() - Count a process's descriptors
 * @pid:	Its id, or "self"
 *
 * Returns: how many there are
 */
static unsigned count_fds(const char *pid)
{
	char path[300];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	dir = opendir(path);
	if (!dir)
		return 0;
	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 2; /* . and .. */
}

/**
 * field() - Read a line of /proc/PID/status
 * @pid:	Process
 * @name:	Start of the line
 * @ret:	What follows, 31 bytes at most
 *
 * Returns: whether there is such a line
 */
static bool field(const char *pid, const char *name, char ret[32])
{
	char path[300], line[128];
	bool found = false;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%s/status", pid);
	file = fopen(path, "re");
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, strlen(name)))
			found = sscanf(line + strlen(name), "%31s", ret) == 1;
	}
	fclose(file);
	return found;
}

/**
 * agents() - Measure all agents
 * @ret_fds:	Their descriptors
 * @ret_rss:	Their own resident memory, KiB
 */
static void agents(unsigned *ret_fds, unsigned long *ret_rss)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	char text[32];

	*ret_fds = 0;
	*ret_rss = 0;
	while (dir && (entry = readdir(dir))) {
		if (!field(entry->d_name, "Name:", text) ||
		    strcmp(text, "tsi-agent") != 0)
			continue;
		*ret_fds += count_fds(entry->d_name);
		if (field(entry->d_name, "RssAnon:", text))
			*ret_rss += strtoul(text, NULL, 10);
	}
	if (dir)
		closedir(dir);
}

/**
 * kernel_socks() - Count the kernel's vsock sockets, closed or not
 *
 * Returns: how many, to a slab of each CPU's
 */
static unsigned long kernel_socks(void)
{
	FILE *file = fopen("/proc/slabinfo", "re");
	unsigned long socks = 0;
	char line[256];

	if (!file)
		die("/proc/slabinfo");
	while (!socks && fgets(line, sizeof(line), file))
		sscanf(line, "AF_VSOCK %lu", &socks);
	fclose(file);
	return socks;
}

/**
 * kernel_kib() - Measure the kernel's objects
 *
 * Returns: KiB
 */
static unsigned long kernel_kib(void)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long kib = 0;
	char line[128];

	while (file && !kib && fgets(line, sizeof(line), file))
		sscanf(line, "SUnreclaim: %lu", &kib);
	if (file)
		fclose(file);
	return kib;
}

/**
 * report() - Print a round's line
 *
 * The agents' descriptors are looked at until they stay the same for a moment,
 * and the kernel's sockets until they are few.
 */
static void report(void)
{
	struct timespec pause = {.tv_nsec = 100 * 1000 * 1000};
	unsigned fds, before;
	unsigned long rss;

	agents(&before, &rss);
	for (int i = 0; i < 10 * SETTLE_S; i++) {
		nanosleep(&pause, NULL);
		agents(&fds, &rss);
		if (i >= 10 && fds >= before)
			break;
		before = fds;
	}
	for (int i = 0; i < 10 * TIMERS_S && kernel_socks() > OWN_SOCKS; i++)
		nanosleep(&pause, NULL);
	printf("done %lu %d %u %u %lu %lu %lu\n", failed, last_error,
	       count_fds("self") - 1, fds, rss, kernel_kib(), kernel_socks());
	fflush(stdout);
}

/**
 * main() - Play the rounds
 * @argc:	Number of arguments
 * @argv:	See above
 *
 * Returns: 0, or 2 if it could not be done
 */
int main(int argc, char **argv)
{
	unsigned long rounds, count;
	unsigned in_flight;
	char line[16];

	if (argc < 5 || argc - 4 > MAX_PEERS)
		die("usage: tsi_soak ROUNDS COUNT IN_FLIGHT ADDRESS:PORT...");
	rounds = strtoul(argv[1], NULL, 10);
	count = strtoul(argv[2], NULL, 10);
	in_flight = (unsigned)strtoul(argv[3], NULL, 10);
	if (!in_flight || in_flight > MAX_IN_FLIGHT)
		die("IN_FLIGHT");
	for (int i = 4; i < argc; i++) {
		char *colon = strrchr(argv[i], ':');

		if (!colon)
			die(argv[i]);
		*colon = '\0';
		peers[n_peers].sin_family = AF_INET;
		peers[n_peers].sin_port = htons((uint16_t)atoi(colon + 1));
		if (!inet_aton(argv[i], &peers[n_peers].sin_addr))
			die(argv[i]);
		n_peers++;
	}
	for (unsigned long round = 0; round < rounds; round++) {
		if (round && !fgets(line, sizeof(line), stdin))
			die("stdin");
		play(count, in_flight);
		report();
	}
	return 0;
}
