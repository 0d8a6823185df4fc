// SPDX-License-Identifier: Apache-2.0
/*
 * accept.c - accept() with an address, on published listeners
 *
 * Theory of operation
 * ===================
 *
 * The kernel would give the address of a vsock socket, so the agent accepts in
 * the program's place and says whom the port stands for (listen.c). accept()
 * without an address isn't trapped at all, and readiness is the kernel's to
 * tell: the listener is the program's own.
 *
 * The listener is non-blocking while the agent accepts from it, so that a
 * client that another thread took doesn't halt the agent. A blocking call that
 * finds nobody waits here, and the event loop watches the listener for it. A
 * connection that can't be handed over any more - the caller was interrupted,
 * or has no descriptor left - goes to the listener's stash, where the next
 * accept() finds it.
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
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/queue.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tsi.h"

#define TICK_MS	 200
#define NEVER_MS INT64_MAX

/**
 * struct waiter - A blocking accept() that found nobody
 * @source:	In the event loop, for the listener
 * @exit:	Same, for the process: our descriptor would keep a listener open
 *		whose program was killed
 * @link:	In waiters
 * @call:	The call; its args are a copy
 * @args:	That copy
 * @fd:		The listener
 * @pidfd:	The process, or -1
 * @deadline_ms: SO_RCVTIMEO's end, or NEVER_MS
 * @number:	state_wait()'s
 */
struct waiter {
	struct source source;
	struct source exit;
	LIST_ENTRY(waiter) link;
	struct call call;
	uint64_t args[6];
	int fd;
	int pidfd;
	int64_t deadline_ms;
	int number;
};

static LIST_HEAD(, waiter) waiters = LIST_HEAD_INITIALIZER(waiters);
static int64_t next_tick_ms; /* meaningful while there are waiters */

/**
 * hand_over() - Answer accept() with a connection
 * @call:	accept() or accept4()
 * @conn:	The connection; ours to close unless it was stashed
 * @peer:	Its other end
 * @v6:		For an AF_INET6 socket
 *
 * Returns: false if the caller can't take it: stash it
 */
static bool hand_over(const struct call *call, int conn,
		      const struct sockaddr_vm *peer, bool v6)
{
	int flags = call->nr == SYS_accept4 ? (int)call->args[3] : 0;
	struct destination name;
	int error = EFAULT, room;

	callers_name(peer->svm_port, &name);
	if (!target_read(call, call->args[2], &room, sizeof(room)))
		error = name_write(call, room, v6, &name);
	if (error) { /* the kernel loses it, too */
		reply_error(call->id, error);
		return true;
	}
	error = reply_fd(call->id, conn, flags & SOCK_CLOEXEC);
	if (error && error != ENOENT)
		reply_error(call->id, error);
	return !error;
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
	socklen_t len = ROOM_AS_IS;
	int conn = listen_unstash(fd);
	bool nonblock;

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
	conn = accept4(fd, (struct sockaddr *)ret_peer, &len,
		       SOCK_CLOEXEC | (flags & SOCK_NONBLOCK));
	if (!nonblock)
		sock_set_nonblocking(fd, false);
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
	int conn = take(fd, flags, &peer);

	if (conn < 0 && errno == EAGAIN)
		return false;
	if (conn < 0) {
		reply_error(call->id, errno);
		return true;
	}
	if (hand_over(call, conn, &peer, label & LABEL_V6))
		close(conn);
	else
		listen_stash(fd, conn);
	return true;
}

/**
 * waiter_free() - Forget a waiter
 * @waiter:	Waiter
 */
static void waiter_free(struct waiter *waiter)
{
	LIST_REMOVE(waiter, link);
	state_answered(waiter->number);
	loop_del(waiter->fd);
	close(waiter->fd);
	if (waiter->pidfd >= 0) {
		loop_del(waiter->pidfd);
		close(waiter->pidfd);
	}
	waiter->exit.dead = true;
	loop_bury(&waiter->source);
}

/**
 * waiter_exited() - The process of a waiter has ended
 * @source:	The waiter's @exit
 * @events:	Unused
 */
static void waiter_exited(struct source *source, uint32_t events)
{
	(void)events;
	waiter_free((struct waiter *)(void *)((char *)source -
					      offsetof(struct waiter, exit)));
}

