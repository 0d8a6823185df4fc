// SPDX-License-Identifier: Apache-2.0
/*
 * pipes.c - the command's stdin, stdout and stderr
 *
 * Theory of operation
 * ===================
 *
 * What the host sends as stdin lands in a buffer that is as large as the
 * window, so that there is room for it. Output is read only while nothing waits
 * to be sent; the last bytes of stderr are kept, for the reason that an agent
 * may have given there.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "init/init.h"

static struct buffer to_stdin;

/**
 * pipes_close() - Close our end of one of the command's pipes
 * @i:		0, 1 or 2
 */
void pipes_close(int i)
{
	if (cmd.fds[i] >= 0)
		close(cmd.fds[i]);
	cmd.fds[i] = -1;
}

/**
 * pipes_begin() - Nothing waits for the stdin of a command that is to start
 */
void pipes_begin(void)
{
	to_stdin.len = to_stdin.start = 0;
}

/**
 * pipes_waiting() - Is there input that stdin has not taken?
 *
 * Returns: true if there is
 */
bool pipes_waiting(void)
{
	return to_stdin.len != 0;
}

/**
 * pipes_stdin() - Take input for the command
 * @p:		Bytes
 * @len:	How many; none is the end of the input
 */
void pipes_stdin(const uint8_t *p, uint32_t len)
{
	if (!cmd.pid)
		return; /* crossed with EXIT */
	if (cmd.eof || len > STDIN_MAX - to_stdin.len)
		finish("STDIN beyond its window or its end");
	if (len == 0)
		cmd.eof = true;
	else if (cmd.fds[0] >= 0)
		buffer_add(&to_stdin, p, len);
	else
		cmd.window += len;
}

/**
 * pipes_feed() - Write what the command's stdin takes now
 *
 * A command that has closed its stdin has its input dropped.
 */
void pipes_feed(void)
{
	while (cmd.fds[0] >= 0 && to_stdin.len) {
		ssize_t n = write(cmd.fds[0], to_stdin.data + to_stdin.start,
				  to_stdin.len);

		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			n = (ssize_t)to_stdin.len;
			pipes_close(0);
		}
		buffer_take(&to_stdin, (size_t)n);
		cmd.window += (uint32_t)n;
	}
	if (cmd.eof && to_stdin.len == 0)
		pipes_close(0);
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
 * pipes_read() - Read once from the command's stdout or stderr
 * @i:		1 or 2
 * @max:	Read no more than this, bytes
 *
 * Returns: bytes queued for the host; 0 if there are none, or no more at all
 */
size_t pipes_read(int i, size_t max)
{
	static uint8_t chunk[64 * 1024];
	ssize_t n;

	if (cmd.fds[i] < 0)
		return 0;
	n = read(cmd.fds[i], chunk, max < sizeof(chunk) ? max : sizeof(chunk));
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0) {
		pipes_close(i);
		return 0;
	}
	if (i == 2)
		keep_tail(chunk, (size_t)n);
	frames_send(i == 1 ? FRAME_STDOUT : FRAME_STDERR, chunk, (size_t)n);
	return (size_t)n;
}
