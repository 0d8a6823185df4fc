// SPDX-License-Identifier: Apache-2.0
/*
 * notify.c - seccomp notifications: receive, look into the target, reply
 *
 * Theory of operation
 * ===================
 *
 * A trapped thread (the target) sleeps in the kernel until its notification is
 * answered, or a signal takes it away. So all that is known about it - its
 * memory, its descriptors - holds only while the notification is valid, and a
 * thread id may even be reused. The order is therefore always: look, then
 * notify_valid(), then act on what was seen.
 *
 * Descriptors come by pidfd_getfd(). A pidfd is kept per thread that made a
 * call, because opening one costs as much as the fetch itself. A kept pidfd
 * names one process for ever: if that process is gone, the fetch fails with
 * ESRCH, whoever has the number now. A thread that isn't a thread group's
 * leader has no pidfd on these kernels, so its leader's is used; that the
 * thread still is in that group is asked with signal 0, because the number of
 * a thread that ended can come back in another process.
 *
 * "Go on" (reply_native) lets the kernel run the call as the program made it,
 * reading memory a second time. That is fine for what this agent is for:
 * it makes networking transparent, it enforces nothing. The host does.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/kcmp.h>

#include "agent/tsi.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

#define NOTIF_MAX    256 /* bytes; the kernel's struct has 80 today */
#define PIDFD_CACHE  256
#define STATUS_BYTES 1024

/**
 * struct process - A thread that made a call, and its process
 * @tid:	Thread; 0: slot is free
 * @tgid:	Its process
 * @pidfd:	The process
 */
struct process {
	pid_t tid;
	pid_t tgid;
	int pidfd;
};

/* The kernel may write and read more than today's structs */
union notif_buf {
	struct seccomp_notif notif;
	struct seccomp_notif_resp resp;
	uint64_t words[NOTIF_MAX / sizeof(uint64_t)];
};

static int listener = -1;
static struct process processes[PIDFD_CACHE];

/**
 * notify_init() - Take over the listener
 * @fd:		From filter_install()
 *
 * Returns: 0, or -1 if the kernel's structs are larger than ours can be
 */
int notify_init(int fd)
{
	struct seccomp_notif_sizes sizes;

	listener = fd;
	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes))
		return -1;
	if (sizes.seccomp_notif > NOTIF_MAX ||
	    sizes.seccomp_notif_resp > NOTIF_MAX) {
		errno = E2BIG;
		return -1;
	}
	return 0;
}

/**
 * notify_receive() - Take the next notification
 * @ret_call:	The call; its args are valid until the next one is taken
 *
 * Returns: 0, or -1 if there is none: the target left between poll and here
 */
int notify_receive(struct call *ret_call)
{
	static union notif_buf buf;

	memset(&buf, 0, sizeof(buf)); /* the kernel insists */
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &buf))
		return -1;
	*ret_call = (struct call){
	    .id = buf.notif.id,
	    .tid = (pid_t)buf.notif.pid,
	    .nr = buf.notif.data.nr,
	    .args = (const uint64_t *)(const void *)buf.notif.data.args,
	};
	return 0;
}

/**
 * notify_valid() - Is a target still waiting for its answer?
 * @id:		Notification
 *
 * Returns: true if it is
 */
bool notify_valid(uint64_t id)
{
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

/**
 * send_reply() - Answer a notification
 * @id:		Notification
 * @error:	errno the call fails with, or 0
 * @flags:	SECCOMP_USER_NOTIF_FLAG_*
 *
 * Returns: false if the target had left
 */
static bool send_reply(uint64_t id, int error, uint32_t flags)
{
	union notif_buf buf = {0};

	buf.resp = (struct seccomp_notif_resp){
	    .id = id,
	    .error = -error,
	    .flags = flags,
	};
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &buf) == 0;
}

/**
 * reply_error() - The call fails with @error, or returns 0
 * @id:		Notification
 * @error:	errno, or 0
 *
 * Returns: false if the target had left
 */
bool reply_error(uint64_t id, int error)
{
	return send_reply(id, error, 0);
}

/**
 * reply_value() - The call returns a value
 * @id:		Notification
 * @value:	Value; below 0: a negated errno
 *
 * Returns: false if the target had left
 */
bool reply_value(uint64_t id, int64_t value)
{
	union notif_buf buf = {0};

	buf.resp = (struct seccomp_notif_resp){
	    .id = id,
	    .val = value < 0 ? 0 : value,
	    .error = value < 0 ? (int32_t)value : 0,
	};
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &buf) == 0;
}

