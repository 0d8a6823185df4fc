// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - the process that makes sockets in a pod's network namespace
 *
 * Theory of operation
 * ===================
 *
 *	_maker NAMESPACE CONTROL PARENT
 *
 * Two descriptors and a process id. It enters the namespace, which takes
 * CAP_SYS_ADMIN, and gives up all rights, for good. Only then it says on the
 * control socket that it is ready, or which errno stands against that, and does
 * what maker.c says until the parent is gone.
 *
 * It is a program of its own, not Python, since there is one for each pod of a
 * node: it starts within a millisecond and takes some hundred KiB.
 *
 * Spec: setns(2), capabilities(7), PR_SET_PDEATHSIG(2const).
 */

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "vu.h"

/**
 * number() - Read an argument
 * @text:	It; Python wrote it
 *
 * Returns: a descriptor or process id
 */
static int number(const char *text)
{
	return (int)strtol(text, NULL, 10);
}

/**
 * enter() - Go into a network namespace
 * @fd:		Of it; closed, it stays while we are in it
 *
 * Returns: 0, or -1 with errno
 */
static int enter(int fd)
{
	if (setns(fd, CLONE_NEWNET))
		return -1;
	return close(fd);
}

/**
 * confine() - Give up all rights, and end with the parent
 * @parent:	Its process id
 *
 * Returns: 0, or -1 with errno
 */
static int confine(pid_t parent)
{
	struct __user_cap_header_struct header = {
	    .version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

	if (syscall(SYS_capset, &header, none) ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		return -1;
	if (getppid() == parent)
		return 0;
	errno = ESRCH; /* it was gone before it could be watched */
	return -1;
}

int main(int argc, char **argv)
{
	const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	struct vu_netns_answer said = {.what = VU_NETNS_READY};
	int control;

	if (argc != 4)
		return 2;
	/* a terminal's are for the parent */
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		signal(signals[i], SIG_IGN);
	control = number(argv[2]);
	if (enter(number(argv[1])) || confine(number(argv[3])))
		said.error = errno;
	if (send(control, &said, sizeof(said), MSG_NOSIGNAL) != sizeof(said) ||
	    said.error)
		return 1;
	return -vu_maker_run(control);
}
