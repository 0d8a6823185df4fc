// SPDX-License-Identifier: Apache-2.0
/*
 * fastpath_ring.c - connections of a guest by rings of shared memory
 *
 * Theory of operation
 * ===================
 *
 * A ring has one producer and one consumer. Each writes a line of its own, and
 * nothing else but the producer the bytes. Positions run freely: their
 * difference is what is in the ring, and their lower bits say where.
 *
 * Order. A position is stored (release) behind the bytes that it stands for,
 * and loaded (acquire) before they are touched. A state is loaded before the
 * position, so that an end isn't seen before the last bytes are.
 *
 * Sleep. Whoever sleeps says so first and looks again then; whoever moves a
 * position looks afterwards whether the other sleeps. Between the two steps of
 * each is a full fence (Dekker's), so that at least one sees what the other
 * did. A wake-up is for one sleep: its number is remembered, so that many small
 * writes to one who is waking up cost one system call.
 *
 * Trust. All that the other process writes is loaded once and checked: more in
 * a ring than it holds is EPROTO. Sizes are our own copies. The memory is
 * sealed, so that it can't be taken away.
 *
 * Wake-ups. The maker is woken by an eventfd, which it never reads: an edge is
 * all. The other process is woken by a byte on the unix socket: whoever holds
 * an eventfd can make a write to it block, and the maker must not wait.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "fastpath_ring.h"

#define STATE_BITS    8
#define MAX_ERRNO     4095U
#define WINDOW_MIN_US 4
#define SPINS	      16 /* looks at the rings between looks at the clock */

/* ---- rings ---- */

/* What the other process says by a state: 0, -EPIPE (ENDED), or why it reset */
static int verdict(uint32_t state)
{
	uint32_t error = state >> STATE_BITS;

	switch (state & ((1U << STATE_BITS) - 1)) {
	case FPRING_OPEN:
		return 0;
	case FPRING_ENDED:
		return -EPIPE;
	case FPRING_RESET:
		return error && error <= MAX_ERRNO ? -(int)error : -ECONNRESET;
	default:
		return -EPROTO;
	}
}

/* Find bytes of a ring, from one position on */
static void segments(const struct fpring_way *w, uint32_t from, uint32_t len,
		     struct iovec ret[2])
{
	uint32_t at = from & (w->size - 1), span = w->size - at;

	if (span > len)
		span = len;
	ret[0] = (struct iovec){.iov_base = w->data + at, .iov_len = span};
	ret[1] = (struct iovec){.iov_base = w->data, .iov_len = len - span};
}

/* Behind a store of ours: has the other process to be woken? */
static bool sleeps(struct fpring_way *w)
{
	uint32_t sleep;

	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with fpring_sleep() */
	sleep = __atomic_load_n(&w->theirs->sleep, __ATOMIC_RELAXED);
	if (!(sleep & 1) || sleep == w->rung)
		return false;
	w->rung = sleep;
	return true;
}

size_t fpring_bytes(uint32_t up_bytes, uint32_t down_bytes)
{
	const uint32_t sizes[2] = {up_bytes, down_bytes};

	for (unsigned i = 0; i < 2; i++) {
		if (sizes[i] < FPRING_MIN || sizes[i] > FPRING_MAX ||
		    (sizes[i] & (sizes[i] - 1)))
			return 0;
	}
	return FPRING_DATA + (size_t)up_bytes + down_bytes;
}

void fpring_format(void *mem, uint32_t up_bytes, uint32_t down_bytes)
{
	struct fpring_memory *m = mem;

	memcpy(m->magic, FPRING_MAGIC, sizeof(m->magic));
	m->version = FPRING_VERSION;
	m->data = FPRING_DATA;
	m->up_bytes = up_bytes;
	m->down_bytes = down_bytes;
}