/**
 * reply_native() - The kernel runs the call
 * @id:		Notification
 *
 * Returns: false if the target had left
 */
bool reply_native(uint64_t id)
{
	return send_reply(id, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
}

/**
 * reply_fd() - The call returns a new descriptor
 * @id:		Notification
 * @fd:		Ours; the target gets one of its own for the same file
 * @cloexec:	Whether the target's is close-on-exec
 *
 * Adding and answering are one step (FLAG_SEND, Linux 5.14): a target that is
 * interrupted between the two would be left with a descriptor it never heard
 * of.
 *
 * Returns: 0, or an errno; the notification is then still to be answered
 */
int reply_fd(uint64_t id, int fd, bool cloexec)
{
	struct seccomp_notif_addfd add = {
	    .id = id,
	    .flags = SECCOMP_ADDFD_FLAG_SEND,
	    .srcfd = (uint32_t)fd,
	    .newfd_flags = cloexec ? O_CLOEXEC : 0,
	};

	return ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) < 0 ? errno : 0;
}

/**
 * replace_fd() - Put another file under a descriptor of the target
 * @id:		Notification
 * @fd:		Ours
 * @num:	Descriptor in the target
 * @cloexec:	Whether it is close-on-exec; the kernel doesn't keep that
 *
 * The target puts it there, in its own time.
 *
 * Returns: 0, or an errno; EINTR: it is too slow, and nothing has changed
 */
int replace_fd(uint64_t id, int fd, int num, bool cloexec)
{
	struct seccomp_notif_addfd add = {
	    .id = id,
	    .flags = SECCOMP_ADDFD_FLAG_SETFD,
	    .srcfd = (uint32_t)fd,
	    .newfd = (uint32_t)num,
	    .newfd_flags = cloexec ? O_CLOEXEC : 0,
	};
	int error;

	watch_begin();
	error =
	    ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) < 0 ? errno : 0;
	watch_end();
	return error;
}

/**
 * target_read() - Copy from the target's memory
 * @call:	Its call
 * @addr:	Address there
 * @ret_buf:	Copy
 * @len:	Bytes
 *
 * Returns: 0, or EFAULT
 */
int target_read(const struct call *call, uint64_t addr, void *ret_buf,
		size_t len)
{
	struct iovec ours = {.iov_base = ret_buf, .iov_len = len};
	struct iovec theirs = {.iov_base = (void *)(uintptr_t)addr,
			       .iov_len = len};

	if (process_vm_readv(call->tid, &ours, 1, &theirs, 1, 0) !=
	    (ssize_t)len)
		return EFAULT;
	return 0;
}

/**
 * open_memory() - The target's memory, and nobody else's
 * @call:	Its call
 *
 * A thread's number goes to another thread as soon as it has ended, so what is
 * written by number may hit a process that has nothing to do with the call. An
 * open file stays with the memory that it was opened for. Which that is is sure
 * if the call still waits afterwards.
 *
 * Returns: descriptor; -1 if the call waits no more
 */
static int open_memory(const struct call *call)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", call->tid);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && !notify_valid(call->id)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/**
 * target_write() - Copy to the target's memory
 * @call:	Its call
 * @addr:	Address there
 * @buf:	What
 * @len:	Bytes
 *
 * Returns: 0, or EFAULT
 */
int target_write(const struct call *call, uint64_t addr, const void *buf,
		 size_t len)
{
	int fd = len ? open_memory(call) : -1;
	bool done = !len || pwrite(fd, buf, len, (off_t)addr) == (ssize_t)len;

	if (fd >= 0)
		close(fd);
	return done ? 0 : EFAULT;
}

/**
 * target_write_pair() - Copy to two places of the target's memory at once
 * @call:	Its call
 * @first:	Address there
 * @second:	Same
 * @ours:	What goes to either
 *
 * Returns: 0, or EFAULT
 */
int target_write_pair(const struct call *call, uint64_t first, uint64_t second,
		      const struct iovec ours[2])
{
	const uint64_t places[] = {first, second};
	int fd = open_memory(call);
	bool done = fd >= 0;

	for (int i = 0; i < 2 && done; i++)
		done = pwrite(fd, ours[i].iov_base, ours[i].iov_len,
			      (off_t)places[i]) == (ssize_t)ours[i].iov_len;
	if (fd >= 0)
		close(fd);
	return done ? 0 : EFAULT;
}

