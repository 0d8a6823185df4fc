// SPDX-License-Identifier: Apache-2.0
/*
 * floors.c - what this machine's kernel and memory cost without any back-end
 *
 * Theory of operation
 * ===================
 *
 *	floors CPU CPU
 *
 * plays ping-pong between a thread on each CPU, which may be the same one, and
 * prints one line of JSON: medians of the round trips, us, or rates. No
 * back-end can be faster than the part of these that it needs:
 *
 * eventfd_us	two eventfds: a kick, an interrupt
 * unix_us	64 bytes over a unix socket and back: the host program
 * relay_us	eventfd, unix socket and back: a round trip through a back-end
 *		that costs nothing itself (two of three threads on one CPU)
 * unix_gbits	64 KiB writes to a unix socket, and their reader
 * spin_us	a shared word that both sides watch (two CPUs only)
 * memcpy_cold, memcpy_hot	GB/s over 256 MiB, and over 64 KiB
 * syscall_ns	getppid()
 */

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define ROUNDS	20000U
#define WARM_UP 500U
#define SIZE	64
#define COLD	(256UL << 20)
#define HOT	(64UL << 10)

/**
 * struct link - One direction between two threads
 * @in:		Read from here
 * @out:	Write there
 * @size:	Bytes of a message: 8 for an eventfd
 */
struct link {
	int in;
	int out;
	size_t size;
};

/**
 * struct side - A thread that answers
 * @cpu:	Where it runs
 * @from:	It waits here, on .in ...
 * @to:		... passes the word on here, on .out, ...
 * @back:	... and if it is a relay waits here and answers on @from
 * @relay:	It is one
 * @words:	Or: two shared words, watched and written
 */
struct side {
	int cpu;
	struct link from;
	struct link to;
	bool relay;
	volatile uint32_t *words;
};

static uint64_t ns[ROUNDS];

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

/**
 * check() - End if a call failed
 * @ok:		It did not
 * @what:	Its name
 */
static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "floors: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((unsigned)cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set) == 0,
	      "sched_setaffinity");
}

static void say(const struct link *l)
{
	char word[SIZE] = {1};

	check(write(l->out, word, l->size) == (ssize_t)l->size, "write");
}

static bool hear(const struct link *l)
{
	char word[SIZE];

	return read(l->in, word, l->size) == (ssize_t)l->size;
}

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/**
 * median_us() - The median of what was timed
 *
 * Returns: us
 */
static double median_us(void)
{
	qsort(ns, ROUNDS, sizeof(*ns), compare);
	return (double)ns[ROUNDS / 2] / 1000;
}

/**
 * answer() - Be the other side until it is hung up or told to end
 * @arg:	struct side
 */
static void *answer(void *arg)
{
	const struct side *s = arg;

	pin(s->cpu);
	if (s->words) {
		for (uint32_t i = 1; i <= ROUNDS + WARM_UP; i++) {
			while (s->words[0] != i)
				__builtin_ia32_pause();
			s->words[16] = i;
		}
		return NULL;
	}
	for (unsigned i = 0; i < ROUNDS + WARM_UP && hear(&s->from); i++) {
		if (s->relay) {
			say(&s->to);
			check(hear(&s->to), "read");
		}
		say(&s->from);
	}
	return NULL;
}

/**
 * ping_pong() - Time round trips with other threads
 * @cpu:	Where we run
 * @mine:	Our end; NULL: shared words
 * @sides:	The others
 * @n:		How many
 *
 * Returns: the median, us
 */
static double ping_pong(int cpu, const struct link *mine, struct side *sides,
			unsigned n)
{
	pthread_t threads[2];

	pin(cpu);
	for (unsigned i = 0; i < n; i++)
		check(!pthread_create(&threads[i], NULL, answer, &sides[i]),
		      "pthread_create");
	for (uint32_t i = 0; i < ROUNDS + WARM_UP; i++) {
		uint64_t start = now_ns();

		if (mine) {
			say(mine);
			check(hear(mine), "read");
		} else {
			sides->words[0] = i + 1;
			while (sides->words[16] != i + 1)
				__builtin_ia32_pause();
		}
		if (i >= WARM_UP)
			ns[i - WARM_UP] = now_ns() - start;
	}
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return median_us();
}

