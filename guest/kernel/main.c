// SPDX-License-Identifier: GPL-2.0-only
/*
 * main.c - the part of TSI that is better done in the guest's kernel
 *
 * Theory of operation
 * ===================
 *
 * A seccomp filter sees the arguments of a system call, not what they point at
 * and not which socket it is; and each call that it traps costs two switches of
 * address space. This module sits between the filter and the call. The filter
 * (tsi/filter.c) lets the calls in hooks[] pass; ftrace leads them here; and
 * each is one of three:
 *
 * - the kernel's own: the call goes on as if nothing were;
 * - the agent's: the call is shown to the filter again with a mark in its sixth
 *   argument, which the filter traps, so that the agent gets it as it always
 *   did, may answer it or say "go on", and needs no second way to do either;
 * - ours: socket() makes the vsock socket that the agent would make, connect()
 *   connects it if it is as socket() left it and the destination has a token,
 *   accept() shows the client's address, and options and names that programs
 *   ask for at every connection have their answer.
 *
 * What is ours is the usual case only, in the agent's own words: the label in
 * the socket (tsi/sock.c) and the tables that the agent maps from /dev/tsi.
 * Whatever is unusual - another family, a destination without a token, one
 * inside the guest, a second connect(), a failure whose errno the host tells
 * the agent - is the agent's. Without this module everything is.
 *
 * Whose agent's a thread is, the filter knows best: it is inherited as it has
 * to be. So we ask it, by a call with TSI_WHOSE in the mark, that it fails with
 * the agent's instance for errno. An instance is an open /dev/tsi, which agents
 * hand on as they do the listener (agent/main.c), and outlives each of them.
 */

#include <linux/file.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/sched/task_stack.h>
#include <linux/seccomp.h>

#include <asm/syscall.h>

#include "tsi.h"

#ifndef CONFIG_X86_64
#error "tsi.ko: name this architecture's system calls here, then test"
#endif
#define SYMBOL_OF(call) "__x64_sys_" #call

#define FUNCTION_ALIGN 16 /* no two functions begin so close together */

/**
 * decide() - Whose a call is, by its socket
 * @call:	The call
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
static enum whose decide(struct call *call, long *ret_answer)
{
	const struct hook *hook = call->hook;
	enum whose whose = KERNEL;
	struct socket *sock;
	int error;

	if (!hook->kinds)
		return hook->handle(call, NULL, ret_answer);
	sock = sockfd_lookup(call->args[0], &error);
	if (!sock)
		return KERNEL; /* it knows the errno */
	if (kind_of(sock) & hook->kinds)
		whose =
		    hook->handle ? hook->handle(call, sock, ret_answer) : AGENT;
	sockfd_put(sock);
	return whose;
}

/**
 * serve() - A system call
 * @hook:	Its hook
 * @regs:	Its registers
 *
 * Returns: what it returns
 */
static long serve(const struct hook *hook, const struct pt_regs *regs)
{
	struct call call = {.hook = hook, .regs = regs};
	enum whose whose;
	long answer;

	if (current->seccomp.mode != SECCOMP_MODE_FILTER)
		return hook->kernels(regs);
	syscall_get_arguments(current, (struct pt_regs *)regs, call.args);
	whose = decide(&call, &answer);
	if (whose == OURS)
		return answer;
	if (whose != KERNEL &&
	    !filter_ask(&call, whose == AGENT ? TSI_TRAP : TSI_RESET, &answer))
		return answer;
	return hook->kernels(regs);
}

#define LED(call, ...) HOOK_##call,
#define TRAPPED(...)
enum {
#include "../include/calls.def"
};

static struct hook hooks[];

#define LED(call, ...)                                                         \
	static asmlinkage long tsi_##call(const struct pt_regs *regs)          \
	{                                                                      \
		return serve(&hooks[HOOK_##call], regs);                       \
	}
#define TRAPPED(...)
#include "../include/calls.def"

#define LED(call, sockets, handler, ...)                                       \
	[HOOK_##call] = {                                                      \
	    .symbol = SYMBOL_OF(call),                                         \
	    .nr = __NR_##call,                                                 \
	    .kinds = sockets,                                                  \
	    .handle = handler,                                                 \
	    .ours = tsi_##call,                                                \
	},
#define TRAPPED(...)
static struct hook hooks[] = {
#include "../include/calls.def"
};

/**
 * lead() - ftrace: a function of hooks[] was entered
 * @ip:		Its first instructions
 * @parent:	Who called it
 * @ops:	Unused: there is one
 * @fregs:	Registers
 */
static void notrace lead(unsigned long ip, unsigned long parent,
			 struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	const struct hook *hook = hooks;

	if (!regs || within_module(parent, THIS_MODULE))
		return;
	while (ip - (unsigned long)hook->kernels >= FUNCTION_ALIGN)
		if (++hook == hooks + ARRAY_SIZE(hooks))
			return;
	regs->ip = (unsigned long)hook->ours;
}

/* PERMANENT: kernel.ftrace_enabled = 0 would make programs' sockets native */
static struct ftrace_ops ftrace = {
    .func = lead,
    .flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY |
	     FTRACE_OPS_FL_PERMANENT,
};

/**
 * look_up() - Find the functions of the kernel that modules aren't given
 *
 * Returns: 0, or a negated errno
 */
static int __init look_up(void)
{
	struct kprobe probe = {.symbol_name = "kallsyms_lookup_name"};
	unsigned long (*find)(const char *symbol);
	unsigned long at;
	unsigned int i;
	int error = register_kprobe(&probe);

	if (error)
		return error;
	unregister_kprobe(&probe);
	find = (void *)probe.addr;
	at = find("__secure_computing");
	if (!at)
		return -ENOENT;
	filter_init(at);
	for (i = 0; !error && i < ARRAY_SIZE(hooks); i++) {
		at = find(hooks[i].symbol);
		hooks[i].kernels = (void *)at;
		error = at ? ftrace_set_filter_ip(&ftrace, at, 0, 0) : -ENOENT;
	}
	return error;
}

static int __init tsi_init(void)
{
	int error;

	/* We call functions that aren't meant to be called by their address */
	if (cpu_feature_enabled(X86_FEATURE_IBT))
		return -ENODEV;
	error = shared_prepare();
	if (!error)
		error = look_up();
	if (!error)
		error = shared_register();
	if (error)
		goto no_device;
	error = register_ftrace_function(&ftrace); /* nobody is in our code */
	if (error)
		goto no_hooks;
	return 0;

no_hooks:
	shared_unregister();
no_device:
	ftrace_free_filter(&ftrace);
	shared_discard();
	return error;
}
module_init(tsi_init);

/* It stays: a thread may be in serve() at any time. */

MODULE_DESCRIPTION("TSI: sockets that are vsock's, made and connected here");
MODULE_LICENSE("GPL");
