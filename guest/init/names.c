// SPDX-License-Identifier: Apache-2.0
/*
 * names.c - the guest's own name, and where programs ask for others
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "init/init.h"

/**
 * resolver_line() - Write a line of resolv.conf that the host has asked for
 * @fd:		/etc/resolv.conf, or -1: just forget what it has asked for
 * @key:	First word of the line
 * @name:	Kernel parameter with the others, separated by commas; the
 *		kernel puts it into our environment, and programs don't get it
 */
static void resolver_line(int fd, const char *key, const char *name)
{
	char *words = getenv(name);

	if (words && fd >= 0) {
		for (char *p = words; *p; p++)
			if (*p == ',')
				*p = ' ';
		if (dprintf(fd, "%s %s\n", key, words) < 0)
			say("/etc/resolv.conf: %s", strerror(errno));
	}
	unsetenv(name);
}

/**
 * names_resolver() - Tell programs where to ask for names
 *
 * Which address it is doesn't matter: over TSI, whatever goes to port 53 is
 * answered on the host. This one is of a range that is nobody's (RFC 2544).
 * Where to search and how long to wait is as on the host, if it has said so. A
 * file that the image or the host brought stays.
 */
void names_resolver(void)
{
	static const char text[] = "nameserver 198.18.0.53\n";
	int fd = open("/etc/resolv.conf",
		      O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	if (fd >= 0 && write(fd, text, sizeof(text) - 1) < 0)
		say("/etc/resolv.conf: %s", strerror(errno));
	resolver_line(fd, "search", "resolv_search");
	resolver_line(fd, "options", "resolv_options");
	if (fd >= 0)
		close(fd);
}

/**
 * names_own() - Give the guest a name, with the pod's addresses
 *
 * The kernel's parameter guest_name has it, and the addresses behind it,
 * separated by commas. Programs don't get the parameter.
 */
void names_own(void)
{
	char *rest = getenv("guest_name"), *name = strsep(&rest, ",");
	const char *ip;
	int fd;

	if (!name)
		return;
	if (sethostname(name, strlen(name)))
		say("hostname %s: %s", name, strerror(errno));
	fd =
	    open("/etc/hosts", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	while (fd >= 0 && (ip = strsep(&rest, ",")))
		if (dprintf(fd, "%s %s\n", ip, name) < 0)
			say("/etc/hosts: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	unsetenv("guest_name");
}
