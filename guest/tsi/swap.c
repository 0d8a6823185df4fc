// SPDX-License-Identifier: Apache-2.0
/*
 * swap.c - put another socket under the program's descriptors
 *
 * Theory of operation
 * ===================
 *
 * socket() has to choose before the program says what the socket is for. Most
 * connect to somewhere else, so that it is a vsock socket; one that binds,
 * listens or connects to loopback turns out to be a TCP socket of the guest.
 * The reverse happens to a TCP socket that the program bound first and then
 * connects, or that it brought from before the agent. And a vsock socket can't
 * be disconnected: connect(AF_UNSPEC) gives the program another one.
 *
 * A swap is visible in two places, and both are repaired:
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
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tsi.h"

#define MAX_HOLDERS	  16 /* descriptors of a process for one socket */
#define MAX_REGISTRATIONS 32

#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62
#endif

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
static int exchange(const struct call *call, int num, int old_fd, int new_fd)
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

/* ---- the new socket ---- */

/**
 * copy_options() - Carry SOL_SOCKET options over
 * @from:	Socket
 * @to:		Socket
 */
static void copy_options(int from, int to)
{
	static const int names[] = {SO_REUSEADDR, SO_KEEPALIVE,
				    SO_OOBINLINE, SO_BROADCAST,
				    SO_PRIORITY,  SO_BINDTOIFINDEX};
	static const int times[] = {SO_RCVTIMEO, SO_SNDTIMEO};
	struct timeval limit;
	struct linger linger;
	socklen_t len;
	int value;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		len = sizeof(value);
		if (!getsockopt(from, SOL_SOCKET, names[i], &value, &len) &&
		    value)
			setsockopt(to, SOL_SOCKET, names[i], &value,
				   sizeof(value));
	}
	for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		len = sizeof(limit);
		if (!getsockopt(from, SOL_SOCKET, times[i], &limit, &len))
			setsockopt(to, SOL_SOCKET, times[i], &limit,
				   sizeof(limit));
	}
	len = sizeof(linger);
	if (!getsockopt(from, SOL_SOCKET, SO_LINGER, &linger, &len) &&
	    linger.l_onoff)
		setsockopt(to, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

/**
 * open_namespace() - A process's network namespace, if it isn't ours
 * @pid:	Process
 *
 * Returns: descriptor for setns(), -1 if it is ours or can't be told
 */
static int open_namespace(pid_t pid)
{
	struct stat ours, theirs;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	if (stat("/proc/self/ns/net", &ours) || stat(path, &theirs) ||
	    (ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev))
		return -1;
	return open(path, O_RDONLY | O_CLOEXEC);
}

/**
 * make_inet() - A TCP socket in the network namespace of the target
 * @tid:	Thread of the target
 * @family:	AF_INET or AF_INET6
 *
 * Returns: the socket; -1 with errno set otherwise
 */
static int make_inet(pid_t tid, int family)
{
	int theirs = open_namespace(tid);
	int ours = -1, fd;

	if (theirs >= 0) {
		ours = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
		if (ours < 0 || setns(theirs, CLONE_NEWNET))
			complain("cannot enter the network namespace of %d",
				 tid);
	}
	fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (theirs >= 0) {
		int error = errno;

		if (ours >= 0) {
			setns(ours, CLONE_NEWNET);
			close(ours);
		}
		close(theirs);
		errno = error;
	}
	return fd;
}

/**
 * swap_to_inet() - Make one of our sockets a TCP socket of the guest
 * @call:	Call that showed what it is for
 * @num:	Descriptor in the target
 * @fd:		The socket, ours
 * @label:	Its label
 *
 * Returns: 0: the call can go on natively; an errno otherwise
 */
int swap_to_inet(const struct call *call, int num, int fd, uint64_t label)
{
	int inet = make_inet(call->tid, label & LABEL_V6 ? AF_INET6 : AF_INET);
	int error;

	if (inet < 0)
		return errno;
	copy_options(fd, inet);
	options_apply(inet, label);
	if (sock_is_nonblocking(fd))
		sock_set_nonblocking(inet, true);
	error = exchange(call, num, fd, inet);
	close(inet);
	debug("fd %d of %d is native now: %s", num, call->tid, strerror(error));
	return error;
}

/**
 * swap_exchange() - Put a socket in another one's place, in one process
 * @call:	Call of the process
 * @num:	Descriptor that it names the socket by
 * @from:	The socket, ours
 * @to:		What takes its place; gets the same SOL_SOCKET options
 *
 * Returns: 0, or an errno; nothing has changed then
 */
int swap_exchange(const struct call *call, int num, int from, int to)
{
	copy_options(from, to);
	sock_set_nonblocking(to, sock_is_nonblocking(from));
	return exchange(call, num, from, to);
}

/**
 * swap_is_tcp() - Is this a TCP socket that could be swapped?
 * @fd:		Any file
 *
 * Returns: true if it is neither connected nor listening
 */
bool swap_is_tcp(int fd)
{
	struct tcp_info info;
	socklen_t len = sizeof(info);

	return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) &&
	       info.tcpi_state == TCP_CLOSE;
}

