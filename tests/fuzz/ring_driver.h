/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring_driver.h - the driver of fuzz_ring.c: what it offers, scribbles over and
 * writes while the device looks
 */
#ifndef RING_DRIVER_H
#define RING_DRIVER_H

#include <string.h>

#include <linux/virtio_config.h>

#include "input.h"
#include "ring/ring.h"

#define REGION	0x4000U /* bytes of each of the three */
#define RAM	(3 * REGION)
#define GPA	0x100000U
#define UVA	0x7f0000000000ULL
#define AVAIL	0x1000U
#define USED	0x2000U
#define DATA	0x3000U /* chains live from here to the end of RAM */
#define MAX_NUM 64U
#define HELD	128U
#define IOV	80U
#define PAGES	(GPA / LOG_PAGE + 2 * RAM / LOG_PAGE)

enum {
	F_PACKED = 1,
	F_EVENT_IDX = 2,
	F_INDIRECT = 4,
	F_INFLIGHT = 8,
	F_LOG = 16,
	F_LOG_USED = 32,
};

/* What is written meanwhile */
struct race {
	uint8_t loads; /* from now; 0: nothing */
	int8_t off;    /* from what was loaded last */
	uint8_t n;
	uint8_t bytes[16];
};

/* A chain that the device has */
struct held {
	struct vu_chain chain;
	struct iovec iov[IOV];
};

struct world {
	struct vu_mem *mem;
	struct vu_ring *ring;
	struct vu_ring_config cfg;
	char *regions[3];
	uint32_t off[3]; /* of their addresses; the last one moves */
	bool ring_moved;
	uint8_t *log;
	bool written[PAGES]; /* by the device, chains only */
	struct held held[HELD];
	unsigned n_held;
	unsigned fresh;	       /* of them, popped last */
	uint16_t pushed[HELD]; /* ids that were pushed, not flushed */
	uint16_t slots[HELD];  /* of the same chains */
	unsigned n_pushed;
	bool scribbled; /* since the first of these pushes */
	uint32_t base;	/* where the device was then */
	struct race race;
	/* the driver */
	uint16_t avail_idx;
	unsigned next;
	bool wrap;
	uint32_t data;
};

static char *ram(struct world *w, uint32_t off)
{
	return w->regions[off / REGION] + off % REGION;
}

static bool packed(const struct world *w)
{
	return w->cfg.features >> VIRTIO_F_RING_PACKED & 1;
}

/* Any descriptor; mostly one that keeps the rules */
static void make_desc(struct world *w, struct input *in, uint64_t *addr,
		      uint32_t *len, uint16_t *flags, uint16_t *next)
{
	uint8_t how = byte(in);

	*addr = GPA + DATA + w->data % (RAM - DATA);
	*len = byte(in);
	*flags = how & 1 ? VRING_DESC_F_WRITE : 0;
	w->data += 64 * (1U + (how >> 6));
	if (how & 2)
		*len = word(in);
	if (how & 4)
		*addr = GPA + word(in) % (RAM + 16);
	if (how & 8)
		*addr = (uint64_t)word(in) << (how >> 4 << 1);
	if ((how & 0x30) == 0x30)
		*flags = (uint16_t)word(in);
	if ((how & 0xc8) == 0xc0)
		*next = (uint16_t)word(in);
}

/* An indirect table of up to 4 descriptors */
static uint32_t make_table(struct world *w, struct input *in, uint64_t *addr)
{
	uint32_t n = 1 + (byte(in) & 3),
		 off = DATA + (w->data & ~15U) % 0x4000U;

	*addr = GPA + off;
	w->data += 64;
	for (uint32_t i = 0; i < n; i++) {
		struct vring_desc d = {.next = (uint16_t)(i + 1)};
		uint16_t flags, next = d.next;
		uint64_t a;

		make_desc(w, in, &a, &d.len, &flags, &next);
		d.next = next;
		d.addr = a;
		d.flags = flags;
		if (i + 1 < n)
			d.flags |= VRING_DESC_F_NEXT;
		/* a packed table's entry has an id where next is */
		memcpy(ram(w, off + 16 * i), &d, sizeof(d));
	}
	return 16 * n;
}

