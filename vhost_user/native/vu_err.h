/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu_err.h - the errors of vu.h
 */
#ifndef VU_ERR_H
#define VU_ERR_H

/**
 * enum vu_err - What went wrong; functions return these negated
 * @VU_ERR_EMPTY:	A range of zero bytes
 * @VU_ERR_RANGE:	A guest address that isn't in any memory region
 * @VU_ERR_FULL:	No room left in a fixed-size table
 * @VU_ERR_NOMEM:	Out of memory
 * @VU_ERR_RING:	The ring breaks a rule of the virtio specification
 * @VU_ERR_CHAIN:	A descriptor chain does: loop, order, length, flags
 * @VU_ERR_GONE:	No such device, listener or connection (any more)
 * @VU_ERR_STATE:	Not in this state: ring started twice, answered twice
 * @VU_ERR_INVAL:	An argument out of its range
 * @VU_ERR_SYS:		A system call failed; errno says why
 * @VU_ERR_FAULT:	Guest memory is gone: its file was truncated
 * @VU_ERR_REGION:	A memory region wraps, or overlaps another
 * @VU_ERR_CALL:	The front-end keeps us waiting: a call eventfd blocks
 */
enum vu_err {
	VU_ERR_EMPTY = 1,
	VU_ERR_RANGE = 2,
	VU_ERR_FULL = 3,
	VU_ERR_NOMEM = 4,
	VU_ERR_RING = 5,
	VU_ERR_CHAIN = 6,
	VU_ERR_GONE = 7,
	VU_ERR_STATE = 8,
	VU_ERR_INVAL = 9,
	VU_ERR_SYS = 10,
	VU_ERR_FAULT = 11,
	VU_ERR_REGION = 12,
	VU_ERR_CALL = 13,
};

#endif /* VU_ERR_H */