void fpring_attach(struct fpring *ret, void *mem, uint32_t up_bytes,
		   uint32_t down_bytes, bool maker)
{
	struct fpring_memory *m = mem;
	const struct fpring_way up = {
	    .mine = maker ? &m->up_producer : &m->up_consumer,
	    .theirs = maker ? &m->up_consumer : &m->up_producer,
	    .data = (char *)mem + FPRING_DATA,
	    .size = up_bytes,
	};
	const struct fpring_way down = {
	    .mine = maker ? &m->down_consumer : &m->down_producer,
	    .theirs = maker ? &m->down_producer : &m->down_consumer,
	    .data = (char *)mem + FPRING_DATA + up_bytes,
	    .size = down_bytes,
	};

	ret->in = maker ? down : up;
	ret->out = maker ? up : down;
}

ssize_t fpring_readable(struct fpring *r, struct iovec ret[2])
{
	struct fpring_way *w = &r->in;
	int end = verdict(__atomic_load_n(&w->theirs->state, __ATOMIC_ACQUIRE));
	uint32_t theirs =
	    __atomic_load_n(&w->theirs->position, __ATOMIC_ACQUIRE);
	uint32_t used = theirs - w->position;

	if (end && end != -EPIPE)
		return end;
	if (used > w->size)
		return -EPROTO;
	if (!used)
		return end ? 0 : -EAGAIN;
	w->seen = theirs;
	segments(w, w->position, used, ret);
	return (ssize_t)used;
}

bool fpring_consumed(struct fpring *r, size_t n)
{
	struct fpring_way *w = &r->in;

	w->position += (uint32_t)n;
	__atomic_store_n(&w->mine->position, w->position, __ATOMIC_RELEASE);
	/* one who waits for room gets half of it at once */
	return w->seen - w->position <= w->size / 2 && sleeps(w);
}

ssize_t fpring_room(struct fpring *r, struct iovec ret[2])
{
	struct fpring_way *w = &r->out;
	int end = verdict(__atomic_load_n(&w->theirs->state, __ATOMIC_ACQUIRE));
	uint32_t theirs =
	    __atomic_load_n(&w->theirs->position, __ATOMIC_ACQUIRE);
	uint32_t used = w->position - theirs;

	if (end)
		return end;
	if (used > w->size)
		return -EPROTO;
	if (used == w->size)
		return -EAGAIN;
	w->seen = theirs;
	segments(w, w->position, w->size - used, ret);
	return (ssize_t)(w->size - used);
}

bool fpring_produced(struct fpring *r, size_t n)
{
	struct fpring_way *w = &r->out;

	w->position += (uint32_t)n;
	__atomic_store_n(&w->mine->position, w->position, __ATOMIC_RELEASE);
	return sleeps(w);
}

unsigned fpring_ready(struct fpring *r, unsigned want)
{
	struct iovec unused[2];
	unsigned ready = 0;

	if (want & FPRING_READ && fpring_readable(r, unused) != -EAGAIN)
		ready |= FPRING_READ;
	if (want & FPRING_WRITE && fpring_room(r, unused) != -EAGAIN)
		ready |= FPRING_WRITE;
	return ready;
}

/* Say that we sleep, by a new odd number, or that we don't */
static void set_sleep(struct fpring_way *w, bool asleep)
{
	bool slept = w->sleep & 1;

	if (!asleep && !slept)
		return;
	w->sleep += asleep && slept ? 2 : 1;
	__atomic_store_n(&w->mine->sleep, w->sleep, __ATOMIC_RELAXED);
}

