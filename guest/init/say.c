// SPDX-License-Identifier: Apache-2.0
/*
 * say.c - lines on the console
 */

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "init/init.h"

/**
 * say() - Write one line to the console
 * @fmt:	As for printf(), without a new line
 */
void say(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (n >= 0)
		dprintf(STDERR_FILENO, "init: %s\n", line);
}
