// SPDX-License-Identifier: Apache-2.0
/*
 * exchange.c - put another socket under a process's descriptors
 *
 * Theory of operation
 * ===================
 *
 * An exchange is visible in two places, and both are repaired:
 *
 * - Every descriptor of the process for the socket is replaced. Most sockets
 *   have one, the one that the call names, and nobody else: then the socket
 *   ends with it, and that is how it is known. Else the others are looked for
 *   (survey.c). The process runs on meanwhile, so each one is looked at again
 *   right before it is replaced; and the process's other threads stand still
 *   from that look on (stop.c). Another process that shares the socket keeps
 *   the old one; no program is known that shares a socket before it binds it.
 * - epoll remembers the pair of file and descriptor number. The registrations
 *   are read from /proc/PID/fdinfo, and made again for the new file under the
 *   same number. Only a process that has the file at that number can do that:
 *   a child of ours, with a descriptor table of its own, for the moment.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/seccomp/stop.h"
#include "agent/socket/survey.h"
#include "agent/tsi.h"

#define TRIES 256 /* by a program that is slow: a second */

/**
 * repair_one() - Register the new socket as the old one was; in a child
 * @call:	Call of the process
 * @reg:	Registration
 * @old_fd:	Old socket
 * @new_fd:	New socket
 *
 * All descriptors move above the number to be used, out of its way.
 */
static void repair_one(const struct call *call, const struct registration *reg,
		       int old_fd, int new_fd)
{
	int above = reg->num + 1;
	int epoll = target_fd(call, reg->epoll);
	struct epoll_event event = reg->event;

	epoll = fcntl(epoll, F_DUPFD, above);
	old_fd = fcntl(old_fd, F_DUPFD, above);
	new_fd = fcntl(new_fd, F_DUPFD, above);
	if (epoll < 0 || old_fd < 0 || new_fd < 0)
		return;
	if (dup2(old_fd, reg->num) == reg->num)
		epoll_ctl(epoll, EPOLL_CTL_DEL, reg->num, NULL);
	if (dup2(new_fd, reg->num) == reg->num)
		epoll_ctl(epoll, EPOLL_CTL_ADD, reg->num, &event);
}

/**
 * repair() - Register the new socket wherever the old one was
 * @call:	Call of the process
 * @survey:	Where that is
 * @old_fd:	Old socket
 * @new_fd:	New socket
 */
static void repair(const struct call *call, const struct survey *survey,
		   int old_fd, int new_fd)
{
	pid_t child;

	if (!survey->n_registrations)
		return;
	child = fork();
	if (child < 0)
		complain("epoll of %d: %s", survey->tid, strerror(errno));
	if (child == 0) {
		for (unsigned i = 0; i < survey->n_registrations; i++) {
			/* Its own child each: numbers may clash */
			if (fork() == 0) {
				repair_one(call, &survey->registrations[i],
					   old_fd, new_fd);
				_exit(0);
			}
			wait(NULL);
		}
		_exit(0);
	}
	if (child > 0)
		waitpid(child, NULL, 0);
}

/**
 * is_cloexec() - Is a descriptor of the process close-on-exec?
 * @survey:	Where it keeps the socket
 * @num:	Descriptor
 *
 * Returns: true if it is
 */
static bool is_cloexec(const struct survey *survey, int num)
{
	char path[64], line[256];
	unsigned flags = 0;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", survey->tid, num);
	info = fopen(path, "re");
	while (info && fgets(line, sizeof(line), info))
		if (sscanf(line, "flags: %o", &flags) == 1)
			break;
	if (info)
		fclose(info);
	return flags & O_CLOEXEC;
}

/**
 * replace() - Replace one descriptor, if it still is what it was
 * @call:	Call of the process
 * @survey:	Where it keeps the socket
 * @num:	Descriptor
 * @new_fd:	What takes its place
 *
 * Returns: 0; EBADF: it is another file by now; or another errno
 */
static int replace(const struct call *call, const struct survey *survey,
		   int num, int new_fd)
{
	bool cloexec = is_cloexec(survey, num);
	int now = target_fd(call, num);
	struct stat status;
	bool same =
	    now >= 0 && !fstat(now, &status) && status.st_ino == survey->inode;

	if (now >= 0)
		close(now);
	return same ? replace_fd(call->id, new_fd, num, cloexec) : EBADF;
}

/**
 * replace_others() - Replace the other descriptors
 * @call:	Call of the process
 * @survey:	Where it keeps the socket
 * @new_fd:	What takes their place
 *
 * They may be closed, and be other files as soon as we look away.
 */
static void replace_others(const struct call *call, const struct survey *survey,
			   int new_fd)
{
	static struct stopped stopped;

	if (!survey->n_holders)
		return;
	stop_others(call, &stopped);
	for (unsigned i = 0; i < survey->n_holders; i++)
		for (int tries = 0; tries < TRIES; tries++) {
			loop_alive();
			if (replace(call, survey, survey->holders[i], new_fd) !=
			    EINTR)
				break;
		}
	stop_end_all(&stopped);
}

/**
 * has_ended() - Has an epoll instance nothing any more?
 * @epoll:	Instance, ours
 *
 * Returns: true if the files that it had are closed, or that can't be told
 */
static bool has_ended(int epoll)
{
	char path[64], text[1024];
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", epoll);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	len = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	text[len > 0 ? len : 0] = '\0';
	return !strstr(text, "tfd:");
}

/**
 * find_others() - Find the other descriptors for the socket, if there are any
 * @survey:	Where the process keeps it
 * @old_fd:	The socket, ours; unless @keep, it is @new_fd afterwards
 * @new_fd:	What took its place at one of them
 * @keep:	We need the socket, so that it doesn't end
 *
 * An epoll instance doesn't keep open what it has.
 */
static void find_others(struct survey *survey, int old_fd, int new_fd,
			bool keep)
{
	struct epoll_event none = {0};
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, old_fd, &none))
		complain("epoll: %s", strerror(errno));
	watch_begin(); /* it may linger */
	if (!keep)
		dup3(new_fd, old_fd, O_CLOEXEC);
	watch_end();
	if (keep || !has_ended(epoll))
		survey_holders(survey, epoll, old_fd);
	if (epoll >= 0)
		close(epoll);
}

/**
 * exchange() - Replace a socket in the process that makes a call
 * @call:	The call
 * @num:	Descriptor it names the socket by
 * @old_fd:	The socket, ours; on success only to be closed, unless @keep
 * @new_fd:	What takes its place
 * @keep:	The socket stays in use
 *
 * Returns: 0, or an errno; nothing has changed then
 */
int exchange(const struct call *call, int num, int old_fd, int new_fd,
	     bool keep)
{
	struct survey survey;
	struct stat status;
	int error;

	if (fstat(old_fd, &status))
		return errno;
	survey_begin(call, num, old_fd, status.st_ino, &survey);
	error = survey.short_of_memory ? ENOMEM
				       : replace(call, &survey, num, new_fd);
	if (!error) {
		repair(call, &survey, old_fd, new_fd);
		find_others(&survey, old_fd, new_fd, keep);
		replace_others(call, &survey, new_fd);
	}
	survey_end(&survey);
	return error;
}
