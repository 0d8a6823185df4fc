// SPDX-License-Identifier: Apache-2.0
/*
 * shake.c - handshakes, on a thread of their own
 *
 * Theory of operation
 * ===================
 *
 * A handshake costs about 0.3 ms of CPU, more than a turn of the engine may
 * take. So each of its steps is done here: the engine hands over a session
 * whose socket has something, and takes it back when it waits or is done. The
 * session is nobody else's meanwhile; the lock is held for two list operations,
 * never over a step, so the engine doesn't wait for one.
 */

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <sys/eventfd.h>

#include "tls/tls.h"
#include "vu_err.h"

/**
 * shaker_init() - Make a shaker without a thread
 * @s:		Shaker
 */
void shaker_init(struct shaker *s)
{
	*s = (struct shaker){.fd = -1};
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	list_init(&s->todo);
	list_init(&s->done);
}

/**
 * next() - Wait for a session
 * @s:		Shaker, locked
 *
 * Returns: it; NULL: it is time to end
 */
static struct tls *next(struct shaker *s)
{
	struct tls *t;

	while (!s->stops && list_empty(&s->todo))
		pthread_cond_wait(&s->work, &s->lock);
	if (s->stops)
		return NULL;
	t = container_of(s->todo.next, struct tls, link);
	list_del(&t->link);
	return t;
}

/**
 * run() - Be the thread
 * @arg:	Shaker
 *
 * Returns: NULL
 */
static void *run(void *arg)
{
	const uint64_t one = 1;
	struct shaker *s = arg;
	struct tls *t;
	sigset_t all;

	sigfillset(&all); /* whoever signals the process means another thread */
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	pthread_mutex_lock(&s->lock);
	while ((t = next(s))) {
		pthread_mutex_unlock(&s->lock);
		tls_shake(t);
		pthread_mutex_lock(&s->lock);
		list_add(&s->done, &t->link);
		if (write(s->fd, &one, sizeof(one)) < 0)
			errno = 0; /* the counter is full: it is readable */
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/**
 * shaker_start() - Start the thread, unless it runs
 * @s:		Shaker
 *
 * Called by Python's thread: the new one may run where that may.
 *
 * Returns: 0; 1 if it ran already; -VU_ERR_SYS
 */
int shaker_start(struct shaker *s)
{
	int error;

	if (s->runs)
		return 1;
	s->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->fd < 0)
		return -VU_ERR_SYS;
	error = pthread_create(&s->thread, NULL, run, s);
	if (error) {
		close(s->fd);
		s->fd = -1;
		errno = error;
		return -VU_ERR_SYS;
	}
	s->runs = true;
	return 0;
}

/**
 * shaker_stop() - End the thread: what it has is the caller's again
 * @s:		Shaker
 */
void shaker_stop(struct shaker *s)
{
	if (!s->runs)
		return;
	pthread_mutex_lock(&s->lock);
	s->stops = true;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	s->runs = false;
	close(s->fd);
}

/**
 * shaker_free() - Free what a shaker has
 * @s:		Shaker, stopped, and of no session any more
 */
void shaker_free(struct shaker *s)
{
	pthread_cond_destroy(&s->work);
	pthread_mutex_destroy(&s->lock);
}

/**
 * shaker_push() - Have a handshake go on
 * @s:		Shaker with a thread
 * @t:		Session, the thread's until shaker_take() gives it back
 */
void shaker_push(struct shaker *s, struct tls *t)
{
	pthread_mutex_lock(&s->lock);
	list_add(&s->todo, &t->link);
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

/**
 * shaker_take() - Take a session back
 * @s:		Shaker
 *
 * Returns: it; NULL if there is none now
 */
struct tls *shaker_take(struct shaker *s)
{
	struct tls *t = NULL;

	pthread_mutex_lock(&s->lock);
	if (!list_empty(&s->done)) {
		t = container_of(s->done.next, struct tls, link);
		list_del(&t->link);
	}
	pthread_mutex_unlock(&s->lock);
	return t;
}
