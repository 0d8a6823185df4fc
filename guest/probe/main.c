// SPDX-License-Identifier: Apache-2.0
/*
 * main.c - probe: connections as an ordinary program sees them, timed
 *
 * Theory of operation
 * ===================
 *
 *	probe ADDRESS PORT connect COUNT	socket() and connect(), each
 *	probe ADDRESS PORT rtt COUNT SIZE	SIZE bytes to an echo and back
 *	probe ADDRESS PORT up BYTES		to a discard, until its end
 *	probe ADDRESS PORT put BYTES		the same without half a close
 *	probe ADDRESS PORT down BYTES		from a chargen
 *	probe ADDRESS PORT echo BYTES		to an echo, both ways at once
 *	probe ADDRESS PORT accept COUNT		of clients that hang up
 *	probe ADDRESS PORT rate COUNT FLIGHT	connections, FLIGHT at once
 *	probe ADDRESS PORT crr COUNT SIZE FLIGHT	the same, each with SIZE
 *						bytes to an echo and back
 *	probe ADDRESS PORT http COUNT SIZE FLIGHT	GET /SIZE, by FLIGHT
 *						connections that stay
 *	probe ADDRESS PORT open COUNT SIZE RATE	as rtt, RATE a second whatever
 *						becomes of those before
 *	probe ADDRESS PORT steady SIZE RATE LIMIT	connections that an echo
 *						answers within LIMIT ms, until
 *						the end of stdin
 *	probe clock				the counter behind the clock
 *
 * ADDRESS is numeric, IPv4 or IPv6 for TCP, or vsock:CID. It is the peer's,
 * but of accept our own; vsock:4294967295 is any.
 *
 * "put" is for devices that have no half-close: its last byte is PUT_END, the
 * others are others, and the discard ends the connection then.
 *
 * The result is one line of JSON on stdout. Plain sockets and nothing else: the
 * same binary runs over TSI and over the standard paths, so it must not know
 * which it is.
 *
 * "clock" measures the frequency of the x86 tsc. The host runs it, too: under
 * TCG the guest's tsc is the host's, and a guest that is told the frequency
 * need not guess it at boot (tsc_early_khz).
 */

#include "probe/probe.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

#define CLOCK_WINDOW_NS (50 * 1000 * 1000)
#define FLIGHT_MAX	4096U
#define RATE_MAX	1000000U

/**
 * time_clock() - Measure the frequency of the tsc
 */
static void time_clock(void)
{
	uint64_t start = now_ns(), ticks = __rdtsc(), end;

	do
		end = now_ns();
	while (end - start < CLOCK_WINDOW_NS);
	ticks = __rdtsc() - ticks;
	printf("{\"op\":\"clock\",\"clocksource\":\"%s\",\"tsc_khz\":%" PRIu64
	       "}\n",
	       clocksource, ticks * 1000000 / (end - start));
}

/**
 * size() - Parse how many bytes
 * @arg:	Number
 *
 * Returns: the number
 */
static size_t size(const char *arg)
{
	return (size_t)number(arg, SIZE_MAX_BYTES, "SIZE");
}

/**
 * flight() - Parse how many at once
 * @arg:	Number
 *
 * Returns: the number
 */
static unsigned flight(const char *arg)
{
	return (unsigned)number(arg, FLIGHT_MAX, "FLIGHT");
}

/**
 * one_number() - Do what has one number after its name
 * @op:		Operation
 * @arg:	Number
 *
 * Returns: whether there is such an operation
 */
static int one_number(const char *op, const char *arg)
{
	if (!strcmp(op, "connect"))
		time_connect(number(arg, COUNT_MAX, "COUNT"));
	else if (!strcmp(op, "up"))
		time_up(number(arg, UINT64_MAX, "BYTES"), true);
	else if (!strcmp(op, "put"))
		time_up(number(arg, UINT64_MAX, "BYTES"), false);
	else if (!strcmp(op, "down"))
		time_down(number(arg, UINT64_MAX, "BYTES"));
	else if (!strcmp(op, "echo"))
		time_echo(number(arg, UINT64_MAX, "BYTES"));
	else if (!strcmp(op, "accept"))
		time_accept(number(arg, COUNT_MAX, "COUNT"));
	else
		return 0;
	return 1;
}

/**
 * more_numbers() - Do what has a count and more after its name
 * @op:		Operation
 * @argc:	How many numbers
 * @arg:	Numbers
 *
 * Returns: whether there is such an operation
 */
static int more_numbers(const char *op, int argc, char **arg)
{
	uint64_t count;

	if (argc == 3 && !strcmp(op, "steady")) {
		time_steady((size_t)number(arg[0], STEADY_MAX, "SIZE"),
			    number(arg[1], RATE_MAX, "RATE"),
			    number(arg[2], LIMIT_MAX_MS, "LIMIT"));
		return 1;
	}
	count = number(arg[0], COUNT_MAX, "COUNT");
	if (argc == 2 && !strcmp(op, "rate"))
		time_crr(count, 0, flight(arg[1]));
	else if (argc == 2 && !strcmp(op, "rtt"))
		time_rtt(count, size(arg[1]));
	else if (argc == 3 && !strcmp(op, "crr"))
		time_crr(count, size(arg[1]), flight(arg[2]));
	else if (argc == 3 && !strcmp(op, "http"))
		time_http(count, size(arg[1]), flight(arg[2]));
	else if (argc == 3 && !strcmp(op, "open"))
		time_open(count, size(arg[1]),
			  number(arg[2], RATE_MAX, "RATE"));
	else
		return 0;
	return 1;
}

int main(int argc, char **argv)
{
	int done = 0;

	signal(SIGPIPE, SIG_IGN);
	read_clocksource();
	if (argc == 2 && !strcmp(argv[1], "clock")) {
		time_clock();
		return 0;
	}
	if (argc > 3)
		resolve(argv[1], argv[2]);
	if (argc == 5)
		done = one_number(argv[3], argv[4]);
	else if (argc == 6 || argc == 7)
		done = more_numbers(argv[3], argc - 4, argv + 4);
	if (!done)
		fail("usage: probe ADDRESS PORT connect COUNT | rtt COUNT SIZE"
		     " | up BYTES | put BYTES | down BYTES | echo BYTES | "
		     "accept COUNT"
		     " | rate COUNT FLIGHT | crr COUNT SIZE FLIGHT"
		     " | http COUNT SIZE FLIGHT | open COUNT SIZE RATE"
		     " | steady SIZE RATE LIMIT;"
		     " or: probe clock");
	return 0;
}
