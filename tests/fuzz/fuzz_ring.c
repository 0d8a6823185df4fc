// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_ring.c - a driver, and a front-end, that do anything to a ring
 *
 * Theory of operation
 * ===================
 *
 * libFuzzer's bytes choose a ring (split or packed, features, size, with an
 * inflight area and a dirty log or without), then are a program of small steps:
 * the driver offers chains in any layout or scribbles over the ring, the
 * front-end scribbles over the inflight area, moves the ring and a region of
 * memory, or takes it away; the device pops, uses, puts back, pushes, flushes
 * and restarts. As on another CPU, driver and front-end also write between two
 * loads of the device, close to what was loaded (fuzz_ring.h).
 *
 * Guest memory is three regions, each an allocation of its own, adjacent for
 * the guest at first: what leaves one by a byte is a report of ASan's. So are
 * the inflight area and the log of exactly their size. What else must hold:
 * each segment of a popped chain lies in a region, lengths add up, what is
 * flushed is what was pushed, in its order, and only pages that were written
 * are marked.
 *
 * The corpus starts with programs that LLVMFuzzerInitialize() writes: a driver
 * that keeps the rules, for each kind of ring.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ring_driver.h"

static void check(bool fine)
{
	if (!fine)
		abort();
}

/* The guest page of a byte that a segment has; it must be in a region */
static unsigned page_of(const struct world *w, const char *va)
{
	for (unsigned i = 0; i < 3; i++) {
		if (va >= w->regions[i] && va < w->regions[i] + REGION)
			return (unsigned)(GPA + w->off[i] +
					  (uint32_t)(va - w->regions[i])) /
			       LOG_PAGE;
	}
	abort();
}

static void pop(struct world *w, struct input *in)
{
	struct held *h = &w->held[w->n_held];
	unsigned cap = byte(in) & 7 ? IOV : 3;
	uint64_t read_len = 0, write_len = 0;
	volatile char last;
	int ret;

	if (w->n_held == HELD)
		return;
	ret = vu_ring_pop(w->ring, h->iov, cap, &h->chain);
	if (ret <= 0)
		return;
	check((unsigned)h->chain.n_read + h->chain.n_write <= cap);
	for (unsigned i = 0; i < (unsigned)h->chain.n_read + h->chain.n_write;
	     i++) {
		const struct iovec *v = &h->iov[i];
		const char *at = v->iov_base;

		if (!v->iov_len)
			continue;
		check(page_of(w, at) <= page_of(w, at + v->iov_len - 1));
		if (i < h->chain.n_read) {
			read_len += v->iov_len;
			last = at[0];
			last = at[v->iov_len - 1];
		} else {
			write_len += v->iov_len;
		}
	}
	check(read_len == h->chain.read_len && write_len == h->chain.write_len);
	(void)last;
	w->n_held++;
	w->fresh++;
}

static void push(struct world *w, struct input *in)
{
	unsigned which = w->n_held ? byte(in) % w->n_held : 0;
	struct held *h = &w->held[which];
	const struct iovec *iov = h->iov + h->chain.n_read;
	uint32_t len = word(in), left;

	if (!w->n_held || w->n_pushed == HELD)
		return;
	if (len > h->chain.write_len)
		len = (uint32_t)h->chain.write_len;
	if (!w->n_pushed) {
		w->scribbled = false;
		w->base = packed(w) ? vu_ring_base(w->ring) : w->ring->used_idx;
	}
	left = len;
	for (unsigned i = 0; left; i++) {
		uint32_t n =
		    left < iov[i].iov_len ? left : (uint32_t)iov[i].iov_len;
		unsigned page;

		if (!n)
			continue;
		page = page_of(w, iov[i].iov_base);
		memset(iov[i].iov_base, 0x5a, n);
		w->scribbled |= page < (GPA + DATA) / LOG_PAGE;
		for (; page <= page_of(w, (char *)iov[i].iov_base + n - 1);
		     page++)
			w->written[page] = true;
		left -= n;
	}
	vu_ring_push(w->ring, &h->chain, iov, len);
	w->pushed[w->n_pushed] = h->chain.head;
	w->slots[w->n_pushed++] = h->chain.slots;
	w->n_held--;
	memmove(h, h + 1, (w->n_held - which) * sizeof(*h));
	if (w->fresh > w->n_held - which)
		w->fresh = w->n_held - which;
}

