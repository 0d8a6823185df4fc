/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stop.h - what stop.c has for those who put another socket in place
 */
#ifndef STOP_H
#define STOP_H

#include "agent/tsi.h"

#define MAX_STOPPED 1024

/**
 * struct stopped - Threads that stand still
 * @count:	Used of @threads
 * @threads:	Their ids, and the signals that they get when they go on
 */
struct stopped {
	unsigned count;
	struct stopped_thread {
		pid_t tid;
		int signal;
	} threads[MAX_STOPPED];
};

bool stop_thread(pid_t tid, int *ret_signal);
void stop_end(pid_t tid, int signal);
void stop_others(const struct call *call, struct stopped *ret_stopped);
void stop_end_all(const struct stopped *stopped);

#endif /* STOP_H */