/**
 * waiter_ready() - A listener has a connection
 * @source:	The waiter's
 * @events:	Unused
 */
static void waiter_ready(struct source *source, uint32_t events)
{
	struct waiter *waiter = (struct waiter *)source;
	uint64_t label;

	(void)events;
	if (!notify_valid(waiter->call.id)) {
		waiter_free(waiter);
		return;
	}
	if (!sock_label(waiter->fd, &label))
		label = 0;
	if (try_accept(&waiter->call, waiter->fd, label))
		waiter_free(waiter);
}

/**
 * wait_for_client() - Answer a blocking accept() later
 * @call:	accept() or accept4()
 * @fd:		Listener; ours from here on
 */
static void wait_for_client(const struct call *call, int fd)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));
	struct timeval limit = {0};
	socklen_t len = sizeof(limit);
	int64_t now = now_ms();

	if (waiter)
		waiter->number = state_wait(call);
	if (!waiter || waiter->number < 0) {
		free(waiter);
		reply_error(call->id, ENOMEM);
		close(fd);
		return;
	}
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &len);
	waiter->call = *call;
	memcpy(waiter->args, call->args, sizeof(waiter->args));
	waiter->call.args = waiter->args;
	waiter->fd = fd;
	waiter->deadline_ms = NEVER_MS;
	if (limit.tv_sec || limit.tv_usec)
		waiter->deadline_ms =
		    now + limit.tv_sec * 1000 + (limit.tv_usec + 999) / 1000;
	if (LIST_EMPTY(&waiters) || next_tick_ms > now + TICK_MS)
		next_tick_ms = now + TICK_MS;
	if (next_tick_ms > waiter->deadline_ms)
		next_tick_ms = waiter->deadline_ms;
	waiter->source.ready = waiter_ready;
	waiter->exit.ready = waiter_exited;
	LIST_INSERT_HEAD(&waiters, waiter, link);
	loop_add(&waiter->source, fd, EPOLLIN);
	waiter->pidfd = target_pidfd(call);
	if (waiter->pidfd >= 0)
		loop_add(&waiter->exit, waiter->pidfd, EPOLLIN);
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
 * A thread that is stopped, as by a debugger, leaves its call, and goes back to
 * it by itself. It sees the descriptor anew then.
 */
static void restart(pid_t tid)
{
	int status, signal = 0;

	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL))
		return;
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	if (waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
		return;
	if (status >> 16 != PTRACE_EVENT_STOP) /* a signal was faster */
		signal = WSTOPSIG(status);
	ptrace(PTRACE_DETACH, tid, NULL, (void *)(intptr_t)signal);
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
	struct waiter *waiter, *next;
	pid_t tgid = target_tgid(call->tid);
	const struct dirent *entry;
	char path[32];
	DIR *tasks;

	for (waiter = LIST_FIRST(&waiters); waiter; waiter = next) {
		next = LIST_NEXT(waiter, link);
		if (sock_local_port(waiter->fd) != port)
			continue;
		reply_error(waiter->call.id, EINVAL);
		waiter_free(waiter);
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
 *
 * Nobody tells the agent that one was interrupted, or is overdue.
 */
void accept_tick(void)
{
	struct waiter *waiter, *next;
	int64_t now;

	if (accept_timeout_ms() != 0)
		return;
	now = now_ms();
	next_tick_ms = now + TICK_MS;
	for (waiter = LIST_FIRST(&waiters); waiter; waiter = next) {
		bool valid = notify_valid(waiter->call.id);

		next = LIST_NEXT(waiter, link);
		if (valid && now < waiter->deadline_ms) {
			if (next_tick_ms > waiter->deadline_ms)
				next_tick_ms = waiter->deadline_ms;
			continue;
		}
		if (valid)
			reply_error(waiter->call.id, EAGAIN);
		waiter_free(waiter);
	}
}

/**
 * accept_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int accept_timeout_ms(void)
{
	int64_t left;

	if (LIST_EMPTY(&waiters))
		return -1;
	left = next_tick_ms - now_ms();
	return left > 0 ? (int)left : 0;
}
