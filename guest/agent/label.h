/* SPDX-License-Identifier: Apache-2.0 */
/*
 * label.h - what our sockets carry: labels and ports, as sock.c and ports.c say
 */
#ifndef LABEL_H
#define LABEL_H

/* Flags and fields of a label */
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

/* Upper halves of vsock ports whose lower half is a TCP port */
#define LISTENERS  16U /* first of published listeners' */
#define FEW_SHARED 64U /* listeners of one TCP port that have those */

#define VSOCK_PORT(upper, port) ((uint32_t)(upper) << 16 | (port))

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

#endif /* LABEL_H */
