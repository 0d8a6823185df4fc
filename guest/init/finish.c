// SPDX-License-Identifier: Apache-2.0
/*
 * finish.c - the end of the VM
 */

#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "init/init.h"

/**
 * finish() - End the VM, or this process outside one
 * @why:	Why, for the console; NULL if all is well
 *
 * "reboot=t" and QEMU's -no-reboot turn the restart into the end of QEMU.
 */
void finish(const char *why)
{
	if (why)
		say("%s", why);
	if (booted) {
		kill(-1, SIGKILL);
		sync();
		reboot(RB_AUTOBOOT);
	}
	if (cmd.pid)
		kill(-cmd.pid, SIGKILL);
	_exit(why ? EXIT_FAILURE : EXIT_SUCCESS);
}
