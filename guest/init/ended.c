// SPDX-License-Identifier: Apache-2.0
/*
 * ended.c - the end of the command, and of agents
 *
 * Theory of operation
 * ===================
 *
 * Every process that ends is reaped here: the command or, over TSI, its agent;
 * a later agent; a command that has lost its agent; and whatever a command left
 * behind.
 */

#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "init/agents.h"
#include "init/init.h"

#define AGENT_FAILED 125

/**
 * agent_error() - Find out whether the agent failed
 * @status:	Wait status of the agent
 * @ret_text:	Set to the reason if it did; may be @cmd.tail
 * @ret_len:	Its length, bytes
 *
 * Returns: true if it failed
 */
static bool agent_error(int status, const char **ret_text, size_t *ret_len)
{
	static const char prefix[] = "tsi-agent: ";
	static char killed[64];
	size_t end = cmd.tail_len, begin;

	if (!cmd.tsi)
		return false;
	if (WIFSIGNALED(status)) {
		int signo = WTERMSIG(status);

		if (cmd.signals & UINT64_C(1) << (signo - 1))
			return false;
		*ret_len =
		    (size_t)snprintf(killed, sizeof(killed),
				     "tsi-agent: killed by signal %d", signo);
		*ret_text = killed;
		return true;
	}
	if (WEXITSTATUS(status) != AGENT_FAILED)
		return false;
	while (end && cmd.tail[end - 1] == '\n')
		end--;
	for (begin = end; begin && cmd.tail[begin - 1] != '\n';)
		begin--;
	*ret_text = cmd.tail + begin;
	*ret_len = end - begin;
	return *ret_len > sizeof(prefix) - 1 &&
	       !memcmp(*ret_text, prefix, sizeof(prefix) - 1);
}

/**
 * on_ended() - Send what the command left in its pipes, then how it ended
 * @status:	Its wait status
 *
 * What the pipes hold now is all that the command itself can have written;
 * more comes only from what it left behind, which must not keep us here.
 */
static void on_ended(int status)
{
	const char *text = NULL;
	size_t len = 0;
	pid_t group = cmd.pid;

	for (int i = 1; i <= 2; i++) {
		int left = 0;

		if (cmd.fds[i] >= 0)
			ioctl(cmd.fds[i], FIONREAD, &left);
		while (left > 0) {
			size_t n;

			frames_drain();
			n = pipes_read(i, (size_t)left);
			left = n ? left - (int)n : 0;
		}
	}
	frames_drain();
	for (int i = 0; i < 3; i++)
		pipes_close(i);
	cmd.pid = 0;
	if (!cmd.orphan && agent_error(status, &text, &len)) {
		kill(booted ? -1 : -group, SIGKILL);
		say("%.*s", (int)len, text);
		frames_send(FRAME_ERROR, text, len);
	} else {
		frames_send_u32(FRAME_EXIT, (uint32_t)status);
	}
	cmd.orphan = 0;
	cmd.reaped = 0;
}

/**
 * on_lost() - A filter has lost its agent for good
 */
static void on_lost(void)
{
	say("tsi-agent: ends again and again");
	if (cmd.orphan) {
		cmd.orphan = 0;
		on_ended(SIGKILL);
	}
}

/**
 * ended() - A process has ended
 * @pid:	Process
 * @status:	Its wait status
 *
 * An agent that was killed leaves its command to us, unless it had reaped it. A
 * command that ends while its agent dies may be ours to reap before the agent
 * is: its other threads have to end first.
 */
static void ended(pid_t pid, int status)
{
	pid_t command = 0;
	enum agents_end end = agents_ended(pid, &command);

	if (pid == cmd.orphan) {
		on_ended(status);
	} else if (end == AGENTS_NOT && cmd.pid &&
		   pid == agents_command(cmd.pid)) {
		cmd.reaped = pid;
		cmd.status = status;
	} else if (pid == cmd.pid && command && command == cmd.reaped) {
		cmd.orphan = command;
		on_ended(cmd.status);
	} else if (pid == cmd.pid && WIFSIGNALED(status) && command &&
		   !kill(command, 0)) {
		cmd.orphan = command;
		say("tsi-agent: killed by signal %d, another takes over",
		    WTERMSIG(status));
	} else if (pid == cmd.pid) {
		on_ended(status);
	}
	if (end == AGENTS_LOST)
		on_lost();
}

/**
 * ended_reap() - Wait for every process that has ended
 */
void ended_reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		ended(pid, status);
}
