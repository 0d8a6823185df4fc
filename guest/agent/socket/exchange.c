// SPDX-License-Identifier: Apache-2.0
/*
 * exchange.c - put another socket under a process's descriptors
 *
 * Theory of operation
 * ===================
 *
 * An exchange is visible in two places, and both are repaired:
 *
 * - Every descriptor of the process for the socket is replaced, found by the
 *   inode in /proc/PID/fd. Another process that shares the socket keeps the
 *   old one; no program is known that shares a socket before it binds it.
 * - epoll remembers the pair of file and descriptor number. The registrations
 *   are read from /proc/PID/fdinfo, and made again for the new file under the
 *   same number. Only a process that has the file at that number can do that:
 *   a child of ours, with a descriptor table of its own, for the moment.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/tsi.h"

#define MAX_HOLDERS	  16 /* descriptors of a process for one socket */
#define MAX_REGISTRATIONS 32

/**
 * struct holder - A descriptor of the process for the socket
 * @num:	Its number
 * @cloexec:	Whether it is close-on-exec
 */
struct holder {
	int num;
	bool cloexec;
};

/**
 * struct registration - The socket in an epoll instance
 * @epoll:	Descriptor of the process
 * @num:	The number it was registered under
 * @event:	Events and data
 */
struct registration {
	int epoll;
	int num;
	struct epoll_event event;
};

/**
 * struct survey - Where a process keeps a socket
 * @pid:	Process
 * @inode:	The socket's
 * @n_holders:	Used of @holders
 * @n_registrations: Used of @registrations
 * @holders:	Descriptors
 * @registrations: epoll registrations
 */
struct survey {
	pid_t pid;
	unsigned long inode;
	unsigned n_holders;
	unsigned n_registrations;
	struct holder holders[MAX_HOLDERS];
	struct registration registrations[MAX_REGISTRATIONS];
};

/* ---- where the process keeps it ---- */

/**
 * survey_holder() - Note a descriptor for the socket
 * @survey:	Survey
 * @num:	Descriptor
 * @info:	Its /proc/PID/fdinfo
 */
static void survey_holder(struct survey *survey, int num, FILE *info)
{
	char line[256];
	unsigned flags = 0;

	while (fgets(line, sizeof(line), info))
		if (sscanf(line, "flags: %o", &flags) == 1)
			break;
	if (survey->n_holders < MAX_HOLDERS)
		survey->holders[survey->n_holders++] = (struct holder){
		    .num = num,
		    .cloexec = flags & O_CLOEXEC,
		};
}

/**
 * survey_epoll() - Note the socket's registrations in an epoll instance
 * @survey:	Survey
 * @epoll:	Descriptor
 * @info:	Its /proc/PID/fdinfo
 */
static void survey_epoll(struct survey *survey, int epoll, FILE *info)
{
	char line[256];

	while (fgets(line, sizeof(line), info)) {
		struct registration *reg;
		unsigned events;
		unsigned long long data;
		unsigned long inode;
		int num;

		if (sscanf(line,
			   "tfd: %d events: %x data: %llx pos:%*i ino:%lx",
			   &num, &events, &data, &inode) != 4 ||
		    inode != survey->inode ||
		    survey->n_registrations == MAX_REGISTRATIONS)
			continue;
		reg = &survey->registrations[survey->n_registrations++];
		*reg = (struct registration){.epoll = epoll, .num = num};
		reg->event.events = events;
		reg->event.data.u64 = data;
	}
}

/**
 * survey_entry() - Look at one descriptor of the process
 * @survey:	Survey
 * @dir:	/proc/PID/fd
 * @name:	Entry there
 */
static void survey_entry(struct survey *survey, DIR *dir, const char *name)
{
	char link[64], want[64], path[64];
	ssize_t len = readlinkat(dirfd(dir), name, link, sizeof(link) - 1);
	bool epoll;
	FILE *info;

	if (len < 0)
		return;
	link[len] = '\0';
	snprintf(want, sizeof(want), "socket:[%lu]", survey->inode);
	epoll = !strcmp(link, "anon_inode:[eventpoll]");
	if (!epoll && strcmp(link, want) != 0)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", survey->pid,
		 name);
	info = fopen(path, "re");
	if (!info)
		return;
	if (epoll)
		survey_epoll(survey, atoi(name), info);
	else
		survey_holder(survey, atoi(name), info);
	fclose(info);
}

/**
 * survey_take() - Find where a process keeps a socket
 * @call:	Its call
 * @fd:		The socket, ours
 * @ret_survey:	Outcome
 */
static void survey_take(const struct call *call, int fd,
			struct survey *ret_survey)
{
	struct survey survey = {.pid = target_tgid(call->tid)};
	const struct dirent *entry;
	struct stat status;
	char path[64];
	DIR *dir;

	if (!fstat(fd, &status))
		survey.inode = status.st_ino;
	snprintf(path, sizeof(path), "/proc/%d/fd", survey.pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			survey_entry(&survey, dir, entry->d_name);
	if (dir)
		closedir(dir);
	*ret_survey = survey;
}

/* ---- the exchange ---- */

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
 * exchange() - Replace a socket in the process that makes a call
 * @call:	The call
 * @num:	Descriptor it names the socket by
 * @old_fd:	The socket, ours
 * @new_fd:	What takes its place
 *
 * Returns: 0, or an errno; nothing has changed then
 */
int exchange(const struct call *call, int num, int old_fd, int new_fd)
{
	struct survey survey;
	bool done = false;
	int error;

	survey_take(call, old_fd, &survey);
	for (unsigned i = 0; i < survey.n_holders; i++) {
		const struct holder *holder = &survey.holders[i];

		error =
		    replace_fd(call->id, new_fd, holder->num, holder->cloexec);
		if (error && holder->num == num)
			return error;
		done |= holder->num == num;
	}
	if (!done)
		return EBADF;
	repair(call, &survey, old_fd, new_fd);
	return 0;
}
