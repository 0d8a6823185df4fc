// SPDX-License-Identifier: Apache-2.0
/*
 * call.c - interrupting the guest, without sleeping for ever
 *
 * Theory of operation
 * ===================
 *
 * An interrupt is a write to the ring's call eventfd. The front-end shares its
 * open file description: it can clear O_NONBLOCK at any time and fill the
 * counter. Then write() sleeps until someone reads, and with it whoever waits
 * for our thread. Nothing prevents that: a write to an eventfd knows no
 * RWF_NOWAIT (EOPNOTSUPP, Linux 6.18), an eventfd can't be opened again for a
 * description of our own, and what poll() says is old when write() starts.
 *
 * So a thread watches. Each thread that sends interrupts has a mark with a
 * count, odd while it is in write(). Every LOOK_MS the watch compares: a count
 * that is odd and stays is a write that hangs. If the eventfd is full, which no
 * driver or front-end that means well brings about, two looks are enough; a
 * front-end that empties and fills it in turn gets HANG_LOOKS. The watch notes
 * which write it gives up, and sends its thread a signal, again at each look:
 * write() ends with EINTR. Whoever called it ends the ring.
 *
 * Where nothing was written for IDLE_LOOKS, the watch sleeps until ring_call()
 * wakes it. Count and @asleep are ordered as in Dekker's algorithm: ring_call()
 * changes the count and then looks whether the watch sleeps, the watch says
 * that it will sleep and then looks at the counts.
 *
 * The signal is SIGURG, for the reason for which Go's runtime took it: by
 * default it is ignored, so one too many does no harm.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include <sys/syscall.h>

#include "ring/ring.h"

#define LOOK_MS	     25
#define FULL_LOOKS   2
#define HANG_LOOKS   40
#define IDLE_LOOKS   40
#define WAKE_SIGNAL  SIGURG
#define STACK_SIZE   (256 * 1024)
#define NOT_ENROLLED 0

/**
 * struct mark - A thread that sends interrupts
 * @next:	Next in the list of all
 * @enrolled:	Value of @process when it joined the list
 * @thread:	Its thread id
 * @fd:		What it writes to
 * @count:	Twice its writes, one less during a write
 * @late:	@count of the write that was given up
 * @seen:	The watch's: @count at its last look
 * @looks:	The watch's: looks at which that was the same and odd
 */
struct mark {
	struct mark *next;
	unsigned enrolled;
	pid_t thread;
	atomic_int fd;
	atomic_uint count;
	atomic_uint late;
	unsigned seen;
	unsigned looks;
};

static _Thread_local struct mark own;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int setup_error;
static pthread_key_t key;
static sem_t bell;
static struct mark *marks; /* lock held, as the two below */
static bool watched;
static atomic_uint process = NOT_ENROLLED + 1; /* one more in each fork() */
static atomic_bool asleep;

/**
 * give_up() - End a write that hangs
 * @m:		Its thread, lock held: it can't go away
 */
static void give_up(struct mark *m)
{
	atomic_store(&m->late, m->seen);
	syscall(SYS_tgkill, getpid(), m->thread, WAKE_SIGNAL);
}

/**
 * full() - Would a write to an eventfd sleep?
 * @fd:		eventfd
 *
 * Returns: true if it would
 */
static bool full(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLOUT};

	return poll(&p, 1, 0) == 0;
}

/**
 * look() - Compare all marks with what they were
 *
 * Returns: true if one changed, or is in a write
 */
static bool look(void)
{
	bool active = false;

	pthread_mutex_lock(&lock);
	for (struct mark *m = marks; m; m = m->next) {
		unsigned count = atomic_load(&m->count);

		active |= count != m->seen || count & 1;
		if (count != m->seen || !(count & 1))
			m->looks = 0;
		else
			m->looks++;
		m->seen = count;
		if (m->looks >= HANG_LOOKS ||
		    (m->looks >= FULL_LOOKS && full(atomic_load(&m->fd))))
			give_up(m);
	}
	pthread_mutex_unlock(&lock);
	return active;
}

/**
 * watch() - The thread
 * @unused:	NULL
 *
 * Returns: never
 */
