// SPDX-License-Identifier: Apache-2.0
/*
 * held.c - what many open descriptors cost
 *
 *	held memory ADDRESS PORT COUNT SECONDS
 *	held loopback FDS COUNT
 *
 * The first opens COUNT connections to ADDRESS, IPv4, or "vsock" for the host,
 * reads nothing, and says SECONDS later how many KiB less memory is available,
 * and how many less are free: the former counts inodes as memory that can be
 * had. The second has FDS descriptors open while it binds sockets to 127.0.0.1
 * and connects them to a listener there; it prints a line of samples for each
 * of the two calls, in ns.
 */

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define SPARE	  64 /* descriptors besides */
#define MAX_COUNT 10000

static uint64_t samples[2][MAX_COUNT];

/**
 * fail() - Say which call failed and end
 * @what:	Call
 */
static void __attribute__((noreturn)) fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/**
 * struct memory - What there is of it, KiB
 */
struct memory {
	long available;
	long free;
};

/**
 * memory() - Measure it, once caches are dropped
 *
 * Returns: it
 */
static struct memory memory(void)
{
	FILE *f = fopen("/proc/sys/vm/drop_caches", "we");
	struct memory there = {-1, -1};
	char line[128];

	if (!f || fputs("3\n", f) < 0 || fclose(f))
		fail("/proc/sys/vm/drop_caches");
	f = fopen("/proc/meminfo", "re");
	while (f && fgets(line, sizeof(line), f)) {
		sscanf(line, "MemAvailable: %ld", &there.available);
		sscanf(line, "MemFree: %ld", &there.free);
	}
	if (!f || there.available < 0 || there.free < 0)
		fail("/proc/meminfo");
	fclose(f);
	return there;
}

/**
 * room() - Have room for descriptors
 * @count:	How many
 */
static void room(rlim_t count)
{
	struct rlimit limit = {count + SPARE, count + SPARE};

	if (setrlimit(RLIMIT_NOFILE, &limit))
		fail("setrlimit");
}

/**
 * hold() - Say what connections take
 * @name:	IPv4 address, or "vsock"
 * @port:	Port
 * @count:	How many
 * @seconds:	How long to wait
 */
static void hold(const char *name, unsigned port, long count, unsigned seconds)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};
	struct sockaddr_vm vm = {.svm_family = AF_VSOCK,
				 .svm_cid = VMADDR_CID_HOST,
				 .svm_port = port};
	int raw = inet_pton(AF_INET, name, &in.sin_addr) != 1;
	const struct sockaddr *to = raw ? (void *)&vm : (void *)&in;
	socklen_t len = raw ? sizeof(vm) : sizeof(in);
	struct memory before, after;

	room((rlim_t)count);
	before = memory();
	for (long i = 0; i < count; i++) {
		int fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0 || connect(fd, to, len))
			fail("connect");
	}
	sleep(seconds);
	after = memory();
	printf("%ld %ld\n", before.available - after.available,
	       before.free - after.free);
}

/**
 * loopback() - Time calls that stay in the guest
 * @fds:	Descriptors that are open
 * @count:	How often
 */
static void loopback(long fds, long count)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t len = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	room((rlim_t)fds);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (listener < 0 || bind(listener, (void *)&at, sizeof(at)) ||
	    listen(listener, SOMAXCONN) ||
	    getsockname(listener, (void *)&at, &len))
		fail("listen");
	for (long i = 0; i < fds; i++)
		if (dup(STDERR_FILENO) < 0)
			fail("dup");
	for (long i = 0; i < count; i++) {
		struct sockaddr_in own = {.sin_family = AF_INET,
					  .sin_addr = at.sin_addr};
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		uint64_t before = now_ns(), bound;
		int there;

		if (fd < 0 || bind(fd, (void *)&own, sizeof(own)))
			fail("bind");
		bound = now_ns();
		if (connect(fd, (void *)&at, sizeof(at)))
			fail("connect");
		samples[1][i] = now_ns() - bound;
		samples[0][i] = bound - before;
		there = accept(listener, NULL, NULL);
		close(fd);
		close(there);
	}
	for (int call = 0; call < 2; call++) {
		for (long i = 0; i < count; i++)
			printf("%" PRIu64 " ", samples[call][i]);
		puts("");
	}
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "memory")) {
		hold(argv[2], (unsigned)strtoul(argv[3], NULL, 10),
		     strtol(argv[4], NULL, 10),
		     (unsigned)strtoul(argv[5], NULL, 10));
		return 0;
	}
	if (argc == 4 && !strcmp(argv[1], "loopback")) {
		long count = strtol(argv[3], NULL, 10);

		if (count < 1 || count > MAX_COUNT)
			return 2;
		loopback(strtol(argv[2], NULL, 10), count);
		return 0;
	}
	return 2;
}
