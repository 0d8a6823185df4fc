// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - tsi_trace: make socket calls, and write down what each gives
 *
 *	tsi_trace IPV4 IPV6 PORT [CASE]...
 *	tsi_trace serve PORT CLIENT
 *
 * Theory of operation
 * ===================
 *
 * The same binary runs over TCP of one kernel and over TSI. A case makes the
 * same calls whatever they give, and states nothing: a line of the trace is
 *
 *	CASE <tab> CALL <tab> RESULT
 *
 * and the test compares the two traces line by line (test_tsi_differential.py).
 * A result is what doesn't vary from run to run: a return value and the errno's
 * name, poll events by name, whether two ports are equal rather than which they
 * are.
 *
 * Each case runs in a process of its own with an alarm. Its control connection
 * to the peer (peer.c) is an ordinary one, made and used untraced.
 */

#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "trace.h"

#define CASE_S (LIMIT_S + 30) /* longest that one case may take */

/* Run one case in a process of its own, which its parent kills after CASE_S */
static void run(const struct test_case *test)
{
	int status, waited = 0;
	pid_t child;

	case_name = test->name;
	child = fork();
	if (child == 0) {
		setpgid(0, 0);
		count_sigpipes();
		test->run();
		_exit(0);
	}
	while (waitpid(child, &status, WNOHANG) == 0) {
		pause_ms(10);
		waited += 10;
		if (waited > CASE_S * 1000)
			kill(child, SIGKILL);
	}
	kill(-child, SIGKILL);
	if (WIFSIGNALED(status))
		trace_text("ended", "%s", strsignal(WTERMSIG(status)));
	else
		trace_text("ended", "%d", WEXITSTATUS(status));
}

/* Run the cases of a table that are wanted */
static void run_table(const struct test_case *test, char **wanted)
{
	for (; test->name; test++) {
		bool now = !*wanted;

		for (char **name = wanted; *name; name++)
			now |= !strcmp(*name, test->name);
		if (now)
			run(test);
	}
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve"))
		return serve(strtol(argv[2], NULL, 10), argv[3]);
	if (argc < 4) {
		fprintf(stderr, "usage: tsi_trace IPV4 IPV6 PORT [CASE]...\n");
		return 2;
	}
	host4 = argv[1];
	host6 = argv[2];
	control_port = strtol(argv[3], NULL, 10);
	run_table(connect_cases, argv + 4);
	run_table(socket_cases, argv + 4);
	run_table(byte_cases, argv + 4);
	run_table(option_cases, argv + 4);
	run_table(listen_cases, argv + 4);
	run_table(datagram_cases, argv + 4);
	printf("done\n");
	return 0;
}
