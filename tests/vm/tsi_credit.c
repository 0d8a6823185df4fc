// SPDX-License-Identifier: Apache-2.0
/*
 * tsi_credit.c - what connections hold that nobody reads
 *
 *	tsi_credit IPV4 SOURCE BACK [CHECK]...
 *
 * At IPV4, port SOURCE sends without an end. To port BACK a port of ours is
 * sent; its peer connects there, and sends without an end once it has a byte.
 */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "checks.h"

#define LISTEN 7201
#define MANY   400
#define FULL   (200 << 10) /* of vsock's 256 KiB, less what packets take */
#define SMALL  (32 << 10)

static const char *host;
static int source, back;

static struct sockaddr_in at(const char *address, int port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, address, &sa.sin_addr);
	return sa;
}

static int to(int port)
{
	struct sockaddr_in sa = at(host, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	want(fd >= 0);
	want(connect(fd, (void *)&sa, sizeof(sa)) == 0);
	return fd;
}

static int held(int fd)
{
	int bytes;

	want(ioctl(fd, FIONREAD, &bytes) == 0);
	return bytes;
}

static void await_held(int fd, int bytes)
{
	while (held(fd) < bytes)
		usleep(10000);
}

/* ---- checks ---- */

static void many_share(void)
{
	struct rlimit files = {MANY + 64, MANY + 64};
	int fds[MANY];

	want(setrlimit(RLIMIT_NOFILE, &files) == 0);
	for (int i = 0; i < MANY; i++)
		fds[i] = to(source);
	await_held(fds[0], FULL);
	for (int i = 0; i < MANY; i++)
		await_held(fds[i], SMALL / 4);
	want(held(fds[MANY - 1]) <= SMALL);
}

/* By agents, once those before have ended, too: the kernel takes its time */
static void one_has_much(void)
{
	int fd = to(source);

	for (int looks = 1; held(fd) < FULL; looks++) {
		usleep(10000);
		if (looks % 100 == 0) {
			close(fd);
			fd = to(source);
		}
	}
}

static void an_accepted_one_has_it_with_its_first_byte(void)
{
	struct sockaddr_in sa = at("0.0.0.0", LISTEN);
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd, one = 1;
	socklen_t len = sizeof(sa); /* agents see who asks for the address */

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	want(bind(listener, (void *)&sa, sizeof(sa)) == 0);
	want(listen(listener, 1) == 0);
	want(dprintf(to(back), "%d\n", LISTEN) > 0);
	fd = accept(listener, (void *)&sa, &len);
	want(fd >= 0);
	want(write(fd, "!", 1) == 1);
	await_held(fd, FULL / 2); /* by agents the one before left just FULL */
}

static const struct check checks[] = {
    SANDBOX(many_share),
    SANDBOX(one_has_much),
    SANDBOX(an_accepted_one_has_it_with_its_first_byte),
    {0},
};

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	host = argv[1];
	source = atoi(argv[2]);
	back = atoi(argv[3]);
	run_checks(checks, argv + 4);
	return sum_up();
}