/**
 * swap_to_vsock() - Make a TCP socket one of ours
 * @call:	connect()
 * @num:	Descriptor in the target
 * @fd:		In: the TCP socket, ours. Out: the new one, on success
 *
 * Returns: 0, or an errno
 */
int swap_to_vsock(const struct call *call, int num, uint32_t upper, int *fd)
{
	struct sockaddr_in6 name = {0};
	socklen_t name_len = sizeof(name), len = sizeof(int);
	int family = AF_INET, ours, error;
	uint16_t port = 0;
	uint64_t label;

	getsockopt(*fd, SOL_SOCKET, SO_DOMAIN, &family, &len);
	ours = sock_create(family, sock_is_nonblocking(*fd));
	if (ours < 0)
		return errno;
	copy_options(*fd, ours);
	if (sock_label(ours, &label))
		sock_set_label(ours, label | options_kept(*fd));
	/* The port is in the same place for IPv4 */
	if (!getsockname(*fd, (struct sockaddr *)&name, &name_len))
		port = ntohs(name.sin6_port);
	if (port && (!upper || sock_bind(ours, VSOCK_PORT(upper, port))))
		sock_bind_low(ours, port);
	error = exchange(call, num, *fd, ours);
	if (error) {
		close(ours);
		return error;
	}
	close(*fd);
	*fd = ours;
	return 0;
}

/**
 * swap_to_fresh() - Take a connection away from under its descriptors
 * @call:	connect() to AF_UNSPEC
 * @num:	Descriptor in the target
 * @fd:		The socket, ours
 * @label:	Its label
 *
 * Returns: 0, or an errno
 */
int swap_to_fresh(const struct call *call, int num, int fd, uint64_t label)
{
	int family = label & LABEL_V6 ? AF_INET6 : AF_INET;
	int fresh = sock_create(family, sock_is_nonblocking(fd));
	int error;

	if (fresh < 0)
		return errno;
	copy_options(fd, fresh);
	sock_set_label(fresh, label & ~(LABEL_UNREPORTED | LABEL_ABORTED |
					LABEL_LOCAL | LABEL_INBOUND));
	error = exchange(call, num, fd, fresh);
	close(fresh);
	return error;
}

/**
 * swap_to_our_netns() - Make a UDP socket of another network namespace ours
 * @call:	Call that showed what it is for
 * @num:	Descriptor in the target
 * @fd:		In: the socket, ours. Out: the new one, on success
 *
 * Its port, if it has one, is kept where it is free.
 *
 * Returns: 0, or an errno
 */
int swap_to_our_netns(const struct call *call, int num, int *fd)
{
	struct sockaddr_storage name = {0};
	socklen_t len = sizeof(name);
	struct destination own;
	int ours, error;

	if (getsockname(*fd, (struct sockaddr *)&name, &len))
		return errno;
	ours = socket(name.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (ours < 0)
		return errno;
	copy_options(*fd, ours);
	if (sock_is_nonblocking(*fd))
		sock_set_nonblocking(ours, true);
	if (address_decode(&name, len, &own) && own.port)
		bind(ours, (struct sockaddr *)&name, len);
	error = exchange(call, num, *fd, ours);
	if (error) {
		close(ours);
		return error;
	}
	close(*fd);
	*fd = ours;
	return 0;
}
