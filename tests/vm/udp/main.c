// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - what programs do with UDP sockets, each with what UDP does
 *
 *	udp_client IPV4 IPV6 [CHECK]...
 *
 * Theory of operation
 * ===================
 *
 * Each check (checks.h) makes calls and states what UDP answers, and passes
 * over native UDP and over TSI. With DENIED=ERRNO those run that are for a
 * sandbox that may not use UDP, and no others. With AGENT=1, sends with an
 * address to who is denied fail: that is the agent's.
 *
 * The peer, at both addresses: ports 7007 and 7008 echo, nobody has 8081.
 * 169.254.169.254 is denied.
 */

#define _GNU_SOURCE
#include <stdio.h>

#include "udp.h"

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: udp_client IPV4 IPV6 [CHECK]...\n");
		return 2;
	}
	host4 = argv[1];
	host6 = argv[2];
	run_checks(exchange_checks, argv + 3);
	run_checks(wait_checks, argv + 3);
	run_checks(address_checks, argv + 3);
	return sum_up();
}
