// SPDX-License-Identifier: Apache-2.0
/*
 * init.c - PID 1 of the microVM: prepares it, then runs the host's commands
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
 *
 * Guest to host:
 *	READY	u32 version, then kernel release and clocksource, each with NUL
 *	STDOUT, STDERR	what the command wrote
 *	EXIT	u32 wait status; follows all that the command wrote
 *	ERROR	text: the agent failed, the command never ended by itself
 *	WINDOW	u32: the host may send so many more bytes of STDIN
 *
 * One command runs at a time, in a session of its own. Nothing here blocks and
 * nothing grows: STDIN is bounded by the window, which is the size of the
 * buffer that it lands in, so a SIGNAL never waits behind input that the
 * command does not read. A pipe of the command is read only while nothing waits
 * to be sent, so a slow host stops the command, as a slow terminal would.
 *
 * The command has ended when its process has. What its pipes hold at that
 * moment is sent first, then EXIT; a background process that keeps the pipe
 * open delays nothing, it gets SIGPIPE once it writes again.
 *
 * Over TSI the process is tsi-agent, which ends with the command's status. If
 *it is killed, another one takes over (init/agents.c), and the command, our
 *child from then on, is waited for. It may also fail by itself (AGENT_FAILED
 *and a last line "tsi-agent: ..."), be killed before there is a command, or too
 *often. Programs cannot connect without it, so all of them are killed and the
 *host gets ERROR.
 *
 * When the stream ends the VM does, too. "init --serve FD" runs the same loop
 * over an inherited socket on any Linux, which is how it is tested.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "init/agents.h"

#define INIT_VERSION 1
#define INIT_PORT    1029
#define HEADER	     8U		   /* bytes of type and len */
#define FRAME_MAX    (128U * 1024) /* payload, bytes */
#define STDIN_MAX    (64U * 1024)  /* window, bytes */
#define TAIL_MAX     256U	   /* kept of stderr, bytes */
#define AGENT_FAILED 125
#define EXEC_TSI     1U

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are LE");

enum frame {
	FRAME_EXEC = 1,
	FRAME_STDIN,
	FRAME_SIGNAL,
	FRAME_READY = 16,
	FRAME_STDOUT,
	FRAME_STDERR,
	FRAME_EXIT,
	FRAME_ERROR,
	FRAME_WINDOW,
};

/**
 * struct buffer - Bytes on their way: added at the end, taken at the start
 * @start:	Index of the first byte
 * @len:	Number of bytes
 * @data:	Room for a frame
 */
struct buffer {
	size_t start;
	size_t len;
	uint8_t data[HEADER + FRAME_MAX];
};

/**
 * struct command - The one command that runs, or none
 * @pid:	Its process and process group, 0 if there is none
 * @tsi:	The process is, or was, tsi-agent
 * @orphan:	The command itself, once it has lost its agent; else 0
 * @eof:	The host has sent the end of stdin
 * @fds:	Our ends of its stdin, stdout, stderr; -1 once closed
 * @signals:	Bit set of the signals that the host sent
 * @window:	Bytes taken from stdin that the host was not told of yet
 * @tail:	The last bytes of its stderr
 * @tail_len:	Bytes in @tail
 */
struct command {
	pid_t pid;
	bool tsi;
	pid_t orphan;
	bool eof;
	int fds[3];
	uint64_t signals;
	uint32_t window;
	char tail[TAIL_MAX];
	size_t tail_len;
};

static struct buffer from_host, to_host, to_stdin;
static struct command cmd = {.fds = {-1, -1, -1}};
static int host = -1;
static bool booted; /* we are PID 1 of a VM and may end it */

/**
 * say() - Write one line to the console
 * @fmt:	As for printf(), without a new line
 */
__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (n >= 0)
		dprintf(STDERR_FILENO, "init: %s\n", line);
}

/**
 * finish() - End the VM, or this process outside one
 * @why:	Why, for the console; NULL if all is well
 *
 * "reboot=t" and QEMU's -no-reboot turn the restart into the end of QEMU.
 */
__attribute__((noreturn)) static void finish(const char *why)
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

/* Frames *********************************************************************/

/**
 * u32_at() - Read a little-endian integer
 * @p:		Four bytes
 *
 * Returns: the integer
 */
static uint32_t u32_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/**
 * take() - Drop bytes from the start of a buffer
 * @b:		Buffer
 * @n:		Bytes, at most @b->len
 */