bool fpring_sleep(struct fpring *r, unsigned want)
{
	set_sleep(&r->in, want & FPRING_READ);
	set_sleep(&r->out, want & FPRING_WRITE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with sleeps() */
	if (!fpring_ready(r, want))
		return true;
	fpring_awake(r);
	return false;
}

void fpring_awake(struct fpring *r)
{
	set_sleep(&r->in, false);
	set_sleep(&r->out, false);
}

/* Change the state of our line; a reset is the last one */
static void set_state(struct fpring_way *w, uint32_t state)
{
	uint32_t now = __atomic_load_n(&w->mine->state, __ATOMIC_RELAXED);

	if (now == FPRING_OPEN || (now == FPRING_ENDED && state != now))
		__atomic_store_n(&w->mine->state, state, __ATOMIC_RELEASE);
}

void fpring_end(struct fpring *r, unsigned what)
{
	if (what & FPRING_WRITE)
		set_state(&r->out, FPRING_ENDED);
	if (what & FPRING_READ)
		set_state(&r->in, FPRING_ENDED);
}

void fpring_fail(struct fpring *r, int error)
{
	uint32_t state = FPRING_RESET | (uint32_t)error << STATE_BITS;

	set_state(&r->out, state);
	set_state(&r->in, state);
}

/* ---- links ---- */

/* Take a message with two descriptors; 0 or -errno */
static int receive(int fd, struct fpring_hello *hello, int fds[2])
{
	union {
		char room[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {.iov_base = hello, .iov_len = sizeof(*hello)};
	struct msghdr msg = {
	    .msg_iov = &iov,
	    .msg_iovlen = 1,
	    .msg_control = control.room,
	    .msg_controllen = sizeof(control.room),
	};
	ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *cmsg = n < 0 ? NULL : CMSG_FIRSTHDR(&msg);
	size_t count = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -errno;
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS) {
		count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(cmsg), count * sizeof(int));
	}
	if (n == sizeof(*hello) && count == 2 &&
	    !memcmp(hello->magic, FPRING_MAGIC, sizeof(hello->magic)))
		return 0;
	while (count)
		close(fds[--count]);
	return -EPROTO;
}

/* Map what came; 0 or -errno */
static int map(struct fpring_link *l, const struct fpring_hello *hello, int fd)
{
	const int sealed = F_SEAL_SHRINK | F_SEAL_SEAL;
	struct stat status;

	if (hello->version != FPRING_VERSION)
		return -EPROTONOSUPPORT;
	l->len = fpring_bytes(hello->up_bytes, hello->down_bytes);
	if (!l->len || hello->identity_len > sizeof(hello->identity) ||
	    fstat(fd, &status) || (size_t)status.st_size != l->len ||
	    (fcntl(fd, F_GET_SEALS) & sealed) != sealed)
		return -EPROTO;
	l->mem = mmap(NULL, l->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (l->mem == MAP_FAILED)
		return -errno;
	fpring_attach(&l->ring, l->mem, hello->up_bytes, hello->down_bytes,
		      false);
	return 0;
}

int fpring_take(int fd, struct fpring_link *ret, struct fpring_hello *ret_hello)
{
	struct fpring_link l = {.fd = fd, .max_us = FPRING_POLL_US};
	struct fpring_hello hello;
	int fds[2] = {-1, -1};
	int err = receive(fd, &hello, fds);

	if (err)
		return err;
	l.bell = fds[1];
	err = map(&l, &hello, fds[0]);
	close(fds[0]);
	if (err) {
		close(fds[1]);
		return err;
	}
	*ret = l;
	*ret_hello = hello;
	return 0;
}

int fpring_answer(struct fpring_link *l, int error)
{
	const struct fpring_answer answer = {.version = FPRING_VERSION,
					     .error = error};

	if (send(l->fd, &answer, sizeof(answer), MSG_NOSIGNAL) < 0)
		return -errno;
	return 0;
}

void fpring_ring(const struct fpring_link *l)
{
	const uint64_t one = 1;

	if (write(l->bell, &one, sizeof(one)) < 0)
		return; /* the counter is full: a wake-up is pending */
}

ssize_t fpring_read(struct fpring_link *l, void *buf, size_t len)
{
	struct iovec iov[2];
	ssize_t n = fpring_readable(&l->ring, iov);
	size_t first;

	if (n <= 0)
		return n == -EAGAIN && l->gone ? -ECONNRESET : n;
	if ((size_t)n < len)
		len = (size_t)n;
	first = len < iov[0].iov_len ? len : iov[0].iov_len;
	memcpy(buf, iov[0].iov_base, first);
	memcpy((char *)buf + first, iov[1].iov_base, len - first);
	if (fpring_consumed(&l->ring, len))
		fpring_ring(l);
	return (ssize_t)len;
}

ssize_t fpring_write(struct fpring_link *l, const void *buf, size_t len)
{
	struct iovec iov[2];
	ssize_t n = fpring_room(&l->ring, iov);
	size_t first;

	if (n < 0)
		return n == -EAGAIN && l->gone ? -ECONNRESET : n;
	if ((size_t)n < len)
		len = (size_t)n;
	first = len < iov[0].iov_len ? len : iov[0].iov_len;
	memcpy(iov[0].iov_base, buf, first);
	memcpy(iov[1].iov_base, (const char *)buf + first, len - first);
	if (fpring_produced(&l->ring, len))
		fpring_ring(l);
	return (ssize_t)len;
}

bool fpring_rest(struct fpring_link *l, unsigned want)
{
	return !l->gone && fpring_sleep(&l->ring, want);
}

void fpring_woken(struct fpring_link *l)
{
	char bells[64];
	ssize_t n;

	while ((n = recv(l->fd, bells, sizeof(bells), MSG_DONTWAIT)) > 0)
		;
	l->gone |= n == 0 || (errno != EAGAIN && errno != EINTR);
	fpring_awake(&l->ring);
}

static uint64_t clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000U + (uint64_t)now.tv_nsec / 1000U;
}

/* Look for the length of the window; what is ready */
static unsigned spin(struct fpring_link *l, unsigned want)
{
	uint64_t start = clock_us();
	unsigned ready;

	do {
		for (unsigned i = 0; i < SPINS; i++) {
			ready = fpring_ready(&l->ring, want);
			if (ready)
				return ready;
			__builtin_ia32_pause();
		}
		sched_yield(); /* the other process may share our core */
	} while (clock_us() - start < l->window_us);
	return 0;
}

/* Learn from how long a sleep took */
static void adapt(struct fpring_link *l, uint64_t slept_us)
{
	if (slept_us >= l->max_us)
		l->window_us /= 2;
	else
		l->window_us = l->window_us < WINDOW_MIN_US ? WINDOW_MIN_US
							    : 2 * l->window_us;
	if (l->window_us > l->max_us)
		l->window_us = l->max_us;
}

int fpring_wait(struct fpring_link *l, unsigned want, int timeout_ms)
{
	struct pollfd p = {.fd = l->fd, .events = POLLIN};
	unsigned ready = fpring_ready(&l->ring, want);
	uint64_t start;
	int n;

	if (!ready && l->window_us)
		ready = spin(l, want);
	while (!ready && fpring_rest(l, want)) {
		start = clock_us();
		n = poll(&p, 1, timeout_ms);
		adapt(l, clock_us() - start);
		if (n <= 0) {
			n = n < 0 ? -errno : 0;
			fpring_awake(&l->ring);
			return n;
		}
		fpring_woken(l);
		ready = fpring_ready(&l->ring, want);
	}
	if (ready || l->gone) /* which a read or a write tells */
		return (int)(ready ? ready : want);
	return (int)fpring_ready(&l->ring, want);
}

void fpring_shutdown(struct fpring_link *l, unsigned what)
{
	fpring_end(&l->ring, what);
	fpring_ring(l);
}

void fpring_reset(struct fpring_link *l, int error)
{
	fpring_fail(&l->ring, error);
	fpring_ring(l);
}

void fpring_close(struct fpring_link *l)
{
	struct iovec unused[2];

	if (fpring_readable(&l->ring, unused) > 0)
		fpring_fail(&l->ring, ECONNRESET);
	fpring_end(&l->ring, FPRING_READ | FPRING_WRITE);
	close(l->fd); /* the other process looks at the states then */
	close(l->bell);
	munmap(l->mem, l->len);
}
