/* SPDX-License-Identifier: Apache-2.0 */
/*
 * survey.h - what survey.c has for exchange.c
 */
#ifndef SURVEY_H
#define SURVEY_H

#include <sys/epoll.h>

#include "agent/tsi.h"

/**
 * struct registration - The socket in an epoll instance
 * @epoll:	Descriptor of the process
 * @num:	The number it was registered under
 * @event:	Events and data
 */
struct registration {
	int epoll;
	int num;
	struct epoll_event event;
};

/**
 * struct survey - Where a process keeps a socket
 * @tid:	Thread that has the descriptors
 * @num:	The one that its call names the socket by
 * @inode:	The socket's
 * @n_holders:	Used of @holders
 * @n_registrations: Used of @registrations
 * @holders:	The other ones
 * @registrations: epoll registrations
 * @looked:	@holders are found already
 * @short_of_memory: There are more of either
 */
struct survey {
	pid_t tid;
	int num;
	unsigned long inode;
	unsigned n_holders;
	unsigned n_registrations;
	int *holders;
	struct registration *registrations;
	bool looked;
	bool short_of_memory;
};

void survey_begin(const struct call *call, int num, int fd, unsigned long inode,
		  struct survey *ret_survey);
void survey_holders(struct survey *survey, int epoll, int fd);
void survey_end(struct survey *survey);
void survey_expect_epoll(const struct call *call);

#endif /* SURVEY_H */
