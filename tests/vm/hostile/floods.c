// SPDX-License-Identifier: Apache-2.0
/*
 * floods.c - who takes more than a share of what all programs have in common
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "hostile.h"

#define FLOOD_S	  4
#define LONGEST_S 3.0 /* a call of somebody else's */
#define THREADS	  4
#define MANY	  400
#define SHARED	  (FIRST_PORT + 60)
#define ROOTS	  (FIRST_PORT + 61)
#define REFUSED	  20000 /* and those behind it: nobody listens at the host */

static void *connect_everywhere(void *seed)
{
	uint32_t next =
	    0xc6130000U + (uint32_t)(uintptr_t)seed * 8192; /* 198.19 */

	for (;;) {
		struct sockaddr_in to = {.sin_family = AF_INET,
					 .sin_port = htons(80)};
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

		to.sin_addr.s_addr = htonl(next++);
		connect(fd, (struct sockaddr *)&to, sizeof(to));
		close(fd); /* in flight */
	}
	return NULL;
}

static void flood_routes(void *unused)
{
	pthread_t threads[THREADS];

	(void)unused;
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, connect_everywhere,
			       (void *)i);
	pause();
}

static void a_flood_of_destinations_keeps_nobody_waiting(void)
{
	double begin, end = now_s() + FLOOD_S;
	pid_t pid = as_nobody(flood_routes, NULL);

	for (int port = REFUSED; (begin = now_s()) < end; port++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		want(tcp_connect(fd, HOST, port) == ECONNREFUSED);
		close(fd);
		want(now_s() - begin < LONGEST_S);
		usleep(20000);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	for (int i = 0; i < 3; i++)
		want(tcp_connect(socket(AF_INET, SOCK_STREAM, 0), HOST,
				 REFUSED) == ECONNREFUSED);
}

/* Many listeners on a port that the host publishes, all open */
static void flood_listeners(void *done)
{
	const struct rlimit all = {4096, 4096};
	struct sockaddr_in own = {.sin_family = AF_INET,
				  .sin_port = htons(SHARED)};
	int on = 1;

	setrlimit(RLIMIT_NOFILE, &all);
	for (int i = 0; i < MANY; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
		bind(fd, (struct sockaddr *)&own, sizeof(own));
		if (listen(fd, 8))
			break;
	}
	write(*(int *)done, "", 1);
	pause();
}

static void a_flood_of_listeners_keeps_nobody_from_listening(void)
{
	int done[2], fd;
	char byte;

	want(pipe(done) == 0);
	as_nobody(flood_listeners, &done[1]);
	want(read(done[0], &byte, 1) == 1);
	fd = tcp_listener(ROOTS);
	want(fd >= 0);
}

/* Each is killed somewhere in its calls */
static void connect_and_die(void *unused)
{
	(void)unused;
	for (int i = 0;; i++) {
		pid_t pid = fork();

		if (!pid) {
			for (int port = 0;; port++) {
				int fd = socket(AF_INET, SOCK_STREAM, 0);

				tcp_connect(fd, HOST,
					    port & 1 ? ECHO : REFUSED + port);
				send(fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
				if (port & 2)
					close(fd);
			}
		}
		usleep((useconds_t)(1000 * (5 + i % 17)));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

static void those_who_die_in_connect_leave_nothing(void)
{
	pid_t pid = as_nobody(connect_and_die, NULL);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	sleep(FLOOD_S);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	want(tcp_connect(fd, HOST, REFUSED) == ECONNREFUSED);
}

/* ---- signals ---- */

static void on_signal(int number)
{
	(void)number;
}

/* A timer that rings all the time, with and without SA_RESTART */
static void signals_end_no_call_wrongly(void)
{
	const struct itimerval often = {{0, 1000}, {0, 1000}};

	for (int i = 0; i < 60; i++) {
		struct sigaction action = {.sa_handler = on_signal,
					   .sa_flags = i & 1 ? SA_RESTART : 0};
		struct pollfd ready = {.events = POLLOUT};
		int error, result;
		socklen_t len = sizeof(result);

		sigaction(SIGALRM, &action, NULL);
		ready.fd = socket(AF_INET, SOCK_STREAM, 0);
		setitimer(ITIMER_REAL, &often, NULL);
		error = tcp_connect(ready.fd, HOST, REFUSED + 1000 + i);
		while (error == EINTR && poll(&ready, 1, -1) < 0)
			;
		setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}},
			  NULL);
		if (error == EINTR) {
			want(getsockopt(ready.fd, SOL_SOCKET, SO_ERROR, &result,
					&len) == 0);
			error = result;
		}
		if (!error) /* an agent had not begun when we looked */
			error = tcp_connect(ready.fd, HOST, REFUSED + 1000 + i);
		want(error == ECONNREFUSED);
		close(ready.fd);
	}
	alarm(LIMIT_S);
}

const struct check floods[] = {
    SANDBOX(a_flood_of_destinations_keeps_nobody_waiting),
    SANDBOX(a_flood_of_listeners_keeps_nobody_from_listening),
    SANDBOX(those_who_die_in_connect_leave_nothing),
    SANDBOX(signals_end_no_call_wrongly),
    {0},
};
