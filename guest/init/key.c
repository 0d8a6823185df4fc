// SPDX-License-Identifier: Apache-2.0
/*
 * key.c - the key that the host gave us, for those who speak for the guest
 *
 * Theory of operation
 * ===================
 *
 * Whoever opens TSI's streams has to show it (docs/tsi-protocol.md). Agents are
 * root's and read it from a file that is root's; the kernel module, where it
 * opens streams itself, has a parameter for it.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "include/wire.h"
#include "init/init.h"

#define PARAMETER "/sys/module/tsi_inet/parameters/key"

/**
 * write_file() - Write a file as a whole
 * @path:	File
 * @flags:	For open(), besides O_WRONLY
 * @data:	What it has then
 * @len:	Bytes
 */
static void write_file(const char *path, int flags, const void *data,
		       size_t len)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | flags, 0400);

	if (fd < 0 || write(fd, data, len) != (ssize_t)len)
		say("%s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/**
 * key_keep() - Leave the key where those find it that need it
 * @p:		Payload of the frame
 * @len:	Its length, bytes
 */
void key_keep(const uint8_t *p, uint32_t len)
{
	char text[2 * TSI_KEY_BYTES + 1];

	if (len != TSI_KEY_BYTES)
		finish("bad KEY frame");
	mkdir("/run", 0755);
	unlink(TSI_KEY_FILE);
	write_file(TSI_KEY_FILE, O_CREAT | O_EXCL, p, len);
	for (uint32_t i = 0; i < len; i++)
		sprintf(text + 2 * i, "%02x", (unsigned)p[i]);
	if (!access(PARAMETER, W_OK))
		write_file(PARAMETER, 0, text, sizeof(text) - 1);
}
