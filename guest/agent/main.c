// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - tsi-agent: run a command whose TCP connections leave over vsock
 *
 *	tsi-agent [-v] [-k SOCKET] -- COMMAND [ARGUMENT]...
 *	tsi-agent [-v] -a LISTENER,STATE
 *
 * Theory of operation
 * ===================
 *
 * The command runs as a child under a seccomp filter (filter.c), which all its
 * descendants inherit. Calls that the filter traps wait until this process,
 * the agent, answers them (notify.c, calls.c). The program's sockets are vsock
 * sockets from the start, so its descriptors, epoll registrations, dups and
 * forks refer to one file that never changes; connect() points them at the
 * destination (connect.c, routes.c). Bytes don't pass through the agent.
 *
 * One thread, one event loop. It waits for the listener, the control stream,
 * connecting sockets of blocking calls, signals, and the end of the command
 * (loop.c).
 *
 * Exit status: the command's, or 128 and the number of the signal that killed
 * it. 127: the command isn't there, 126: it can't be executed, 125: the agent
 * failed, with one line on stderr that says why.
 *
 * Signals that would end or concern the command are passed on to it, except
 * those the terminal sends: it sends them to the command as well.
 *
 * Processes that the command leaves behind are still under the filter and
 * would get ENOSYS from then on. So if there are any, the agent leaves a copy
 * of itself behind, which ends when the last of them does.
 *
 * An agent may be killed. With -k, SOCKET is a unix socket to a keeper: it gets
 * one message, the command's process id and descriptors: the listener and the
 * state (state.c). While it holds them, calls wait; it starts the next agent
 * with them, by -a, whenever one has ended and the listener is in use still.
 * Such an agent ends with the last process under the filter, and the command,
 * now the keeper's child, is the keeper's to wait for. With a keeper no copy is
 * left behind. Without one, calls get ENOSYS after a death.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/datagram.h"
#include "agent/tsi.h"

#define MAX_FILES 262144 /* descriptors: one per waiting connect() */

static const int passed_on[] = {SIGTERM, SIGINT,  SIGHUP,   SIGQUIT,
				SIGUSR1, SIGUSR2, SIGWINCH, SIGALRM};

static struct timer timers[] = {
    {.tick = wait_tick, .timeout_ms = wait_timeout_ms},
    {.tick = accept_tick, .timeout_ms = accept_timeout_ms},
    {.tick = closings_tick, .timeout_ms = closings_timeout_ms},
    {.tick = receive_tick, .timeout_ms = receive_timeout_ms},
    {.tick = later_tick, .timeout_ms = later_timeout_ms},
    {.tick = publish_tick, .timeout_ms = publish_timeout_ms},
    {.tick = control_tick, .timeout_ms = control_timeout_ms},
    {.tick = carrier_tick, .timeout_ms = carrier_timeout_ms},
};

static int listener = -1;
static int state_fd = -1;
static int signal_fd = -1;
static pid_t command = -1;
static bool command_ended;
static bool filter_unused; /* nobody is left under the filter */
static int keeper = -1;	   /* -k */

/* ---- what the host says ---- */

static void stream_opened(const struct tsi_welcome *welcome)
{
	routes_begin(welcome);
	listeners_announce_all();
}

static void connection_failed(const struct tsi_failed *failed)
{
	failures_note(failed);
	wait_failure_arrived(failed->guest_port);
}

static const struct hearer hearer = {.opened = stream_opened,
				     .failed = connection_failed,
				     .listening = publish_answered};

/* ---- giving up ---- */

/**
 * fail() - Complain and exit
 * @what:	What failed; errno says why
 */
static void __attribute__((noreturn)) fail(const char *what)
{
	complain("%s: %s", what, strerror(errno));
	exit(EXIT_AGENT);
}

/**
 * complain_of_host() - Say that there is no stream, if that wasn't said yet
 * @error:	From control_start()
 *
 * The last line that an agent says is what the host is told of its end.
 */
static void complain_of_host(int error)
{
	if (error && error != EACCES)
		complain("no TSI service on the host: %s", strerror(error));
}

/* ---- what it waits for ---- */

/**
 * listener_ready() - A call was trapped, or nobody is left to make one
 * @source:	Unused: there is one listener
 * @events:	epoll events
 */
static void listener_ready(struct source *source, uint32_t events)
{
	struct call call;

	(void)source;
	if (events & EPOLLIN) {
		if (notify_receive(&call) == 0)
			call_dispatch(&call);
	} else if (events & EPOLLHUP) {
		filter_unused = true;
	}
}

