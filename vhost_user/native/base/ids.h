/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ids.h - things by ids that are for one thing only
 */
#ifndef IDS_H
#define IDS_H

#include <stdint.h>

#define IDS_MOST  65536U
#define IDS_SHORT 0xffffffU /* of an id: what an epoll tag has room for */

/**
 * struct ids - Things by their ids; all zero: none
 * @at:		By slot; NULL: a free one
 * @rounds:	How often each slot was used
 * @cap:	Slots
 * @next:	Where to look for a free one
 * @count:	Things
 */
struct ids {
	void **at;
	uint16_t *rounds;
	uint32_t cap;
	uint32_t next;
	uint32_t count;
};

int ids_add(struct ids *t, void *what);
void *ids_get(const struct ids *t, uint32_t id);
void *ids_short(const struct ids *t, uint32_t part);
void *ids_del(struct ids *t, uint32_t id);
uint32_t ids_any(const struct ids *t);
void ids_free(struct ids *t);

#endif /* IDS_H */
