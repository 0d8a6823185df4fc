// SPDX-License-Identifier: Apache-2.0
/*
 * why.c - why a far side can't be reached, as a word of the answer
 *
 * Theory of operation
 * ===================
 *
 * 503 says nothing about the errno that connect() failed with. "proxy-status"
 * (RFC 9209) does: a list with an item for each proxy on the way, the one that
 * is closest to the server first, and that one's parameter "error". A peer that
 * doesn't know the field passes over it.
 *
 * Its value is the peer's: of it only one of the errnos below is taken.
 */

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "h2/h2.h"

#define OURS  "fastpath; error="
#define PARAM "error="

static const struct {
	int error;
	const char *text;
} whys[] = {
    {ECONNREFUSED, OURS "connection_refused"},
    {ETIMEDOUT, OURS "connection_timeout"},
    {ECONNRESET, OURS "connection_terminated"},
    {ENETUNREACH, OURS "destination_ip_unroutable"},
    {EHOSTUNREACH, OURS "destination_unavailable"},
    {EHOSTUNREACH, OURS "destination_not_found"},
    {EACCES, OURS "destination_ip_prohibited"},
};

#define WHYS (sizeof(whys) / sizeof(*whys))

/**
 * why_text() - Say why
 * @error:	errno
 *
 * Returns: a value of "proxy-status"; NULL: there is no word for it
 */
const char *why_text(int error)
{
	for (size_t i = 0; i < WHYS; i++) {
		if (whys[i].error == error)
			return whys[i].text;
	}
	return NULL;
}

/**
 * errno_of() - Which errno does a word mean?
 * @word:	Where it begins
 * @len:	Bytes from there on
 *
 * Returns: it; 0: none
 */
static int errno_of(const uint8_t *word, size_t len)
{
	size_t n = 0;

	while (n < len && !strchr(" \t;,", word[n]))
		n++;
	for (size_t i = 0; i < WHYS; i++) {
		const char *known = whys[i].text + strlen(OURS);

		if (n == strlen(known) && !memcmp(word, known, n))
			return whys[i].error;
	}
	return 0;
}

/**
 * why_errno() - Read why
 * @value:	Value of "proxy-status"
 * @len:	Its length
 *
 * Returns: the errno of the first error in it; 0: none that has one
 */
int why_errno(const uint8_t *value, size_t len)
{
	bool quoted = false, named = false;

	for (size_t i = 0; i < len; i++) {
		if (quoted && value[i] == '\\') {
			i++;
		} else if (value[i] == '"') {
			quoted = !quoted;
		} else if (!quoted && value[i] == ';') {
			named = true; /* a parameter's name comes */
			continue;
		} else if (named && value[i] == ' ') {
			continue;
		} else if (named && len - i > strlen(PARAM) &&
			   !memcmp(value + i, PARAM, strlen(PARAM))) {
			i += strlen(PARAM);
			return errno_of(value + i, len - i);
		}
		named = false;
	}
	return 0;
}
