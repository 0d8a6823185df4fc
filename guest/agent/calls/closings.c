// SPDX-License-Identifier: Apache-2.0
/*
 * closings.c - when listeners are closed
 *
 * Theory of operation
 * ===================
 *
 * When is a listener closed? The agent must not have a descriptor of it, and
 * programs close them in many ways: close(), exec(), exit(). inotify tells:
 * the last close of a file is an event of its inode, a socket's, too. That is
 * tried with the first listener. Where a kernel gives no such event, the agent
 * looks twice a second whether a bind() to the listener's port still fails.
 */

#define _GNU_SOURCE
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "agent/tsi.h"

#define LOOK_MS 500 /* for listeners, without inotify */

static struct source closings;
static int inotify = -1; /* -1 is also: sockets have no events */
static bool inotify_tried;
static int64_t next_look_ms;
static unsigned unwatched; /* listeners */

/* ---- inotify ---- */

/**
 * closings_forget() - A listener has ended
 * @listener:	Listener
 */
void closings_forget(const struct listener *listener)
{
	if (listener->watch >= 0)
		inotify_rm_watch(inotify, listener->watch);
	else
		unwatched--;
}

/* ---- what nobody tells of ---- */

/**
 * closings_end() - A listener is closed: tell the host
 * @listener:	Listener
 */
void closings_end(struct listener *listener)
{
	closings_forget(listener);
	listeners_end(listener);
}

/**
 * closing() - A watched socket was closed
 * @watch:	Its watch
 */
static void closing(int watch)
{
	struct listener *listener = NULL;

	while ((listener = listeners_next(listener)))
		if (listener->watch == watch) {
			closings_end(listener);
			return;
		}
}

/**
 * read_closings() - Take what inotify has
 *
 * Returns: how many sockets were closed
 */
static unsigned read_closings(void)
{
	char buf[64 * sizeof(struct inotify_event)]
	    __attribute__((aligned(__alignof__(struct inotify_event))));
	const struct inotify_event *event;
	unsigned count = 0;
	ssize_t len;

	while ((len = read(inotify, buf, sizeof(buf))) > 0)
		for (ssize_t at = 0; at < len;
		     at += (ssize_t)(sizeof(*event) + event->len)) {
			event = (const void *)(buf + at);
			if (!(event->mask & IN_CLOSE))
				continue;
			closing(event->wd);
			count++;
		}
	return count;
}

/**
 * closings_ready() - inotify has something
 * @source:	Unused: there is one
 * @events:	Unused
 */
static void closings_ready(struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	read_closings();
}

/**
 * watch() - Be told when a socket is closed
 * @fd:		Socket
 *
 * Returns: watch, -1 if that is not possible
 */
static int watch(int fd)
{
	char path[32];

	if (inotify < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return inotify_add_watch(inotify, path, IN_CLOSE);
}

/**
 * try_inotify() - See whether the kernel tells when sockets are closed
 */
static void try_inotify(void)
{
	int fd;

	if (inotify_tried)
		return;
	inotify_tried = true;
	inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	watch(fd);
	close(fd);
	if (inotify >= 0 && read_closings() == 0) {
		close(inotify);
		inotify = -1;
	}
	if (inotify >= 0) {
		closings.ready = closings_ready;
		loop_add(&closings, inotify, EPOLLIN);
	}
	debug("closed listeners are %s", inotify < 0 ? "looked for" : "told");
}

/**
 * closings_expect() - A listener begins, which nothing watches yet
 * @listener:	Listener
 */
void closings_expect(const struct listener *listener)
{
	unwatched += listener->watch < 0;
}

/**
 * closings_watch() - Be told when a listener is closed, if that is possible
 * @listener:	Listener
 * @fd:		Its socket
 */
void closings_watch(struct listener *listener, int fd)
{
	try_inotify();
	listener->watch = watch(fd);
	if (listener->watch >= 0)
		unwatched--;
}

/**
 * is_free() - Is a vsock port free, its listener gone?
 * @port:	Port
 *
 * Returns: true if it is
 */
static bool is_free(uint32_t port)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool freed = fd >= 0 && ports_bind(fd, port) == 0;

	if (fd >= 0)
		close(fd);
	return freed;
}

/**
 * closings_look() - End the listeners that are gone, where nobody tells
 */
void closings_look(void)
{
	struct listener *listener = NULL;

	while ((listener = listeners_next(listener)))
		if (listener->watch < 0 && is_free(listener->is->port))
			closings_end(listener);
}

/**
 * closings_reap() - Give back the ports of listeners that were closed just now
 *
 * Before a program binds: it may be the one that closed them.
 */
void closings_reap(void)
{
	if (!listeners_any())
		return;
	if (inotify >= 0)
		read_closings();
	if (unwatched)
		closings_look();
}

/**
 * closings_tick() - See to closed listeners and the stream, if it is time to
 */
void closings_tick(void)
{
	if (closings_timeout_ms() != 0)
		return;
	next_look_ms = now_ms() + LOOK_MS;
	if (unwatched)
		closings_look();
	if (listeners_any())
		control_keep();
}

/**
 * closings_timeout_ms() - How long the event loop may sleep
 *
 * Returns: ms, -1 for any time
 */
int closings_timeout_ms(void)
{
	if (!listeners_any() || (!unwatched && control_is_open()))
		return -1;
	return ms_until(next_look_ms);
}
