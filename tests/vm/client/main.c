// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - socket calls as programs make them, each with what TCP does
 *
 *	tsi_client IPV4 IPV6 [CHECK]...
 *
 * Theory of operation
 * ===================
 *
 * Every check (checks.h) makes calls and states what TCP answers, and passes
 * over native TCP and over TSI.
 *
 * One answer is TCP's but not vsock's: after a failed connect, poll() shows
 * POLLERR always there and here all but always, so that the checks look at
 * SO_ERROR, as programs do.
 *
 * The peer, at both addresses, port by port: 7007 echoes, 7500 answers a
 * connect after half a second, 8081 refuses, 9999 never answers. 198.51.100.1
 * is unreachable from there, and 169.254.169.254 is denied.
 */

#define _GNU_SOURCE
#include <stdio.h>

#include "client.h"

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: tsi_client IPV4 IPV6 [CHECK]...\n");
		return 2;
	}
	host4 = argv[1];
	host6 = argv[2];
	run_checks(blocking_checks, argv + 3);
	run_checks(nonblocking_checks, argv + 3);
	run_checks(descriptor_checks, argv + 3);
	run_checks(name_checks, argv + 3);
	run_checks(byte_checks, argv + 3);
	run_checks(inside_checks, argv + 3);
	run_checks(many_checks, argv + 3);
	return sum_up();
}