static void take(struct buffer *b, size_t n)
{
	b->start += n;
	b->len -= n;
	if (b->len == 0)
		b->start = 0;
}

/**
 * add() - Add bytes to the end of a buffer
 * @b:		Buffer
 * @data:	Bytes
 * @n:		How many
 *
 * Returns: false, with nothing added, if there is no room
 */
static bool add(struct buffer *b, const void *data, size_t n)
{
	if (n > sizeof(b->data) - b->len)
		return false;
	if (n > sizeof(b->data) - b->start - b->len) {
		memmove(b->data, b->data + b->start, b->len);
		b->start = 0;
	}
	memcpy(b->data + b->start + b->len, data, n);
	b->len += n;
	return true;
}

/**
 * send_frame() - Queue a frame for the host
 * @type:	What it is
 * @payload:	Its bytes
 * @len:	How many
 *
 * Whoever has much to send waits for an empty buffer first, and the few small
 * frames that can meet there fit: no room is a mistake of ours.
 */
static void send_frame(enum frame type, const void *payload, size_t len)
{
	uint32_t header[2] = {(uint32_t)type, (uint32_t)len};

	if (!add(&to_host, header, sizeof(header)) ||
	    !add(&to_host, payload, len))
		finish("no room for a frame to the host");
}

/**
 * send_u32() - Queue a frame that is one integer
 * @type:	What it is
 * @v:		The integer
 */
static void send_u32(enum frame type, uint32_t v)
{
	send_frame(type, &v, sizeof(v));
}

/**
 * send_ready() - Queue the first frame: who we are
 */
static void send_ready(void)
{
	static const char path[] = "/sys/devices/system/clocksource/"
				   "clocksource0/current_clocksource";
	char payload[sizeof(uint32_t) + 256] = {INIT_VERSION};
	struct utsname uts;
	size_t len = sizeof(uint32_t);
	char clock[64] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		ssize_t n = read(fd, clock, sizeof(clock) - 1);

		clock[n > 0 ? n : 0] = '\0';
		clock[strcspn(clock, "\n")] = '\0';
		close(fd);
	}
	uname(&uts);
	len += (size_t)snprintf(payload + len, 128, "%.100s", uts.release) + 1;
	len += (size_t)snprintf(payload + len, 64, "%s", clock) + 1;
	send_frame(FRAME_READY, payload, len);
}

/* The command ****************************************************************/

/**
 * close_end() - Close our end of one of the command's pipes
 * @i:		0, 1 or 2
 */
static void close_end(int i)
{
	if (cmd.fds[i] >= 0)
		close(cmd.fds[i]);
	cmd.fds[i] = -1;
}

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
			close_end(i);
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
 * on_exec() - Start the command that the host asks for
 * @p:		Payload of the frame
 * @len:	Its length, bytes
 */
static void on_exec(uint8_t *p, uint32_t len)
{
	char **argv = NULL, **env = NULL, **cwd = NULL;
	char *next, *end = (char *)p + len;
	const char *error = "bad EXEC frame";
	uint32_t argc;

	if (cmd.pid)
		finish("EXEC while a command runs");
	if (len < 12)
		finish(error);
	argc = u32_at(p + 4);
	argv = split((char *)p + 12, end, argc, &next);
	if (argv)
		env = split(next, end, u32_at(p + 8), &next);
	if (env)
		cwd = split(next, end, 1, &next);
	if (!cwd || argc == 0)
		finish(error);

	cmd.eof = false;
	cmd.signals = 0;
	cmd.window = 0;
	cmd.tail_len = 0;
	cmd.tsi = u32_at(p) & EXEC_TSI;
	cmd.orphan = 0;
	to_stdin.len = to_stdin.start = 0;
	error = cmd.tsi ? start_agent(argv, argc, env, cwd[0])
			: start(argv, env, cwd[0]);
	if (error)
		send_frame(FRAME_ERROR, error, strlen(error));
	else
		send_u32(FRAME_WINDOW, STDIN_MAX);
	free(argv);
	free(env);
	free(cwd);
}

/**
 * on_stdin() - Take input for the command
 * @p:		Bytes
 * @len:	How many; none is the end of the input
 */
