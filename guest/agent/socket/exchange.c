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
 *   inode in /proc/PID/fd. The process runs on meanwhile, so each one is looked
 *   at again right before it is replaced; and where there are several, its
 * other threads stand still from that look on (stop.c). Another process that
 * shares the socket keeps the old one; no program is known that shares a socket
 * before it binds it.
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

#define GROWTH 16 /* entries that a table gets at a time */

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
 * @short_of_memory: There are more of either
 */
struct survey {
	pid_t pid;
	unsigned long inode;
	unsigned n_holders;
	unsigned n_registrations;
	struct holder *holders;
	struct registration *registrations;
	bool short_of_memory;
};

/**
 * grow() - Room for one more entry of a table
 * @survey:	Survey that it is of
 * @table:	Table, from malloc()
 * @used:	Entries in it
 * @size:	Bytes of one
 *
 * Returns: the table; NULL, with the old one intact, if out of memory
 */
static void *grow(struct survey *survey, void *table, unsigned used,
		  size_t size)
{
	void *larger = table;

	if (used % GROWTH == 0)
		larger = realloc(table, (used + GROWTH) * size);
	survey->short_of_memory |= !larger;
	return larger;
}

/* ---- where the process keeps it ---- */

/**
 * survey_holder() - Note a descriptor for the socket
 * @survey:	Survey
 * @num:	Descriptor
 * @info:	Its /proc/PID/fdinfo
 */
static void survey_holder(struct survey *survey, int num, FILE *info)
{
	struct holder *holders =
	    grow(survey, survey->holders, survey->n_holders, sizeof(*holders));
	char line[256];
	unsigned flags = 0;

	while (fgets(line, sizeof(line), info))
		if (sscanf(line, "flags: %o", &flags) == 1)
			break;
	if (!holders)
		return;
	survey->holders = holders;
	holders[survey->n_holders++] = (struct holder){
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
		struct registration *reg, *table;
		unsigned events;
		unsigned long long data;
		unsigned long inode;
		int num;

		if (sscanf(line,
			   "tfd: %d events: %x data: %llx pos:%*i ino:%lx",
			   &num, &events, &data, &inode) != 4 ||
		    inode != survey->inode)
			continue;
		table = grow(survey, survey->registrations,
			     survey->n_registrations, sizeof(*table));
		if (!table)
			return;
		survey->registrations = table;
		reg = &table[survey->n_registrations++];
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
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] != '.')
			survey_entry(&survey, dir, entry->d_name);
		loop_alive(); /* there may be many */
	}
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
	if (child < 0)
		complain("epoll of %d: %s", survey->pid, strerror(errno));
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
 * replace() - Replace one descriptor, if it still is what it was
 * @call:	Call of the process
 * @survey:	Where it keeps the socket
 * @holder:	Descriptor
 * @new_fd:	What takes its place
 *
 * Returns: 0; EBADF: it is another file by now; or another errno
 */
static int replace(const struct call *call, const struct survey *survey,
		   const struct holder *holder, int new_fd)
{
	int now = target_fd(call, holder->num);
	struct stat status;
	bool same =
	    now >= 0 && !fstat(now, &status) && status.st_ino == survey->inode;

	if (now >= 0)
		close(now);
	return same ? replace_fd(call->id, new_fd, holder->num, holder->cloexec)
		    : EBADF;
}

/**
 * replace_all() - Replace all descriptors
 * @call:	Call of the process
 * @num:	The one that it names the socket by; nothing is done without it
 * @survey:	Where it keeps the socket
 * @new_fd:	What takes its place
 *
 * Returns: 0, or an errno; nothing has changed then
 */
static int replace_all(const struct call *call, int num,
		       const struct survey *survey, int new_fd)
{
	static struct stopped stopped;
	int error = EBADF;

	/* The one that the call names is in use. The others may be closed, and
	 * be other files as soon as we look away. */
	stopped.count = 0;
	if (survey->n_holders > 1)
		stop_others(call, &stopped);
	for (unsigned i = 0; i < survey->n_holders; i++)
		if (survey->holders[i].num == num)
			error =
			    replace(call, survey, &survey->holders[i], new_fd);
	for (unsigned i = 0; i < survey->n_holders && !error; i++)
		if (survey->holders[i].num != num)
			replace(call, survey, &survey->holders[i], new_fd);
	stop_end_all(&stopped);
	return error;
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
	int error;

	survey_take(call, old_fd, &survey);
	error = survey.short_of_memory
		    ? ENOMEM
		    : replace_all(call, num, &survey, new_fd);
	if (!error)
		repair(call, &survey, old_fd, new_fd);
	free(survey.holders);
	free(survey.registrations);
	return error;
}
