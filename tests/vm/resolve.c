// SPDX-License-Identifier: Apache-2.0
/*
 * resolve.c - look names up with the C library that this is linked with
 *
 *	resolve NAME...
 *
 * Prints the addresses of each name, one a line; the status is how many names
 * have none.
 */

#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	int failed = 0;

	for (int i = 1; i < argc; i++) {
		struct addrinfo *found, *each;
		char text[64];
		int error = getaddrinfo(argv[i], "80", &hints, &found);

		if (error) {
			printf("%s: %s\n", argv[i], gai_strerror(error));
			failed++;
			continue;
		}
		for (each = found; each; each = each->ai_next)
			if (!getnameinfo(each->ai_addr, each->ai_addrlen, text,
					 sizeof(text), NULL, 0, NI_NUMERICHOST))
				printf("%s\n", text);
		freeaddrinfo(found);
	}
	return failed;
}
