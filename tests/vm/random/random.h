/* SPDX-License-Identifier: Apache-2.0 */
/*
 * random.h - what the parts of tsi_random share
 *
 *	main.c		sequences of steps, and their trace
 *	sockets.c	steps: how sockets begin and end
 *	bytes.c		steps: bytes, by the program and by its peer
 *	options.c	steps: options, names, flags, events
 *
 * The trace and the peer are tests/vm/trace's.
 */
#ifndef RANDOM_H
#define RANDOM_H

#include "../trace/trace.h"

#define SLOTS	   3
#define FIRST_PORT 7200 /* of those that the host publishes */
#define PORTS	   100
#define COUNT(row) (sizeof(row) / sizeof((row)[0]))

/**
 * struct slot - A socket that steps are about
 * @fd:		Descriptor, or -1
 * @other:	Another one of the same socket, or -1
 * @epoll:	epoll that knows it, or -1
 * @control:	Which of the peer's processes is its other end
 * @port:	That one's listener
 * @own_port:	Where it listens itself; 0: nowhere
 * @dials:	Clients that the peer has dialled there, not accepted yet
 * @sent:	Bytes of the connection that were sent
 * @got:	Bytes of it that were received
 * @waits:	Bytes sent that the peer hasn't read
 */
struct slot {
	int fd, other, epoll, control;
	long port, own_port, dials;
	long sent, got, waits;
};

/**
 * struct step - A call of a sequence
 * @index:	Its number
 * @slot:	Whose socket
 * @fd:		Descriptor to use
 * @chance:	What it draws from
 * @call:	Its name in the trace
 * @sigpipes:	Signals before it
 */
struct step {
	unsigned index;
	struct slot *slot;
	int fd;
	uint64_t chance;
	char call[128];
	int sigpipes;
};

/**
 * struct kind - A row of a table of steps
 * @run:	Makes the calls, and traces them
 * @weight:	How often, beside others
 * @forks:	It may run in a child of the program
 */
struct kind {
	void (*run)(struct step *step);
	unsigned weight;
	bool forks;
};

extern const struct kind socket_kinds[], byte_kinds[], option_kinds[];
extern struct slot *slots; /* memory that children share */
extern long rest_ms;	   /* how much longer to wait for what may come */

uint64_t draw(struct step *step);
unsigned below(struct step *step, unsigned limit);
bool once_in(struct step *step, unsigned times);
#define PICK(step, row) ((row)[below((step), COUNT(row))])

void call(struct step *step, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
long gave(struct step *step, long ret);
long gave_more(struct step *step, long ret, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
long ask(struct step *step, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void calm(const struct step *step);
void guard(void);

void begin(struct step *step);
int send_one(int fd, long at);

#endif /* RANDOM_H */