/**
 * signal_ready() - A signal came
 * @source:	Unused: there is one signalfd
 * @events:	Unused
 */
static void signal_ready(struct source *source, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)source;
	(void)events;
	if (read(signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_code != SI_KERNEL) /* else from the terminal */
		kill(command, (int)info.ssi_signo);
}

/**
 * command_ready() - The command ended
 * @source:	Unused: there is one
 * @events:	Unused
 *
 * The listener doesn't say so: a filter is in use until its last user is
 * reaped.
 */
static void command_ready(struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	command_ended = true;
}

/* ---- the command ---- */

/**
 * offer_fd() - In the child: let the parent take a descriptor
 * @sock:	To the parent
 * @fd:		Descriptor
 *
 * By number: sendmsg() is trapped, and nobody would answer yet.
 *
 * Returns: true when it has it, and so has who needs it after its death
 */
static bool offer_fd(int sock, int fd)
{
	char taken;

	return write(sock, &fd, sizeof(fd)) == sizeof(fd) &&
	       read(sock, &taken, 1) == 1;
}

/**
 * take_fd() - In the parent: take the descriptor that the child offers
 * @sock:	To the child
 * @child:	Process
 *
 * Returns: the descriptor, close-on-exec; -1 if the child offers none
 */
static int take_fd(int sock, pid_t child)
{
	int num, pidfd, fd;

	if (read(sock, &num, sizeof(num)) != sizeof(num))
		return -1;
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, num, 0);
	close(pidfd);
	return fd;
}

/**
 * become_command() - In the child: filter on, listener sent, exec
 * @sock:	To the agent
 * @argv:	Command
 * @mask:	Signal mask to run it with
 */
static void __attribute__((noreturn)) become_command(int sock, char **argv,
						     const sigset_t *mask)
{
	int fd = filter_install();

	if (fd < 0 || !offer_fd(sock, fd))
		fail(fd < 0 && errno == EBUSY ? "another agent is above this"
					      : "seccomp filter");
	close(fd);
	close(sock);
	sigprocmask(SIG_SETMASK, mask, NULL);
	execvp(argv[0], argv);
	complain("%s: %s", argv[0], strerror(errno));
	_exit(errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

/**
 * tell_keeper() - Hand over what the next agent needs
 *
 * The command, the listener and the state, in one message.
 */
static void tell_keeper(void)
{
	const int fds[] = {listener, state_fd};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(fds))];
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(fds)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {.iov_base = &command, .iov_len = sizeof(command)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};

	memcpy(CMSG_DATA(&control.header), fds, sizeof(fds));
	if (sendmsg(keeper, &msg, MSG_NOSIGNAL) < 0)
		complain("keeper: %s", strerror(errno));
	close(keeper);
}

/**
 * start_command() - Fork the command and get its listener
 * @argv:	Command
 * @mask:	Signal mask to run it with
 */
static void start_command(char **argv, const sigset_t *mask)
{
	int socks[2], status;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks))
		fail("socketpair");
	command = fork();
	if (command < 0)
		fail("fork");
	if (command == 0) {
		if (keeper >= 0)
			close(keeper);
		become_command(socks[1], argv, mask);
	}
	close(socks[1]);
	listener = take_fd(socks[0], command);
	if (listener < 0) { /* it has said why */
		waitpid(command, &status, 0);
		exit(EXIT_AGENT);
	}
	if (notify_init(listener))
		fail("seccomp notifications");
	if (keeper >= 0)
		tell_keeper();
	if (write(socks[0], "", 1) != 1)
		complain("the command left");
	close(socks[0]);
}

/**
 * end_like() - Exit as a shell would after the command
 * @status:	From waitpid()
 *
 * Never by a signal, even if the command did: that is how init tells that the
 * agent itself was killed.
 */
