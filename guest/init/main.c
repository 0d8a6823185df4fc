// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - PID 1 of the microVM: prepares it, then runs the host's commands
 *
 * Theory of operation
 * ===================
 *
 * boot() mounts what programs expect, loads the modules that the image lists,
 * brings lo up and connects to the host: vsock CID 2, port INIT_PORT. That one
 * stream carries everything from then on, as frames of
 *
 *	u32 type | u32 len | len bytes		all integers little-endian
 *
 * Host to guest:
 *	EXEC	u32 flags, u32 argc, u32 envc, then argc + envc + 1 strings
 *		with their NULs: arguments, NAME=VALUE..., the directory
 *	STDIN	bytes for the command; none at all means end of file
 *	SIGNAL	u32 number, for the command's process group
 *	KEY	what agents have to show the host
 *
 * Guest to host:
 *	READY	u32 version, then kernel release, clocksource and who has the
 *		programs' sockets (sockets.c), each with NUL
 *	STDOUT, STDERR	what the command wrote
 *	EXIT	u32 wait status; follows all that the command wrote
 *	ERROR	text: the agent failed, the command never ended by itself
 *	WINDOW	u32: the host may send so many more bytes of STDIN
 *
 * One command runs at a time, in a session of its own; others beside it have
 * streams of their own (sessions.c). Nothing here blocks and
 * nothing grows: STDIN is bounded by the window, which is the size of the
 * buffer that it lands in, so a SIGNAL never waits behind input that the
 * command does not read. A pipe of the command is read only while nothing waits
 * to be sent, so a slow host stops the command, as a slow terminal would.
 *
 * The command has ended when its process has. What its pipes hold at that
 * moment is sent first, then EXIT; a background process that keeps the pipe
 * open delays nothing, it gets SIGPIPE once it writes again.
 *
 * Over TSI, unless the kernel's module has the sockets (sockets.c), the process
 * is tsi-agent, which ends with the command's status. If it is killed, another
 * one takes over (agents.c), and the command, our child from then on, is waited
 * for (ended.c). It may also fail by itself (AGENT_FAILED and a last line
 * "tsi-agent: ..."), be killed before there is a command, or too often.
 * Programs cannot connect without it, so all of them are killed and the host
 * gets ERROR.
 *
 * When the first stream ends the VM does, too. "init --serve FD [LISTENER]"
 * runs the same loop over an inherited socket on any Linux, which is how it is
 * tested; streams beside it come by LISTENER.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "init/agents.h"
#include "init/init.h"

static struct buffer from_host;

/**
 * on_bytes() - Act on every whole frame that has come from the host
 */
static void on_bytes(void)
{
	while (from_host.len >= HEADER) {
		uint8_t *p = from_host.data + from_host.start;
		uint32_t len = buffer_u32(p + 4);

		if (len > FRAME_MAX)
			finish("frame from the host is too long");
		if (from_host.len < HEADER + len)
			return;
		switch (buffer_u32(p)) {
		case FRAME_EXEC:
			command_exec(p + HEADER, len);
			break;
		case FRAME_STDIN:
			pipes_stdin(p + HEADER, len);
			break;
		case FRAME_SIGNAL:
			command_signal(p + HEADER, len);
			break;
		case FRAME_KEY:
			key_keep(p + HEADER, len);
			break;
		default:
			finish("unknown frame from the host");
		}
		buffer_take(&from_host, HEADER + len);
	}
}

/**
 * receive() - Read from the stream what there is room for
 * @host:	Stream
 *
 * There is always room: on_bytes() leaves less than one frame.
 */
static void receive(int host)
{
	uint8_t chunk[16 * 1024];
	size_t room = sizeof(from_host.data) - from_host.len;
	ssize_t n =
	    recv(host, chunk, room < sizeof(chunk) ? room : sizeof(chunk),
		 MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0)
		finish(NULL);
	buffer_add(&from_host, chunk, (size_t)n);
	on_bytes();
}

/**
 * tell_window() - Let the host send as much as stdin has taken
 *
 * In large steps, and only once nothing waits to be sent: what waits wakes the
 * main loop again, which comes here again.
 */
static void tell_window(void)
{
	if (cmd.pid && cmd.window >= STDIN_MAX / 2 && frames_idle()) {
		frames_send_u32(FRAME_WINDOW, cmd.window);
		cmd.window = 0;
	}
}

/**
 * serve() - Run the host's commands until the stream ends
 * @host:	Stream
 */
__attribute__((noreturn)) static void serve(int host)
{
	struct signalfd_siginfo info;
	int stream;
	sigset_t mask;
	int children;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	children = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* as PID 1 is anyhow */
	from_host.len = from_host.start = 0;
	frames_start(host);
	frames_send_ready();
	for (;;) {
		bool idle = frames_idle();
		struct pollfd fds[] = {
		    {.fd = host, .events = POLLIN | (idle ? 0 : POLLOUT)},
		    {.fd = children, .events = POLLIN},
		    {.fd = pipes_waiting() ? cmd.fds[0] : -1,
		     .events = POLLOUT},
		    {.fd = idle ? cmd.fds[1] : -1, .events = POLLIN},
		    {.fd = idle ? cmd.fds[2] : -1, .events = POLLIN},
		    {.fd = sessions_fd(), .events = POLLIN},
		};

		if (poll(fds, sizeof(fds) / sizeof(fds[0]),
			 agents_timeout_ms()) < 0)
			continue;
		agents_look();
		if (fds[0].revents & ~POLLOUT)
			receive(host);
		pipes_feed();
		for (int i = 1; i <= 2; i++)
			if (fds[2 + i].revents && frames_idle())
				pipes_read(i, SIZE_MAX);
		if (fds[1].revents) {
			while (read(children, &info, sizeof(info)) > 0)
				;
			ended_reap();
		}
		if (fds[5].revents && (stream = sessions_take()) >= 0)
			serve(stream);
		frames_flush();
		tell_window();
		frames_flush();
	}
}

int main(int argc, char **argv)
{
	int host;

	if (argc >= 3 && !strcmp(argv[1], "--serve")) {
		host = atoi(argv[2]);
		fcntl(host, F_SETFD, FD_CLOEXEC);
		if (argc > 3) {
			sessions_listen_on(atoi(argv[3]));
			fcntl(sessions_fd(), F_SETFD, FD_CLOEXEC);
		}
	} else if (getpid() == 1) {
		host = boot();
	} else {
		say("runs as PID 1 of a microVM, or as: init --serve FD "
		    "[LISTENER]");
		return 2;
	}
	serve(host);
}
