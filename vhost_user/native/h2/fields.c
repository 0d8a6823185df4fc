// SPDX-License-Identifier: Apache-2.0
/*
 * fields.c - what a request or a response says
 *
 * Theory of operation
 * ===================
 *
 * nghttp2 checks that a header block is HTTP; here are the fields that HBONE
 * has, and none of the others are kept. A field that comes several times is one
 * list (RFC 9110 section 5.3), but a pseudo-header comes once.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h2/h2.h"

#define OVERHEAD 32 /* a field's, RFC 9113 section 6.5.2 */

/**
 * put() - Keep a field's value
 * @f:		Fields
 * @at:		Where; a value that is there becomes a list
 * @value:	Value
 * @len:	Its length
 */
static void put(struct h2_fields *f, char **at, const uint8_t *value,
		size_t len)
{
	size_t old = *at ? strlen(*at) + 1 : 0;
	char *text = realloc(*at, old + len + 1);

	if (!text) {
		f->bad = true;
		return;
	}
	if (old)
		text[old - 1] = ',';
	memcpy(text + old, value, len);
	text[old + len] = 0;
	*at = text;
}

/**
 * number() - Read a status
 * @value:	Value
 * @len:	Its length
 *
 * Returns: it; 0 if it is none
 */
static int number(const uint8_t *value, size_t len)
{
	int status = 0;

	if (len != 3)
		return 0;
	for (size_t i = 0; i < len; i++) {
		if (value[i] < '0' || value[i] > '9')
			return 0;
		status = 10 * status + value[i] - '0';
	}
	return status;
}

/**
 * fields_add() - Note a field
 * @f:		Fields
 * @name:	Its name, in lower case
 * @name_len:	Length of @name
 * @value:	Its value
 * @len:	Length of @value
 */
void fields_add(struct h2_fields *f, const uint8_t *name, size_t name_len,
		const uint8_t *value, size_t len)
{
	const struct {
		const char *name;
		char **at;
	} known[] = {
	    {":method", &f->method},
	    {":authority", &f->authority},
	    {"baggage", &f->baggage},
	    {"forwarded", &f->forwarded},
	    {"traceparent", &f->traceparent},
	    {"x-forwarded-network", &f->network},
	};

	f->size += name_len + len + OVERHEAD;
	if (f->size > H2_LIST_MOST)
		f->bad = true;
	if (f->bad)
		return;
	if (name_len == strlen(":status") && !memcmp(name, ":status", name_len))
		f->status = number(value, len);
	if (!f->error && name_len == strlen("proxy-status") &&
	    !memcmp(name, "proxy-status", name_len))
		f->error = why_errno(value, len);
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		if (name_len == strlen(known[i].name) &&
		    !memcmp(name, known[i].name, name_len))
			put(f, known[i].at, value, len);
	}
}

/**
 * fields_connect() - Is this a CONNECT to a host and a port?
 * @f:		Fields of a request
 *
 * Returns: true if it is
 */
bool fields_connect(const struct h2_fields *f)
{
	const char *colon = f->authority ? strrchr(f->authority, ':') : NULL;
	unsigned long port;
	char *end;

	if (!f->method || strcmp(f->method, "CONNECT") || !colon ||
	    colon == f->authority || colon[1] < '0' || colon[1] > '9')
		return false;
	if (f->authority[0] == '[' && colon[-1] != ']')
		return false;
	if (f->authority[0] != '[' && strchr(f->authority, ':') != colon)
		return false;
	port = strtoul(colon + 1, &end, 10);
	return !*end && end - colon <= 6 && port && port < 65536;
}

/**
 * fields_header() - Add a header to others
 * @nv:		Headers
 * @n:		How many there are
 * @name:	Its name
 * @value:	Its value, or NULL: none
 *
 * Returns: how many there are now
 */
size_t fields_header(nghttp2_nv *nv, size_t n, const char *name,
		     const char *value)
{
	if (!value)
		return n;
	nv[n] = (nghttp2_nv){
	    .name = (uint8_t *)(uintptr_t)name,
	    .value = (uint8_t *)(uintptr_t)value,
	    .namelen = strlen(name),
	    .valuelen = strlen(value),
	};
	return n + 1;
}

/**
 * fields_clear() - Forget all fields
 * @f:		Fields
 */
void fields_clear(struct h2_fields *f)
{
	free(f->method);
	free(f->authority);
	free(f->baggage);
	free(f->forwarded);
	free(f->traceparent);
	free(f->network);
	*f = (struct h2_fields){0};
}
