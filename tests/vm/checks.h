/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checks.h - checks of what calls answer, each in a process of its own
 *
 * Theory of operation
 * ===================
 *
 * A check is a function that makes calls and states with want() what the kernel
 * answers natively, so that the same program passes on the host (with NATIVE=1,
 * which leaves out what only a sandbox has) and in a sandbox; with DENIED set,
 * only those run that are for a sandbox without UDP. It runs in a process of
 * its own with an alarm, and children that it leaves are killed. run_check()
 * prints "ok NAME" or "FAIL NAME: line N: WHAT (errno)", and sum_up() the last
 * line, which counts. One file of a program calls these two.
 */
#ifndef CHECKS_H
#define CHECKS_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "waits.h"

/**
 * struct check - A check
 * @name:	What it checks
 * @run:	Does it; it returns if all holds
 * @kind:	Where it holds
 */
struct check {
	const char *name;
	void (*run)(void);
	enum { ANYWHERE, IN_A_SANDBOX, WITHOUT_UDP } kind;
};

#define CHECK(name)   {#name, name, ANYWHERE}
#define SANDBOX(name) {#name, name, IN_A_SANDBOX}
#define DENIED(name)  {#name, name, WITHOUT_UDP}

static int checks_passed, checks_run;

/* State what has to hold; the check fails if it doesn't */
#define want(condition)                                                        \
	do {                                                                   \
		if (!(condition))                                              \
			broken(__LINE__, #condition);                          \
	} while (0)
/* State that a call fails, and how */
#define want_errno(call, number) want((call) == -1 && errno == (number))

/**
 * broken() - End a check that doesn't hold
 * @line:	Where
 * @what:	Condition
 */
static inline void __attribute__((noreturn)) broken(int line, const char *what)
{
	dprintf(STDOUT_FILENO, "line %d: %s (%s)\n", line, what,
		strerror(errno));
	_exit(1);
}

/**
 * check_applies() - Is a check for this run?
 * @check:	Check
 * @names:	Those that the user wants, up to NULL; none: all
 *
 * Returns: true if it is
 */
static inline bool check_applies(const struct check *check, char **names)
{
	bool wanted = !*names;

	while (*names)
		wanted |= !strcmp(*names++, check->name);
	if (getenv("DENIED"))
		return wanted && check->kind == WITHOUT_UDP;
	return wanted && (check->kind == ANYWHERE ||
			  (check->kind == IN_A_SANDBOX && !getenv("NATIVE")));
}

/**
 * run_check() - Run one check in a process of its own, if it is for this run
 * @check:	Check
 * @names:	Those that the user wants, up to NULL; none: all
 */
static inline void run_check(const struct check *check, char **names)
{
	int status, pipes[2];
	char why[256] = "died";
	ssize_t len;
	pid_t pid;

	if (!check_applies(check, names))
		return;
	fflush(stdout);
	if (pipe2(pipes, O_CLOEXEC))
		abort();
	pid = fork();
	if (pid == 0) {
		dup2(pipes[1], STDOUT_FILENO);
		close(pipes[0]);
		close(pipes[1]);
		setpgid(0, 0);
		alarm(LIMIT_S);
		check->run();
		_exit(0);
	}
	close(pipes[1]);
	waitpid(pid, &status, 0);
	kill(-pid, SIGKILL);
	len = read(pipes[0], why, sizeof(why) - 1);
	close(pipes[0]);
	checks_run++;
	if (status == 0) {
		checks_passed++;
		printf("ok %s\n", check->name);
		return;
	}
	if (len > 0)
		why[len - (why[len - 1] == '\n')] = '\0';
	printf("FAIL %s: %s\n", check->name,
	       WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : why);
}

/**
 * run_checks() - Run the checks of a table
 * @check:	First of them; one without a name ends the table
 * @names:	Those that the user wants, up to NULL; none: all
 */
static inline void run_checks(const struct check *check, char **names)
{
	for (; check->name; check++)
		run_check(check, names);
}

/**
 * sum_up() - Say how many checks have passed
 *
 * Returns: exit status: 0 if that's all of them
 */
static inline int sum_up(void)
{
	printf("%d/%d\n", checks_passed, checks_run);
	return checks_passed == checks_run && checks_run ? 0 : 1;
}

#endif
