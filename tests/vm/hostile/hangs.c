// SPDX-License-Identifier: Apache-2.0
/*
 * hangs.c - who keeps the agent waiting, or has it act on what is not theirs
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <linux/vm_sockets.h>

#include "hostile.h"

#define ATTACK_S   5
#define LONGEST_S  2.0 /* a call of somebody else's; it was minutes */
#define ROUNDS	   60
#define MANY	   20000 /* descriptors */
#define BINDS	   5
#define CGROUPS	   "/tmp/cgroups"
#define SLOW	   4   /* programs */
#define SLOW_S	   1.0 /* what their CPU time is counted in */
#define SLOW_BINDS 10

static volatile int target = -1;
static volatile int over;

/* ---- calls that wait after all ---- */

static void *clear_nonblock(void *unused)
{
	int off = 0;

	for (;;)
		ioctl(target, FIONBIO, &off);
	return unused;
}

/* Connect to where nobody answers, with a time limit of one's own */
static void connect_and_clear(void *unused)
{
	const struct timeval hour = {.tv_sec = 3600};
	pthread_t thread;
	char host[32];

	(void)unused;
	for (int i = 1; i < 250; i++) {
		pid_t pid = fork();

		if (pid) {
			usleep(100000);
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
			continue;
		}
		target = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(target, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT,
			   &hour, sizeof(hour));
		pthread_create(&thread, NULL, clear_nonblock, NULL);
		usleep(2000);
		snprintf(host, sizeof(host), "198.18.7.%d", i);
		tcp_connect(target, host, 80);
		_exit(0);
	}
}

static void bind_once(void)
{
	struct sockaddr_in own = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	want(bind(fd, (struct sockaddr *)&own, sizeof(own)) == 0);
	close(fd);
}

static double longest_bind_s(double until_s)
{
	double longest = 0, begin;

	while ((begin = now_s()) < until_s) {
		bind_once();
		if (now_s() - begin > longest)
			longest = now_s() - begin;
		usleep(10000);
	}
	return longest;
}

static void a_program_that_clears_o_nonblock_keeps_nobody_waiting(void)
{
	as_nobody(connect_and_clear, NULL);
	want(longest_bind_s(now_s() + ATTACK_S) < LONGEST_S);
}

/* ---- a program that hardly runs ---- */

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	want(fd >= 0 && write(fd, text, strlen(text)) > 0);
	close(fd);
}

static void make_sockets(void *unused)
{
	(void)unused;
	for (;;) {
		struct sockaddr_in own = {.sin_family = AF_INET};
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		bind(fd, (struct sockaddr *)&own, sizeof(own));
		close(fd);
	}
}

/* They have a millisecond of each second, all together. Each call of somebody
 * else's took a second. */
static void programs_without_cpu_time_keep_nobody_waiting(void)
{
	double begin, shortest = SLOW_S;

	mkdir(CGROUPS, 0755);
	want(!mount("cgroup2", CGROUPS, "cgroup2", 0, NULL) || errno == EBUSY);
	write_file(CGROUPS "/cgroup.subtree_control", "+cpu");
	mkdir(CGROUPS "/slow", 0755);
	write_file(CGROUPS "/slow/cpu.max", "1000 1000000");
	for (int i = 0; i < SLOW; i++) {
		char pid[16];

		snprintf(pid, sizeof(pid), "%d", as_nobody(make_sockets, NULL));
		write_file(CGROUPS "/slow/cgroup.procs", pid);
	}
	sleep(1);
	for (int i = 0; i < SLOW_BINDS; i++) {
		begin = now_s();
		bind_once();
		if (now_s() - begin < shortest)
			shortest = now_s() - begin;
	}
	want(shortest < SLOW_S / 2);
}

/* ---- an agent that does not go on ---- */

static void stop_agents(void)
{
	want(system("kill -STOP $(pidof tsi-agent)") == 0);
}

static void an_agent_that_hangs_is_replaced(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	want(tcp_connect(fd, "127.0.0.1", 1) == ECONNREFUSED);
	close(fd);
	stop_agents();
	fd = tcp_listener(0); /* waits for the next one */
	want(fd >= 0);
}

