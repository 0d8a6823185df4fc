// SPDX-License-Identifier: Apache-2.0
/*
 * failures.c - what the host said of connections that failed
 *
 * Theory of operation
 * ===================
 *
 * A failed connection comes as a reset, and its errno as a message on the
 * control stream, by the port that the socket connected from. Which of the two
 * is seen first is chance. Failures that nobody waits for yet are kept in a
 * small array, where newer ones overwrite them: a program that never asks costs
 * nothing. So is what a program was to be told when a signal took it away: it
 * asks again.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "agent/tsi.h"

#define FAILURES 4096

/**
 * struct failure - What a message said of a connection
 * @guest_port:	Its port
 * @error:	errno
 * @owed:	The socket has been settled, and its program not been told
 */
struct failure {
	uint32_t guest_port;
	int error;
	bool owed;
};

static struct failure failures[FAILURES];

/**
 * failures_note() - Keep what the host says of a connection
 * @failed:	What it says
 */
void failures_note(const struct tsi_failed *failed)
{
	struct failure *slot = &failures[failed->guest_port % FAILURES];
	int error = ECONNREFUSED;

	if (failed->error > 0 && failed->error <= MAX_ERRNO)
		error = (int)failed->error;
	debug("port %u failed: %s", failed->guest_port, strerror(error));
	if (error == ESTALE) { /* the next connect() registers it anew */
		routes_forget(failed->token);
		error = ENETUNREACH;
	}
	*slot =
	    (struct failure){.guest_port = failed->guest_port, .error = error};
}

/**
 * failures_take() - What the host said of a connection, if it did
 * @guest_port:	The socket's port
 *
 * Returns: errno, 0 if the host has said nothing yet; telling it forgets it
 */
int failures_take(uint32_t guest_port)
{
	struct failure *slot = &failures[guest_port % FAILURES];
	int error = slot->error;

	if (slot->guest_port != guest_port)
		return 0;
	*slot = (struct failure){0};
	return error;
}

/**
 * failures_keep() - A program was not told why its connection failed
 * @guest_port:	The socket's port
 * @error:	errno
 */
void failures_keep(uint32_t guest_port, int error)
{
	failures[guest_port % FAILURES] = (struct failure){
	    .guest_port = guest_port, .error = error, .owed = true};
}

/**
 * failures_owed() - What a program was not told
 * @guest_port:	The socket's port
 *
 * Returns: errno, 0 if it knows all; telling it forgets it
 */
int failures_owed(uint32_t guest_port)
{
	return failures[guest_port % FAILURES].owed ? failures_take(guest_port)
						    : 0;
}
