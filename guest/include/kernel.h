/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * kernel.h - what tsi-agent and the kernel module tsi.ko agree on
 *
 * guest/kernel/main.c has the theory of operation. Both are of one image, so a
 * version is not needed.
 */
#ifndef TSI_KERNEL_H
#define TSI_KERNEL_H

#ifdef __KERNEL__
#include <linux/in6.h>
#include <linux/types.h>
#else
#include <netinet/in.h>
#include <stdint.h>
#endif
#include <linux/ioctl.h>

#define TSI_DEVICE "/dev/tsi"

/*
 * The sixth argument of a call that the module shows to the filter. Its upper
 * half is the mark, its lower half what the module wants:
 *
 * WHOSE:	that the filter fails the call, the errno being the instance
 * TRAP:	that the call is trapped
 * RESET:	same; it is a connect(), and an attempt with the token in the
 *		fourth argument was reset
 *
 * connect() and the others have fewer than six. A program that puts it there
 * itself is trapped, or told a number.
 */
#define TSI_MARK  0x54534921U
#define TSI_WHOSE 1U
#define TSI_TRAP  2U
#define TSI_RESET 3U

/* Flags and fields of a label, see tsi/sock.c */
#define LABEL_V6	 (1ULL << 0) /* program asked for AF_INET6 */
#define LABEL_UNREPORTED (1ULL << 1) /* outcome of connect() owed */
#define LABEL_ABORTED	 (1ULL << 2) /* failed, errno was fetched */
#define LABEL_SNDTIMEO	 (1ULL << 3) /* SO_SNDTIMEO may be set */
#define LABEL_REUSEPORT	 (1ULL << 4) /* to 53: socket options */
#define LABEL_V6ONLY	 (1ULL << 5)
#define LABEL_TOS_SHIFT	 8
#define LABEL_TOS_BITS	 8
#define LABEL_LOCAL	 (1ULL << 54) /* connects in the guest */
#define LABEL_INBOUND	 (1ULL << 55) /* listener, or accepted */
#define LABEL_MARK	 (0x54ULL << 56)
#define LABEL_MARK_MASK	 (0xffULL << 56)

#define SOCK_BUFFER_BYTES (1 << 20) /* most that a socket queues */

/* Options of TCP in the label: name, where, bits, default, least value */
#define TSI_TCP_OPTIONS(_)                                                     \
	_(TCP_NODELAY, 6, 1, 0, 0)                                             \
	_(TCP_CORK, 7, 1, 0, 0)                                                \
	_(TCP_KEEPIDLE, 16, 15, 7200, 1)                                       \
	_(TCP_KEEPINTVL, 31, 15, 75, 1)                                        \
	_(TCP_KEEPCNT, 46, 7, 9, 1)

/* A guest that connects often has to keep its timers short, see tsi/sock.c */
#define HELD_SOCKETS  16384 /* by timers, at most: 22 MiB */
#define MIN_TIMEOUT_S 2	    /* but a connect has that long */

/* Upper half of the first vsock port of sockets whose lower half was chosen */
#define FIRST_BOUND 128U

/* Ranges of 65536 vsock ports that connections to listeners come from */
#define FIRST_CALLER 0x8000U /* upper half of the first one */
#define CALLERS	     0x4003U /* the host's, then three for the guest itself */

/* Those three, of connections within the guest. Only they name one that the
 * host didn't make: any program can bind any other port. */
#define LOCAL_V4     0xc000U
#define LOCAL_V6     0xc001U /* from ::1 */
#define LOCAL_MAPPED 0xc002U /* to AF_INET6 from 127.0.0.1 */

#define TSI_KNOWN 1024 /* a power of two */
#define TSI_NAMED 1024 /* same */

/* Where the tables are in the device */
#define TSI_SHARED_AT  0
#define TSI_CALLERS_AT (1 << 20)

/**
 * struct tsi_change - A change of a socket's label, for an ioctl() of the
 * device
 * @set:	Bits to set
 * @clear:	Bits to clear before
 * @fd:		The socket
 * @unused:	0
 */
struct tsi_change {
	uint64_t set;
	uint64_t clear;
	int32_t fd;
	uint32_t unused;
};
#define TSI_CHANGE_LABEL _IOW('T', 0x53, struct tsi_change)

/**
 * struct caller - A range of ports, and whose connections come from it
 * @addr:	What accept() gives, the port 0: struct sockaddr_in6 or
 *		sockaddr_in
 * @size:	Bytes of it; 0: nobody has the range
 */
struct caller {
	struct sockaddr_in6 addr;
	uint32_t size;
};

/**
 * struct tsi_known - A destination and its token
 * @token:	Token; 0: there is none. Written last, and cleared first
 * @port:	TCP port
 * @address:	IPv6, or IPv4 in its v4-mapped form
 */
struct tsi_known {
	uint32_t token;
	uint32_t port;
	uint64_t address[2];
};

/**
 * struct tsi_shared - Memory of the agent and the module, mapped from the
 *		       device
 * @instance:	This agent's number; the module's, the rest is the agent's
 * @connect_timeout_s: How long a connect may take; 0: there was no stream yet
 * @pod:	The pod's addresses, IPv4 and IPv6, as in struct tsi_known
 * @known:	Destinations, each at its tsi_hash() modulo TSI_KNOWN
 * @named:	Same, each at its token modulo TSI_NAMED; also those that can't
 *		be connected to any more
 */
struct tsi_shared {
	uint32_t instance;
	uint32_t connect_timeout_s;
	uint64_t pod[2][2];
	struct tsi_known known[TSI_KNOWN];
	struct tsi_known named[TSI_NAMED];
};

/**
 * tsi_hash() - A number to find a destination by
 * @address:	As in struct tsi_known
 * @port:	Same
 *
 * Returns: the number, its bits well spread
 */
static inline uint32_t tsi_hash(const uint64_t address[2], uint32_t port)
{
	uint64_t high = address[0] ^ (uint64_t)port << 48;

	return (uint32_t)(((address[1] ^ (high * 0x9e3779b97f4a7c15ULL)) *
			   0xff51afd7ed558ccdULL) >>
			  32);
}

#endif /* TSI_KERNEL_H */
