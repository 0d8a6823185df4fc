// SPDX-License-Identifier: Apache-2.0
/*
 * accept.c - accept() with an address, on published listeners
 *
 * Theory of operation
 * ===================
 *
 * The kernel would give the address of a vsock socket, so the agent accepts in
 * the program's place and says whom the port stands for (listen.c).
 * accept() without an address isn't trapped at all, and readiness is the
 * kernel's to tell: the listener is the program's own.
 *
 * The listener is non-blocking while the agent accepts from it, so that a
 * client that another thread took doesn't halt the agent. A blocking call that
 * finds nobody waits (blocked.c), and the event loop watches the listener for
 * it. A connection that can't be handed over any more - the caller was
 * interrupted, or has no descriptor left - goes to the listener's stash, where
 * the next accept() finds it.
 *
 * Our descriptor of the listener keeps it open while a call waits, as the call
 * itself does with TCP. So the process is watched, too, and the descriptor goes
 * when it ends.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/seccomp/stop.h"
#include "agent/tsi.h"

#define LOOK_EVERY 16 /* clients: what those after them may hold */

static struct blocked_list waiters;

/**
 * hand_over() - Answer accept() with a connection
 * @call:	accept() or accept4()
 * @fd:		Listener
 * @conn:	The connection; ours no more
 * @peer:	Its other end
 * @v6:		For an AF_INET6 socket
 *
 * One that the caller can't take is stashed.
 */
static void hand_over(const struct call *call, int fd, int conn,
		      const struct sockaddr_vm *peer, bool v6)
{
	int flags = call->nr == SYS_accept4 ? (int)call->args[3] : 0;
	struct destination name;
	int error = EFAULT, room;

	callers_name(peer, &name);
	if (!target_read(call, call->args[2], &room, sizeof(room)))
		error = answer_name(call, room, v6, &name);
	if (!error) {
		give(call, conn, flags & SOCK_CLOEXEC, sock_local_port(fd));
		return;
	}
	reply_error(call->id, error); /* the kernel loses it, too */
	close(conn);
}

/**
 * take() - Take a connection: one that was stashed, or the next
 * @fd:		Listener
 * @flags:	For accept4()
 * @ret_peer:	Its other end
 *
 * Returns: the connection; -1 with errno set otherwise
 */
static int take(int fd, int flags, struct sockaddr_vm *ret_peer)
{
	socklen_t len = sizeof(*ret_peer);
	int conn = listeners_unstash(fd);
	bool nonblock;
	int error;

	if (conn >= 0) {
		sock_set_nonblocking(conn, flags & SOCK_NONBLOCK);
		if (sock_peer(conn, ret_peer))
			return conn;
		*ret_peer = (struct sockaddr_vm){0}; /* it has ended since */
		return conn;
	}
	nonblock = sock_is_nonblocking(fd);
	if (!nonblock)
		sock_set_nonblocking(fd, true);
	watch_begin(); /* the program may clear it */
	conn = accept4(fd, (struct sockaddr *)ret_peer, &len,
		       SOCK_CLOEXEC | (flags & SOCK_NONBLOCK));
	error = conn < 0 ? errno : 0;
	watch_end();
	if (!nonblock)
		sock_set_nonblocking(fd, false);
	if (conn >= 0)
		room_accepted(conn);
	errno = error == EINTR ? EAGAIN : error; /* there was none */
	return conn;
}

/**
 * try_accept() - Answer accept() if there is a connection
 * @call:	accept() or accept4()
 * @fd:		Listener
 * @label:	Its label
 *
 * Returns: false if there is none, and it isn't answered
 */
static bool try_accept(const struct call *call, int fd, uint64_t label)
{
	int flags = call->nr == SYS_accept4 ? (int)call->args[3] : 0;
	struct sockaddr_vm peer = {0};
	static unsigned taken;
	int conn = take(fd, flags, &peer);

	if (conn < 0 && errno == EAGAIN)
		return false;
	if (conn < 0) {
		reply_error(call->id, errno);
		return true;
	}
	if (++taken % LOOK_EVERY == 0)
		room_listener(fd);
	hand_over(call, fd, conn, &peer, label & LABEL_V6);
	return true;
}

/**
 * waiter_ready() - A listener has a connection
 * @source:	The waiter's
 * @events:	Unused
 */
