/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * tsi.h - what the parts of tsi.ko share
 *
 * Theory of operation of the whole: main.c. Dependencies point down this list.
 *
 *	main.c		calls are led here; whose each of them is
 *	connect.c	connect()
 *	accept.c	accept() and accept4()
 *	name.c		getsockname(), getpeername(); names in messages
 *	option.c	getsockopt() and setsockopt()
 *	socket.c	socket()
 *	shared.c	/dev/tsi: memory that an agent and we share
 *	filter.c	what the seccomp filter is asked
 *	kind.c		what kind a socket is
 */
#ifndef TSI_H
#define TSI_H

#include <linux/net.h>
#include <linux/ptrace.h>
#include <linux/types.h>

#include "../include/kernel.h"

#define MAX_INSTANCE 4095 /* an errno */

struct call;

/**
 * enum whose - Who handles a call
 * @KERNEL:	The kernel, as ever
 * @AGENT:	The agent
 * @AGENT_RESET: Same; it is a connect() whose attempt was reset
 * @OURS:	Nobody any more: it has its answer
 */
enum whose { KERNEL, AGENT, AGENT_RESET, OURS };

/**
 * struct hook - A system call that is led here
 * @symbol:	The kernel's function for it
 * @nr:		Its number
 * @kinds:	Sockets that it may be the agent's for; 0: it has none yet
 * @handle:	Says whose it is; NULL: the agent's
 * @ours:	What is called in place of the kernel's function
 * @kernels:	The kernel's function
 */
struct hook {
	const char *symbol;
	int nr;
	unsigned int kinds;
	enum whose (*handle)(struct call *, struct socket *, long *);
	asmlinkage long (*ours)(const struct pt_regs *regs);
	asmlinkage long (*kernels)(const struct pt_regs *regs);
};

/**
 * struct call - A system call that was led here
 * @hook:	How
 * @regs:	Its registers
 * @args:	Its arguments; connect()'s fourth is the token that it went to
 */
struct call {
	const struct hook *hook;
	const struct pt_regs *regs;
	unsigned long args[6];
};

/* ---- kind.c ---- */

/* What kinds of sockets a system call may be the agent's for */
#define LABELLED 1U /* our vsock sockets */
#define DATAGRAM 2U /* UDP */
#define OTHER	 4U /* what else is of AF_INET or AF_INET6: the guest's TCP */

unsigned int kind_of(const struct socket *sock);

/* ---- filter.c ---- */

void filter_init(unsigned long function);
bool filter_ask(const struct call *call, u32 wish, long *ret_answer);
int filter_instance(const struct call *call);

/* ---- shared.c ---- */

int shared_prepare(void);
int shared_register(void);
void shared_unregister(void);
void shared_discard(void);
struct tsi_shared *shared_of(int instance);
u32 shared_read_slot(const struct tsi_known *slot, struct tsi_known *ret_known);
const struct caller *shared_caller(u32 port);

/* ---- the calls that are ours ---- */

enum whose socket_make(struct call *call, struct socket *unused,
		       long *ret_answer);
enum whose connect_known(struct call *call, struct socket *sock,
			 long *ret_answer);
enum whose accept_client(struct call *call, struct socket *sock,
			 long *ret_answer);
enum whose name_tell(struct call *call, struct socket *sock, long *ret_answer);
enum whose name_message(struct call *call, struct socket *sock,
			long *ret_answer);
enum whose option_get(struct call *call, struct socket *sock, long *ret_answer);
enum whose option_set(struct call *call, struct socket *sock, long *ret_answer);

#endif /* TSI_H */
