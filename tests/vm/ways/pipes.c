// SPDX-License-Identifier: Apache-2.0
/*
 * pipes.c - splice(), tee(), vmsplice(), sendfile(); MSG_ZEROCOPY
 */

#define _GNU_SOURCE
#include <poll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#include <linux/errqueue.h>

#include "ways.h"

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif

#define SIZE 100000

static char out[SIZE], in[SIZE];

static void fill(void)
{
	for (int i = 0; i < SIZE; i++)
		out[i] = (char)(i * 7);
}

static void expect(int fd, size_t len)
{
	memset(in, 0, len);
	want(recv(fd, in, len, MSG_WAITALL) == (ssize_t)len);
	want(!memcmp(in, out, len));
}

static void memory_is_spliced_there_and_back(void)
{
	struct iovec iov = {out, 4096};
	int fd = connected(), to[2], from[2];

	fill();
	want(pipe(to) == 0 && pipe(from) == 0);
	want(vmsplice(to[1], &iov, 1, 0) == 4096);
	want(tee(to[0], from[1], 4096, 0) == 4096);
	want(read(from[0], in, 4096) == 4096);
	want(splice(to[0], NULL, fd, NULL, 4096, 0) == 4096);
	for (ssize_t got = 0, more; got < 4096; got += more) {
		more = splice(fd, NULL, from[1], NULL, 4096 - (size_t)got, 0);
		want(more > 0);
	}
	want(read(from[0], in, 4096) == 4096);
	want(!memcmp(in, out, 4096));
}

static void a_file_is_sent(void)
{
	int fd = connected(), file = memfd_create("file", 0);
	off_t at = 0;

	fill();
	want(write(file, out, SIZE) == SIZE);
	while (at < SIZE)
		want(sendfile(fd, file, &at, (size_t)(SIZE - at)) > 0);
	expect(fd, SIZE);
}

static void a_socket_is_sent_to_another_one(void)
{
	int from = connected(), to = connected(), pipes[2];

	fill();
	want(pipe(pipes) == 0);
	want(send(from, out, 4096, 0) == 4096);
	for (ssize_t got = 0, more; got < 4096; got += more) {
		more = splice(from, NULL, pipes[1], NULL, 4096, 0);
		want(more > 0);
		want(splice(pipes[0], NULL, to, NULL, (size_t)more, 0) == more);
	}
	expect(to, 4096);
}

static void zero_copy_tells_of_its_end(void)
{
	char space[128];
	struct msghdr msg = {.msg_control = space,
			     .msg_controllen = sizeof(space)};
	struct pollfd ready = {0};
	const struct sock_extended_err *told;
	int on = 1;

	fill();
	ready.fd = connected();
	if (setsockopt(ready.fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)))
		return; /* a kernel may have none */
	for (uint32_t i = 0; i < 3; i++) {
		want(send(ready.fd, out, 4096, MSG_ZEROCOPY) == 4096);
		expect(ready.fd, 4096);
		ready.events = 0;
		want(poll(&ready, 1, -1) == 1 && ready.revents == POLLERR);
		msg.msg_controllen = sizeof(space);
		want(recvmsg(ready.fd, &msg, MSG_ERRQUEUE) == 0);
		told = (void *)CMSG_DATA(CMSG_FIRSTHDR(&msg));
		want(told->ee_origin == SO_EE_ORIGIN_ZEROCOPY);
		want(told->ee_errno == 0);
		want(told->ee_info == i && told->ee_data == i);
	}
	want_errno(recvmsg(ready.fd, &msg, MSG_ERRQUEUE), EAGAIN);
	exchange(ready.fd);
}

const struct check pipes[] = {
    CHECK(memory_is_spliced_there_and_back),
    CHECK(a_file_is_sent),
    CHECK(a_socket_is_sent_to_another_one),
    CHECK(zero_copy_tells_of_its_end),
    {0},
};
