// SPDX-License-Identifier: Apache-2.0
/*
 * routes.c - the table of destinations and their tokens
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md is the specification. In short: a destination is
 * registered once, under the next token, and nothing is waited for; connecting
 * a vsock socket to the token's port reaches the destination. So a second
 * connect() to the same place costs no message at all.
 *
 * The stream gives us a range of tokens, and the latest `window` registered
 * ones are good. They live in an array indexed by token modulo the
 * window: registering one more overwrites, and so forgets, the oldest. Tokens
 * are never given to another destination; when the range is used up, a new
 * stream brings a new range. A token's slot is its number modulo the window, so
 * that tokens of a stream before keep theirs until they are overwritten: they
 * can't be connected to any more, but connections that were have a peer's name.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "agent/tsi.h"

#define NONE UINT32_MAX

/**
 * struct grant - What the stream has granted
 * @first:	First token
 * @count:	Tokens
 * @window:	Latest of them that are good; 0: there was no stream yet
 * @used:	Registered or left out, of @count
 */
static struct grant {
	uint32_t first;
	uint32_t count;
	uint32_t window;
	uint32_t used;
} grant;

static struct route *routes; /* MAX_WINDOW of them, state.c has the memory */
static uint32_t heads[MAX_WINDOW]; /* by hash: slot in routes[], or NONE */

/* ---- the table ---- */

/**
 * chain() - Where the chain of a destination begins
 * @dst:	Destination
 *
 * Returns: in heads[]
 */
static uint32_t *chain(const struct destination *dst)
{
	return &heads[address_hash(dst) % MAX_WINDOW];
}

/**
 * route_unlink() - Take a slot that is about to be overwritten off its chain
 * @slot:	Slot
 */
static void route_unlink(uint32_t slot)
{
	uint32_t *link = chain(&routes[slot].dst);

	if (!routes[slot].token)
		return;
	while (*link != NONE && *link != slot)
		link = &routes[*link].next;
	if (*link == slot)
		*link = routes[slot].next;
}

/**
 * is_live() - Can a token be connected to?
 * @token:	Token
 *
 * Returns: true if it is one of this stream's latest
 */
static bool is_live(uint32_t token)
{
	uint32_t sequence = token - grant.first;

	return control_is_open() && sequence < grant.used &&
	       grant.used - sequence <= grant.window;
}

/**
 * routes_forget() - The host doesn't know a token
 * @token:	Token
 *
 * It is off its chain, so that nothing finds it; a connection that lives on
 * still finds its peer's name in the slot.
 */
void routes_forget(uint32_t token)
{
	if (is_live(token))
		route_unlink(token % grant.window);
}

/**
 * first_free() - The slot after the one that was written last
 *
 * Returns: how many tokens of a new stream to leave out, so that those of the
 *	one before are overwritten as late as can be
 */
static uint32_t first_free(void)
{
	uint32_t newest = 0, token = 0;

	for (uint32_t slot = 0; slot < MAX_WINDOW; slot++)
		if (routes[slot].token > token) {
			token = routes[slot].token;
			newest = slot + 1;
		}
	return (newest + grant.window - grant.first % grant.window) %
	       grant.window;
}

/**
 * routes_adopt() - Know what tokens of the agent before this one stood for
 *
 * None can be connected to before there is a stream.
 */
void routes_adopt(void)
{
	routes = state_routes();
	memset(heads, 0xff, sizeof(heads)); /* NONE */
	grant = (struct grant){.window = state_welcome()->window};
	if (grant.window > MAX_WINDOW)
		grant.window = MAX_WINDOW;
}

/**
 * routes_begin() - Use what a new stream grants; it knows no destination yet
 * @welcome:	What it grants
 */
void routes_begin(const struct tsi_welcome *welcome)
{
	routes_adopt();
	grant.first = welcome->first_token;
	grant.count = welcome->token_count;
	grant.used = first_free();
	if (grant.used >= grant.count)
		grant.used = 0;
}

/* ---- tokens ---- */

/**
 * add() - Register a destination under the next token
 * @dst:	Destination
 * @ret_token:	The token
 *
 * Returns: false if there is no stream any more
 */
static bool add(const struct destination *dst, uint32_t *ret_token)
{
	uint32_t token = grant.first + grant.used;
	uint32_t slot = token % grant.window;
	uint32_t *head = chain(dst);
	bool v4 = IN6_IS_ADDR_V4MAPPED(&dst->address);
	struct tsi_route msg = {
	    .token = token,
	    .family = v4 ? TSI_IPV4 : TSI_IPV6,
	    .port = dst->port,
	};

	memcpy(msg.address, dst->address.s6_addr + (v4 ? 12 : 0), v4 ? 4 : 16);
	route_unlink(slot); /* the host forgets it when it hears of this */
	routes[slot].token = 0;
	if (!control_route(&msg))
		return false;

	grant.used++;
	routes[slot] = (struct route){.dst = *dst, .token = token};
	routes[slot].next = *head;
	*head = slot;
	*ret_token = token;
	return true;
}

/**
 * routes_know() - Has a destination a token?
 * @dst:	Destination
 *
 * Returns: true if it has
 */
bool routes_know(const struct destination *dst)
{
	if (!control_is_open())
		return false;
	for (uint32_t slot = *chain(dst); slot != NONE;
	     slot = routes[slot].next)
		if (address_same(&routes[slot].dst, dst))
			return true;
	return false;
}

/**
 * routes_token() - The token to connect to for a destination
 * @dst:	Destination
 * @ret_token:	Its token, registered now if it was not yet
 *
 * Returns: 0, or an errno; EINPROGRESS: the stream is being opened
 */
int routes_token(const struct destination *dst, uint32_t *ret_token)
{
	uint32_t slot;

	if (control_is_open() && grant.used >= grant.count)
		control_reopen("all its tokens are used, opening another");
	control_keep();
	if (!control_is_open())
		return control_is_opening() ? EINPROGRESS : ENETUNREACH;

	for (slot = *chain(dst); slot != NONE; slot = routes[slot].next)
		if (address_same(&routes[slot].dst, dst)) {
			*ret_token = routes[slot].token;
			break;
		}
	if (slot == NONE && !add(dst, ret_token))
		return ENETUNREACH;
	return 0;
}

/**
 * routes_destination() - What a token stands for
 * @token:	Token
 * @ret_dst:	Its destination
 *
 * Returns: false if that was forgotten
 */
bool routes_destination(uint32_t token, struct destination *ret_dst)
{
	const struct route *route;

	if (!grant.window)
		return false;
	route = &routes[token % grant.window];
	if (route->token != token || token == 0)
		return false;
	*ret_dst = route->dst;
	return true;
}
