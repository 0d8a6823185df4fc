// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - programs of nobody's that try to harm others by way of TSI
 *
 *	tsi_hostile [CHECK]...
 *	tsi_hostile serve squatted|forged PORT
 *
 * Run as root: each check forks its attackers, which become nobody, and sees
 * what root's own programs notice. With `serve` a client of the host's takes
 * part.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#include <linux/vm_sockets.h>

#include "hostile.h"

double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Fork an attacker; run_check() kills it at the end of the check */
pid_t as_nobody(void (*attack)(void *), void *context)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	if (setgid(NOBODY) || setuid(NOBODY))
		_exit(100);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	attack(context);
	_exit(0);
}

int vsock_connect(int fd, uint32_t cid, uint32_t port)
{
	struct sockaddr_vm to = {
	    .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};

	return connect(fd, (struct sockaddr *)&to, sizeof(to)) ? errno : 0;
}

int vsock_bind(int fd, uint32_t port)
{
	struct sockaddr_vm own = {.svm_family = AF_VSOCK,
				  .svm_cid = VMADDR_CID_ANY,
				  .svm_port = port};

	return bind(fd, (struct sockaddr *)&own, sizeof(own)) ? errno : 0;
}

int tcp_connect(int fd, const char *host, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};

	inet_pton(AF_INET, host, &to.sin_addr);
	return connect(fd, (struct sockaddr *)&to, sizeof(to)) ? errno : 0;
}

int tcp_listener(int port)
{
	struct sockaddr_in own = {.sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(fd, (struct sockaddr *)&own, sizeof(own)) || listen(fd, 8)) {
		close(fd);
		return -1;
	}
	return fd;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve"))
		return !strcmp(argv[2], "forged")
			   ? serve_forged(atoi(argv[3]))
			   : serve_squatted(atoi(argv[3]));
	run_checks(streams, argv + 1);
	run_checks(hangs, argv + 1);
	run_checks(floods, argv + 1);
	return sum_up();
}
