// SPDX-License-Identifier: Apache-2.0
/*
 * sessions.c - streams of the host's beside the first, each with its own init
 *
 * A stream has one command at a time. For another one beside it the host
 * connects to vsock port INIT_PORT of the guest: a copy of this process serves
 * that stream as PID 1 serves the first, and ends with it, its command too.
 * Whoever is in the guest, or in a neighbour, can't have one: the host alone is
 * VMADDR_CID_HOST, and the port is taken before there is any other program.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h> /* some want <sys/socket.h> before it */

#include "init/agents.h"
#include "init/init.h"

#define BACKLOG 64

static int listener = -1;

/**
 * sessions_listen() - Let the host open streams
 */
void sessions_listen(void)
{
	struct sockaddr_vm addr = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_ANY,
	    .svm_port = INIT_PORT,
	};
	int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (s < 0 || bind(s, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(s, BACKLOG))
		say("vsock, port %d: %s", INIT_PORT, strerror(errno));
	listener = s;
}

/**
 * sessions_listen_on() - The same on a socket that listens already
 * @s:	Socket
 */
void sessions_listen_on(int s)
{
	listener = s;
}

/**
 * sessions_fd() - What is readable when the host opens a stream
 *
 * Returns: descriptor, -1 in a copy
 */
int sessions_fd(void)
{
	return listener;
}

/**
 * sessions_take() - Have a copy of this process serve the stream
 *
 * Returns: the stream in the copy; -1 in this process, whatever came of it: a
 *	host whose stream ends at once knows that there is no session
 */
int sessions_take(void)
{
	struct sockaddr_vm addr = {0};
	socklen_t len = sizeof(addr);
	int stream =
	    accept4(listener, (struct sockaddr *)&addr, &len, SOCK_CLOEXEC);
	bool is_hosts =
	    addr.svm_family != AF_VSOCK || addr.svm_cid == VMADDR_CID_HOST;

	if (stream < 0)
		return -1;
	if (!is_hosts || fork() != 0) {
		close(stream);
		return -1;
	}
	if (stream > 3)
		close_range(3, (unsigned)stream - 1, 0);
	close_range((unsigned)stream + 1, ~0U, 0);
	listener = -1;
	booted = false;
	cmd = (struct command){.fds = {-1, -1, -1}};
	agents_disown();
	return stream;
}
