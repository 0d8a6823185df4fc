/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fastpath_ring.h - connections of a guest by rings of shared memory
 *
 * A library of this header and fastpath_ring.c, which need nothing but libc:
 * copy both into a program that takes the connections of a sandbox whose
 * hand-off is `ring`. docs/ring.md has the memory's layout, the messages and
 * the order of all accesses; handoff/ring.py is the same in Python.
 *
 * Threads. A link or ring belongs to one thread at a time. Nothing here
 * allocates, logs or exits.
 *
 * Failure. A call that fails returns a negated errno, and leaves outputs
 * untouched. EPROTO: the other process broke the rules; ECONNRESET: it went
 * away, or was killed, before it said that it was done.
 */
#ifndef FASTPATH_RING_H
#define FASTPATH_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sys/types.h>
#include <sys/uio.h>

#define FPRING_VERSION 1
#define FPRING_MAGIC   "fpring\r\n" /* 8 bytes */
#define FPRING_DATA    4096U	    /* where the bytes of the rings begin */
#define FPRING_MIN     4096U	    /* bytes of a ring; a power of two */
#define FPRING_MAX     (1U << 30)   /* same */
#define FPRING_LINE    128	    /* two cache lines: they come in pairs */
#define FPRING_READ    1U	    /* there are bytes, or they have ended */
#define FPRING_WRITE   2U	    /* there is room, or nobody reads */
#define FPRING_POLL_US 50	    /* see struct fpring_link */

/* ---- the messages ---- */

/**
 * struct fpring_address - An IP address and TCP port
 * @family:	4, 6 or 0: it isn't known
 * @port:	In host order
 * @unused:	0
 * @ip:		In network order; of IPv4 the first 4 bytes
 */
struct fpring_address {
	uint16_t family;
	uint16_t port;
	uint32_t unused;
	uint8_t ip[16];
};

/**
 * struct fpring_hello - What a connection is: comes with the memory's
 *	descriptor and that of the eventfd which wakes the sender
 * @magic:	FPRING_MAGIC
 * @version:	FPRING_VERSION
 * @size:	Bytes of this
 * @up_bytes:	Of the ring to the process that is asked
 * @down_bytes:	Of the ring back
 * @conn:	The connection's number, for logs
 * @dst:	Where the program connected to
 * @src:	Where from
 * @identity_len: Bytes of @identity
 * @unused:	0
 * @identity:	SPIFFE ID of the program's workload, without a final 0
 */
struct fpring_hello {
	uint8_t magic[8];
	uint32_t version;
	uint32_t size;
	uint32_t up_bytes;
	uint32_t down_bytes;
	uint64_t conn;
	struct fpring_address dst;
	struct fpring_address src;
	uint32_t identity_len;
	uint32_t unused;
	char identity[936];
};

/**
 * struct fpring_answer - What comes back
 * @version:	FPRING_VERSION
 * @error:	0: bytes may flow; errno: what the program's connect() gets
 */
struct fpring_answer {
	uint32_t version;
	int32_t error;
};

/* ---- the memory ---- */

/**
 * enum fpring_state - In the lower 8 bits of a line's state
 * @FPRING_OPEN: Bytes flow
 * @FPRING_ENDED: Producer: no more come; consumer: no more are taken
 * @FPRING_RESET: All is over, by the errno in the upper 24 bits
 */
enum fpring_state { FPRING_OPEN = 0, FPRING_ENDED = 1, FPRING_RESET = 2 };

/**
 * struct fpring_line - One end of one ring; only one process writes it
 * @position:	Bytes written, or read, since the beginning, modulo 2^32
 * @sleep:	Odd: wake me. Another number each time
 * @state:	enum fpring_state
 * @unused:	0
 */
struct fpring_line {
	uint32_t position;
	uint32_t sleep;
	uint32_t state;
	uint32_t unused[29];
};

/**
 * struct fpring_memory - The first FPRING_DATA bytes; both rings follow, up
 *	first. "We" are the process that made it
 * @magic:	FPRING_MAGIC
 * @version:	FPRING_VERSION
 * @data:	FPRING_DATA
 * @up_bytes:	As in the hello
 * @down_bytes:	Same
 * @unused:	0
 * @up_producer: Written by us
 * @up_consumer: By the other process
 * @down_producer: Same
 * @down_consumer: By us
 */
struct fpring_memory {
	uint8_t magic[8];
	uint32_t version;
	uint32_t data;
	uint32_t up_bytes;
	uint32_t down_bytes;
	uint8_t unused[104];
	struct fpring_line up_producer;
	struct fpring_line up_consumer;
	struct fpring_line down_producer;
	struct fpring_line down_consumer;
};

