// SPDX-License-Identifier: Apache-2.0
/*
 * memory.c - the memory that a connection shares with a process
 *
 * Theory of operation
 * ===================
 *
 * A memfd of its own for each connection: whoever has one sees no other's
 * bytes. It is sealed before it is given away, so that no access of ours can
 * fail: its size stays. Its pages are made as they are used.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "side/peer.h"

/**
 * shm_new() - Have a connection share memory, as yet none
 * @c:		Connection
 * @peer:	Process
 *
 * Returns: it; NULL if out of memory
 */
struct shm *shm_new(struct vu_conn *c, uint32_t peer)
{
	struct shm *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	*m = (struct shm){.c = c, .bell = -1, .peer = peer};
	list_init(&m->awake);
	list_init(&m->dial);
	return m;
}

/**
 * map() - Make sealed memory, and map it
 * @m:		Without memory
 * @ring_bytes:	Of each ring
 * @ret_fd:	Its descriptor
 *
 * Returns: 0, or errno
 */
static int map(struct shm *m, uint32_t ring_bytes, int *ret_fd)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	size_t len = fpring_bytes(ring_bytes, ring_bytes);
	int fd = memfd_create("fastpath-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *mem = MAP_FAILED;
	int error;

	if (fd < 0)
		return errno;
	if (!ftruncate(fd, (off_t)len) && !fcntl(fd, F_ADD_SEALS, seals))
		mem =
		    mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED) {
		error = errno;
		close(fd);
		return error;
	}
	fpring_format(mem, ring_bytes, ring_bytes);
	fpring_attach(&m->ring, mem, ring_bytes, ring_bytes, true);
	m->mem = mem;
	m->len = len;
	*ret_fd = fd;
	return 0;
}

/**
 * shm_make() - Make the memory, and what wakes us
 * @m:		Without memory
 * @ring_bytes:	Of each ring
 * @ret_fds:	What the process gets: the memory's, to be closed then, and the
 *		eventfd's, which stays ours, too
 *
 * Returns: 0, or errno
 */
int shm_make(struct shm *m, uint32_t ring_bytes, int ret_fds[2])
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET,
				 .data.u64 = conn_id(m->c)};
	int epoll_fd = m->c->core->epoll_fd, fd = -1, error;

	error = map(m, ring_bytes, &fd);
	if (error)
		return error;
	m->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (m->bell < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, m->bell, &ev)) {
		error = errno;
		close(fd);
		return error;
	}
	ret_fds[0] = fd;
	ret_fds[1] = m->bell;
	return 0;
}

/**
 * shm_free() - Share no memory any more
 * @m:		Memory, or NULL
 *
 * The process has the eventfd as well, so it leaves epoll only if told to.
 */
void shm_free(struct shm *m)
{
	if (!m)
		return;
	list_del(&m->awake);
	list_del(&m->dial);
	if (m->bell >= 0) {
		epoll_ctl(m->c->core->epoll_fd, EPOLL_CTL_DEL, m->bell, NULL);
		close(m->bell);
	}
	if (m->mem)
		munmap(m->mem, m->len);
	free(m);
}