/* ---- what is not the socket any more ---- */

static const char precious[] = "/tmp/precious";

static void *close_and_open(void *unused)
{
	struct stat status;

	while (!over) {
		int fd = target;

		if (fd < 0) {
			sched_yield();
			continue;
		}
		close(fd);
		fd = open(precious, O_RDWR | O_CREAT, 0644);
		target = -1;
		usleep(2000); /* bind() is over */
		if (fstat(fd, &status) || !S_ISREG(status.st_mode))
			broken(__LINE__, "it is a socket by now");
		close(fd);
	}
	return unused;
}

static void a_file_opened_meanwhile_stays(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, close_and_open, NULL);
	for (int i = 0; i < ROUNDS; i++) {
		struct sockaddr_in own = {.sin_family = AF_INET};
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		target = dup(fd);
		own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		bind(fd, (struct sockaddr *)&own, sizeof(own));
		close(fd);
		while (target >= 0)
			sched_yield();
	}
	over = 1;
	pthread_join(thread, NULL);
}

/* ---- more of them than usual ---- */

static void all_names_of_a_socket_are_exchanged(void)
{
	struct sockaddr_in own = {.sin_family = AF_INET}, name;
	socklen_t len;
	int fds[40];

	fds[0] = socket(AF_INET, SOCK_STREAM, 0);
	for (int i = 1; i < 40; i++)
		fds[i] = dup(fds[0]);
	own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	want(bind(fds[0], (struct sockaddr *)&own, sizeof(own)) == 0);
	for (int i = 0; i < 40; i++) {
		len = sizeof(name);
		want(getsockname(fds[i], (struct sockaddr *)&name, &len) == 0);
		want(name.sin_port != 0);
	}
}

/* ---- many descriptors ---- */

/* What the agents have run, in ns */
static double agents_ran(void)
{
	double ran = 0;
	FILE *file = popen(
	    "for i in $(pidof tsi-agent); do cat /proc/$i/schedstat; done"
	    " | { n=0; while read ns _; do n=$((n + ns)); done; echo $n; }",
	    "r");

	want(file && fscanf(file, "%lf", &ran) == 1);
	pclose(file);
	return ran;
}

static void bind_often(void)
{
	for (int i = 0; i < BINDS; i++)
		bind_once();
}

/* In an attacker: the exit status says that it opened them */
static void bind_beside(void *descriptors)
{
	for (int i = 0; i < *(int *)descriptors; i++)
		if (open("/dev/null", O_RDONLY) < 0)
			_exit(1);
	bind_often(); /* what is found once needn't be again */
	kill(getpid(), SIGSTOP);
	bind_often();
}

static double cost_beside(int descriptors)
{
	pid_t pid = as_nobody(bind_beside, &descriptors);
	int status;
	double ran;

	want(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	ran = agents_ran();
	kill(pid, SIGCONT);
	want(waitpid(pid, &status, 0) == pid && status == 0);
	return agents_ran() - ran;
}

/* Time that the host took from the guest counts, too: so the least of some */
static double least_cost_beside(int descriptors)
{
	double least = cost_beside(descriptors);

	for (int i = 0; i < 2; i++) {
		double cost = cost_beside(descriptors);

		least = cost < least ? cost : least;
	}
	return least;
}

static void descriptors_cost_others_nothing(void)
{
	const struct rlimit limit = {2 * MANY, 2 * MANY};
	double few;

	want(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	few = least_cost_beside(0);
	want(least_cost_beside(MANY) < 10 * few); /* it was 60 */
}

const struct check hangs[] = {
    SANDBOX(descriptors_cost_others_nothing),
    SANDBOX(all_names_of_a_socket_are_exchanged),
    SANDBOX(a_file_opened_meanwhile_stays),
    SANDBOX(a_program_that_clears_o_nonblock_keeps_nobody_waiting),
    SANDBOX(programs_without_cpu_time_keep_nobody_waiting),
    SANDBOX(an_agent_that_hangs_is_replaced),
    {0},
};