static void offer(struct world *w, struct input *in, bool indirect)
{
	uint32_t num = w->cfg.num, n = indirect ? 1 : 1 + (byte(in) & 3);
	struct vring_avail *avail = (void *)ram(w, AVAIL);
	unsigned at = w->next;
	uint16_t head = (uint16_t)(at % num);

	for (uint32_t i = 0; i < n; i++, at++) {
		struct vring_desc d = {.next = (uint16_t)((at + 1) % num)};
		uint16_t flags = VRING_DESC_F_INDIRECT, next = d.next;
		uint64_t a;

		if (indirect)
			d.len = make_table(w, in, &a);
		else
			make_desc(w, in, &a, &d.len, &flags, &next);
		d.next = next;
		d.addr = a;
		d.flags = flags;
		if (i + 1 < n)
			d.flags |= VRING_DESC_F_NEXT;
		if (packed(w)) {
			if (at && at % num == 0)
				w->wrap = !w->wrap;
			d.next = d.flags & (uint16_t) ~(DESC_AVAIL | DESC_USED);
			d.next |= w->wrap ? DESC_AVAIL : DESC_USED;
			d.flags = head; /* the id is where flags are */
		}
		memcpy(ram(w, (at % num) * 16), &d, sizeof(d));
	}
	w->next = at;
	w->scribbled |= packed(w); /* perhaps over used ones */
	if (packed(w))
		return;
	avail->ring[w->avail_idx++ % num] = head;
	avail->idx = w->avail_idx;
}

static void scribble(struct world *w, struct input *in)
{
	uint32_t off = (byte(in) & 3) * 0x1000U + word(in) % (16 * w->cfg.num);
	uint8_t n = byte(in) & 15;

	for (uint8_t i = 0; i < n; i++)
		*ram(w, off + i) = (char)byte(in);
	w->scribbled = true;
}

static void plan_race(struct world *w, struct input *in)
{
	struct race *r = &w->race;

	r->loads = byte(in);
	r->off = (int8_t)byte(in);
	r->n = byte(in) & 15;
	for (uint8_t i = 0; i < r->n; i++)
		r->bytes[i] = byte(in);
}

static struct world *racing;

/* Is it one byte of @n at @area? */
static bool inside(uintptr_t at, const void *area, size_t n)
{
	return at - (uintptr_t)area < n;
}

/**
 * loaded() - The device has loaded something: maybe write now
 * @at:		What
 */
void loaded(const volatile void *at)
{
	struct world *w = racing;

	if (!w || !w->race.loads || --w->race.loads)
		return;
	for (uint8_t i = 0; i < w->race.n; i++) {
		uintptr_t to =
		    (uintptr_t)at + (uintptr_t)(intptr_t)w->race.off + i;
		bool shared = inside(to, w->cfg.inflight, w->cfg.inflight_size);

		for (unsigned r = 0; r < 3; r++)
			shared |= inside(to, w->regions[r], REGION);
		if (shared)
			*(uint8_t *)to = w->race.bytes[i];
	}
	w->scribbled = true;
}

/* The driver says which interrupts it wants */
static void want_calls(struct world *w, struct input *in)
{
	struct vring_packed_desc_event *event = (void *)ram(w, AVAIL);
	struct vring_avail *avail = (void *)event;
	uint32_t how = word(in);

	if (packed(w)) {
		event->off_wrap = (uint16_t)(how & 0x803f);
		event->flags = (uint16_t)(how >> 16 & 3);
	} else {
		avail->flags = (uint16_t)(how & 1);
		avail->ring[w->cfg.num] = (uint16_t)(how >> 16);
	}
}

#endif /* RING_DRIVER_H */
