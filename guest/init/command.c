// SPDX-License-Identifier: Apache-2.0
/*
 * command.c - the one command: how it starts, and its signals
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "init/agents.h"
#include "init/init.h"

#define EXEC_TSI 1U

/**
 * become() - Turn the forked child into the command
 * @argv:	Program and arguments
 * @env:	NAME=VALUE, NULL at the end; added to ours
 * @cwd:	Directory
 * @ends:	Its ends of the three pipes
 *
 * Ends with 127 if there is no such program and 126 if it does not run, the
 * reason on stderr, as a shell does.
 */
__attribute__((noreturn)) static void become(char **argv, char **env,
					     const char *cwd, const int ends[3])
{
	const struct sched_param plain = {0};
	sigset_t none;

	setsid();
	/*
	 * A program that wakes for the first of many packets must not take the
	 * CPU from the kernel thread that is about to bring the others: it
	 * would read them one by one. Batch tasks don't preempt; they get
	 * their share all the same.
	 */
	sched_setscheduler(0, SCHED_BATCH, &plain);
	for (int i = 0; i < 3; i++)
		dup2(ends[i], i);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	for (; *env; env++)
		putenv(*env);
	if (chdir(cwd)) {
		say("%s: %s", cwd, strerror(errno));
		_exit(126);
	}
	execvp(argv[0], argv);
	say("%s: %s", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/**
 * start() - Fork the command with three pipes
 * @argv:	Program and arguments
 * @env:	NAME=VALUE, NULL at the end
 * @cwd:	Directory
 *
 * Returns: NULL, or what failed
 */
static const char *start(char **argv, char **env, const char *cwd)
{
	int pipes[3][2];
	int ends[3];

	for (int i = 0; i < 3; i++) {
		if (pipe2(pipes[i], O_CLOEXEC))
			return "cannot make a pipe";
		/* The command writes to 1 and 2, and reads from 0. */
		cmd.fds[i] = pipes[i][i == 0];
		ends[i] = pipes[i][i != 0];
		fcntl(cmd.fds[i], F_SETFL, O_NONBLOCK);
	}
	cmd.pid = fork();
	if (cmd.pid == 0)
		become(argv, env, cwd, ends);
	for (int i = 0; i < 3; i++)
		close(ends[i]);
	if (cmd.pid < 0) {
		cmd.pid = 0;
		for (int i = 0; i < 3; i++)
			pipes_close(i);
		return "cannot fork";
	}
	return NULL;
}

/**
 * start_agent() - Same over TSI
 * @argv:	Program and arguments
 * @argc:	How many
 * @env:	NAME=VALUE, NULL at the end
 * @cwd:	Directory
 *
 * Returns: NULL, or what failed
 */
static const char *start_agent(char **argv, uint32_t argc, char **env,
			       const char *cwd)
{
	char **agent = calloc((size_t)argc + 5, sizeof(*agent)), number[16];
	const char *error;
	int theirs, ours = agents_prepare(&theirs);

	if (!agent || ours < 0)
		finish("out of memory");
	snprintf(number, sizeof(number), "%d", theirs);
	agent[0] = (char[]){AGENT};
	agent[1] = (char[]){"-k"};
	agent[2] = number;
	agent[3] = (char[]){"--"};
	memcpy(agent + 4, argv, argc * sizeof(*argv));
	error = start(agent, env, cwd);
	close(theirs);
	if (error)
		close(ours);
	else if (!agents_add(cmd.pid, ours))
		finish("out of memory");
	free(agent);
	return error;
}

/**
 * split() - Point at the strings of an EXEC frame
 * @p:		Strings, each with its NUL
 * @end:	Where they must end
 * @n:		How many
 * @ret_next:	Set to what follows them
 *
 * Returns: vector with NULL at the end, to be freed; NULL if they do not fit
 */
static char **split(char *p, char *end, uint32_t n, char **ret_next)
{
	char **v;

	if (n > (size_t)(end - p))
		return NULL;
	v = calloc((size_t)n + 1, sizeof(*v));
	for (uint32_t i = 0; v && i < n; i++) {
		char *nul = memchr(p, '\0', (size_t)(end - p));

		if (!nul) {
			free(v);
			return NULL;
		}
		v[i] = p;
		p = nul + 1;
	}
	*ret_next = p;
	return v;
}

/**
 * command_exec() - Start the command that the host asks for
 * @p:		Payload of the frame
 * @len:	Its length, bytes
 */
void command_exec(uint8_t *p, uint32_t len)
{
	char **argv = NULL, **env = NULL, **cwd = NULL;
	char *next, *end = (char *)p + len;
	const char *error = "bad EXEC frame";
	uint32_t argc;

	if (cmd.pid)
		finish("EXEC while a command runs");
	if (len < 12)
		finish(error);
	argc = buffer_u32(p + 4);
	argv = split((char *)p + 12, end, argc, &next);
	if (argv)
		env = split(next, end, buffer_u32(p + 8), &next);
	if (env)
		cwd = split(next, end, 1, &next);
	if (!cwd || argc == 0)
		finish(error);

	cmd.eof = false;
	cmd.signals = 0;
	cmd.window = 0;
	cmd.tail_len = 0;
	cmd.tsi = (buffer_u32(p) & EXEC_TSI) && !module_has_sockets;
	cmd.orphan = 0;
	pipes_begin();
	error = sockets_take(buffer_u32(p) & EXEC_TSI);
	if (!error)
		error = cmd.tsi ? start_agent(argv, argc, env, cwd[0])
				: start(argv, env, cwd[0]);
	if (error)
		frames_send(FRAME_ERROR, error, strlen(error));
	else
		frames_send_u32(FRAME_WINDOW, STDIN_MAX);
	free(argv);
	free(env);
	free(cwd);
}

/**
 * command_signal() - Pass a signal to the command's process group
 * @p:		Payload of the frame
 * @len:	Its length, bytes
 */
void command_signal(const uint8_t *p, uint32_t len)
{
	uint32_t signo = len == 4 ? buffer_u32(p) : 0;

	if (signo < 1 || signo > 64)
		finish("bad SIGNAL frame");
	if (!cmd.pid)
		return; /* crossed with EXIT */
	cmd.signals |= UINT64_C(1) << (signo - 1);
	if (kill(-cmd.pid, (int)signo)) /* has not reached setsid() yet */
		kill(cmd.pid, (int)signo);
}
