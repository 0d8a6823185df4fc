/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tsi.h - what the parts of tsi-agent share
 *
 * Theory of operation of the whole: tsi-agent.c. Each part says on top what it
 * is for; dependencies point down this list.
 *
 *	tsi-agent.c	the command as a child, the event loop, exit status
 *	calls.c		one handler per trapped system call
 *	options.c	socket options that a vsock socket hasn't got
 *	connect.c	connect() and what is learnt of its outcome
 *	wait.c		trapped calls that are answered when more is known
 *	swap.c		put another socket under the program's descriptor
 *	control.c	the stream to the host: tokens and failures
 *	sock.c		the vsock sockets and the label each carries
 *	state.c		what outlives an agent
 *	notify.c	notifications: receive, look into the target, reply
 *	filter.c	which system calls are trapped
 */
#ifndef TSI_H
#define TSI_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <linux/seccomp.h>

/* Exit statuses of the agent itself; the rest are the command's */
#define EXIT_AGENT	    125
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND	    127

/* ---- tsi-agent.c ---- */

/**
 * struct source - Something the event loop waits for
 * @ready:	Called with the epoll events that came
 * @dead:	Gone while its event may still be queued: not called, then freed
 * @next:	Of the dead, until the loop frees them
 *
 * Embedded as the first member of what it stands for.
 */
struct source {
	void (*ready)(struct source *source, uint32_t events);
	bool dead;
	struct source *next;
};

void loop_add(struct source *source, int fd, uint32_t events);
void loop_del(int fd);
bool loop_wait_for(int fd, short events, int limit_ms);
void loop_bury(struct source *source);
int64_t now_ms(void);
void debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- filter.c ---- */

int filter_install(void);

/* ---- notify.c ---- */

/**
 * struct call - One trapped system call, until it is answered
 * @id:		The kernel's name for it
 * @tid:	Thread that waits in it
 * @nr:		System call
 * @args:	Arguments
 */
struct call {
	uint64_t id;
	pid_t tid;
	int nr;
	const uint64_t *args;
};

int notify_init(int listener);
int notify_receive(struct call *ret_call);
bool notify_valid(uint64_t id);
bool reply_error(uint64_t id, int error);
bool reply_native(uint64_t id);
int reply_fd(uint64_t id, int fd, bool cloexec);
int replace_fd(uint64_t id, int fd, int num, bool cloexec);
int target_read(const struct call *call, uint64_t addr, void *ret_buf,
		size_t len);
int target_write(const struct call *call, uint64_t addr, const void *buf,
		 size_t len);
int target_fd(const struct call *call, int fd);
pid_t target_tgid(pid_t tid);

/* ---- state.c ---- */

#define MAX_WINDOW 8192 /* destinations that have a token */

struct route;

int state_create(void);
int state_map(int fd);
void state_begin(const struct call *call);
void state_end(void);
int state_wait(const struct call *call);
void state_answered(int number);
struct route *state_routes(void);
void state_take_over(void (*resume)(const struct call *call));

/* ---- sock.c ---- */

/* Flags and fields of a label, see sock.c */
#define LABEL_V6	      (UINT64_C(1) << 0) /* program asked for AF_INET6 */
#define LABEL_UNREPORTED      (UINT64_C(1) << 1) /* outcome of connect() owed */
#define LABEL_ABORTED	      (UINT64_C(1) << 2) /* failed, errno was fetched */
#define LABEL_SNDTIMEO	      (UINT64_C(1) << 3) /* SO_SNDTIMEO may be set */
#define LABEL_REUSEPORT	      (UINT64_C(1) << 4) /* from here: socket options */
#define LABEL_V6ONLY	      (UINT64_C(1) << 5)
#define LABEL_NODELAY	      (UINT64_C(1) << 6)
#define LABEL_CORK	      (UINT64_C(1) << 7)
#define LABEL_TOS_SHIFT	      8
#define LABEL_TOS_BITS	      8
#define LABEL_KEEPIDLE_SHIFT  16
#define LABEL_KEEPIDLE_BITS   15
#define LABEL_KEEPINTVL_SHIFT 31
#define LABEL_KEEPINTVL_BITS  15
#define LABEL_KEEPCNT_SHIFT   46
#define LABEL_KEEPCNT_BITS    7

#define SOCK_BUFFER_BYTES (1 << 20) /* most that a socket queues */

#define NO_PORT UINT32_MAX /* VMADDR_PORT_ANY: not bound, not connected */

int sock_create(int family, bool nonblock);
bool sock_label(int fd, uint64_t *ret_label);
void sock_set_label(int fd, uint64_t label);
int sock_connect(int fd, uint32_t port);
void sock_bind(int fd, uint16_t port);
void sock_make_room(int fd, uint64_t len);
int sock_settle(int fd);
uint32_t sock_local_port(int fd);
uint32_t sock_peer_port(int fd);
uint32_t sock_half_closed_peer(int fd);
bool sock_is_nonblocking(int fd);
void sock_set_nonblocking(int fd, bool on);
void sock_set_connect_timeout(uint32_t timeout_ms);

/* ---- control.c ---- */

/**
 * struct destination - A TCP endpoint
 * @address:	IPv6, or IPv4 in its v4-mapped form
 * @port:	Host order
 */
struct destination {
	struct in6_addr address;
	uint16_t port;
};

/**
 * struct route - A registered destination
 * @dst:	Destination
 * @token:	Its token; 0: slot is free
 * @next:	Next slot with the same hash, or NONE
 */
struct route {
	struct destination dst;
	uint32_t token;
	uint32_t next;
};

int control_start(void);
int control_token(const struct destination *dst, uint32_t *ret_token);
bool control_destination(uint32_t token, struct destination *ret_dst);
int control_failure(uint32_t guest_port);
struct in6_addr control_pod_address(bool v4);

/* ---- swap.c ---- */

int swap_to_inet(const struct call *call, int num, int fd, uint64_t label);
int swap_to_vsock(const struct call *call, int num, int *fd);
int swap_to_fresh(const struct call *call, int num, int fd, uint64_t label);
bool swap_is_tcp(int fd);

/* ---- wait.c ---- */

bool tell_error(const struct call *call, int error);
void tell_failure(const struct call *call, int fd, int error);
void wait_for_outcome(const struct call *call, int fd, uint64_t label,
		      bool resumed);
void wait_failure_arrived(uint32_t guest_port);
void wait_resume(const struct call *call);
void wait_drop_stale(void);
int wait_timeout_ms(void);
void wait_tick(void);

/* ---- connect.c ---- */

void connect_trapped(const struct call *call);
void connect_error_wanted(const struct call *call, int fd, uint64_t label);

/* ---- options.c ---- */

void setsockopt_trapped(const struct call *call);
void getsockopt_trapped(const struct call *call);
int option_reply(const struct call *call, const void *value, size_t len);
void options_apply(int inet_fd, uint64_t label);
uint64_t options_kept(int inet_fd);

/* ---- calls.c ---- */

void call_dispatch(const struct call *call);

#endif /* TSI_H */
