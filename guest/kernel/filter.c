// SPDX-License-Identifier: GPL-2.0-only
/*
 * filter.c - what the seccomp filter of the calling thread is asked
 *
 * Theory of operation
 * ===================
 *
 * A call that was led here is shown to the filter again, with a mark in its
 * sixth argument (include/kernel.h): to trap it, which gives it to the agent,
 * or to learn whose agent's the thread is.
 */

#include <linux/init.h>
#include <linux/sched/task_stack.h>
#include <linux/seccomp.h>

#include <asm/syscall.h>

#include "tsi.h"

static typeof(__secure_computing) *show_filter;

/**
 * filter_init() - Use the kernel's function that shows a call to the filter
 * @function:	Its address
 */
void __init filter_init(unsigned long function)
{
	show_filter = (void *)function;
}

/**
 * filter_ask() - Show a call to the filter, with a mark
 * @call:	Call
 * @wish:	TSI_WHOSE, TSI_TRAP or TSI_RESET
 * @ret_answer:	What the call is to return, if it isn't to go on
 *
 * Returns: true if it is to go on
 */
bool filter_ask(const struct call *call, u32 wish, long *ret_answer)
{
	struct seccomp_data data = {
	    .nr = call->hook->nr,
	    .arch = syscall_get_arch(current),
	    .instruction_pointer = call->regs->ip,
	};
	int i;

	for (i = 0; i < 5; i++)
		data.args[i] = call->args[i];
	data.args[5] = (u64)TSI_MARK << 32 | wish;
	if (show_filter(&data) == 0)
		return true;
	*ret_answer = syscall_get_return_value(current, current_pt_regs());
	return false;
}

/**
 * filter_instance() - Whose agent's the current thread is
 * @call:	The call that it makes; one that tsi/filter.c has an answer for
 *
 * Returns: the instance; 0: it is no agent's, or of one that knows no module
 */
int filter_instance(const struct call *call)
{
	long answer;

	if (filter_ask(call, TSI_WHOSE, &answer))
		return 0;
	return answer < 0 && answer >= -MAX_INSTANCE ? -answer : 0;
}