/* What the driver sees of a batch is what was pushed, in order */
static void check_batch(struct world *w)
{
	const struct vring_used *used = (void *)ram(w, USED);
	const struct vring_packed_desc *desc = (void *)ram(w, 0);
	struct place at = {(uint16_t)(w->base >> 16 & 0x7fff), w->base >> 31};

	for (unsigned i = 0; i < w->n_pushed; i++) {
		if (packed(w)) {
			const struct vring_packed_desc *d = &desc[at.index];

			check(d->id == w->pushed[i]);
			check(!!(d->flags & DESC_AVAIL) == at.wrap &&
			      !!(d->flags & DESC_USED) == at.wrap);
			at = place_add(w->ring, at, w->slots[i]);
		} else if (w->n_pushed - i <= w->cfg.num) {
			check(used->ring[(w->base + i) % w->cfg.num].id ==
			      w->pushed[i]);
		}
	}
	if (!packed(w))
		check(used->idx == (uint16_t)(w->base + w->n_pushed));
}

static void flush(struct world *w)
{
	vu_ring_flush(w->ring);
	check(vu_ring_unflushed(w->ring) == 0);
	if (w->n_pushed && !w->scribbled && !w->ring_moved)
		check_batch(w);
	w->n_pushed = 0;
	check(!vu_ring_flush(w->ring));
}

static void start_ring(struct world *w)
{
	int err = 0;

	w->ring = vu_ring_new(w->mem, &w->cfg, &err);
	check(w->ring ? !err : err < 0);
	w->n_held = w->fresh = w->n_pushed = 0;
}

/* The last region goes away or, at any address, comes back */
static void move_memory(struct world *w, struct input *in)
{
	uint32_t to = word(in) % (RAM + REGION);

	vu_mem_del(w->mem, GPA + w->off[2], UVA + w->off[2], REGION);
	if (!vu_mem_add(w->mem, GPA + to, UVA + to, REGION, w->regions[2]))
		w->off[2] = to;
}

/* Parts of the ring are anywhere, or where they were */
static void move_ring(struct world *w, struct input *in)
{
	uint64_t *parts[] = {&w->cfg.desc_uva, &w->cfg.avail_uva,
			     &w->cfg.used_uva};

	*parts[byte(in) % 3] = UVA + word(in) % (RAM + 16);
	w->ring_moved = true;
}

static void restart(struct world *w, struct input *in)
{
	uint8_t how = byte(in);

	if (how & 1)
		flush(w);
	if (how & 2)
		w->cfg.base = vu_ring_base(w->ring);
	if (how & 4)
		w->cfg.base = word(in);
	for (uint8_t n = how >> 5; n && w->cfg.inflight; n--) {
		uint64_t at = word(in) % w->cfg.inflight_size;

		((uint8_t *)w->cfg.inflight)[at] = byte(in);
	}
	vu_ring_free(w->ring);
	if (how & 8)
		move_memory(w, in);
	if (how & 16)
		move_ring(w, in);
	start_ring(w);
}

static void step(struct world *w, struct input *in)
{
	uint8_t op = byte(in);

	switch (op & 15) {
	case 0:
	case 1:
	case 2:
		offer(w, in, op & 64);
		break;
	case 3:
		if (op & 64)
			plan_race(w, in);
		else
			scribble(w, in);
		break;
	case 4:
	case 5:
	case 6:
		for (unsigned n = 1 + (op >> 4); n; n--)
			pop(w, in);
		break;
	case 7:
	case 8:
	case 9:
		push(w, in);
		break;
	case 10:
		if (w->fresh) {
			vu_ring_unpop(w->ring, 1);
			w->n_held--;
			w->fresh--;
		}
		break;
	case 11:
	case 12:
		flush(w);
		break;
	case 13:
		vu_ring_want_kicks(w->ring, op & 16);
		break;
	case 14:
		want_calls(w, in);
		vu_ring_pending(w->ring);
		break;
	default:
		restart(w, in);
	}
}

/* The log has what chains were written, and besides at most the ring */
static void check_log(const struct world *w)
{
	for (unsigned page = 0; page < PAGES; page++) {
		bool marked = w->log[page / 8] >> page % 8 & 1;

		if (w->written[page])
			check(marked);
		else
			check(!marked || w->ring_moved ||
			      (w->cfg.log_used_gpa != UINT64_MAX &&
			       page >= GPA / LOG_PAGE &&
			       page < (GPA + DATA) / LOG_PAGE));
	}
}

