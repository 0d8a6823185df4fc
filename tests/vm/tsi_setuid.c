// SPDX-License-Identifier: Apache-2.0
/*
 * tsi_setuid.c - a setuid program that connects: prints who it is, then an echo
 *
 *	tsi_setuid IPV4 PORT
 *
 * Built twice, with glibc and with musl, statically and dynamically.
 */

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct addrinfo *found,
	    hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
	char bytes[5] = "ping";
	int fd;

	if (argc != 3 || getaddrinfo(argv[1], argv[2], &hints, &found))
		return 2;
	fd = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
	if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) ||
	    write(fd, bytes, 4) != 4 || recv(fd, bytes, 4, MSG_WAITALL) != 4) {
		perror("tsi_setuid");
		return 1;
	}
	printf("%d %d %s\n", (int)getuid(), (int)geteuid(), bytes);
	return 0;
}
