// SPDX-License-Identifier: Apache-2.0
/*
 * fault.c - SIGBUS from a mapping whose file was truncated
 *
 * Theory of operation
 * ===================
 *
 * Guest memory, the dirty log and the inflight area are files of the
 * front-end, and it can truncate them under us: the next access is a SIGBUS.
 * That must end its session, not the process with all other VMs. Checking the
 * size first helps nobody, since the file may shrink right after.
 *
 * So each such mapping is guarded: the handler finds the one that the fault
 * lies in, sets its memory map's mark, puts zeroed pages of our own over the
 * whole mapping and lets the access happen there. Whoever reads guest memory
 * looks at the mark afterwards (vu_mem_faulted()), before it believes what it
 * read. The mark comes first, so nobody sees those zeroes without it. System
 * calls need no handler: they say EFAULT.
 *
 * Any other SIGBUS takes the way that it took before us: to the handler that
 * was there (faulthandler's, a sanitizer's) or to the default action. A
 * handler that was set after ours and restores it to pass a signal on gets the
 * default action.
 *
 * The table of guards is the process's, as signal handlers are. Writers hold a
 * mutex. The handler can't: it reads under a sequence count, odd while a
 * writer is busy. No writer touches guarded memory, so a handler never waits
 * for the code that it interrupted.
 */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/syscall.h>

#include "mem/mem.h"

#define CHUNK 64 /* guards */

/**
 * struct guard - One mapping
 * @start:	Its first page's address; 0: a free slot
 * @end:	Behind its last page
 * @va:		What fault_guard() was given
 * @mem:	Whom to tell
 */
struct guard {
	uintptr_t start;
	uintptr_t end;
	uintptr_t va;
	struct vu_mem *mem;
};

/**
 * struct chunk - Guards; chunks are added and never freed
 */
struct chunk {
	struct chunk *next;
	struct guard guards[CHUNK];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct chunk first;
static unsigned sequence;
static struct sigaction previous;
static bool passed_on;

/**
 * cover() - Put our own pages where a mapping lost its own
 * @g:		Copy of its guard
 *
 * Returns: false if that is not possible
 */
static bool cover(const struct guard *g)
{
	/* raw: a sanitizer's mmap() is no function for signal handlers */
	long at = syscall(
	    SYS_mmap, g->start, g->end - g->start, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);

	return at == (long)g->start;
}

/**
 * find() - Find the guard of an address
 * @addr:	Address
 * @ret:	Copy of it
 *
 * Returns: true if there is one
 */
static bool find(uintptr_t addr, struct guard *ret)
{
	unsigned before;
	bool found;

	do {
		before = __atomic_load_n(&sequence, __ATOMIC_ACQUIRE);
		found = false;
		for (struct chunk *c = &first; c && !found;
		     c = __atomic_load_n(&c->next, __ATOMIC_ACQUIRE)) {
			for (unsigned i = 0; i < CHUNK && !found; i++) {
				struct guard *g = &c->guards[i];

				ret->start = __atomic_load_n(&g->start,
							     __ATOMIC_RELAXED);
				ret->end =
				    __atomic_load_n(&g->end, __ATOMIC_RELAXED);
				ret->mem =
				    __atomic_load_n(&g->mem, __ATOMIC_RELAXED);
				found = addr >= ret->start && addr < ret->end;
			}
		}
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while (before & 1 ||
		 before != __atomic_load_n(&sequence, __ATOMIC_RELAXED));
	return found;
}

/**
 * on_sigbus() - Handle SIGBUS
 * @sig:	SIGBUS
 * @info:	Where it happened
 * @context:	Unused
 */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	const struct sigaction none = {.sa_handler = SIG_DFL};
	int saved = errno;
	struct guard g;

	(void)context;
	/* si_code is positive where the kernel knows of a faulting access */
	if (info->si_code > 0 && find((uintptr_t)info->si_addr, &g)) {
		__atomic_store_n(&g.mem->faulted, true, __ATOMIC_SEQ_CST);
		if (cover(&g)) {
			errno = saved;
			return;
		}
	}
	sigaction(sig, passed_on ? &none : &previous, NULL);
	passed_on = true;
	if (info->si_code <= 0)
		raise(sig); /* pending until we return */
	errno = saved;
}

/**
 * install() - Be the handler of SIGBUS, lock held
 *
 * Returns: 0, or -VU_ERR_SYS
 */
static int install(void)
{
	struct sigaction ours = {.sa_sigaction = on_sigbus,
				 .sa_flags = SA_SIGINFO | SA_ONSTACK};
	struct sigaction now;

	if (sigaction(SIGBUS, NULL, &now))
		return -VU_ERR_SYS;
	if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)
		return 0;
	previous = now;
	sigemptyset(&ours.sa_mask);
	return sigaction(SIGBUS, &ours, NULL) ? -VU_ERR_SYS : 0;
}

