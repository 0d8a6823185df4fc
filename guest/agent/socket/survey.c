// SPDX-License-Identifier: Apache-2.0
/*
 * survey.c - where a process keeps a socket
 *
 * Theory of operation
 * ===================
 *
 * A process may have many thousands of descriptors, and to look at each one in
 * /proc takes seconds that all other programs wait for. So it is asked as
 * little as possible:
 *
 * - kcmp() says of one descriptor whether it is a file, and of an epoll
 *   instance whether it has it under a number. It takes a thousandth of the
 *   time that the entry in /proc does. Kernels without it have /proc.
 * - Which epoll instances a process has is known from the last time that all
 *   its descriptors were asked, until it creates another one, which is trapped.
 *   One that closes the instance that it created, and goes on with a dup of
 *   it, is asked again; one that gets an instance from another process isn't.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/kcmp.h>

#include "agent/socket/survey.h"

#define GROWTH	     16 /* entries that a table gets at a time */
#define STATUS_BYTES 4096
#define PROCESSES    64	   /* whose epoll instances are known */
#define INSTANCES    8	   /* that are known of one */
#define SURE_MS	     10000 /* that a created one may take to be there */
#define ALIVE_EVERY  1024  /* descriptors */

/**
 * struct process - What is known of a process
 * @tgid:	Process; 0: slot is free
 * @pidfd:	The same: the number may be another's one day
 * @count:	Used of @epolls; more than INSTANCES: not known
 * @unsure_ms:	Until then it may have created one that isn't there yet
 * @epolls:	Its epoll instances: descriptors
 */
struct process {
	pid_t tgid;
	int pidfd;
	unsigned count;
	int64_t unsure_ms;
	int epolls[INSTANCES];
};

static struct process processes[PROCESSES];

/* ---- tables ---- */

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

/**
 * add_holder() - Note a descriptor for the socket
 * @survey:	Survey
 * @num:	Descriptor
 */
static void add_holder(struct survey *survey, int num)
{
	int *holders =
	    grow(survey, survey->holders, survey->n_holders, sizeof(*holders));

	if (!holders)
		return;
	survey->holders = holders;
	holders[survey->n_holders++] = num;
}

/**
 * add_registrations() - Note the socket's registrations in an epoll instance
 * @survey:	Survey
 * @epoll:	Descriptor
 */
static void add_registrations(struct survey *survey, int epoll)
{
	char path[64], line[256];
	FILE *info;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", survey->tid, epoll);
	info = fopen(path, "re");
	while (info && fgets(line, sizeof(line), info)) {
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
			break;
		survey->registrations = table;
		reg = &table[survey->n_registrations++];
		*reg = (struct registration){.epoll = epoll, .num = num};
		reg->event.events = events;
		reg->event.data.u64 = data;
	}
	if (info)
		fclose(info);
}

/* ---- one descriptor ---- */

/**
 * in_epoll() - Has a descriptor of the process the socket in its epoll?
 * @survey:	Survey
 * @epoll:	Descriptor
 * @fd:		The socket, ours
 *
 * Returns: 0; ENOENT: it is an epoll instance that hasn't; EINVAL, EBADF: it is
 *	none; ENOSYS: that can't be told
 */
static int in_epoll(const struct survey *survey, int epoll, int fd)
{
	struct kcmp_epoll_slot slot = {.efd = (uint32_t)epoll,
				       .tfd = (uint32_t)survey->num};
	long order;

	do
		order = syscall(SYS_kcmp, getpid(), survey->tid, KCMP_EPOLL_TFD,
				fd, &slot);
	while (order > 0 && ++slot.toff);
	return order ? errno : 0;
}

/**
 * table_size() - How many descriptors the process may have
 * @survey:	Survey
 *
 * Returns: one more than the highest number
 */
static int table_size(const struct survey *survey)
{
	char path[32], text[STATUS_BYTES];
	const char *field;
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/status", survey->tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	len = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	text[len > 0 ? len : 0] = '\0';
	field = strstr(text, "\nFDSize:");
	return field ? (int)strtol(field + 8, NULL, 10) : 0;
}

/* ---- all of them, in /proc ---- */

/**
 * look_at() - Look at one descriptor of the process
 * @survey:	Survey
 * @dir:	/proc/PID/fd
 * @name:	Entry there
 */
static void look_at(struct survey *survey, DIR *dir, const char *name)
{
	char link[64], want[64];
	ssize_t len = readlinkat(dirfd(dir), name, link, sizeof(link) - 1);

	if (len < 0)
		return;
	link[len] = '\0';
	snprintf(want, sizeof(want), "socket:[%lu]", survey->inode);
	if (!strcmp(link, "anon_inode:[eventpoll]"))
		add_registrations(survey, atoi(name));
	else if (!strcmp(link, want) && atoi(name) != survey->num)
		add_holder(survey, atoi(name));
}

/**
 * look_at_all() - Look at all descriptors of the process
 * @survey:	Survey
 */
static void look_at_all(struct survey *survey)
{
	const struct dirent *entry;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", survey->tid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] != '.')
			look_at(survey, dir, entry->d_name);
		loop_alive(); /* there may be many */
	}
	if (dir)
		closedir(dir);
}

