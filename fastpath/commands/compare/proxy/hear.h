/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hear.h - where a connection is to go, as each kind of hand-off says it
 */
#ifndef HEAR_H
#define HEAR_H

#include <netinet/in.h>

#include "end.h"

/**
 * enum kind - How connections come
 * @PLAIN:	By TCP, to where they were to go
 * @REDIRECT:	By TCP, led here by netfilter's REDIRECT
 * @HEADER:	By a unix socket, a PROXY protocol v2 header first
 * @SOCKS5:	By SOCKS5
 * @RING:	By rings of shared memory
 * @VSOCK:	By a unix socket for each port, whose name ends with it
 * @SIDECAR:	As @REDIRECT, and our own are told by their user
 */
enum kind { PLAIN, REDIRECT, HEADER, SOCKS5, RING, VSOCK, SIDECAR };

#define SERVER_PORT 7007 /* of the server behind, on every path */

/**
 * hear() - Take what comes before a connection's bytes
 * @kind:	How it came
 * @e:		Its end, which is one by rings from here on
 * @ret:	Where it is to go
 *
 * Returns: 0,
 *	-EAGAIN, if it has yet to come
 *	-EPROTO, if it is something else
 *	-errno
 */
int hear(enum kind kind, struct end *e, struct sockaddr_in *ret);

/**
 * answer() - Say whether there is a connection, where that is said
 * @kind:	How it came
 * @e:		Its end
 * @error:	0 or errno
 *
 * Returns: 0 or -errno
 */
int answer(enum kind kind, struct end *e, int error);

#endif /* HEAR_H */
