// SPDX-License-Identifier: Apache-2.0
/*
 * room.c - how much our sockets may hold that no program has read
 *
 * Theory of operation
 * ===================
 *
 * What the host has sent and no program reads is in the kernel's memory, and
 * no cgroup pays for it. A socket's buffer size is the window for it, and Linux
 * (since CVE-2026-23086) has no more in flight towards the host, either: so few
 * connections want much, and the sizes of all together are bounded. With N of
 * our sockets, the next one gets a part of the guest's memory / N. When the
 * k-th oldest of those that there are was made, there were k at least, so all
 * together have at most 1/1, 1/2 and so on up to 1/N of the part: less than 8
 * of it until N is 1,600. None gets less than LEAST_BYTES, so that many
 * thousand hold more.
 *
 * What is accepted has its listener's size, which is a fixed part, less the
 * more sockets there are. If a program asks accept() for the address we see it,
 * and it gets its share where that is more.
 *
 * recv(MSG_WAITALL) of more than the size, and SO_RCVLOWAT, fail with ENOMEM on
 * vsock, which on TCP they never do. Such a call raises the size, for good: one
 * that was granted can't be taken back. What was raised so is bounded by
 * itself. How many sockets there are, and which, vsock_diag tells.
 */

#define _GNU_SOURCE
#include <sys/param.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>

#include "agent/tsi.h"

#define PART	   64  /* of memory, it is divided by how many there are */
#define PER_RAISED 16  /* of memory that the raised ones may hold */
#define PER_QUEUED 16  /* of memory that ACCEPTED sockets may hold */
#define ACCEPTED   512 /* or as many as there are */
#define UNKNOWN	   128 /* sockets, if the kernel doesn't say */
#define MAX_RAISED 64  /* sockets */
#define LOOK_AFTER 8   /* sockets that were made since they were counted */
#define LOOK_MS	   100 /* or it is so old, and 1 ms for each that there is */

/**
 * struct raised - A socket whose size was raised
 * @inode:	The socket's; 0: slot is free
 * @size:	What it is now
 * @alive:	It was seen in the kernel's list
 */
struct raised {
	ino_t inode;
	uint64_t size;
	bool alive;
};

static struct raised raised[MAX_RAISED];

/**
 * memory() - How much memory the guest has
 *
 * Returns: bytes
 */
static uint64_t memory(void)
{
	static uint64_t bytes;
	struct sysinfo info;

	if (!bytes && !sysinfo(&info))
		bytes = (uint64_t)info.totalram * info.mem_unit;
	return bytes;
}

/**
 * add() - Count a socket
 * @unused:	Unused
 * @context:	The count
 */
static void add(const struct vsock_diag_msg *unused, void *context)
{
	unsigned *count = context;

	(void)unused;
	++*count;
}

/**
 * count_sockets() - How many vsock sockets there are
 *
 * Of our network namespace: those that we make are its, whoever has them.
 *
 * Returns: at least 1; not less than there are, but for those that another
 *	    agent has just made
 */
static unsigned count_sockets(void)
{
	static unsigned known, made;
	static int64_t old_ms;

	if (++made < LOOK_AFTER + known / LOOK_AFTER && now_ms() < old_ms)
		return known + made;
	known = made = 0;
	if (!diag_list(add, &known))
		known = UNKNOWN;
	old_ms = now_ms() + LOOK_MS + known;
	return MAX(known, 1);
}

/**
 * set() - Set how much a socket may hold
 * @fd:		One of our sockets; its label is no bound
 * @size:	Bytes
 */
static void set(int fd, uint64_t size)
{
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &size,
		   sizeof(size));
}

/**
 * size_of() - How much may a socket hold?
 * @fd:		One of our sockets
 *
 * Returns: bytes; 0 if it isn't ours
 */
static uint64_t size_of(int fd)
{
	uint64_t size = 0;
	socklen_t len = sizeof(size);

	getsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &size, &len);
	return size;
}

/**
 * share() - What one more socket may hold
 *
 * Returns: bytes
 */
static uint64_t share(void)
{
	uint64_t bytes = memory() / PART / count_sockets();

	return MAX(MIN(bytes, SOCK_BUFFER_BYTES), LEAST_BYTES);
}

/**
 * room_share() - Give a new socket its share
 * @fd:		One of our sockets
 */
void room_share(int fd)
{
	set(fd, share());
}

/**
 * room_accepted() - Give an accepted socket its share, if it has less
 * @fd:		It; the host knows what it has
 */
void room_accepted(int fd)
{
	uint64_t bytes = share();

	if (bytes > size_of(fd))
		set(fd, bytes);
}

/**
 * room_listener() - Say how much those may hold that a listener has next
 * @fd:		Listener, or about to be
 */
void room_listener(int fd)
{
	uint64_t bytes = memory() / PER_QUEUED / MAX(ACCEPTED, count_sockets());

	set(fd, MAX(MIN(bytes, SOCK_BUFFER_BYTES), LEAST_BYTES));
}

/**
 * see() - A socket is there
 * @msg:	It
 * @unused:	Unused
 */
static void see(const struct vsock_diag_msg *msg, void *unused)
{
	(void)unused;
	for (unsigned i = 0; i < MAX_RAISED; i++)
		if ((uint32_t)raised[i].inode == msg->vdiag_ino)
			raised[i].alive = true;
}

/**
 * forget_closed() - Forget the raised sockets that are no more
 */
static void forget_closed(void)
{
	for (unsigned i = 0; i < MAX_RAISED; i++)
		raised[i].alive = false;
	if (!diag_list(see, NULL))
		return;
	for (unsigned i = 0; i < MAX_RAISED; i++)
		if (!raised[i].alive)
			raised[i] = (struct raised){0};
}

/**
 * note() - Note that a socket is raised, if there is memory for it
 * @inode:	The socket's
 * @size:	What it is to be
 *
 * Returns: false if it hasn't
 */
static bool note(ino_t inode, uint64_t size)
{
	struct raised *slot = NULL;
	uint64_t sum = size;

	for (unsigned i = 0; i < MAX_RAISED; i++) {
		if (raised[i].inode == inode)
			slot = &raised[i];
		else
			sum += raised[i].size;
		if (!slot && !raised[i].inode)
			slot = &raised[i];
	}
	if (!slot || sum > memory() / PER_RAISED)
		return false;
	*slot = (struct raised){.inode = inode, .size = size};
	return true;
}

/**
 * room_for() - Let a socket hold more, if the guest has memory for it
 * @fd:		One of our sockets
 * @len:	More than so many bytes
 *
 * Else a call that wants so many at once fails with ENOMEM.
 */
void room_for(int fd, uint64_t len)
{
	uint64_t size = size_of(fd);
	struct stat status;

	if (size > len || len >= UINT32_MAX || fstat(fd, &status))
		return;
	size = len + 1;
	if (!note(status.st_ino, size)) {
		forget_closed();
		if (!note(status.st_ino, size))
			return;
	}
	set(fd, size);
}
