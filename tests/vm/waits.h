/* SPDX-License-Identifier: Apache-2.0 */
/*
 * waits.h - how programs of the tests wait
 */
#ifndef WAITS_H
#define WAITS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

/* How long to wait for what has to come: as tests/support/limits.py has it, and
 * programs.py says */
#ifndef LIMIT_S
#define LIMIT_S 120
#endif

/**
 * await_call() - Wait until a process or thread waits in a system call
 * @tid:	It
 * @number:	Of the call
 *
 * Spec: proc(5), /proc/PID/syscall
 */
static inline void await_call(pid_t tid, long number)
{
	long found = -1;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/syscall", tid);
	while (found != number) {
		usleep(1000);
		file = fopen(path, "r");
		if (!file)
			abort();
		if (fscanf(file, "%ld", &found) != 1)
			found = -1; /* it runs */
		fclose(file);
	}
}

#endif /* WAITS_H */