static void on_stdin(const uint8_t *p, uint32_t len)
{
	if (!cmd.pid)
		return; /* crossed with EXIT */
	if (cmd.eof || len > STDIN_MAX - to_stdin.len)
		finish("STDIN beyond its window or its end");
	if (len == 0)
		cmd.eof = true;
	else if (cmd.fds[0] >= 0)
		add(&to_stdin, p, len);
	else
		cmd.window += len;
}

/**
 * on_signal() - Pass a signal to the command's process group
 * @p:		Payload of the frame
 * @len:	Its length, bytes
 */
static void on_signal(const uint8_t *p, uint32_t len)
{
	uint32_t signo = len == 4 ? u32_at(p) : 0;

	if (signo < 1 || signo > 64)
		finish("bad SIGNAL frame");
	if (!cmd.pid)
		return; /* crossed with EXIT */
	cmd.signals |= UINT64_C(1) << (signo - 1);
	if (kill(-cmd.pid, (int)signo)) /* has not reached setsid() yet */
		kill(cmd.pid, (int)signo);
}

/**
 * on_bytes() - Act on every whole frame that has come from the host
 */
static void on_bytes(void)
{
	while (from_host.len >= HEADER) {
		uint8_t *p = from_host.data + from_host.start;
		uint32_t len = u32_at(p + 4);

		if (len > FRAME_MAX)
			finish("frame from the host is too long");
		if (from_host.len < HEADER + len)
			return;
		switch (u32_at(p)) {
		case FRAME_EXEC:
			on_exec(p + HEADER, len);
			break;
		case FRAME_STDIN:
			on_stdin(p + HEADER, len);
			break;
		case FRAME_SIGNAL:
			on_signal(p + HEADER, len);
			break;
		default:
			finish("unknown frame from the host");
		}
		take(&from_host, HEADER + len);
	}
}

/* Pipes **********************************************************************/

/**
 * feed_stdin() - Write what the command's stdin takes now
 *
 * A command that has closed its stdin has its input dropped.
 */
static void feed_stdin(void)
{
	while (cmd.fds[0] >= 0 && to_stdin.len) {
		ssize_t n = write(cmd.fds[0], to_stdin.data + to_stdin.start,
				  to_stdin.len);

		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			n = (ssize_t)to_stdin.len;
			close_end(0);
		}
		take(&to_stdin, (size_t)n);
		cmd.window += (uint32_t)n;
	}
	if (cmd.eof && to_stdin.len == 0)
		close_end(0);
}

/**
 * keep_tail() - Remember the last bytes of stderr
 * @p:		New bytes
 * @n:		How many
 */
static void keep_tail(const uint8_t *p, size_t n)
{
	if (n > TAIL_MAX) {
		p += n - TAIL_MAX;
		n = TAIL_MAX;
	}
	if (cmd.tail_len + n > TAIL_MAX) {
		size_t drop = cmd.tail_len + n - TAIL_MAX;

		memmove(cmd.tail, cmd.tail + drop, cmd.tail_len - drop);
		cmd.tail_len -= drop;
	}
	memcpy(cmd.tail + cmd.tail_len, p, n);
	cmd.tail_len += n;
}

/**
 * read_output() - Read once from the command's stdout or stderr
 * @i:		1 or 2
 * @max:	Read no more than this, bytes
 *
 * Returns: bytes queued for the host; 0 if there are none, or no more at all
 */
static size_t read_output(int i, size_t max)
{
	static uint8_t chunk[64 * 1024];
	ssize_t n;

	if (cmd.fds[i] < 0)
		return 0;
	n = read(cmd.fds[i], chunk, max < sizeof(chunk) ? max : sizeof(chunk));
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0) {
		close_end(i);
		return 0;
	}
	if (i == 2)
		keep_tail(chunk, (size_t)n);
	send_frame(i == 1 ? FRAME_STDOUT : FRAME_STDERR, chunk, (size_t)n);
	return (size_t)n;
}

/**
 * flush() - Send what the stream takes now
 */
static void flush(void)
{
	while (to_host.len) {
		ssize_t n = send(host, to_host.data + to_host.start,
				 to_host.len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0)
			finish("the host closed the stream");
		take(&to_host, (size_t)n);
	}
}

/**
 * drain() - Send all, however long the host takes
 */
static void drain(void)
{
	for (flush(); to_host.len; flush())
		poll(&(struct pollfd){.fd = host, .events = POLLOUT}, 1, -1);
}