_Static_assert(sizeof(struct fpring_hello) == 1024, "docs/ring.md");
_Static_assert(sizeof(struct fpring_line) == FPRING_LINE, "docs/ring.md");
_Static_assert(sizeof(struct fpring_memory) == 5 * FPRING_LINE, "docs/ring.md");

/* ---- rings: memory only, no system call ---- */

/**
 * struct fpring_way - A ring, as one of its ends sees it
 * @mine:	Our line
 * @theirs:	The other's
 * @data:	Its bytes
 * @size:	How many
 * @position:	What our line says
 * @seen:	What theirs said, and was in bounds
 * @sleep:	What our line says
 * @rung:	What theirs said when it was woken last
 */
struct fpring_way {
	struct fpring_line *mine;
	const struct fpring_line *theirs;
	char *data;
	uint32_t size;
	uint32_t position;
	uint32_t seen;
	uint32_t sleep;
	uint32_t rung;
};

/**
 * struct fpring - Both rings, as one of the processes sees them
 * @in:		The one that it reads
 * @out:	The one that it writes
 */
struct fpring {
	struct fpring_way in;
	struct fpring_way out;
};

/**
 * fpring_bytes() - How much memory do two rings take?
 * @up_bytes:	Of the one
 * @down_bytes:	Of the other
 *
 * Returns: bytes; 0: a size is no power of two from FPRING_MIN to FPRING_MAX
 */
size_t fpring_bytes(uint32_t up_bytes, uint32_t down_bytes);

/**
 * fpring_format() - Write what memory begins with
 * @mem:	All zero, fpring_bytes() long
 * @up_bytes:	Of the ring to the process that is asked
 * @down_bytes:	Of the ring back
 */
void fpring_format(void *mem, uint32_t up_bytes, uint32_t down_bytes);

/**
 * fpring_attach() - Use memory
 * @ret:	Rings
 * @mem:	Memory; stays mapped as long as they are used
 * @up_bytes:	As fpring_format() was told
 * @down_bytes:	Same
 * @maker:	We made it, and write up; false: we were asked, and write down
 */
void fpring_attach(struct fpring *ret, void *mem, uint32_t up_bytes,
		   uint32_t down_bytes, bool maker);

/**
 * fpring_readable() - Find the bytes that have come
 * @r:		Rings
 * @ret:	Where they are
 *
 * The other process may still change them: copy, then look.
 *
 * Returns: how many; 0: they have ended,
 *	-EAGAIN, if there are none now
 *	-EPROTO, or the errno of a reset
 */
ssize_t fpring_readable(struct fpring *r, struct iovec ret[2]);

/**
 * fpring_consumed() - Give back the room of bytes
 * @r:		Rings
 * @n:		How many, at most what fpring_readable() said
 *
 * Returns: true if the other process waits for it: wake it
 */
bool fpring_consumed(struct fpring *r, size_t n);

/**
 * fpring_room() - Find room for bytes
 * @r:		Rings
 * @ret:	Where it is
 *
 * Returns: how many fit,
 *	-EAGAIN, if none do now
 *	-EPIPE, if no more are taken
 *	-EPROTO, or the errno of a reset
 */
ssize_t fpring_room(struct fpring *r, struct iovec ret[2]);

/**
 * fpring_produced() - Have the other process see bytes
 * @r:		Rings
 * @n:		How many, at most what fpring_room() said
 *
 * Returns: true if it waits for them: wake it
 */
bool fpring_produced(struct fpring *r, size_t n);

/**
 * fpring_ready() - Is there something to do?
 * @r:		Rings
 * @want:	FPRING_READ, FPRING_WRITE, or both
 *
 * Returns: those of @want for which there is
 */
unsigned fpring_ready(struct fpring *r, unsigned want);

/**
 * fpring_sleep() - Ask to be woken for this, and for nothing else
 * @r:		Rings
 * @want:	FPRING_READ, FPRING_WRITE, both, or 0
 *
 * Returns: false if there is something to do already; nothing was asked then
 */
bool fpring_sleep(struct fpring *r, unsigned want);

/**
 * fpring_awake() - Ask for it no more
 * @r:		Rings
 */
void fpring_awake(struct fpring *r);

/**
 * fpring_end() - Write no more, read no more, or both; wake the other then
 * @r:		Rings
 * @what:	FPRING_READ, FPRING_WRITE, or both
 */
void fpring_end(struct fpring *r, unsigned what);

