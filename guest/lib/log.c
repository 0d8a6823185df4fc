// SPDX-License-Identifier: Apache-2.0
/*
 * log.c - lines on stderr
 */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/lib.h"

bool log_verbose;

/**
 * say() - A line on stderr, in one write
 * @fmt:	Format
 * @args:	Its arguments
 */
static void say(const char *fmt, va_list args)
{
	char line[512] = "tsi-agent: ";
	size_t len = strlen(line);

	vsnprintf(line + len, sizeof(line) - len - 1, fmt, args);
	len = strlen(line);
	line[len++] = '\n';
	if (write(STDERR_FILENO, line, len) < 0)
		return; /* nobody listens */
}

/**
 * debug() - Say something if -v was given
 * @fmt:	Format
 */
void debug(const char *fmt, ...)
{
	va_list args;

	if (!log_verbose)
		return;
	va_start(args, fmt);
	say(fmt, args);
	va_end(args);
}

/**
 * complain() - Say what is wrong
 * @fmt:	Format
 */
void complain(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	say(fmt, args);
	va_end(args);
}