/* The end of the command *****************************************************/

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

			drain();
			n = read_output(i, (size_t)left);
			left = n ? left - (int)n : 0;
		}
	}
	drain();
	for (int i = 0; i < 3; i++)
		close_end(i);
	cmd.pid = 0;
	if (!cmd.orphan && agent_error(status, &text, &len)) {
		kill(booted ? -1 : -group, SIGKILL);
		send_frame(FRAME_ERROR, text, len);
	} else {
		send_u32(FRAME_EXIT, (uint32_t)status);
	}
	cmd.orphan = 0;
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
 * An agent that was killed leaves its command to us, unless it had reaped it.
 */
static void ended(pid_t pid, int status)
{
	pid_t command = 0;
	enum agents_end end = agents_ended(pid, &command);

	if (pid == cmd.orphan) {
		on_ended(status);
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
 * reap() - Wait for every process that has ended
 */
static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		ended(pid, status);
}

/* Main loop ******************************************************************/

/**
 * receive() - Read from the stream what there is room for
 *
 * There is always room: on_bytes() leaves less than one frame.
 */
static void receive(void)
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
	add(&from_host, chunk, (size_t)n);
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
	if (cmd.pid && cmd.window >= STDIN_MAX / 2 && to_host.len == 0) {
		send_u32(FRAME_WINDOW, cmd.window);
		cmd.window = 0;
	}
}

/**
 * serve() - Run the host's commands until the stream ends
 */
__attribute__((noreturn)) static void serve(void)
{
	struct signalfd_siginfo info;
	sigset_t mask;
	int children;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	children = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* as PID 1 is anyhow */
	send_ready();
	for (;;) {
		bool idle = to_host.len == 0;
		struct pollfd fds[] = {
		    {.fd = host, .events = POLLIN | (idle ? 0 : POLLOUT)},
		    {.fd = children, .events = POLLIN},
		    {.fd = to_stdin.len ? cmd.fds[0] : -1, .events = POLLOUT},
		    {.fd = idle ? cmd.fds[1] : -1, .events = POLLIN},
		    {.fd = idle ? cmd.fds[2] : -1, .events = POLLIN},
		};

		if (poll(fds, sizeof(fds) / sizeof(fds[0]), -1) < 0)
			continue;
		if (fds[0].revents & ~POLLOUT)
			receive();
		feed_stdin();
		for (int i = 1; i <= 2; i++)
			if (fds[2 + i].revents && to_host.len == 0)
				read_output(i, SIZE_MAX);
		if (fds[1].revents) {
			while (read(children, &info, sizeof(info)) > 0)
				;
			reap();
		}
		flush();
		tell_window();
		flush();
	}
}

/* Boot ***********************************************************************/

/**
 * mount_all() - Mount what programs expect to find
 *
 * /tmp and /run are left alone: all of the root is memory, and the host may
 * have put files there.
 */
static void mount_all(void)
{
	static const struct {
		const char *type, *path, *options;
		unsigned long flags;
	} mounts[] = {
	    {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
	    {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
	    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
	    {"devpts", "/dev/pts", "mode=0620,ptmxmode=0666", MS_NOSUID},
	    {"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV},
	};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].path, 0755);
		if (mount(mounts[i].type, mounts[i].path, mounts[i].type,
			  mounts[i].flags, mounts[i].options))
			say("mount %s: %s", mounts[i].path, strerror(errno));
	}
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
}

/**
 * insmod() - Load one module with busybox, which knows compressed ones
 * @path:	Module
 *
 * Returns: true if it was loaded
 */
static bool insmod(const char *path)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		execl("/bin/busybox", "busybox", "insmod", path, (char *)NULL);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/**
 * load() - Load one module
 * @path:	Module, compressed or not
 */
static void load(const char *path)
{
	size_t len = strlen(path);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		say("%s: %s", path, strerror(errno));
		return;
	}
	if (len > 3 && strcmp(path + len - 3, ".ko")) {
		if (!insmod(path))
			say("%s: not loaded", path);
	} else if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST) {
		say("%s: %s", path, strerror(errno));
	}
	close(fd);
}

/**
 * load_modules() - Load the image's modules in the order that it lists
 *
 * /lib/modules/RELEASE/order has a path a line, relative to its directory. A
 * kernel that the image was not made for finds no list, and needs none if it
 * has the drivers built in.
 */
