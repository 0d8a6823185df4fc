// SPDX-License-Identifier: Apache-2.0
/*
 * vsock_reader.c - a program in a guest that stops reading for a while
 *
 * It connects to a port of the host, says so, and reads nothing before its
 * standard input ends. Then it reads to the end, and says how many records
 * came: each is its own number in RECORD digits.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define RECORD 200
#define HOST   2

static int failed(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

/* Read one record; 0 at the end, -1 with errno, else its size */
static ssize_t record(int fd, char *buf)
{
	size_t got = 0;

	while (got < RECORD) {
		ssize_t n = read(fd, buf + got, RECORD - got);

		if (n < 0)
			return -1;
		if (!n)
			break;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = HOST};
	char buf[RECORD], due[RECORD + 1];
	long count = 0;
	ssize_t n;
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (argc != 2)
		return 2;
	setvbuf(stdout, NULL, _IONBF, 0);
	to.svm_port = (unsigned)atoi(argv[1]);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return failed("connect");
	printf("connected\n");
	while (read(0, buf, sizeof(buf)) > 0)
		;
	while ((n = record(fd, buf)) == RECORD) {
		snprintf(due, sizeof(due), "%0*ld", RECORD, count);
		if (memcmp(buf, due, RECORD)) {
			printf("record %ld is %.*s\n", count, RECORD, buf);
			return 1;
		}
		count++;
	}
	if (n < 0) {
		printf("after %ld records, ", count);
		return failed("read");
	}
	printf("%ld records and %zd bytes\n", count, n);
	return 0;
}