static void *watch(void *unused)
{
	const struct timespec rest = {.tv_nsec = LOOK_MS * 1000000};
	unsigned idle = 0;

	for (;;) {
		idle = look() ? 0 : idle + 1;
		if (idle < IDLE_LOOKS) {
			nanosleep(&rest, NULL);
			continue;
		}
		idle = 0;
		atomic_store(&asleep, true);
		if (look() && atomic_exchange(&asleep, false))
			continue; /* else the bell rings, or has rung */
		while (sem_wait(&bell) < 0)
			;
	}
	return unused;
}

/**
 * start() - Start the watch, lock held
 *
 * Returns: 0, or an errno
 */
static int start(void)
{
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t thread;
	int err = pthread_attr_init(&attr);

	if (err)
		return err;
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* others handle them */
	err = pthread_create(&thread, &attr, watch, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (!err)
		pthread_setname_np(thread, "vu-watch");
	watched = !err;
	return err;
}

/**
 * leave() - Take a thread that ends off the list
 * @value:	Its mark
 */
static void leave(void *value)
{
	struct mark **at = &marks;

	pthread_mutex_lock(&lock);
	while (*at && *at != value)
		at = &(*at)->next;
	if (*at)
		*at = (*at)->next;
	own.enrolled = NOT_ENROLLED;
	pthread_mutex_unlock(&lock);
}

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void parent_forked(void)
{
	pthread_mutex_unlock(&lock);
}

/* The child has one thread, and no watch */
static void child_forked(void)
{
	marks = NULL;
	watched = false;
	atomic_store(&asleep, false);
	atomic_fetch_add(&process, 1);
	sem_init(&bell, 0, 0);
	pthread_mutex_unlock(&lock);
}

static void on_signal(int sig)
{
	(void)sig; /* that write() ends is all */
}

/**
 * setup() - What a process does once
 */
static void setup(void)
{
	struct sigaction wake = {.sa_handler = on_signal}; /* no SA_RESTART */

	sigemptyset(&wake.sa_mask);
	sem_init(&bell, 0, 0);
	setup_error = pthread_key_create(&key, leave);
	if (!setup_error)
		setup_error =
		    pthread_atfork(before_fork, parent_forked, child_forked);
	if (!setup_error && sigaction(WAKE_SIGNAL, &wake, NULL))
		setup_error = errno;
}

/**
 * enroll() - Have this thread watched
 *
 * Returns: 0, or -VU_ERR_SYS
 */
static int enroll(void)
{
	sigset_t wake;
	int err;

	pthread_once(&once, setup);
	pthread_mutex_lock(&lock);
	err = setup_error;
	if (!err)
		err = pthread_setspecific(key, &own);
	if (!err && !watched)
		err = start();
	if (!err) {
		own.thread = gettid();
		own.looks = 0;
		own.next = marks;
		own.enrolled = atomic_load(&process);
		marks = &own;
	}
	pthread_mutex_unlock(&lock);
	if (err) {
		errno = err;
		return -VU_ERR_SYS;
	}
	sigemptyset(&wake);
	sigaddset(&wake, WAKE_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &wake, NULL);
	return 0;
}

/**
 * ring_call() - Interrupt the guest
 * @ring:	Ring with a call eventfd (a full counter is a pending interrupt)
 *
 * Returns: 1 on success,
 *	-VU_ERR_CALL, if the eventfd kept us waiting; the ring has none then
 *	-VU_ERR_SYS, if the watch can't be started
 */
int ring_call(struct vu_ring *ring)
{
	const uint64_t one = 1;
	struct mark *m = &own;
	unsigned count;
	bool late;

	if (m->enrolled !=
	    atomic_load_explicit(&process, memory_order_relaxed)) {
		int err = enroll();

		if (err)
			return err;
	}
	atomic_store_explicit(&m->fd, ring->call_fd, memory_order_relaxed);
	count = atomic_fetch_add(&m->count, 1) + 1;
	if (atomic_load(&asleep) && atomic_exchange(&asleep, false))
		sem_post(&bell);
	while (write(ring->call_fd, &one, sizeof(one)) < 0 && errno == EINTR &&
	       atomic_load(&m->late) != count)
		;
	late = atomic_load(&m->late) == count;
	atomic_store_explicit(&m->count, count + 1, memory_order_release);
	if (!late)
		return 1;
	ring->call_fd = -1;
	return -VU_ERR_CALL;
}