/* ---- epoll instances ---- */

/**
 * forget_ended() - Forget processes that are no more
 */
static void forget_ended(void)
{
	struct pollfd states[PROCESSES];

	for (int i = 0; i < PROCESSES; i++) {
		bool known = processes[i].tgid;

		states[i].fd = known ? processes[i].pidfd : -1;
		states[i].events = POLLIN;
	}
	if (poll(states, PROCESSES, 0) <= 0)
		return;
	for (int i = 0; i < PROCESSES; i++) {
		if (states[i].revents) {
			close(processes[i].pidfd);
			processes[i].tgid = 0;
		}
	}
}

/**
 * process_of() - What is known of the process that makes a call
 * @call:	The call
 *
 * Returns: it; NULL if nothing can be: it has threads with descriptors of
 *	their own, or is gone
 */
static struct process *process_of(const struct call *call)
{
	pid_t tgid = target_tgid(call->tid);
	struct process *process = &processes[(unsigned)tgid % PROCESSES];
	struct pollfd state = {.fd = process->pidfd, .events = POLLIN};

	if (tgid != call->tid &&
	    syscall(SYS_kcmp, call->tid, tgid, KCMP_FILES, 0, 0))
		return NULL;
	if (process->tgid == tgid && !poll(&state, 1, 0))
		return process;
	forget_ended();
	if (process->tgid)
		close(process->pidfd);
	*process = (struct process){
	    .tgid = tgid, .pidfd = target_pidfd(call), .count = INSTANCES + 1};
	if (process->pidfd < 0)
		process->tgid = 0;
	return process->tgid ? process : NULL;
}

/**
 * ask_known() - Look into the epoll instances that a process is known to have
 * @survey:	Survey
 * @process:	Process
 * @fd:		The socket, ours
 *
 * Returns: false if they aren't known
 */
static bool ask_known(struct survey *survey, const struct process *process,
		      int fd)
{
	if (process->count > INSTANCES || now_ms() < process->unsure_ms)
		return false;
	for (unsigned i = 0; i < process->count; i++) {
		int error = in_epoll(survey, process->epolls[i], fd);

		if (error && error != ENOENT)
			return false; /* closed: there may be a dup */
		if (!error)
			add_registrations(survey, process->epolls[i]);
	}
	return true;
}

/**
 * ask_all() - Look for epoll instances among all descriptors
 * @survey:	Survey
 * @process:	What is known of the process from then on; NULL: nothing
 * @fd:		The socket, ours
 *
 * Returns: false if the kernel can't be asked
 */
static bool ask_all(struct survey *survey, struct process *process, int fd)
{
	int size = table_size(survey);
	unsigned count = 0;

	for (int num = 0; num < size; num++) {
		int error = in_epoll(survey, num, fd);

		if (num % ALIVE_EVERY == 0)
			loop_alive();
		if (error == ENOSYS || error == EPERM || error == ESRCH)
			return false;
		if (error && error != ENOENT)
			continue;
		if (!error)
			add_registrations(survey, num);
		if (process && count < INSTANCES)
			process->epolls[count] = num;
		count++;
	}
	if (process)
		process->count = count;
	return size > 0;
}

/**
 * survey_begin() - Find the epoll instances that have a socket
 * @call:	Call of the process
 * @num:	Descriptor that it names the socket by
 * @fd:		The socket, ours
 * @inode:	Its inode
 * @ret_survey:	Outcome; survey_end() frees it
 */
void survey_begin(const struct call *call, int num, int fd, unsigned long inode,
		  struct survey *ret_survey)
{
	struct survey survey = {.tid = call->tid, .num = num, .inode = inode};
	struct process *process = process_of(call);

	if ((!process || !ask_known(&survey, process, fd)) &&
	    !ask_all(&survey, process, fd)) {
		look_at_all(&survey);
		survey.looked = true;
	}
	*ret_survey = survey;
}

/**
 * survey_holders() - Find the other descriptors for the socket
 * @survey:	Survey
 * @epoll:	An epoll instance of ours that has the socket
 * @fd:		Under this number
 */
void survey_holders(struct survey *survey, int epoll, int fd)
{
	const struct kcmp_epoll_slot slot = {.efd = (uint32_t)epoll,
					     .tfd = (uint32_t)fd};
	int size = table_size(survey);

	for (int num = 0; num < size && !survey->looked; num++) {
		if (num % ALIVE_EVERY == 0)
			loop_alive();
		if (num != survey->num &&
		    !syscall(SYS_kcmp, survey->tid, getpid(), KCMP_EPOLL_TFD,
			     num, &slot))
			add_holder(survey, num);
	}
}

/**
 * survey_end() - Forget what was found
 * @survey:	Survey
 */
void survey_end(struct survey *survey)
{
	free(survey->holders);
	free(survey->registrations);
}

/**
 * survey_expect_epoll() - The process creates an epoll instance
 * @call:	The call that does
 */
void survey_expect_epoll(const struct call *call)
{
	struct process *process = process_of(call);

	if (!process)
		return;
	process->count = INSTANCES + 1;
	process->unsure_ms = now_ms() + SURE_MS;
}
