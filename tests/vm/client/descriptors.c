// SPDX-License-Identifier: Apache-2.0
/*
 * descriptors.c - checks: processes and descriptors
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"

static void *thread_main(void *arg)
{
	(void)arg;
	for (int i = 0; i < 10; i++) {
		int fd = echo_socket();

		want_echo(fd);
		close(fd);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t ids[8];

	for (int i = 0; i < 8; i++)
		want(!pthread_create(&ids[i], NULL, thread_main, NULL));
	for (int i = 0; i < 8; i++)
		want(!pthread_join(ids[i], NULL));
}

static void fork_after_connect(void)
{
	int fd = echo_socket(), status;

	if (fork() == 0) {
		want_echo(fd);
		_exit(0);
	}
	want(wait(&status) > 0 && status == 0);
	want_echo(fd);
}

static void fork_before_connect(void)
{
	int fd = tcp(0), status;

	if (fork() == 0) {
		want(connect4(fd, host4, ECHO) == 0);
		_exit(0);
	}
	want(wait(&status) > 0 && status == 0);
	want_echo(fd);
	want_errno(connect4(fd, host4, ECHO), EISCONN);
}

static void connect_on_a_dup(void)
{
	int fd = tcp(0), other = dup(fd);

	want(connect4(other, host4, ECHO) == 0);
	close(other);
	want_echo(fd);
}

static void swap_reaches_dups(void)
{
	struct sockaddr_in sa;
	int server = listener(&sa), fd = tcp(SOCK_CLOEXEC), other = dup(fd);

	want(connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0);
	want(write(other, "x", 1) == 1);
	want(accept(server, NULL, NULL) >= 0);
	want(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(other, F_GETFD) == 0);
}

static void close_on_exec_is_kept(void)
{
	want(fcntl(tcp(SOCK_CLOEXEC), F_GETFD) == FD_CLOEXEC);
	want(fcntl(tcp(0), F_GETFD) == 0);
	want(fcntl(tcp(SOCK_NONBLOCK), F_GETFL) & O_NONBLOCK);
}

const struct check descriptor_checks[] = {
    CHECK(threads),
    CHECK(fork_after_connect),
    CHECK(fork_before_connect),
    CHECK(connect_on_a_dup),
    CHECK(swap_reaches_dups),
    CHECK(close_on_exec_is_kept),
    {0},
};