/**
 * free_slot() - Find a free slot, lock held
 *
 * Returns: the slot, or NULL if out of memory
 */
static struct guard *free_slot(void)
{
	struct chunk *c = &first;

	for (;;) {
		for (unsigned i = 0; i < CHUNK; i++) {
			if (!c->guards[i].start)
				return &c->guards[i];
		}
		if (!c->next) {
			struct chunk *more = calloc(1, sizeof(*more));

			if (!more)
				return NULL;
			__atomic_store_n(&c->next, more, __ATOMIC_RELEASE);
		}
		c = c->next;
	}
}

/**
 * set_guard() - Change a slot, lock held
 * @slot:	Slot
 * @to:		Its new contents
 */
static void set_guard(struct guard *slot, const struct guard *to)
{
	__atomic_store_n(&sequence, sequence + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	__atomic_store_n(&slot->start, to->start, __ATOMIC_RELAXED);
	__atomic_store_n(&slot->end, to->end, __ATOMIC_RELAXED);
	__atomic_store_n(&slot->mem, to->mem, __ATOMIC_RELAXED);
	slot->va = to->va;
	__atomic_store_n(&sequence, sequence + 1, __ATOMIC_RELEASE);
}

/**
 * fault_guard() - Have a mapping's loss end a session, not the process
 * @mem:	Memory map that it belongs to
 * @va:		Mapping, all of the pages that it touches ours
 * @size:	Its size, bytes
 *
 * Returns: 0, -VU_ERR_NOMEM, or -VU_ERR_SYS
 */
int fault_guard(const struct vu_mem *mem, void *va, uint64_t size)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t at = (uintptr_t)va;
	struct guard g = {
	    .start = at & ~(page - 1),
	    .end = (at + size + page - 1) & ~(page - 1),
	    .va = at,
	    .mem = (struct vu_mem *)(uintptr_t)mem, /* for its mark alone */
	};
	struct guard *slot;
	int err;

	pthread_mutex_lock(&lock);
	err = install();
	slot = err ? NULL : free_slot();
	if (slot)
		set_guard(slot, &g);
	else if (!err)
		err = -VU_ERR_NOMEM;
	pthread_mutex_unlock(&lock);
	return err;
}

/**
 * fault_unguard() - Undo fault_guard(), before the mapping goes
 * @mem:	Memory map
 * @va:		Mapping; NULL: all of @mem
 */
void fault_unguard(const struct vu_mem *mem, const void *va)
{
	const struct guard none = {0};

	pthread_mutex_lock(&lock);
	for (struct chunk *c = &first; c; c = c->next) {
		for (unsigned i = 0; i < CHUNK; i++) {
			struct guard *g = &c->guards[i];

			if (g->start && g->mem == mem &&
			    (!va || g->va == (uintptr_t)va))
				set_guard(g, &none);
		}
	}
	pthread_mutex_unlock(&lock);
}
