// SPDX-License-Identifier: GPL-2.0-only
/*
 * routes.c - destinations and their tokens
 *
 * Theory of operation
 * ===================
 *
 * A destination is registered once, under the stream's next token, and nothing
 * is waited for; from then on a connect() to it costs no message. The latest
 * `window` tokens are good: a token's slot is its number modulo the window, so
 * that registering one forgets the one that the host forgets. Who looks up a
 * destination takes no lock.
 */

#include <linux/jhash.h>
#include <linux/mutex.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <net/ipv6.h>

#include "inet.h"

#define MAX_WINDOW 8192U
#define BUCKETS	   4096U

/**
 * struct route - A destination and its token
 * @to:		Destination
 * @token:	Token
 * @by_to:	In the table of all
 * @rcu:	For its end
 */
struct route {
	struct endpoint to;
	u32 token;
	struct hlist_node by_to;
	struct rcu_head rcu;
};

/**
 * struct grant - What the stream has granted
 * @write:	Held by who registers
 * @first:	First token
 * @count:	Tokens; 0: there was no stream yet
 * @window:	Latest of them that are good
 * @used:	Registered, of @count
 */
static struct grant {
	struct mutex write;
	u32 first;
	u32 count;
	u32 window;
	u32 used;
} grant = {.write = __MUTEX_INITIALIZER(grant.write)};

static struct hlist_head by_to[BUCKETS];
static struct route *slots[MAX_WINDOW];

static struct hlist_head *chain(const struct endpoint *to)
{
	return &by_to[jhash2((const u32 *)&to->address, 4,
			     (__force u32)to->port) %
		      BUCKETS];
}

/**
 * routes_find() - Look a destination up
 * @to:		Destination
 *
 * Returns: its token; 0 if it has none
 */
u32 routes_find(const struct endpoint *to)
{
	const struct route *route;
	u32 token = 0;

	rcu_read_lock();
	hlist_for_each_entry_rcu(
	    route, chain(to),
	    by_to) if (route->to.port == to->port &&
		       ipv6_addr_equal(&route->to.address, &to->address))
	{
		token = route->token;
		break;
	}
	rcu_read_unlock();
	return token;
}

static void empty(u32 slot)
{
	struct route *route = slots[slot];

	slots[slot] = NULL;
	if (route) {
		hlist_del_rcu(&route->by_to);
		kfree_rcu(route, rcu);
	}
}

/**
 * routes_begin() - Use what a new stream grants; it knows no destination yet
 */
void routes_begin(void)
{
	struct tsi_welcome welcome;
	u32 slot;

	stream_welcome(&welcome);
	mutex_lock(&grant.write);
	for (slot = 0; slot < MAX_WINDOW; slot++)
		empty(slot);
	grant.first = welcome.first_token;
	grant.count = welcome.token_count;
	grant.window = min(welcome.window, MAX_WINDOW);
	grant.used = 0;
	mutex_unlock(&grant.write);
}

/**
 * add() - Register a destination under the next token
 * @to:		Destination; grant.write is held
 * @ret_token:	Set to the token
 *
 * Returns: 0, or a negated errno
 */
static int add(const struct endpoint *to, u32 *ret_token)
{
	struct route *route = kmalloc(sizeof(*route), GFP_KERNEL);
	u32 token = grant.first + grant.used;
	u32 slot = token % grant.window;
	bool v4 = ipv6_addr_v4mapped(&to->address);
	struct tsi_route msg = {
	    .token = token,
	    .family = v4 ? TSI_IPV4 : TSI_IPV6,
	    .port = ntohs(to->port),
	};
	int error;

	if (!route)
		return -ENOBUFS;
	memcpy(msg.address, to->address.s6_addr + (v4 ? 12 : 0), v4 ? 4 : 16);
	empty(slot); /* the host forgets it when it hears of this */
	error = stream_send(TSI_ROUTE, &msg, sizeof(msg));
	if (error) {
		kfree(route);
		return error;
	}
	grant.used++;
	route->to = *to;
	route->token = token;
	slots[slot] = route;
	hlist_add_head_rcu(&route->by_to, chain(to));
	*ret_token = token;
	return 0;
}

/**
 * routes_token() - The token to connect to for a destination
 * @to:		Destination
 * @ret_token:	Set to its token, registered now if it was not yet
 *
 * Returns: 0, or a negated errno; -ESTALE: the next stream will have one
 */
int routes_token(const struct endpoint *to, u32 *ret_token)
{
	int error = users_wait();

	if (error)
		return error;
	if (mutex_lock_interruptible(&grant.write))
		return -ERESTARTSYS;
	*ret_token = routes_find(to);
	if (!*ret_token && grant.used >= grant.count) {
		if (grant.count)
			stream_end("all its tokens are used");
		error = -ESTALE;
	} else if (!*ret_token) {
		error = add(to, ret_token);
	}
	mutex_unlock(&grant.write);
	return error;
}

/**
 * routes_forget() - The host doesn't know a token
 * @token:	Token
 */
void routes_forget(u32 token)
{
	u32 slot;

	mutex_lock(&grant.write);
	slot = grant.window ? token % grant.window : 0;
	if (slots[slot] && slots[slot]->token == token)
		empty(slot);
	mutex_unlock(&grant.write);
}
