// SPDX-License-Identifier: Apache-2.0
/*
 * callers.c - where clients of known IPs go
 *
 * Theory of operation
 * ===================
 *
 * A sorted array: whoever may choose many IPs can't make a look-up slow, as
 * with a hash whose buckets fill unevenly. There are few, and they change
 * seldom.
 */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/callers.h"

#define CAP_MIN 16

/**
 * compare() - Which IP comes first?
 * @a:		Caller
 * @b:		Another
 *
 * Returns: as memcmp()
 */
static int compare(const struct vu_caller *a, const struct vu_caller *b)
{
	if (a->version != b->version)
		return a->version < b->version ? -1 : 1;
	return memcmp(a->ip, b->ip, sizeof(a->ip));
}

/**
 * place() - Find where a caller is, or would be
 * @t:		Callers
 * @caller:	Its IP
 * @ret_found:	It is there
 *
 * Returns: its index
 */
static unsigned place(const struct callers *t, const struct vu_caller *caller,
		      bool *ret_found)
{
	unsigned from = 0, to = t->count;

	*ret_found = false;
	while (from < to) {
		unsigned middle = from + (to - from) / 2;
		int order = compare(&t->all[middle], caller);

		if (!order) {
			*ret_found = true;
			return middle;
		}
		if (order < 0)
			from = middle + 1;
		else
			to = middle;
	}
	return from;
}

/**
 * callers_find() - Find a client's caller
 * @t:		Callers
 * @addr:	The client's address
 * @ret_port:	Its TCP port, if it is found
 *
 * Returns: the caller; NULL if it is unknown
 */
const struct vu_caller *callers_find(const struct callers *t,
				     const struct sockaddr_storage *addr,
				     uint16_t *ret_port)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)addr;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)addr;
	struct vu_caller key = {0};
	bool found;
	unsigned at;

	if (addr->ss_family == AF_INET) {
		key.version = 4;
		memcpy(key.ip, &v4->sin_addr, sizeof(v4->sin_addr));
		*ret_port = ntohs(v4->sin_port);
	} else if (addr->ss_family == AF_INET6) {
		key.version = 6;
		memcpy(key.ip, &v6->sin6_addr, sizeof(v6->sin6_addr));
		*ret_port = ntohs(v6->sin6_port);
	} else {
		return NULL;
	}
	at = place(t, &key, &found);
	return found ? &t->all[at] : NULL;
}

/**
 * callers_set() - Say where the clients of an IP go
 * @t:		Callers
 * @caller:	The IP and where to, copied
 *
 * Returns: 0, -VU_ERR_FULL or -VU_ERR_NOMEM
 */
int callers_set(struct callers *t, const struct vu_caller *caller)
{
	bool found;
	unsigned at = place(t, caller, &found);

	if (found) {
		t->all[at] = *caller;
		return 0;
	}
	if (t->count == VU_MAX_CALLERS)
		return -VU_ERR_FULL;
	if (t->count == t->cap) {
		unsigned cap = t->cap ? 2 * t->cap : CAP_MIN;
		struct vu_caller *all = realloc(t->all, cap * sizeof(*all));

		if (!all)
			return -VU_ERR_NOMEM;
		t->all = all;
		t->cap = cap;
	}
	memmove(&t->all[at + 1], &t->all[at],
		(t->count - at) * sizeof(*t->all));
	t->all[at] = *caller;
	t->count++;
	return 0;
}

/**
 * callers_forget() - Know an IP no more, if it was known
 * @t:		Callers
 * @caller:	The IP
 */
void callers_forget(struct callers *t, const struct vu_caller *caller)
{
	bool found;
	unsigned at = place(t, caller, &found);

	if (!found)
		return;
	t->count--;
	memmove(&t->all[at], &t->all[at + 1],
		(t->count - at) * sizeof(*t->all));
}

/**
 * callers_clear() - Know nobody any more
 * @t:		Callers
 */
void callers_clear(struct callers *t)
{
	free(t->all);
	*t = (struct callers){0};
}
