/* SPDX-License-Identifier: Apache-2.0 */
/*
 * init.h - what the parts of init share
 *
 * Theory of operation of the whole: main.c. Dependencies point down this list.
 *
 *	main.c		frames from the host, the main loop
 *	sessions.c	streams beside the first
 *	boot.c		mounts, modules, the way to the host
 *	sockets.c	who has the programs' sockets
 *	names.c		the guest's own name, and where to ask for others
 *	ended.c		the end of the command, and of agents
 *	command.c	the one command
 *	agents.c	its agents, over TSI (agents.h)
 *	key.c		what agents show the host
 *	pipes.c		the command's stdin, stdout and stderr
 *	frames.c	frames to the host
 *	buffer.c	bytes on their way
 *	finish.c	the end of the VM
 *	say.c		lines on the console
 *	state.c		how we were started, and the command
 */
#ifndef INIT_INIT_H
#define INIT_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define INIT_PORT 1029		/* of vsock, the host's and ours */
#define HEADER	  8U		/* bytes of type and len */
#define FRAME_MAX (128U * 1024) /* payload, bytes */
#define STDIN_MAX (64U * 1024)	/* window, bytes */
#define TAIL_MAX  256U		/* kept of stderr, bytes */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are LE");

enum frame {
	FRAME_EXEC = 1,
	FRAME_STDIN,
	FRAME_SIGNAL,
	FRAME_KEY,
	FRAME_READY = 16,
	FRAME_STDOUT,
	FRAME_STDERR,
	FRAME_EXIT,
	FRAME_ERROR,
	FRAME_WINDOW,
};

/* ---- state.c ---- */

extern bool booted;		/* we are PID 1 of a VM and may end it */
extern bool module_has_sockets; /* tsi_inet: no agent is needed */

/**
 * struct command - The one command that runs, or none
 * @pid:	Its process and process group, 0 if there is none
 * @tsi:	The process is, or was, tsi-agent
 * @orphan:	The command itself, once it has lost its agent; else 0
 * @reaped:	The command itself, if its end came before its agent's; else 0
 * @status:	The wait status of @reaped
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
	pid_t reaped;
	int status;
	bool eof;
	int fds[3];
	uint64_t signals;
	uint32_t window;
	char tail[TAIL_MAX];
	size_t tail_len;
};

extern struct command cmd;

/* ---- say.c ---- */

void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- finish.c ---- */

__attribute__((noreturn)) void finish(const char *why);

/* ---- buffer.c ---- */

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

uint32_t buffer_u32(const uint8_t *p);
void buffer_take(struct buffer *b, size_t n);
bool buffer_add(struct buffer *b, const void *data, size_t n);

/* ---- frames.c ---- */

void frames_start(int host);
void frames_send(enum frame type, const void *payload, size_t len);
void frames_send_u32(enum frame type, uint32_t v);
void frames_send_ready(void);
bool frames_idle(void);
void frames_flush(void);
void frames_drain(void);

/* ---- pipes.c ---- */

void pipes_close(int i);
void pipes_begin(void);
bool pipes_waiting(void);
void pipes_stdin(const uint8_t *p, uint32_t len);
void pipes_feed(void);
size_t pipes_read(int i, size_t max);

/* ---- command.c ---- */

void command_exec(uint8_t *p, uint32_t len);
void command_signal(const uint8_t *p, uint32_t len);

/* ---- key.c ---- */

void key_keep(const uint8_t *p, uint32_t len);

/* ---- ended.c ---- */

void ended_reap(void);

/* ---- sockets.c ---- */

void sockets_choose(void);
bool sockets_wants(const char *file);
bool sockets_failed(const char *file, int error);
void sockets_settle(void);
const char *sockets_who(void);
const char *sockets_take(bool tsi);

/* ---- names.c ---- */

void names_resolver(void);
void names_own(void);

/* ---- sessions.c ---- */

void sessions_listen(void);
void sessions_listen_on(int s);
int sessions_fd(void);
int sessions_take(void);

/* ---- boot.c ---- */

int boot(void);

#endif /* INIT_INIT_H */