static void load_modules(void)
{
	char path[PATH_MAX], line[512];
	struct utsname uts;
	FILE *list;

	uname(&uts);
	snprintf(path, sizeof(path), "/lib/modules/%.65s/order", uts.release);
	list = fopen(path, "re");
	if (!list) {
		say("%s: %s", path, strerror(errno));
		return;
	}
	while (fgets(line, sizeof(line), list)) {
		line[strcspn(line, "\n")] = '\0';
		snprintf(path, sizeof(path), "/lib/modules/%.65s/%s",
			 uts.release, line);
		load(path);
	}
	fclose(list);
}

/**
 * lo_up() - Bring the loopback interface up; the kernel adds its addresses
 */
static void lo_up(void)
{
	struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (s < 0 || ioctl(s, SIOCSIFFLAGS, &ifr))
		say("lo: %s", strerror(errno));
	if (s >= 0)
		close(s);
}

/**
 * set_sysctls() - Settings of the kernel that programs are to find
 *
 * TCP fast open: TSI hasn't got it, and programs fall back where it is off.
 */
static void set_sysctls(void)
{
	static const struct {
		const char *path, *value;
	} settings[] = {{"/proc/sys/net/ipv4/tcp_fastopen", "0"}};

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		int fd = open(settings[i].path, O_WRONLY | O_CLOEXEC);

		if (fd < 0 || write(fd, settings[i].value, 1) != 1)
			say("%s: %s", settings[i].path, strerror(errno));
		close(fd);
	}
}

/**
 * resolver_line() - Write a line of resolv.conf that the host has asked for
 * @fd:		/etc/resolv.conf, or -1: just forget what it has asked for
 * @key:	First word of the line
 * @name:	Kernel parameter with the others, separated by commas; the
 *		kernel puts it into our environment, and programs don't get it
 */
static void resolver_line(int fd, const char *key, const char *name)
{
	char *words = getenv(name);

	if (words && fd >= 0) {
		for (char *p = words; *p; p++)
			if (*p == ',')
				*p = ' ';
		if (dprintf(fd, "%s %s\n", key, words) < 0)
			say("/etc/resolv.conf: %s", strerror(errno));
	}
	unsetenv(name);
}

/**
 * name_resolver() - Tell programs where to ask for names
 *
 * Which address it is doesn't matter: over TSI, whatever goes to port 53 is
 * answered on the host. This one is of a range that is nobody's (RFC 2544).
 * Where to search and how long to wait is as on the host, if it has said so. A
 * file that the image or the host brought stays.
 */
static void name_resolver(void)
{
	static const char text[] = "nameserver 198.18.0.53\n";
	int fd = open("/etc/resolv.conf",
		      O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	if (fd >= 0 && write(fd, text, sizeof(text) - 1) < 0)
		say("/etc/resolv.conf: %s", strerror(errno));
	resolver_line(fd, "search", "resolv_search");
	resolver_line(fd, "options", "resolv_options");
	if (fd >= 0)
		close(fd);
}

/**
 * call_host() - Connect to the host
 *
 * Returns: the stream
 */
static int call_host(void)
{
	struct sockaddr_vm addr = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_HOST,
	    .svm_port = INIT_PORT,
	};
	const struct timespec pause = {.tv_nsec = 100 * 1000 * 1000};

	for (int tries = 0; tries < 50; tries++) {
		int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (s >= 0 &&
		    !connect(s, (struct sockaddr *)&addr, sizeof(addr)))
			return s;
		if (s < 0)
			break;
		close(s);
		nanosleep(&pause, NULL);
	}
	say("vsock, host port %d: %s", INIT_PORT, strerror(errno));
	finish("no way to the host");
}

/**
 * boot() - Prepare the VM and connect to the host
 *
 * The kernel has opened /dev/console as stdin, stdout and stderr. The first
 * line on it tells a probe of the accelerator that the kernel came up; see
 * fastpath/vm/accel.py.
 */
static void boot(void)
{
	booted = true;
	say("alive");
	umask(022);
	mount_all();
	setenv("PATH",
	       "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:"
	       "/sbin:/bin",
	       1);
	setenv("HOME", "/root", 1);
	setenv("TERM", "linux", 1);
	set_sysctls();
	load_modules();
	lo_up();
	name_resolver();
	host = call_host();
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--serve")) {
		host = atoi(argv[2]);
		fcntl(host, F_SETFD, FD_CLOEXEC);
	} else if (getpid() == 1) {
		boot();
	} else {
		say("runs as PID 1 of a microVM, or as: init --serve FD");
		return 2;
	}
	serve();
}