static void __attribute__((noreturn)) end_like(int status)
{
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/**
 * leave_behind() - Reap the command; serve on if it left processes behind
 */
static void leave_behind(void)
{
	struct pollfd state = {.fd = listener};
	int status, null;

	waitpid(command, &status, 0);
	poll(&state, 1, 0);
	if ((state.revents & POLLHUP) || keeper >= 0 || fork() != 0)
		end_like(status);

	give_alone();
	setsid();
	if (!log_verbose) { /* our parent may wait for these to be closed */
		null = open("/dev/null", O_RDWR | O_CLOEXEC);
		for (int fd = 0; fd <= STDERR_FILENO; fd++)
			dup2(null, fd);
	}
	loop_del(signal_fd);
	while (!filter_unused)
		loop_once();
	_exit(0);
}

/* ---- setting up ---- */

/**
 * block_signals() - Take signals from a descriptor from here on
 * @ret_mask:	Signal mask as it was
 */
static void block_signals(sigset_t *ret_mask)
{
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(passed_on) / sizeof(passed_on[0]); i++)
		sigaddset(&set, passed_on[i]);
	sigprocmask(SIG_BLOCK, &set, ret_mask);
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signal_fd < 0)
		fail("signalfd");
}

/**
 * raise_limits() - Room for a descriptor per waiting connect()
 *
 * After the command is started: its limits stay as they are.
 */
static void raise_limits(void)
{
	struct rlimit limit = {.rlim_cur = MAX_FILES, .rlim_max = MAX_FILES};

	if (!setrlimit(RLIMIT_NOFILE, &limit))
		return;
	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/**
 * refuse_huge_pages() - Have no more memory than what is used
 *
 * Of our tables few pages are used, and khugepaged would put 2 MiB in their
 * place, whenever it comes by. After the command is started: it would inherit
 * that.
 */
static void refuse_huge_pages(void)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

/**
 * start_watch() - Have no call wait that a program may make wait
 *
 * After the command is started: a fork has none of our threads.
 */
static void start_watch(void)
{
	if (!watch_start())
		complain("nobody watches: %s", strerror(errno));
}

/**
 * adopt() - Take over from an agent that has ended
 * @fds:	"LISTENER,STATE"
 *
 * Without the host, connect() fails until it is back. Nothing waits for it here
 * but the calls that need it.
 */
static void __attribute__((noreturn)) adopt(const char *fds)
{
	static struct source listener_source = {.ready = listener_ready};

	if (sscanf(fds, "%d,%d", &listener, &state_fd) != 2) {
		complain("-a %s: not LISTENER,STATE", fds);
		exit(EXIT_AGENT);
	}
	fcntl(listener, F_SETFD, FD_CLOEXEC);
	fcntl(state_fd, F_SETFD, FD_CLOEXEC);
	if (state_map(state_fd) || notify_init(listener))
		fail("what the agent before this one left");
	control_hear(&hearer);
	callers_init();
	raise_limits();
	refuse_huge_pages();
	start_watch();
	routes_adopt();
	listen_adopt();
	control_keep();
	relay_adopt();
	state_take_over(call_resume);
	loop_add(&listener_source, listener, EPOLLIN);
	while (!filter_unused)
		loop_once();
	exit(0);
}

int main(int argc, char **argv)
{
	static struct source listener_source = {.ready = listener_ready};
	static struct source signal_source = {.ready = signal_ready};
	static struct source command_source = {.ready = command_ready};
	const char *adopted = NULL;
	sigset_t mask;
	int option, error;

	while ((option = getopt(argc, argv, "+va:k:")) != -1) {
		log_verbose |= option == 'v';
		adopted = option == 'a' ? optarg : adopted;
		keeper = option == 'k' ? atoi(optarg) : keeper;
		if (option == '?')
			optind = argc;
	}
	if (!adopted && optind >= argc) {
		complain("usage: tsi-agent [-v] -- COMMAND [ARGUMENT]...");
		return EXIT_AGENT;
	}
	if (!loop_init())
		fail("epoll");
	for (size_t i = 0; i < sizeof(timers) / sizeof(timers[0]); i++)
		loop_add_timer(&timers[i]);
	later_start(call_dispatch);
	give_start(listeners_stash);
	if (adopted)
		adopt(adopted);
	state_fd = state_create();
	if (state_fd < 0 || state_map(state_fd))
		fail("state");
	control_hear(&hearer);
	callers_init();
	error = control_start();
	if (error) {
		complain_of_host(error);
		return EXIT_AGENT;
	}
	interface_init();

	block_signals(&mask);
	start_command(argv + optind, &mask);
	raise_limits();
	refuse_huge_pages();
	start_watch();
	loop_add(&listener_source, listener, EPOLLIN);
	loop_add(&signal_source, signal_fd, EPOLLIN);
	loop_add(&command_source, (int)syscall(SYS_pidfd_open, command, 0),
		 EPOLLIN);
	while (!command_ended)
		loop_once();
	leave_behind();
}
