/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hbone_records.h - records of a tunnel's peer, good and bad
 */
#ifndef HBONE_RECORDS_H
#define HBONE_RECORDS_H

#include <sys/socket.h>

#include "input.h"
#include "tls/record.h"

static void hand_record(int peer, struct tls_keys *k, uint8_t type,
			const void *data, size_t len)
{
	static uint8_t out[TLS_RECORD + TLS_OVER];
	const struct tls_content c = {.head = data, .head_len = len};
	size_t n = record_seal(k, type, &c, out);

	send(peer, out, n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* A record of any type, a KeyUpdate, or bytes that are no record */
static void hand_step(int peer, struct tls_keys *k, struct input *in,
		      size_t len)
{
	static const uint8_t update[] = {24, 0, 0, 1, 0};
	static const uint8_t asks[] = {24, 0, 0, 1, 1};
	uint8_t how = byte(in), type = byte(in);

	if ((how & 3) == 3) {
		hand_record(peer, k, TLS_TYPE_HANDSHAKE,
			    how & 4 ? asks : update, sizeof(update));
		if (!(how & 8))
			keys_update(k);
		return;
	}
	len = len < in->left ? len : in->left;
	if (how & 2)
		type = TLS_TYPE_HANDSHAKE;
	if (how & 1)
		send(peer, in->at, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	else
		hand_record(peer, k, type, in->at, len);
	in->at += len;
	in->left -= len;
}

#endif /* HBONE_RECORDS_H */
