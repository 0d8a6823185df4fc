// SPDX-License-Identifier: Apache-2.0
/*
 * crash_ring.c - a device that is killed between any two stores
 *
 * Theory of operation
 * ===================
 *
 * A driver makes chains available, once. A child process is the device: it
 * starts the ring with an inflight area, pops, puts back, pushes out of order
 * and flushes, at random. The ring's sources are compiled with a hook
 * (crash_store.h) behind each store to shared memory. It asks: were the device
 * killed now, what would its successor do? The answer is found on a copy of the
 * memory: a new ring must pop exactly the chains that the driver hasn't got
 * back, each once, in the order in which they were made available, with the
 * buffers that they had; and after it has pushed them the driver must have each
 * chain back once. At a random store the device kills itself indeed (SIGKILL),
 * and another child goes on in the same memory.
 *
 *	crash_ring split|packed FIRST-SEED SEEDS
 *
 * Exit status 0: nothing was lost or duplicated. Prints how many states were
 * looked at.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "vu.h"

#define NUM   16
#define SIZE  0x4000U
#define AVAIL 0x1000U
#define USED  0x2000U
#define AREA  0x3000U
#define GPA   0x100000U
#define UVA   0x7f0000000000ULL
#define FIRST 65530U /* split: indices wrap */
#define AT    11U    /* packed: so does the ring */

struct world {
	char *mem;
	bool packed;
	unsigned n;	     /* chains */
	uint16_t ids[NUM];   /* as they were made available */
	uint16_t slots[NUM]; /* descriptors of each */
};

static void fail(const char *what)
{
	printf("FAILED: %s\n", what);
	fflush(stdout);
	abort();
}

/* ---- the driver ---- */

/* Chain i has slots[i] buffers; the j-th is told by its address and size */
static uint64_t addr_of(unsigned i, unsigned j)
{
	return GPA + 0x100U * i + 0x10U * j;
}

static uint32_t len_of(unsigned i, unsigned j)
{
	return 1 + i + j;
}

static void fill_split(struct world *w)
{
	struct vring_desc *desc = (void *)w->mem;
	struct vring_avail *avail = (void *)(w->mem + AVAIL);
	struct vring_used *used = (void *)(w->mem + USED);
	uint16_t at = 0;

	avail->idx = used->idx = FIRST;
	for (unsigned i = 0; i < w->n; i++) {
		w->ids[i] = (uint16_t)(NUM - 1 - at);
		avail->ring[avail->idx % NUM] = w->ids[i];
		for (unsigned j = 0; j < w->slots[i]; j++, at++) {
			desc[NUM - 1 - at] = (struct vring_desc){
			    .addr = addr_of(i, j),
			    .len = len_of(i, j),
			    .flags =
				j + 1 < w->slots[i] ? VRING_DESC_F_NEXT : 0,
			    .next = (uint16_t)(NUM - 2 - at),
			};
		}
		avail->idx++;
	}
}

static void fill_packed(struct world *w)
{
	struct vring_packed_desc *desc = (void *)w->mem;
	unsigned at = AT;

	for (unsigned i = 0; i < w->n; i++) {
		w->ids[i] = (uint16_t)(100 + i);
		for (unsigned j = 0; j < w->slots[i]; j++, at++) {
			desc[at % NUM] = (struct vring_packed_desc){
			    .addr = addr_of(i, j),
			    .len = len_of(i, j),
			    .id = w->ids[i],
			    .flags =
				(uint16_t)((at < NUM ? 1U << 7 : 1U << 15) |
					   (j + 1 < w->slots[i]
						? VRING_DESC_F_NEXT
						: 0)),
			};
		}
	}
}

static unsigned chain_of(const struct world *w, unsigned id)
{
	for (unsigned i = 0; i < w->n; i++) {
		if (w->ids[i] == id)
			return i;
	}
	fail("a chain that nobody made available");
	return 0;
}

/* Which chains has the driver got back? Each once, or it is an error */
static unsigned got_back(const struct world *w, const char *mem)
{
	const struct vring_used *used = (const void *)(mem + USED);
	const struct vring_packed_desc *desc = (const void *)mem;
	unsigned back = 0, at = AT;

	for (unsigned n = 0; n < w->n; n++) {
		unsigned i;

		if (w->packed) {
			bool wrap = at < NUM;
			uint16_t flags = desc[at % NUM].flags;

			if (!!(flags & 1U << 7) != wrap ||
			    !!(flags & 1U << 15) != wrap)
				break;
			i = chain_of(w, desc[at % NUM].id);
			at += w->slots[i];
		} else {
			if ((uint16_t)(FIRST + n) == used->idx)
				break;
			i = chain_of(w, used->ring[(FIRST + n) % NUM].id);
		}
		if (back & 1U << i)
			fail("a chain came back twice");
		back |= 1U << i;
	}
	return back;
}

/* ---- the device ---- */

static struct vu_ring *start(const struct world *w, char *mem,
			     struct vu_mem **ret_map)
{
	struct vu_ring_config cfg = {
	    .desc_uva = UVA,
	    .avail_uva = UVA + AVAIL,
	    .used_uva = UVA + USED,
	    .log_used_gpa = UINT64_MAX,
	    .inflight = mem + AREA,
	    .inflight_size = vu_inflight_size(NUM, w->packed),
	    .num = NUM,
	    .kick_fd = -1,
	    .call_fd = -1,
	};
	struct vu_ring *ring;
	int err = 0;

