// SPDX-License-Identifier: GPL-2.0-only
/*
 * control.c - what the host says, and the thread that hears it
 *
 * Theory of operation
 * ===================
 *
 * The stream is opened when it is first needed, and again after it has ended,
 * if it is needed or anything listens; at most once a second. Who needs it
 * waits for the thread to have tried. No call of a program opens it: a program
 * may not bind the port, and could be stopped in the middle.
 */

#include <linux/kthread.h>
#include <linux/wait.h>

#include "inet.h"

#define RETRY	(1 * HZ)  /* after a stream that could not be opened */
#define OPENING (10 * HZ) /* for the thread to have tried */

static DECLARE_WAIT_QUEUE_HEAD(queue); /* of the thread, and of who waits */
static atomic_t tries;		       /* to open it, which have ended */
static bool wanted;
static int failure; /* of the last try */

static void handle_failed(const void *payload)
{
	const struct tsi_failed *failed = payload;

	if (failed->error == ESTALE)
		routes_forget(failed->token);
	inner_failed(failed);
}

static void handle_listening(const void *payload)
{
	inner_listening(payload);
}

static void handle_caller(const void *payload)
{
	const struct tsi_caller *caller = payload;
	struct tsi_introduced answer = {.ports = caller->ports};

	if (callers_set(caller) &&
	    stream_send(TSI_INTRODUCED, &answer, sizeof(answer)))
		stream_end("the host doesn't read it");
}

static const struct message messages[] = {
    {TSI_FAILED, sizeof(struct tsi_failed), handle_failed},
    {TSI_LISTENING, sizeof(struct tsi_listening), handle_listening},
    {TSI_CALLER, sizeof(struct tsi_caller), handle_caller},
};

static int run(void *unused)
{
	int error = 0, before;

	for (;;) {
		wait_event_idle(queue, READ_ONCE(wanted) || listeners_any());
		WRITE_ONCE(wanted, false);
		before = error;
		error = stream_begin();
		WRITE_ONCE(failure, error);
		if (!error) {
			before = 0;
			interface_show();
			routes_begin();
			stream_ready();
			publish_all();
		}
		atomic_inc(&tries);
		wake_up_all(&queue);
		while (!error)
			error = stream_read(messages, ARRAY_SIZE(messages));
		if (error != before && error != -EKEYREJECTED) /* it was said */
			pr_warn("tsi: control stream: %d\n", error);
		stream_close();
		schedule_timeout_idle(RETRY);
	}
	return 0;
}

/**
 * control_begin() - Start the thread
 *
 * Returns: 0, or a negated errno
 */
int __init control_begin(void)
{
	return PTR_ERR_OR_ZERO(kthread_run(run, NULL, "tsi"));
}

/**
 * control_need() - See to it that there is a stream
 *
 * Returns: 0, or a negated errno
 */
int control_need(void)
{
	int before = atomic_read(&tries);
	long left;

	if (likely(stream_is_open()))
		return 0;
	WRITE_ONCE(wanted, true);
	wake_up_all(&queue);
	left = wait_event_interruptible_timeout(
	    queue, stream_is_open() || atomic_read(&tries) != before, OPENING);
	if (left < 0)
		return left;
	return stream_is_open() ? 0 : -ENETUNREACH;
}

/**
 * control_open() - Same, for who wants to know why there is none
 *
 * Returns: 0, or a negated errno
 */
int control_open(void)
{
	int error = control_need();

	return error == -ENETUNREACH ? READ_ONCE(failure) ?: error : error;
}
