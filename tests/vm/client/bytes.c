// SPDX-License-Identifier: Apache-2.0
/*
 * bytes.c - checks: bytes
 */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"

#define BULK_BYTES (1 << 20) /* of the check that moves many */

static void fionread(void)
{
	int fd = echo_socket(), len = -1;
	char buf[8];

	want(ioctl(fd, FIONREAD, &len) == 0 && len == 0);
	want(write(fd, "12345", 5) == 5);
	want(recv(fd, buf, 5, MSG_PEEK | MSG_WAITALL) > 0);
	while (len < 5)
		want(ioctl(fd, FIONREAD, &len) == 0);
	want(len == 5);
	want(recv(fd, buf, 5, MSG_WAITALL) == 5);
}

static void half_close(void)
{
	int fd = echo_socket();
	char buf[8];

	want(write(fd, "12345", 5) == 5);
	want(shutdown(fd, SHUT_WR) == 0);
	want(recv(fd, buf, 5, MSG_WAITALL) == 5);
	want(read(fd, buf, sizeof(buf)) == 0);
	signal(SIGPIPE, SIG_IGN);
	want_errno(write(fd, "x", 1), EPIPE);
}

static void *sender(void *arg)
{
	static char buf[BULK_BYTES];
	int fd = *(int *)arg;
	size_t done = 0;

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 7 >> 3);
	while (done < sizeof(buf)) {
		ssize_t len = write(fd, buf + done, sizeof(buf) - done);

		want(len > 0);
		done += (size_t)len;
	}
	return NULL;
}

static void bulk(void)
{
	static char buf[BULK_BYTES];
	int fd = echo_socket();
	size_t done = BULK_BYTES / 2;
	pthread_t id;

	want(!pthread_create(&id, NULL, sender, &fd));
	want(recv(fd, buf, done, MSG_WAITALL) == (ssize_t)done);
	while (done < sizeof(buf)) {
		ssize_t len = read(fd, buf + done, sizeof(buf) - done);

		want(len > 0);
		done += (size_t)len;
	}
	want(!pthread_join(id, NULL));
	for (size_t i = 0; i < sizeof(buf); i++)
		want(buf[i] == (char)(i * 7 >> 3));
}

const struct check byte_checks[] = {
    CHECK(fionread),
    CHECK(half_close),
    CHECK(bulk),
    {0},
};
