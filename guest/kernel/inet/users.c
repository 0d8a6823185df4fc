// SPDX-License-Identifier: GPL-2.0-only
/*
 * users.c - what one user may take of what all programs share
 *
 * Theory of operation
 * ===================
 *
 * The host reads the control stream at a bounded pace, keeps a bounded number
 * of listeners, and holds a bounded number of connections whose destination it
 * hasn't read yet. A user that floods it would keep everybody waiting. So each
 * tells it of at most PER_S things a second, after BURST at once, and waits for
 * its own turn, before any lock; and has at most LISTENERS. Root may do more:
 * it speaks for the guest. Users may have a slot in common, by chance.
 */

#include <linux/cred.h>
#include <linux/hash.h>
#include <linux/sched/signal.h>

#include "inet.h"

#define SLOT_BITS 8
#define PER_S	  500U
#define BURST	  1024U
#define LISTENERS 128U /* half of what the host keeps by default */

/**
 * struct share - What a user has taken, or several that have a slot in common
 * @due:	When its next turn is, but for the burst; ns
 * @listeners:	How many it has; these two are under @lock
 */
static struct share {
	u64 due;
	unsigned int listeners;
} shares[1 << SLOT_BITS];

static DEFINE_SPINLOCK(lock);

static struct share *share_of(kuid_t uid)
{
	return &shares[hash_32(__kuid_val(uid), SLOT_BITS)];
}

/**
 * users_wait() - Wait for the turn of who calls
 *
 * Returns: 0, or a negated errno: a signal came first
 */
int users_wait(void)
{
	const u64 interval = NSEC_PER_SEC / PER_S;
	kuid_t uid = current_uid();
	struct share *share = share_of(uid);
	u64 now = ktime_get_ns(), due;
	ktime_t until;

	if (uid_eq(uid, GLOBAL_ROOT_UID))
		return 0;
	spin_lock(&lock);
	due = max(share->due, now) + interval;
	share->due = due;
	spin_unlock(&lock);
	if (due <= now + BURST * interval)
		return 0;
	until = ns_to_ktime(due - BURST * interval);
	while (!signal_pending(current)) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!schedule_hrtimeout(&until, HRTIMER_MODE_ABS))
			return 0;
	}
	return -ERESTARTSYS;
}

/**
 * users_add() - A user is to have one listener more
 * @uid:	User
 *
 * Returns: false if it has too many
 */
bool users_add(kuid_t uid)
{
	struct share *share = share_of(uid);
	bool may;

	spin_lock(&lock);
	may = share->listeners < LISTENERS || uid_eq(uid, GLOBAL_ROOT_UID);
	share->listeners += may;
	spin_unlock(&lock);
	return may;
}

/**
 * users_remove() - It has one less
 * @uid:	User
 */
void users_remove(kuid_t uid)
{
	spin_lock(&lock);
	share_of(uid)->listeners--;
	spin_unlock(&lock);
}
