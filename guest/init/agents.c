// SPDX-License-Identifier: Apache-2.0
/*
 * agents.c - an agent for every filter that has users, whatever becomes of one
 *
 * Theory of operation
 * ===================
 *
 * An agent that runs a command sends us the listener of the command's filter,
 * its state, and the command's process id (tsi-agent -k). Descriptors in a
 * message are open, so a trapped call never fails for want of an agent, it
 * waits for the next one.
 *
 * One that hangs is killed. A program can make it: by memory or a file that
 * somebody else serves, and doesn't. We look each second. It hangs if nothing
 * has moved in its state for MAX_STILL looks while it was at work, or while a
 * call waited for it (include/beat.h). Until it does, idle guests aside, a look
 * costs two system calls.
 *
 * When an agent ends, killed or because its command has ended, and processes
 * are left under the filter, another one takes over (tsi-agent -a). One that
 * ends time after time right after its start is given up: its listener is
 * closed, and the filter's calls fail with ENOSYS from then on.
 */

#define _GNU_SOURCE
#include "init/agents.h"
#include "include/beat.h"
#include "init/init.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define QUICK_S	  1 /* an agent that ends so soon... */
#define MAX_QUICK 5 /* ...so many times in a row is given up */
#define MAX_FDS	  2 /* in its message: listener, state */
#define LOOK_MS	  1000
#define MAX_STILL 5

/**
 * struct agent - A filter's agent
 * @link:	In agents
 * @pid:	Its process
 * @sock:	Where its message comes, -1 once it was read
 * @fds:	What agents hand on: the filter's listener first, -1 before
 * @count:	How many those are, 0 before
 * @command:	Its command, 0 if there is none or it isn't known yet
 * @told:	Who asks after its end has been told that
 * @turns:	Of its beat, at the last look
 * @still:	Looks since then that found it hanging
 * @started_s:	When
 * @quick:	How many have ended too soon in a row
 */
struct agent {
	LIST_ENTRY(agent) link;
	pid_t pid;
	int sock;
	int fds[MAX_FDS];
	int count;
	pid_t command;
	bool told;
	uint32_t turns;
	int still;
	time_t started_s;
	int quick;
};

static LIST_HEAD(, agent) agents = LIST_HEAD_INITIALIZER(agents);

/**
 * now_s() - The time
 *
 * Returns: s since some moment
 */
static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/**
 * agents_prepare() - Make the socket that an agent sends its message over
 * @ret_theirs:	Its end, open across exec
 *
 * Returns: our end; -1 with errno set otherwise
 */
int agents_prepare(int *ret_theirs)
{
	int socks[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks))
		return -1;
	fcntl(socks[1], F_SETFD, 0);
	*ret_theirs = socks[1];
	return socks[0];
}

/**
 * agents_add() - Look after an agent
 * @pid:	Its process
 * @sock:	From agents_prepare(); ours from here on
 *
 * Returns: false, with @sock closed, if out of memory
 */
bool agents_add(pid_t pid, int sock)
{
	struct agent *agent = malloc(sizeof(*agent));

	if (!agent) {
		close(sock);
		return false;
	}
	*agent = (struct agent){
	    .pid = pid, .sock = sock, .fds = {-1}, .started_s = now_s()};
	LIST_INSERT_HEAD(&agents, agent, link);
	return true;
}

/**
 * find() - Find an agent
 * @pid:	Its process
 *
 * Returns: it; NULL if there is no such agent
 */
static struct agent *find(pid_t pid)
{
	struct agent *agent;

	LIST_FOREACH(agent, &agents, link)
	if (agent->pid == pid)
		break;
	return agent;
}

/**
 * agents_command() - Find the command of an agent that is not yet reaped
 * @pid:	Its process
 *
 * The message stays where it is, and so do the descriptors in it.
 *
 * Returns: the command; 0 if there is none, or no such agent
 */
pid_t agents_command(pid_t pid)
{
	const struct agent *agent = find(pid);
	pid_t command = 0;

	if (agent && agent->command)
		return agent->command;
	if (!agent || agent->sock < 0 ||
	    recv(agent->sock, &command, sizeof(command),
		 MSG_PEEK | MSG_DONTWAIT) != (ssize_t)sizeof(command))
		return 0;
	return command;
}

/**
 * forget() - Forget an agent
 * @agent:	Agent
 */
static void forget(struct agent *agent)
{
	if (agent->sock >= 0)
		close(agent->sock);
	for (int i = 0; i < agent->count; i++)
		close(agent->fds[i]);
	LIST_REMOVE(agent, link);
	free(agent);
}

