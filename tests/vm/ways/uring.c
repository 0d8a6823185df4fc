// SPDX-License-Identifier: Apache-2.0
/*
 * uring.c - io_uring: the kernel itself makes the call, in a worker perhaps
 */

#define _GNU_SOURCE
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/io_uring.h>

#include "ways.h"

#define ENTRIES 8U

struct ring {
	int fd;
	uint32_t *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

/* No ring: the check has nothing to say, as where io_uring is switched off */
static struct ring begin(void)
{
	struct io_uring_params params = {0};
	int fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &params);
	struct ring ring = {.fd = fd};
	char *sq, *cq;

	if (fd < 0 && (errno == ENOSYS || errno == EPERM))
		_exit(0);
	want(fd >= 0);
	sq = mmap(NULL, params.sq_off.array + ENTRIES * sizeof(uint32_t),
		  PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	cq = mmap(NULL,
		  params.cq_off.cqes +
		      params.cq_entries * sizeof(struct io_uring_cqe),
		  PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
	ring.sqes =
	    mmap(NULL, ENTRIES * sizeof(struct io_uring_sqe),
		 PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	want(sq != MAP_FAILED && cq != MAP_FAILED && ring.sqes != MAP_FAILED);
	ring.sq_tail = (uint32_t *)(sq + params.sq_off.tail);
	ring.sq_mask = (uint32_t *)(sq + params.sq_off.ring_mask);
	ring.sq_array = (uint32_t *)(sq + params.sq_off.array);
	ring.cq_head = (uint32_t *)(cq + params.cq_off.head);
	ring.cq_tail = (uint32_t *)(cq + params.cq_off.tail);
	ring.cq_mask = (uint32_t *)(cq + params.cq_off.ring_mask);
	ring.cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
	return ring;
}

static void submit(struct ring *ring, struct io_uring_sqe sqe)
{
	uint32_t tail = *ring->sq_tail, i = tail & *ring->sq_mask;

	ring->sqes[i] = sqe;
	ring->sq_array[i] = i;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	want(syscall(SYS_io_uring_enter, ring->fd, 1, 0, 0, NULL, 0) == 1);
}

static int result(struct ring *ring)
{
	uint32_t head = *ring->cq_head;
	int result;

	while (__atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) == head)
		syscall(SYS_io_uring_enter, ring->fd, 0, 1,
			IORING_ENTER_GETEVENTS, NULL, 0);
	result = ring->cqes[head & *ring->cq_mask].res;
	__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
	return result;
}

static int make(struct ring *ring, struct io_uring_sqe sqe)
{
	submit(ring, sqe);
	return result(ring);
}

static struct io_uring_sqe bytes(int op, int fd, const void *at, unsigned len)
{
	return (struct io_uring_sqe){
	    .opcode = (uint8_t)op, .fd = fd, .addr = (uintptr_t)at, .len = len};
}

static void echo(struct ring *ring, int fd, int flags)
{
	struct io_uring_sqe sqe = bytes(IORING_OP_RECV, fd, NULL, 5);
	char text[8] = "";

	sqe.addr = (uintptr_t)text;
	submit(ring, sqe);
	sqe = bytes(IORING_OP_SEND, fd, "hello", 5);
	sqe.flags = (uint8_t)flags;
	submit(ring, sqe);
	want(result(ring) == 5);
	want(result(ring) == 5);
	want(!memcmp(text, "hello", 5));
	sqe = (struct io_uring_sqe){
	    .opcode = IORING_OP_POLL_ADD, .fd = fd, .poll32_events = POLLIN};
	submit(ring, sqe);
	want(make(ring, bytes(IORING_OP_WRITE, fd, "again", 5)) > 0);
	want(result(ring) > 0);
	want(make(ring, bytes(IORING_OP_READ, fd, text, 5)) == 5);
}

static void connect_by(int flags)
{
	struct sockaddr_in to = address_of(HOST, ECHO);
	struct ring ring = begin();
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct io_uring_sqe sqe = {.opcode = IORING_OP_CONNECT,
				   .flags = (uint8_t)flags,
				   .fd = fd,
				   .addr = (uintptr_t)&to,
				   .off = sizeof(to)};

	want(make(&ring, sqe) == 0);
	echo(&ring, fd, flags);
}

static void io_uring_connects(void)
{
	connect_by(0);
}

static void io_uring_connects_in_a_worker(void)
{
	connect_by(IOSQE_ASYNC);
}

static void io_uring_connects_a_socket_that_is_nonblocking(void)
{
	struct sockaddr_in to = address_of(HOST, ECHO);
	struct ring ring = begin();
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct io_uring_sqe sqe = {.opcode = IORING_OP_CONNECT,
				   .fd = fd,
				   .addr = (uintptr_t)&to,
				   .off = sizeof(to)};
	int got = make(&ring, sqe);

	want(got == 0 || got == -EINPROGRESS);
	sqe = (struct io_uring_sqe){
	    .opcode = IORING_OP_POLL_ADD, .fd = fd, .poll32_events = POLLOUT};
	want(make(&ring, sqe) == POLLOUT);
	echo(&ring, fd, 0);
}

static void io_uring_refused(void)
{
	struct sockaddr_in to = address_of(HOST, 1);
	struct ring ring = begin();
	struct io_uring_sqe sqe = {.opcode = IORING_OP_CONNECT,
				   .fd = socket(AF_INET, SOCK_STREAM, 0),
				   .addr = (uintptr_t)&to,
				   .off = sizeof(to)};

	want(make(&ring, sqe) == -ECONNREFUSED);
}

static void io_uring_accepts(void)
{
	struct ring ring = begin();
	int port, fd = listener(&port), client;
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	struct io_uring_sqe sqe = {.opcode = IORING_OP_ACCEPT,
				   .fd = fd,
				   .addr = (uintptr_t)&from,
				   .addr2 = (uintptr_t)&len};

	submit(&ring, sqe);
	client = client_from_host(port);
	fd = result(&ring);
	want(fd >= 0);
	want(from.sin_family == AF_INET);
	echo(&ring, fd, 0);
	close(client);
}

static void io_uring_accepts_again_and_again(void)
{
	struct ring ring = begin();
	int port, fd = listener(&port);
	struct io_uring_sqe sqe = {.opcode = IORING_OP_ACCEPT,
				   .ioprio = IORING_ACCEPT_MULTISHOT,
				   .fd = fd};

	submit(&ring, sqe);
	for (int i = 0; i < 3; i++) {
		client_from_host(port);
		fd = result(&ring);
		want(fd >= 0);
		exchange(fd);
	}
}

static void io_uring_sends_without_a_copy(void)
{
	struct ring ring = begin();
	int fd = connected();
	char text[8] = "";
	struct io_uring_sqe sqe = bytes(IORING_OP_SEND_ZC, fd, "hello", 5);

	want(make(&ring, sqe) == 5);
	want(result(&ring) == 0); /* the notification */
	want(recv(fd, text, 5, MSG_WAITALL) == 5);
	want(!memcmp(text, "hello", 5));
}

static void io_uring_is_cancelled(void)
{
	struct ring ring = begin();
	int fd = connected();
	char text[8];
	struct io_uring_sqe sqe = bytes(IORING_OP_RECV, fd, text, 5);

	sqe.user_data = 7;
	submit(&ring, sqe);
	sqe =
	    (struct io_uring_sqe){.opcode = IORING_OP_ASYNC_CANCEL, .addr = 7};
	submit(&ring, sqe);
	want(result(&ring) + result(&ring) == -ECANCELED);
	exchange(fd);
}

const struct check uring[] = {
    CHECK(io_uring_connects),
    CHECK(io_uring_connects_in_a_worker),
    CHECK(io_uring_connects_a_socket_that_is_nonblocking),
    CHECK(io_uring_refused),
    CHECK(io_uring_accepts),
    CHECK(io_uring_accepts_again_and_again),
    CHECK(io_uring_sends_without_a_copy),
    CHECK(io_uring_is_cancelled),
    {0},
};
