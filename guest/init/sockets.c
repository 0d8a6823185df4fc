// SPDX-License-Identifier: Apache-2.0
/*
 * sockets.c - who has the programs' sockets: the kernel's module, or the agent
 *
 * Theory of operation
 * ===================
 *
 * The module, tsi_inet, is better at it, so it is loaded if there is one for
 * this kernel, or is built in. Where it can't be, each command gets an agent.
 * The kernel's parameter tsi=module says that it must be there, tsi=agent that
 * it isn't wanted.
 *
 * The module has sockets of the whole guest, from a command's start on: it is
 * told whether the command is to have TSI before each.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "init/init.h"

#define MODULE	"tsi_inet"
#define ENABLED "/sys/module/" MODULE "/parameters/enabled"

static char why[64];	       /* it isn't the module */
static char who[80] = "agent"; /* has them, and why */
static const char *wanted;

/**
 * sockets_choose() - Learn who is to have them
 *
 * The kernel puts its parameter into our environment, and programs don't get
 * it.
 */
void sockets_choose(void)
{
	const char *value = getenv("tsi");

	wanted = value ? strdup(value) : NULL;
	unsetenv("tsi");
	if (wanted && !strcmp(wanted, "agent"))
		snprintf(why, sizeof(why), "as was asked for");
	else
		snprintf(why, sizeof(why), "no " MODULE " for this kernel");
}

/**
 * sockets_wants() - Is a module to be loaded?
 * @file:	Name of its file
 *
 * Returns: true if so
 */
bool sockets_wants(const char *file)
{
	return strcmp(file, MODULE ".ko") || !wanted || strcmp(wanted, "agent");
}

/**
 * sockets_failed() - A module was not loaded
 * @file:	Name of its file
 * @error:	Why, an errno
 *
 * Returns: true if it is ours, and to be said once it is known what follows
 */
bool sockets_failed(const char *file, int error)
{
	bool ours = !strcmp(file, MODULE ".ko");

	if (ours)
		snprintf(why, sizeof(why), MODULE ": %s", strerror(error));
	return ours;
}

/**
 * sockets_settle() - See whether the module is there
 *
 * It was loaded, or is built in.
 */
void sockets_settle(void)
{
	module_has_sockets =
	    sockets_wants(MODULE ".ko") && !access(ENABLED, W_OK);
	if (module_has_sockets) {
		snprintf(who, sizeof(who), "module");
		return;
	}
	snprintf(who, sizeof(who), "agent: %s", why);
	if (wanted && !strcmp(wanted, "module"))
		finish(why);
	if (!wanted || strcmp(wanted, "agent"))
		say("sockets by the %s", who);
}

/**
 * sockets_who() - Who has them
 *
 * Returns: "module", or "agent: " and why
 */
const char *sockets_who(void)
{
	return who;
}

/**
 * sockets_take() - Have the module take those that are made from here on
 * @tsi:	Whether to, or leave them to the kernel
 *
 * It asks for the way to the host before it does, and says on the console why
 * there is none.
 *
 * Returns: NULL, or what failed
 */
const char *sockets_take(bool tsi)
{
	static char text[96];
	int fd;

	if (!module_has_sockets)
		return NULL;
	fd = open(ENABLED, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, tsi ? "1" : "0", 1) == 1) {
		close(fd);
		return NULL;
	}
	if (errno == EKEYREJECTED)
		snprintf(text, sizeof(text),
			 "the host refuses: not this sandbox's key");
	else
		snprintf(text, sizeof(text), "no TSI service on the host: %s",
			 strerror(errno));
	if (fd >= 0)
		close(fd);
	return text;
}