/**
 * read_message() - Take what an agent sent, if it has
 * @agent:	Agent
 */
static void read_message(struct agent *agent)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(agent->fds))];
	} control;
	pid_t command = 0;
	struct iovec iov = {.iov_base = &command, .iov_len = sizeof(command)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = CMSG_LEN(sizeof(agent->fds))};
	size_t len;

	if (agent->sock < 0 ||
	    recvmsg(agent->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) !=
		(ssize_t)sizeof(command) ||
	    msg.msg_controllen < CMSG_LEN(sizeof(int)))
		return;
	len = control.header.cmsg_len - CMSG_LEN(0);
	memcpy(agent->fds, CMSG_DATA(&control.header), len);
	agent->count = (int)(len / sizeof(int));
	close(agent->sock);
	agent->sock = -1;
	agent->command = command;
}

/**
 * is_used() - Is anybody left under an agent's filter?
 * @agent:	Agent
 *
 * Returns: true if so
 */
static bool is_used(const struct agent *agent)
{
	struct pollfd state = {.fd = agent->fds[0]};

	poll(&state, 1, 0);
	return !(state.revents & POLLHUP);
}

/**
 * start_next() - Start an agent that takes over
 * @agent:	The one that has ended; names the new one from here on
 *
 * Returns: false if that isn't possible
 */
static bool start_next(struct agent *agent)
{
	char fds[MAX_FDS * 12] = "";
	sigset_t none;

	for (int i = 0; i < agent->count; i++)
		sprintf(fds + strlen(fds), "%s%d", i ? "," : "", agent->fds[i]);
	agent->started_s = now_s();
	agent->pid = fork();
	if (agent->pid == 0) {
		for (int i = 0; i < agent->count; i++)
			fcntl(agent->fds[i], F_SETFD, 0);
		setsid();
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execl(AGENT, AGENT, "-a", fds, (char *)NULL);
		_exit(127);
	}
	return agent->pid > 0;
}

/**
 * agents_ended() - A process has ended
 * @pid:	Process
 * @ret_command: The agent's command if it was started by us, with a command;
 *		else unchanged
 *
 * Returns: what that means
 */
enum agents_end agents_ended(pid_t pid, pid_t *ret_command)
{
	struct agent *agent = find(pid);

	if (!agent)
		return AGENTS_NOT;
	read_message(agent);
	if (!agent->told)
		*ret_command = agent->command;
	agent->told = true;
	agent->command = 0;
	agent->still = 0;
	if (agent->count == 0 || !is_used(agent)) {
		forget(agent);
		return AGENTS_OVER;
	}
	if (now_s() - agent->started_s > QUICK_S)
		agent->quick = 0;
	if (agent->quick++ < MAX_QUICK && start_next(agent))
		return AGENTS_NEXT;
	forget(agent);
	return AGENTS_LOST;
}

/**
 * agents_disown() - Forget all: they are another process's
 */
void agents_disown(void)
{
	LIST_INIT(&agents);
}

/* ---- whether they hang ---- */

/**
 * hangs() - Has an agent not moved since the last look, with work to do?
 * @agent:	Agent
 *
 * Returns: true if so
 */
static bool hangs(struct agent *agent)
{
	struct pollfd state = {.fd = agent->fds[0], .events = POLLIN};
	struct beat beat;
	uint32_t before = agent->turns;

	if (agent->count < 2 ||
	    pread(agent->fds[1], &beat, sizeof(beat), 0) != sizeof(beat))
		return false;
	agent->turns = beat.turns;
	if (beat.turns != before)
		return false;
	return beat.turns % 2 ||
	       (poll(&state, 1, 0) > 0 && (state.revents & POLLIN));
}

/**
 * agents_timeout_ms() - How long init may sleep
 *
 * Returns: ms, -1 for any time
 */
int agents_timeout_ms(void)
{
	return LIST_EMPTY(&agents) ? -1 : LOOK_MS;
}

/**
 * agents_look() - Look whether one hangs, if it is time to
 *
 * Who is killed is replaced as any that has ended.
 */
void agents_look(void)
{
	static time_t looked_s;
	struct agent *agent;

	if (now_s() == looked_s)
		return;
	looked_s = now_s();
	LIST_FOREACH(agent, &agents, link)
	{
		read_message(agent);
		agent->still = hangs(agent) ? agent->still + 1 : 0;
		if (agent->still < MAX_STILL)
			continue;
		say("tsi-agent: hangs, is killed");
		kill(agent->pid, SIGKILL);
		agent->still = 0;
	}
}
