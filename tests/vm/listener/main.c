// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - listeners as programs make them, each with what TCP does
 *
 *	tsi_listener FIRST_PORT [CHECK]...
 *
 * Theory of operation
 * ===================
 *
 * Each check (checks.h) states what TCP answers, so that it passes over native
 * TCP and, where FIRST_PORT and those after it are published, over TSI. It has
 * a port of its own. Clients are in the same process or a child, and connect to
 * 127.0.0.1 or ::1.
 */

#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "listener.h"

static const struct check *const tables[] = {
    name_checks,
    accept_checks,
    end_checks,
};

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: tsi_listener FIRST_PORT [CHECK]...\n");
		return 2;
	}
	port = atoi(argv[1]);
	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		for (const struct check *each = tables[i]; each->name; each++) {
			run_check(each, argv + 2);
			port++;
		}
	return sum_up();
}