/**
 * eventfds() - Two eventfds as a link
 * @ret_other:	The other end
 *
 * Returns: our end
 */
static struct link eventfds(struct link *ret_other)
{
	int a = eventfd(0, 0), b = eventfd(0, 0);

	check(a >= 0 && b >= 0, "eventfd");
	*ret_other = (struct link){.in = a, .out = b, .size = 8};
	return (struct link){.in = b, .out = a, .size = 8};
}

/**
 * sockets() - A unix socket as a link
 * @ret_other:	The other end
 *
 * Returns: our end
 */
static struct link sockets(struct link *ret_other)
{
	int s[2];

	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, s), "socketpair");
	*ret_other = (struct link){.in = s[1], .out = s[1], .size = SIZE};
	return (struct link){.in = s[0], .out = s[0], .size = SIZE};
}

/**
 * drain() - Read a socket to its end
 * @arg:	struct side, with .cpu and .from
 */
static void *drain(void *arg)
{
	static char buf[HOT];
	const struct side *s = arg;

	pin(s->cpu);
	while (read(s->from.in, buf, sizeof(buf)) > 0)
		;
	return NULL;
}

/**
 * stream_rate() - Time writes to a unix socket that another thread reads
 * @cpu:	Where we run
 * @other:	The reader, with .cpu
 *
 * Returns: Gbit/s
 */
static double stream_rate(int cpu, struct side *other)
{
	static char buf[HOT];
	struct link mine = sockets(&other->from);
	pthread_t thread;
	uint64_t start;

	pin(cpu);
	check(!pthread_create(&thread, NULL, drain, other), "pthread_create");
	start = now_ns();
	for (size_t sent = 0; sent < COLD; sent += HOT)
		check(write(mine.out, buf, HOT) == HOT, "write");
	close(mine.out);
	pthread_join(thread, NULL);
	close(other->from.in);
	return (double)COLD * 8 / (double)(now_ns() - start);
}

/**
 * copy_rate() - Time memcpy()
 * @size:	Bytes a copy
 *
 * Returns: GB/s
 */
static double copy_rate(size_t size)
{
	char *from = malloc(size), *to = malloc(size);
	size_t times = 4 * COLD / size;
	uint64_t start;

	check(from && to, "malloc");
	memset(from, 1, size);
	memset(to, 2, size);
	start = now_ns();
	for (size_t i = 0; i < times; i++) {
		memcpy(to, from, size);
		__asm__ volatile("" : : "r"(to) : "memory");
	}
	start = now_ns() - start;
	free(from);
	free(to);
	return (double)times * (double)size / (double)start;
}

static double syscall_ns(void)
{
	uint64_t start = now_ns();

	for (unsigned i = 0; i < 1000000; i++)
		syscall(SYS_getppid);
	return (double)(now_ns() - start) / 1e6;
}

int main(int argc, char **argv)
{
	static volatile uint32_t words[32];
	struct side sides[2] = {0};
	struct link mine;
	int a, b;

	check(argc == 3, "usage: floors CPU CPU");
	a = atoi(argv[1]);
	b = atoi(argv[2]);
	sides[0].cpu = sides[1].cpu = b;
	mine = eventfds(&sides[0].from);
	printf("{\"eventfd_us\": %.2f", ping_pong(a, &mine, sides, 1));
	mine = sockets(&sides[0].from);
	printf(", \"unix_us\": %.2f", ping_pong(a, &mine, sides, 1));
	mine = eventfds(&sides[0].from);
	sides[0].relay = true;
	sides[0].to = sockets(&sides[1].from);
	printf(", \"relay_us\": %.2f", ping_pong(a, &mine, sides, 2));
	printf(", \"unix_gbits\": %.1f", stream_rate(a, &sides[0]));
	if (a != b) {
		sides[0].words = words;
		printf(", \"spin_us\": %.2f", ping_pong(a, NULL, sides, 1));
	}
	printf(", \"memcpy_cold\": %.1f, \"memcpy_hot\": %.1f", copy_rate(COLD),
	       copy_rate(HOT));
	printf(", \"syscall_ns\": %.0f}\n", syscall_ns());
	return 0;
}
