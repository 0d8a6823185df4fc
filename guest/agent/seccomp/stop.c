// SPDX-License-Identifier: Apache-2.0
/*
 * stop.c - threads of the target that stand still for a moment
 *
 * Theory of operation
 * ===================
 *
 * A thread is stopped as a debugger does it. It leaves the system call that it
 * waits in, and goes back to it by itself. One that can't be stopped within
 * some milliseconds, or that a debugger has already, goes on.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "agent/seccomp/stop.h"
#include "agent/tsi.h"

/**
 * stop_thread() - Stop a thread
 * @tid:	Thread
 * @ret_signal:	For stop_end()
 *
 * Returns: true if it stands still until stop_end()
 */
bool stop_thread(pid_t tid, int *ret_signal)
{
	int status;
	pid_t stopped;

	*ret_signal = 0;
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL))
		return false;
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	watch_begin();
	stopped = waitpid(tid, &status, __WALL);
	watch_end();
	if (stopped != tid || !WIFSTOPPED(status))
		return false;
	if (status >> 16 != PTRACE_EVENT_STOP) /* a signal was faster */
		*ret_signal = WSTOPSIG(status);
	return true;
}

/**
 * stop_end() - Let a thread go on
 * @tid:	Thread
 * @signal:	From stop_thread()
 */
void stop_end(pid_t tid, int signal)
{
	ptrace(PTRACE_DETACH, tid, NULL, (void *)(intptr_t)signal);
}

/**
 * stop_has() - Was a thread stopped with the others?
 * @stopped:	Threads
 * @tid:	Thread
 *
 * Returns: true if so
 */
static bool stop_has(const struct stopped *stopped, pid_t tid)
{
	for (unsigned i = 0; i < stopped->count; i++)
		if (stopped->threads[i].tid == tid)
			return true;
	return false;
}

/**
 * stop_more() - Stop what threads of a process are not
 * @stopped:	Threads
 * @tgid:	Process
 * @caller:	A thread that waits for us anyway
 *
 * Returns: true if there was one: it may have made another meanwhile
 */
static bool stop_more(struct stopped *stopped, pid_t tgid, pid_t caller)
{
	const struct dirent *entry;
	bool more = false;
	char path[32];
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", tgid);
	tasks = opendir(path);
	while (tasks && (entry = readdir(tasks))) {
		pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
		struct stopped_thread *thread =
		    &stopped->threads[stopped->count];

		if (tid <= 0 || tid == caller || stop_has(stopped, tid) ||
		    stopped->count == MAX_STOPPED ||
		    !stop_thread(tid, &thread->signal))
			continue;
		thread->tid = tid;
		stopped->count++;
		more = true;
	}
	if (tasks)
		closedir(tasks);
	return more;
}

/**
 * stop_others() - Stop a process but for the thread that made a call
 * @call:	The call
 * @ret_stopped: For stop_end_all()
 */
void stop_others(const struct call *call, struct stopped *ret_stopped)
{
	pid_t tgid = target_tgid(call->tid);

	ret_stopped->count = 0;
	while (stop_more(ret_stopped, tgid, call->tid))
		;
}

/**
 * stop_end_all() - Let them go on
 * @stopped:	Threads
 */
void stop_end_all(const struct stopped *stopped)
{
	for (unsigned i = 0; i < stopped->count; i++)
		stop_end(stopped->threads[i].tid, stopped->threads[i].signal);
}