/**
 * target_tgid() - The process of a thread
 * @tid:	Thread
 *
 * Returns: the process's id, or @tid if that can't be read
 */
pid_t target_tgid(pid_t tid)
{
	char path[64], text[STATUS_BYTES];
	const char *field;
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return tid;
	len = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (len <= 0)
		return tid;
	text[len] = '\0';
	field = strstr(text, "\nTgid:");
	return field ? (pid_t)strtol(field + 6, NULL, 10) : tid;
}

/**
 * process_forget() - Free a slot
 * @process:	Slot
 */
static void process_forget(struct process *process)
{
	if (process->tid)
		close(process->pidfd);
	process->tid = 0;
}

/**
 * process_sweep() - Free the slots of processes that have ended
 *
 * Their pidfds are readable (pidfd_open(2)). Done when another process makes
 * its first call, so that a shell script's short-lived commands don't pile up.
 */
static void process_sweep(void)
{
	static struct pollfd states[PIDFD_CACHE];

	for (int i = 0; i < PIDFD_CACHE; i++)
		states[i] = (struct pollfd){
		    .fd = processes[i].tid ? processes[i].pidfd : -1,
		    .events = POLLIN,
		};
	if (poll(states, PIDFD_CACHE, 0) <= 0)
		return;
	for (int i = 0; i < PIDFD_CACHE; i++)
		if (states[i].revents)
			process_forget(&processes[i]);
}

/**
 * open_thread() - A pidfd by which a thread's descriptors can be had
 * @tid:	Thread, not a leader
 * @tgid:	Its process
 *
 * Linux 6.9 has pidfds of threads. Before, the leader's does as long as both
 * have one table of descriptors: a leader that has ended has none, and a thread
 * may have its own. Such a thread's descriptors can't be had then, and another
 * table's must not be taken for them.
 *
 * Returns: pidfd; -1 if there is none
 */
static int open_thread(pid_t tid, pid_t tgid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD);

	if (pidfd >= 0 || syscall(SYS_kcmp, tid, tgid, KCMP_FILES, 0, 0) > 0)
		return pidfd;
	return (int)syscall(SYS_pidfd_open, tgid, 0);
}

/**
 * process_of() - The pidfd for a thread
 * @tid:	Thread
 * @ret_kept:	Whether it was kept from an earlier call
 *
 * Returns: the slot, or NULL if the thread is gone
 */
static struct process *process_of(pid_t tid, bool *ret_kept)
{
	struct process *process = &processes[(unsigned)tid % PIDFD_CACHE];
	pid_t tgid = tid;
	int pidfd;

	*ret_kept = process->tid == tid;
	if (*ret_kept) {
		/* EPERM: it is in the group, but another user's by now */
		if (process->tgid == tid ||
		    !syscall(SYS_tgkill, process->tgid, tid, 0) ||
		    errno == EPERM)
			return process;
		*ret_kept = false;
	}
	process_forget(process);
	process_sweep();

	pidfd = (int)syscall(SYS_pidfd_open, tid, 0);
	if (pidfd < 0) { /* not a leader */
		tgid = target_tgid(tid);
		pidfd = open_thread(tid, tgid);
	}
	if (pidfd < 0)
		return NULL;
	*process = (struct process){.tid = tid, .tgid = tgid, .pidfd = pidfd};
	return process;
}

/**
 * target_pidfd() - The process of a call
 * @call:	Its call
 *
 * Returns: pidfd, the caller's to close; -1 if it is gone
 */
int target_pidfd(const struct call *call)
{
	bool kept;
	const struct process *process = process_of(call->tid, &kept);

	return process ? fcntl(process->pidfd, F_DUPFD_CLOEXEC, 0) : -1;
}

/**
 * target_fd() - A descriptor of ours for a file of the target
 * @call:	Its call
 * @fd:		Descriptor there
 *
 * Close it soon: as long as it is open, the program's close() doesn't end the
 * connection.
 *
 * Returns: the descriptor, close-on-exec; -1 with errno set otherwise
 */
int target_fd(const struct call *call, int fd)
{
	struct process *process;
	bool kept;
	int ours;

	for (;;) {
		process = process_of(call->tid, &kept);
		if (!process) {
			errno = ESRCH;
			return -1;
		}
		ours = (int)syscall(SYS_pidfd_getfd, process->pidfd, fd, 0);
		if (ours >= 0 || errno != ESRCH || !kept)
			return ours;
		process_forget(process); /* the number went to another */
	}
}
