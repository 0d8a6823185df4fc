// SPDX-License-Identifier: GPL-2.0-only
/*
 * listeners.c - all that listen
 *
 * Theory of operation
 * ===================
 *
 * A new stream's host is told of each. Who goes through them holds the one that
 * it is at, which so stays in the list, and no lock meanwhile.
 */

#include <linux/list.h>
#include <linux/spinlock.h>

#include "inet.h"

static DEFINE_SPINLOCK(lock);
static LIST_HEAD(listeners);

/**
 * listeners_add() - Take one in
 * @inner:	It
 *
 * Returns: 0; -ENOBUFS: its user has too many
 */
int listeners_add(struct inner *inner)
{
	if (!users_add(inner->sock->sk->sk_uid))
		return -ENOBUFS;
	spin_lock(&lock);
	list_add_tail(&inner->listening, &listeners);
	spin_unlock(&lock);
	return 0;
}

/**
 * listeners_remove() - Forget one
 * @inner:	It, which nobody holds
 */
void listeners_remove(struct inner *inner)
{
	spin_lock(&lock);
	list_del(&inner->listening);
	spin_unlock(&lock);
	users_remove(inner->sock->sk->sk_uid);
}

/**
 * listeners_any() - Is there one?
 *
 * Returns: true if there is
 */
bool listeners_any(void)
{
	return !list_empty_careful(&listeners);
}

/**
 * listeners_after() - The one behind another
 * @inner:	The other, held; NULL: the first
 *
 * Returns: it, to be put; NULL if there is none
 */
struct inner *listeners_after(struct inner *inner)
{
	struct list_head *at = inner ? &inner->listening : &listeners;
	struct inner *next = NULL;

	spin_lock(&lock);
	while (!next && (at = at->next) != &listeners) {
		next = list_entry(at, struct inner, listening);
		if (!refcount_inc_not_zero(&next->users))
			next = NULL;
	}
	spin_unlock(&lock);
	return next;
}