	/* what a front-end can know: split: what is used; packed: nothing */
	if (w->packed) {
		cfg.features = 1ULL << VIRTIO_F_RING_PACKED;
		cfg.base = AT | 1U << 15;
		cfg.base |= cfg.base << 16;
	} else {
		cfg.base = ((struct vring_used *)(void *)(mem + USED))->idx;
	}
	*ret_map = vu_mem_new();
	if (vu_mem_add(*ret_map, GPA, UVA, AREA, mem))
		fail("memory map");
	ring = vu_ring_new(*ret_map, &cfg, &err);
	if (!ring)
		fail("start");
	return ring;
}

static void work(const struct world *w, unsigned seed)
{
	struct vu_chain have[NUM];
	struct iovec iov[NUM];
	struct vu_mem *map;
	struct vu_ring *ring = start(w, w->mem, &map);
	unsigned n = 0; /* chains that we have, in the order of their pops */
	unsigned fresh = 0; /* of them, popped after the last push */

	srand(seed);
	for (unsigned step = 0; step < 60; step++) {
		unsigned what = (unsigned)rand() % 8;

		if (what < 4) {
			int ret = vu_ring_pop(ring, iov, NUM, &have[n]);

			if (ret < 0)
				fail("pop");
			n += (unsigned)ret;
			fresh += (unsigned)ret;
		} else if (what == 4 && fresh) {
			vu_ring_unpop(ring, 1);
			n--;
			fresh--;
		} else if (what < 7 && n) {
			unsigned which = (unsigned)rand() % n;

			vu_ring_push(ring, &have[which], NULL, 0);
			n--;
			memmove(have + which, have + which + 1,
				(n - which) * sizeof(*have));
			fresh = 0;
		} else if (what == 7) {
			vu_ring_flush(ring);
		}
	}
	_exit(0);
}

/* ---- the successor ---- */

static void check_chain(const struct world *w, unsigned i,
			const struct vu_chain *chain, const struct iovec *iov,
			const char *mem)
{
	if (chain->n_read != w->slots[i] || chain->n_write)
		fail("a chain changed its shape");
	for (unsigned j = 0; j < w->slots[i]; j++) {
		if (iov[j].iov_base != mem + (addr_of(i, j) - GPA) ||
		    iov[j].iov_len != len_of(i, j))
			fail("a chain changed its buffers");
	}
}

static void succeed(const struct world *w, char *mem)
{
	unsigned back = got_back(w, mem), all = (1U << w->n) - 1, n = 0;
	struct vu_chain have[NUM + 1];
	struct iovec iov[NUM];
	struct vu_mem *map;
	struct vu_ring *ring = start(w, mem, &map);
	int ret;

	for (unsigned i = 0; i < w->n; i++) {
		if (back & 1U << i)
			continue;
		ret = vu_ring_pop(ring, iov, NUM, &have[n]);
		if (ret != 1)
			fail("a chain is lost");
		if (chain_of(w, have[n].head) != i)
			fail("a chain is out of order");
		check_chain(w, i, &have[n++], iov, mem);
	}
	if (vu_ring_pop(ring, iov, NUM, &have[n]))
		fail("a chain too many");
	while (n)
		vu_ring_push(ring, &have[--n], NULL, 0);
	vu_ring_flush(ring);
	if (got_back(w, mem) != all)
		fail("a chain didn't come back");
	vu_ring_free(ring);
	vu_mem_free(map);
}

/* ---- killing ---- */

static struct {
	const struct world *w;
	char *copy;
	unsigned *states; /* shared with the parent */
	unsigned left;	  /* stores to live */
	bool busy;
} now;

void stored(void)
{
	if (!now.w || now.busy)
		return;
	now.busy = true;
	memcpy(now.copy, now.w->mem, SIZE);
	succeed(now.w, now.copy);
	++*now.states;
	now.busy = false;
	if (!now.left--)
		kill(getpid(), SIGKILL);
}

static void live(const struct world *w, unsigned seed, unsigned stores,
		 unsigned *states)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		now.w = w;
		now.copy = aligned_alloc(4096, SIZE);
		now.states = states;
		now.left = stores;
		work(w, seed);
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL
				: WEXITSTATUS(status))
		fail("the device");
}

static void *shared(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		fail("mmap");
	return at;
}

int main(int argc, char **argv)
{
	struct world w = {.packed = argc > 1 && !strcmp(argv[1], "packed")};
	unsigned seed = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
	unsigned end = seed + (argc > 3 ? (unsigned)atoi(argv[3]) : 1);
	unsigned *states = shared(sizeof(*states));

	w.mem = shared(SIZE);
	for (; seed < end; seed++) {
		unsigned left = NUM;

		memset(w.mem, 0, SIZE);
		srand(seed);
		for (w.n = 0; left; w.n++) {
			unsigned most = left < 3 ? left : 3;

			w.slots[w.n] = (uint16_t)(1 + (unsigned)rand() % most);
			left -= w.slots[w.n];
		}
		if (w.packed)
			fill_packed(&w);
		else
			fill_split(&w);
		for (unsigned life = 0; life < 4; life++)
			live(&w, seed * 4 + life, (unsigned)rand() % 200,
			     states);
		succeed(&w, w.mem);
	}
	printf("%u states\n", *states);
	return 0;
}
