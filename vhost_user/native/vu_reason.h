/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_reason.h - the part of vu.h about why tunnels and their streams fail
 */
#ifndef VU_REASON_H
#define VU_REASON_H

/**
 * enum vu_reason - Why a tunnel or a stream failed, or ended
 * @VU_REASON_NONE:	Not because of HBONE
 * @VU_REASON_DIAL:	TCP to the peer failed; the event's error says why
 * @VU_REASON_TIME:	TCP, TLS or HTTP/2 was not there in connect_ms
 * @VU_REASON_CLOSED:	The peer ended it before TLS or HTTP/2 was there: it
 *			dislikes our certificate, or is none of this mesh
 * @VU_REASON_ALERT:	The peer said no by a TLS alert
 * @VU_REASON_TLS:	What the peer said was no TLS 1.3 that we take
 * @VU_REASON_ALPN:	The peer wants another protocol than h2
 * @VU_REASON_NOCERT:	The client showed no certificate
 * @VU_REASON_CHAIN:	The certificate does not come from our roots
 * @VU_REASON_EXPIRED:	It, or one above it, is not valid now
 * @VU_REASON_REVOKED:	It, or one above it, is revoked
 * @VU_REASON_IDENTITY:	It has not exactly one SPIFFE identity
 * @VU_REASON_NAME:	It has one that was not expected, or of another trust
 *			domain
 * @VU_REASON_HTTP2:	What the peer said was no HTTP/2
 * @VU_REASON_FLOOD:	It said too much of what costs us and not it
 * @VU_REASON_PING:	It did not answer a PING
 * @VU_REASON_LOST:	TCP ended, with streams or without
 * @VU_REASON_GOAWAY:	It takes no more streams, and has none
 * @VU_REASON_IDLE:	Nobody used it for idle_ms
 * @VU_REASON_DRAINED:	We end it: vu_hbone_drain(), or its pool is gone
 * @VU_REASON_STATUS:	Of a stream: CONNECT was answered by another status than
 *			these
 * @VU_REASON_400:	Same: by 400, a request that it can't read
 * @VU_REASON_401:	Same: by 401, its policy denies it
 * @VU_REASON_503:	Same: by 503, its far side can't be reached
 * @VU_REASON_RESET:	Same: RST_STREAM
 * @VU_REASON_REFUSED:	Same: each tunnel that was tried refused the stream
 * @VU_REASON_SHORT:	We are out of memory or descriptors
 */
enum vu_reason {
	VU_REASON_NONE = 0,
	VU_REASON_DIAL = 1,
	VU_REASON_TIME = 2,
	VU_REASON_CLOSED = 3,
	VU_REASON_ALERT = 4,
	VU_REASON_TLS = 5,
	VU_REASON_ALPN = 6,
	VU_REASON_NOCERT = 7,
	VU_REASON_CHAIN = 8,
	VU_REASON_EXPIRED = 9,
	VU_REASON_REVOKED = 10,
	VU_REASON_IDENTITY = 11,
	VU_REASON_NAME = 12,
	VU_REASON_HTTP2 = 13,
	VU_REASON_FLOOD = 14,
	VU_REASON_PING = 15,
	VU_REASON_LOST = 16,
	VU_REASON_GOAWAY = 17,
	VU_REASON_IDLE = 18,
	VU_REASON_DRAINED = 19,
	VU_REASON_STATUS = 20,
	VU_REASON_400 = 21,
	VU_REASON_401 = 22,
	VU_REASON_503 = 23,
	VU_REASON_RESET = 24,
	VU_REASON_REFUSED = 25,
	VU_REASON_SHORT = 26,
};

#endif /* VU_REASON_H */
