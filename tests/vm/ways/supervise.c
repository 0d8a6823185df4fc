// SPDX-License-Identifier: Apache-2.0
/*
 * supervise.c - programs with a seccomp supervisor of their own
 *
 * As LXC, crun and bypass4netns have it: a filter with a listener for connect()
 * is the program's, and another process answers.
 */

#define _GNU_SOURCE
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#include "ways.h"

/* In the program: trap connect(), and say by which descriptor */
static int trap_connect(void)
{
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
		     offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_connect, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(*code), code};

	want(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

/* How a supervisor answers: 0, or it has replaced the descriptor */
typedef void answer(int listener, int pidfd, const struct seccomp_notif *notif);

static void reply(int listener, const struct seccomp_notif *notif,
		  uint32_t flags)
{
	struct seccomp_notif_resp response = {.id = notif->id, .flags = flags};

	want(ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) == 0);
}

/* A program that connects, and its supervisor */
static void supervise_by(answer *answer)
{
	int pipes[2], fd, listener, pidfd, status;
	pid_t pid;

	want(pipe(pipes) == 0);
	pid = fork();
	if (!pid) {
		fd = trap_connect();
		want(fd >= 0);
		want(write(pipes[1], &fd, sizeof(fd)) == sizeof(fd));
		exchange(connected());
		_exit(0);
	}
	want(read(pipes[0], &fd, sizeof(fd)) == sizeof(fd));
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	listener = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	want(listener >= 0);
	/* some kernels start the call again, and ask again */
	while (waitpid(pid, &status, WNOHANG) == 0) {
		struct pollfd ready = {.fd = listener, .events = POLLIN};
		struct seccomp_notif notif = {0};

		if (poll(&ready, 1, 10) != 1 || !(ready.revents & POLLIN))
			continue;
		want(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &notif) == 0);
		want(notif.data.nr == SYS_connect);
		answer(listener, pidfd, &notif);
	}
	want(status == 0);
}

static void go_on(int listener, int pidfd, const struct seccomp_notif *notif)
{
	(void)pidfd;
	reply(listener, notif, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
}

static void connect_it(int listener, int pidfd,
		       const struct seccomp_notif *notif)
{
	struct sockaddr_in to = address_of(HOST, ECHO);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, notif->data.args[0], 0);

	want(connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0);
	reply(listener, notif, 0);
}

static void replace_it(int listener, int pidfd,
		       const struct seccomp_notif *notif)
{
	struct seccomp_notif_addfd add = {
	    .id = notif->id,
	    .flags = SECCOMP_ADDFD_FLAG_SETFD,
	    .srcfd = (uint32_t)connected(),
	    .newfd = (uint32_t)notif->data.args[0],
	};

	(void)pidfd;
	want(ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0);
	reply(listener, notif, 0);
}

static void a_supervisor_lets_its_program_connect(void)
{
	supervise_by(go_on);
}

static void a_supervisor_connects_its_programs_socket(void)
{
	supervise_by(connect_it);
}

static void a_supervisor_replaces_its_programs_socket(void)
{
	supervise_by(replace_it);
}

const struct check supervise[] = {
    CHECK(a_supervisor_lets_its_program_connect),
    CHECK(a_supervisor_connects_its_programs_socket),
    CHECK(a_supervisor_replaces_its_programs_socket),
    {0},
};
