// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - tsi_random: random sequences of system calls on sockets
 *
 *	tsi_random IPV4 IPV6 PORT STEPS REST_MS SEQUENCE...
 *	tsi_random serve PORT CLIENT
 *
 * Theory of operation
 * ===================
 *
 * A sequence is named by its seed, FIRST-LAST are many. What a step does
 * follows from the seed and its number, and from nothing that an earlier one
 * gave. So SEED:NUMBER,NUMBER is the same sequence without the other steps, by
 * which a difference is made small.
 *
 * The same binary runs over TCP and over TSI, as tsi_trace does, and its trace
 * has the same form: SEED, step and call, result. Before and after what the
 * peer or the network does, the program makes two round trips on the
 * connection by which it commands the peer: what was under way on the others is
 * there then. REST_MS is for those that want to be sure. A call that waits for
 * nothing is interrupted by a signal, so that it has a result, too.
 */

#define _GNU_SOURCE
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"

#define SEQUENCE_S (LIMIT_S + 30) /* longest that one may take */
#define MAX_STEPS  256
#define GUARD_MS   150
#define RESTS	   4 /* a call waits so many times as long as a rest */

struct slot *slots;
long rest_ms;

static uint64_t seed;
static unsigned n_steps;

/* ---- chance ---- */

/**
 * draw() - A number
 * @step:	Step that draws
 *
 * Returns: 64 bits; splitmix64's
 */
uint64_t draw(struct step *step)
{
	uint64_t bits = step->chance += 0x9e3779b97f4a7c15;

	bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
	bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
	return bits ^ (bits >> 31);
}

/**
 * below() - A number below a limit
 * @step:	Step that draws
 * @limit:	At least 1
 *
 * Returns: 0 to @limit - 1
 */
unsigned below(struct step *step, unsigned limit)
{
	return (unsigned)(draw(step) % limit);
}

/**
 * once_in() - Now and then
 * @step:	Step that draws
 * @times:	How seldom
 *
 * Returns: whether now
 */
bool once_in(struct step *step, unsigned times)
{
	return !below(step, times);
}

/* ---- the trace ---- */

/**
 * call() - Name what is called next
 * @step:	Step
 * @fmt:	The call, and behind a comma with what
 */
void call(struct step *step, const char *fmt, ...)
{
	int at = snprintf(step->call, sizeof(step->call), "%u %c ", step->index,
			  'a' + (int)(step->slot - slots));
	va_list args;

	va_start(args, fmt);
	vsnprintf(step->call + at, sizeof(step->call) - (size_t)at, fmt, args);
	va_end(args);
	step->sigpipes = sigpipes;
	errno = 0;
}

/**
 * gave_more() - Trace what a call gave
 * @step:	Step
 * @ret:	Return value; errno says why it is -1
 * @fmt:	What else there is to say
 *
 * Returns: @ret
 */
long gave_more(struct step *step, long ret, const char *fmt, ...)
{
	const char *name = strerrorname_np(errno);
	char text[160];
	va_list args;
	int at;

	if (ret == -1)
		at = snprintf(text, sizeof(text), "%s", name ? name : "?");
	else
		at = snprintf(text, sizeof(text), "%ld", ret);
	if (sigpipes != step->sigpipes)
		at +=
		    snprintf(text + at, sizeof(text) - (size_t)at, " SIGPIPE");
	va_start(args, fmt);
	vsnprintf(text + at, sizeof(text) - (size_t)at, fmt, args);
	va_end(args);
	trace_text(step->call, "%s", text);
	return ret;
}

/**
 * gave() - Same, with nothing else
 * @step:	Step
 * @ret:	Return value
 *
 * Returns: @ret
 */
long gave(struct step *step, long ret)
{
	return gave_more(step, ret, "%s", "");
}

/**
 * ask() - Have the peer do something, and trace its result
 * @step:	Step
 * @fmt:	Command
 *
 * Returns: the result
 */
long ask(struct step *step, const char *fmt, ...)
{
	char line[64];
	va_list args;
	long ret;

	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	control = step->slot->control;
	call(step, "peer %s", line);
	ret = peer_errno("%s", line);
	gave_more(step, ret, "%s%s", errno && ret != -1 ? " " : "",
		  errno && ret != -1 ? strerrorname_np(errno) : "");
	calm(step);
	return ret;
}

/**
 * calm() - Wait for what is under way
 * @step:	Step
 */
void calm(const struct step *step)
{
	control = step->slot->control;
	peer("own");
	peer("own");
	pause_ms(rest_ms);
}

/**
 * guard() - Have signals interrupt a call that waits; alarm_off() ends it
 */