/**
 * fpring_fail() - End all at once, with an error; wake the other then
 * @r:		Rings
 * @error:	errno
 */
void fpring_fail(struct fpring *r, int error);

/* ---- links: for the process that is asked ---- */

/**
 * struct fpring_link - One connection
 * @fd:		The unix socket: readable when there is a wake-up, or the other
 *		process has closed it. What poll() and epoll are given
 * @bell:	eventfd that wakes the other process
 * @ring:	Its rings
 * @mem:	Their memory
 * @len:	Bytes of it
 * @gone:	The other process has closed the socket
 * @max_us:	Longest that fpring_wait() spins, us; FPRING_POLL_US until
 *		changed. 0: it never does
 * @window_us:	How long it spins now
 */
struct fpring_link {
	int fd;
	int bell;
	struct fpring ring;
	void *mem;
	size_t len;
	bool gone;
	uint32_t max_us;
	uint32_t window_us;
};

/**
 * fpring_take() - Take the memory of a connection
 * @fd:		Unix SOCK_SEQPACKET socket from accept(), taken over on success
 * @ret:	Link
 * @ret_hello:	What it is
 *
 * Returns: 0; answer it then,
 *	-EAGAIN, if its message has yet to come
 *	-EPROTO, if that isn't one, or the memory can be taken away
 *	-EPROTONOSUPPORT, if it is of another version
 *	-errno, if the memory can't be mapped
 */
int fpring_take(int fd, struct fpring_link *ret,
		struct fpring_hello *ret_hello);

/**
 * fpring_answer() - Say whether there is a connection
 * @l:		Link
 * @error:	0: there is; errno for the program's connect(): close it then
 *
 * Returns: 0,
 *	-errno, if the other process has left
 */
int fpring_answer(struct fpring_link *l, int error);

/**
 * fpring_read() - Read bytes
 * @l:		Link
 * @buf:	Room for them
 * @len:	At most so many, not 0
 *
 * Returns: how many; 0: they have ended,
 *	-EAGAIN, if there are none now
 *	-EPROTO, -ECONNRESET, or the errno of a reset
 */
ssize_t fpring_read(struct fpring_link *l, void *buf, size_t len);

/**
 * fpring_write() - Write bytes
 * @l:		Link
 * @buf:	Bytes
 * @len:	How many
 *
 * Returns: how many of them fitted,
 *	-EAGAIN, if none did
 *	-EPIPE, if no more are taken
 *	-EPROTO, -ECONNRESET, or the errno of a reset
 */
ssize_t fpring_write(struct fpring_link *l, const void *buf, size_t len);

/**
 * fpring_ring() - Wake the other process: what fpring_consumed(),
 *	fpring_produced(), fpring_end() and fpring_fail() ask for
 * @l:		Link
 */
void fpring_ring(const struct fpring_link *l);

/**
 * fpring_rest() - Ask to be woken by @l->fd, before poll() or epoll_wait()
 * @l:		Link
 * @want:	FPRING_READ, FPRING_WRITE, or both
 *
 * Returns: false if there is something to do already
 */
bool fpring_rest(struct fpring_link *l, unsigned want);

/**
 * fpring_woken() - @l->fd is readable: take the wake-ups
 * @l:		Link
 */
void fpring_woken(struct fpring_link *l);

/**
 * fpring_wait() - Wait until there is something to do: spin, then sleep
 * @l:		Link
 * @want:	FPRING_READ, FPRING_WRITE, or both
 * @timeout_ms:	Longest that it sleeps; -1: for ever
 *
 * The window adapts: it doubles when work came soon after we slept, up to
 * @l->max_us, and halves when it took longer than that.
 *
 * Returns: those of @want for which there is; 0: the time is up,
 *	-EINTR, if a signal was handled
 */
int fpring_wait(struct fpring_link *l, unsigned want, int timeout_ms);

/**
 * fpring_shutdown() - Write no more, read no more, or both
 * @l:		Link
 * @what:	FPRING_READ, FPRING_WRITE, or both
 */
void fpring_shutdown(struct fpring_link *l, unsigned what);

/**
 * fpring_reset() - End all at once, with an error
 * @l:		Link; close it then
 * @error:	errno
 */
void fpring_reset(struct fpring_link *l, int error);

/**
 * fpring_close() - Let go of a link; what was written still arrives
 * @l:		Link
 *
 * Bytes that came and were not read make it a reset, as with a socket.
 */
void fpring_close(struct fpring_link *l);

#endif /* FASTPATH_RING_H */
