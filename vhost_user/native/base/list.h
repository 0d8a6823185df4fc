/* SPDX-License-Identifier: Apache-2.0 */
/*
 * list.h - doubly linked lists; an unlinked node points to itself
 */
#ifndef LIST_H
#define LIST_H

#include <stdbool.h>
#include <stddef.h>

#ifndef container_of
#define container_of(ptr, type, member)                                        \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))
#endif

struct list {
	struct list *next;
	struct list *prev;
};

static inline void list_init(struct list *node)
{
	node->next = node->prev = node;
}

static inline bool list_empty(const struct list *node)
{
	return node->next == node;
}

static inline void list_del(struct list *node)
{
	node->next->prev = node->prev;
	node->prev->next = node->next;
	list_init(node);
}

/* Append @node to @head; a node that is on a list already stays there */
static inline void list_add(struct list *head, struct list *node)
{
	if (!list_empty(node))
		return;
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

/* Append @node to @head, from whatever list it is on */
static inline void list_move(struct list *head, struct list *node)
{
	list_del(node);
	list_add(head, node);
}

/* Move all nodes of @from to the end of @to */
static inline void list_splice(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	list_init(from);
}

/* Move all nodes of @from to the start of @to */
static inline void list_splice_first(struct list *to, struct list *from)
{
	list_splice(from, to);
	list_splice(to, from);
}

#endif /* LIST_H */
