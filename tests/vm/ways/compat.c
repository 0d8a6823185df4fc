// SPDX-License-Identifier: Apache-2.0
/*
 * compat.c - calls of 32-bit and x32 programs
 *
 * "int 0x80" is a 32-bit program's call, whoever makes it; arguments are below
 * 4 GiB in a static program that is linked to a fixed address.
 */

#define _GNU_SOURCE
#include <sys/ioctl.h>

#include <linux/sockios.h>

#include "ways.h"

#define X32 0x40000000L

enum {
	READ32 = 3,
	WRITE32 = 4,
	CLOSE32 = 6,
	IOCTL32 = 54,
	SOCKETCALL32 = 102,
	SOCKET32 = 359,
	CONNECT32 = 362,
	GETSOCKOPT32 = 365,
	GETPEERNAME32 = 368,
	SENDTO32 = 369,
	RECVFROM32 = 371,
	RECVMSG32 = 372,
};

enum { CALL_SOCKET = 1, CALL_CONNECT = 3, CALL_SEND = 9, CALL_RECV = 10 };

static struct sockaddr_in to, name;
static socklen_t name_len;
static char bytes[16];
static uint32_t words[4];

static long call32(long number, long a, long b, long c, long d)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(0L)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

static long at(const void *there)
{
	return (long)there;
}

static void a_32_bit_program_connects(void)
{
	static struct {
		uint32_t name, name_len, iov, iov_len, control, control_len;
		int flags;
	} msg;
	static struct {
		uint32_t base, len;
	} iov;
	long fd = call32(SOCKET32, AF_INET, SOCK_STREAM, 0, 0);
	static int value;

	to = address_of(HOST, ECHO);
	want(fd >= 0);
	want(call32(CONNECT32, fd, at(&to), sizeof(to), 0) == 0);
	name_len = sizeof(name);
	want(call32(GETPEERNAME32, fd, at(&name), at(&name_len), 0) == 0);
	want(name.sin_port == to.sin_port);
	memcpy(bytes, "hello", 5);
	want(call32(WRITE32, fd, at(bytes), 5, 0) == 5);
	want(call32(SENDTO32, fd, at(bytes), 5, 0) == 5);
	want(recv((int)fd, bytes, 10, MSG_PEEK | MSG_WAITALL) == 10);
	want(call32(IOCTL32, fd, SIOCINQ, at(&value), 0) == 0 && value == 10);
	want(call32(READ32, fd, at(bytes), 5, 0) == 5);
	iov.base = (uint32_t)at(bytes);
	iov.len = 5;
	msg.iov = (uint32_t)at(&iov);
	msg.iov_len = 1;
	want(call32(RECVMSG32, fd, at(&msg), 0, 0) == 5);
	want(!memcmp(bytes, "hello", 5));
	want(call32(CLOSE32, fd, 0, 0, 0) == 0);
}

static void a_32_bit_program_uses_socketcall(void)
{
	const uint32_t wanted[3] = {AF_INET, SOCK_STREAM, 0};
	uint32_t fd;

	memcpy(words, wanted, sizeof(wanted));
	fd = (uint32_t)call32(SOCKETCALL32, CALL_SOCKET, at(words), 0, 0);
	want((int)fd >= 0);
	to = address_of(HOST, ECHO);
	words[0] = fd;
	words[1] = (uint32_t)at(&to);
	words[2] = sizeof(to);
	want(call32(SOCKETCALL32, CALL_CONNECT, at(words), 0, 0) == 0);
	memcpy(bytes, "again", 5);
	words[1] = (uint32_t)at(bytes);
	words[2] = 5;
	words[3] = 0;
	want(call32(SOCKETCALL32, CALL_SEND, at(words), 0, 0) == 5);
	words[3] = MSG_WAITALL;
	want(call32(SOCKETCALL32, CALL_RECV, at(words), 0, 0) == 5);
	want(!memcmp(bytes, "again", 5));
}

/* Where the kernel has x32: Debian's wants syscall.x32=y */
static void an_x32_program_connects(void)
{
	int fd = (int)syscall(X32 | 41, AF_INET, SOCK_STREAM, 0);

	if (fd < 0 && errno == ENOSYS)
		return;
	to = address_of(HOST, ECHO);
	want(syscall(X32 | 42, fd, &to, sizeof(to)) == 0);
	exchange(fd);
}

const struct check compat[] = {
    CHECK(a_32_bit_program_connects),
    CHECK(a_32_bit_program_uses_socketcall),
    CHECK(an_x32_program_connects),
    {0},
};