void guard(void)
{
	alarm_in(GUARD_MS + RESTS * rest_ms, 0);
}

/* ---- sequences ---- */

/* The kind of step that a number means */
static const struct kind *chosen(struct step *step)
{
	static const struct kind *const tables[] = {socket_kinds, byte_kinds,
						    option_kinds};
	const struct kind *kind;
	unsigned all = 0, at;

	for (size_t i = 0; i < COUNT(tables); i++)
		for (kind = tables[i]; kind->run; kind++)
			all += kind->weight;
	at = below(step, all);
	for (size_t i = 0; i < COUNT(tables); i++)
		for (kind = tables[i]; kind->run; kind++) {
			if (at < kind->weight)
				return kind;
			at -= kind->weight;
		}
	abort();
}

/* Make one step */
static void make(unsigned index)
{
	struct step step = {.index = index,
			    .chance = (seed << 16) + index * 0x10001};
	const struct kind *kind;
	bool apart;

	draw(&step);
	step.slot = &slots[index < SLOTS ? index : below(&step, SLOTS)];
	if (index < SLOTS || (step.slot->fd < 0 && !once_in(&step, 8))) {
		begin(&step);
		return;
	}
	step.fd = step.slot->fd;
	if (once_in(&step, 5) && step.slot->other >= 0)
		step.fd = step.slot->other;
	kind = chosen(&step);
	apart = once_in(&step, 10);
	if (apart && kind->forks) {
		int status;
		pid_t child = fork();

		if (!child) {
			kind->run(&step);
			_exit(0);
		}
		waitpid(child, &status, 0);
	} else {
		kind->run(&step);
	}
}

/* Make the steps of a sequence that are wanted */
static void run(const bool *wanted)
{
	count_sigpipes();
	for (int i = 0; i < SLOTS; i++)
		slots[i] = (struct slot){
		    .fd = -1, .other = -1, .epoll = -1, .control = i};
	for (unsigned i = 0; i < n_steps; i++)
		if (wanted[i])
			make(i);
	for (int i = 0; i < SLOTS; i++) {
		struct step step = {.index = n_steps, .slot = &slots[i]};

		ask(&step, "drain");
		ask(&step, "wrong");
	}
}

/* Run one sequence in a process of its own, which is killed after SEQUENCE_S */
static void sequence(const bool *wanted)
{
	int status, waited = 0;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child) {
		setpgid(0, 0);
		run(wanted);
		_exit(0);
	}
	while (!waitpid(child, &status, WNOHANG)) {
		pause_ms(2);
		waited += 2;
		if (waited > SEQUENCE_S * 1000)
			kill(-child, SIGKILL);
	}
	if (WIFSIGNALED(status))
		trace_text("ended", "%s", strsignal(WTERMSIG(status)));
	else
		trace_text("ended", "%d", WEXITSTATUS(status));
}

/* Run what an argument names */
static void sequences(const char *name)
{
	bool wanted[MAX_STEPS] = {0};
	char label[32], *end;
	uint64_t last;

	seed = strtoull(name, &end, 10);
	last = *end == '-' ? strtoull(end + 1, &end, 10) : seed;
	if (!*end)
		memset(wanted, true, sizeof(wanted));
	while (*end) {
		unsigned long index = strtoul(end + 1, &end, 10);

		if (index < MAX_STEPS)
			wanted[index] = true;
	}
	for (; seed <= last; seed++) {
		snprintf(label, sizeof(label), "%llu",
			 (unsigned long long)seed);
		case_name = strpbrk(name, "-") ? label : name;
		sequence(wanted);
	}
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve"))
		return serve(strtol(argv[2], NULL, 10), argv[3]);
	if (argc == 4 && !strcmp(argv[1], "send"))
		return send_one(atoi(argv[2]), strtol(argv[3], NULL, 10));
	if (argc < 7) {
		fprintf(stderr, "usage: tsi_random IPV4 IPV6 PORT STEPS "
				"REST_MS SEQUENCE...\n");
		return 2;
	}
	host4 = argv[1];
	host6 = argv[2];
	control_port = strtol(argv[3], NULL, 10);
	n_steps = (unsigned)strtoul(argv[4], NULL, 10);
	if (n_steps > MAX_STEPS)
		n_steps = MAX_STEPS;
	rest_ms = strtol(argv[5], NULL, 10);
	slots = mmap(NULL, SLOTS * sizeof(*slots), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (slots == MAP_FAILED)
		return 1;
	for (char **name = argv + 6; *name; name++)
		sequences(*name);
	printf("done\n");
	return 0;
}