/**
 * LLVMFuzzerTestOneInput() - Run one program of steps
 * @data:	The program
 * @size:	Its size, bytes
 *
 * Returns: 0
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	static int null = -1;
	struct input in = {.at = data, .left = size};
	uint8_t how = byte(&in), num = byte(&in);

	if (null < 0)
		null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	w = (struct world){.mem = vu_mem_new(), .wrap = true};
	for (unsigned i = 0; i < 3; i++) {
		w.regions[i] = aligned_alloc(LOG_PAGE, REGION);
		memset(w.regions[i], 0, REGION);
		w.off[i] = i * REGION;
		check(!vu_mem_add(w.mem, GPA + i * REGION, UVA + i * REGION,
				  REGION, w.regions[i]));
	}
	w.cfg = (struct vu_ring_config){
	    .desc_uva = UVA,
	    .avail_uva = UVA + AVAIL,
	    .used_uva = UVA + USED,
	    .log_used_gpa = how & F_LOG_USED ? GPA + USED : UINT64_MAX,
	    .features =
		(how & F_EVENT_IDX ? 1ULL << VIRTIO_RING_F_EVENT_IDX : 0) |
		(how & F_INDIRECT ? 1ULL << VIRTIO_RING_F_INDIRECT_DESC : 0) |
		(how & F_PACKED ? 1ULL << VIRTIO_F_RING_PACKED : 0),
	    .num = how & F_PACKED ? 1U + num % MAX_NUM : 1U << num % 7,
	    .base = how & F_PACKED ? 0x80008000U : 0,
	    .kick_fd = -1,
	    .call_fd = null, /* each interrupt is a write to it */
	};
	if (how & F_INFLIGHT) {
		w.cfg.inflight_size =
		    vu_inflight_size(w.cfg.num, how & F_PACKED);
		w.cfg.inflight = calloc(1, w.cfg.inflight_size);
	}
	if (how & F_LOG) {
		w.log = calloc(1, (PAGES + 7) / 8);
		check(!vu_mem_set_log(w.mem, w.log, (PAGES + 7) / 8));
	}
	start_ring(&w);
	racing = &w;
	while (in.left && w.ring)
		step(&w, &in);
	racing = NULL;
	if (w.ring)
		flush(&w);
	if (w.log)
		check_log(&w);
	vu_ring_free(w.ring);
	vu_mem_free(w.mem);
	for (unsigned i = 0; i < 3; i++)
		free(w.regions[i]);
	free(w.cfg.inflight);
	free(w.log);
	return 0;
}

/**
 * write_seed() - Write a program of a driver that keeps the rules
 * @dir:	Corpus
 * @how:	The ring's F_ bits
 */
static void write_seed(const char *dir, uint8_t how)
{
	uint8_t seed[400] = {how, 4};
	size_t n = 2;
	char path[4096];
	FILE *file;

	for (uint8_t i = 0; i < 12; i++) {
		const uint8_t steps[] = {
		    0,	  1,	i & 1, 100, i & 1, 20, /* two descriptors */
		    64,	  1,	0,     50,  1,	   60, /* a table of two */
		    0x14, 1,	1,		       /* pop two */
		    7,	  0,	30,    0,   0,	   0,  /* push one of them */
		    10,				       /* the other goes back */
		    11,	  0x1d,			       /* flush, want kicks */
		    0x0f, 3,			       /* restart */
		};

		memcpy(seed + n, steps, sizeof(steps));
		n += sizeof(steps);
	}
	snprintf(path, sizeof(path), "%s/seed-%02x", dir, how);
	file = fopen(path, "w");
	if (!file)
		return;
	fwrite(seed, 1, n, file);
	fclose(file);
}

/**
 * LLVMFuzzerInitialize() - Write seeds into an empty corpus
 * @argc:	Arguments
 * @argv:	Same; the first that is no option is the corpus
 *
 * Returns: 0
 */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct stat st;

	for (int i = 1; i < *argc; i++) {
		const char *dir = (*argv)[i];

		if (dir[0] == '-')
			continue;
		if (!stat(dir, &st) && S_ISDIR(st.st_mode)) {
			for (unsigned how = 0; how < 64; how++)
				write_seed(dir, (uint8_t)how);
		}
		break;
	}
	return 0;
}