static void waiter_ready(struct source *source, uint32_t events)
{
	struct blocked *waiter = (struct blocked *)source;
	uint64_t label;

	(void)events;
	if (!notify_valid(waiter->call.id)) {
		blocked_free(waiter);
		return;
	}
	if (!sock_label(waiter->fd, &label))
		label = 0;
	if (try_accept(&waiter->call, waiter->fd, label))
		blocked_free(waiter);
}

/**
 * wait_for_client() - Answer a blocking accept() later
 * @call:	accept() or accept4()
 * @fd:		Listener; ours from here on
 */
static void wait_for_client(const struct call *call, int fd)
{
	struct blocked *waiter =
	    blocked_add(&waiters, call, fd, EPOLLIN, waiter_ready);

	if (waiter)
		blocked_until_exit(waiter);
}

/**
 * accept_trapped() - accept() and accept4() with an address
 * @call:	The call
 *
 * Whether the call is still waiting isn't asked first: should its thread be
 * gone, and another have its number, then what is accepted goes to the stash of
 * the listener that it came from.
 */
void accept_trapped(const struct call *call)
{
	int flags = call->nr == SYS_accept4 ? (int)call->args[3] : 0;
	int fd = target_fd(call, (int)call->args[0]);
	uint64_t label;

	if (fd < 0 || (flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) ||
	    !notify_valid(call->id) || !sock_label(fd, &label) ||
	    !(label & LABEL_INBOUND)) {
		reply_native(call->id);
	} else if (!try_accept(call, fd, label)) {
		if (!sock_is_nonblocking(fd)) {
			wait_for_client(call, fd);
			return;
		}
		reply_error(call->id, EAGAIN);
	}
	if (fd >= 0)
		close(fd);
}

/**
 * is_accepting() - Does a thread wait in accept() of a descriptor?
 * @tgid:	Its process
 * @tid:	Thread
 * @fd:		Descriptor
 *
 * Returns: true if it does
 */
static bool is_accepting(pid_t tgid, pid_t tid, int fd)
{
	char path[64], text[256];
	long nr = -1;
	unsigned long first = 0;
	ssize_t len;
	int file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", tgid, tid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return false;
	len = read(file, text, sizeof(text) - 1);
	close(file);
	text[len > 0 ? len : 0] = '\0';
	return sscanf(text, "%ld %lx", &nr, &first) == 2 &&
	       (nr == SYS_accept || nr == SYS_accept4) && (int)first == fd;
}

/**
 * restart() - Have a thread make its system call once more
 * @tid:	Thread
 *
 * It sees the descriptor anew then.
 */
static void restart(pid_t tid)
{
	int signal;

	if (stop_thread(tid, &signal))
		stop_end(tid, signal);
}

/**
 * accept_end_waiting() - A listener is shut down: wake who waits at it
 * @call:	shutdown(); the TCP socket is in its place
 * @port:	vsock port of the listener
 *
 * Those that wait here get EINVAL, as with TCP. Those that wait in the kernel
 * are made to call the TCP socket's accept(), which says the same.
 */
void accept_end_waiting(const struct call *call, uint32_t port)
{
	struct blocked *waiter, *next;
	pid_t tgid = target_tgid(call->tid);
	const struct dirent *entry;
	char path[32];
	DIR *tasks;

	for (waiter = LIST_FIRST(&waiters.head); waiter; waiter = next) {
		next = LIST_NEXT(waiter, link);
		if (sock_local_port(waiter->fd) != port)
			continue;
		reply_error(waiter->call.id, EINVAL);
		blocked_free(waiter);
	}

	snprintf(path, sizeof(path), "/proc/%d/task", tgid);
	tasks = opendir(path);
	while (tasks && (entry = readdir(tasks))) {
		pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);

		if (tid > 0 && tid != call->tid &&
		    is_accepting(tgid, tid, (int)call->args[0]))
			restart(tid);
	}
	if (tasks)
		closedir(tasks);
}

/**
 * accept_tick() - Look at the waiting calls if it is time to
 */
void accept_tick(void)
{
	blocked_tick(&waiters);
}

/**
 * accept_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int accept_timeout_ms(void)
{
	return blocked_timeout_ms(&waiters);
}
