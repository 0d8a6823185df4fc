/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tsi.h - what the parts of tsi-agent share
 *
 * Theory of operation of the whole: main.c. Each part says on top what it
 * is for; dependencies point down this list. datagram.h has what those share
 * that handle datagrams.
 *
 *	main.c		the command as a child, exit status
 *	calls/
 *	 calls.c	one handler per trapped system call
 *	 options.c	setsockopt() and getsockopt()
 *	 connect.c	connect() and what is learnt of its outcome
 *	 wait.c		trapped calls that are answered when more is known
 *	 send.c		sendto() and its like, of UDP sockets
 *	 receive.c	recvfrom() and its like, of UDP sockets
 *	 messages.c	what those two find in the program's memory
 *	 datagram.c	UDP sockets whose peers are outside the guest
 *	 relay.c	where datagrams go, and come from
 *	 peers.c	UDP endpoints outside the guest
 *	 accept.c	accept() on listeners that the host publishes
 *	 listen.c	listen(), and what ends it
 *	 publish.c	what makes a listener a published one
 *	 local.c	connections within the guest to those listeners
 *	 closings.c	when listeners are closed
 *	 listeners.c	the table of them
 *	host/
 *	 control.c	the stream to the host for all these
 *	 carrier.c	the stream to the host that carries datagrams
 *	 hello.c	how streams to the host begin
 *	 callers.c	who the clients of listeners are
 *	 routes.c	the table of destinations and their tokens
 *	 failures.c	what the host said of connections that failed
 *	 interface.c	the pod's addresses, on lo
 *	socket/
 *	 swap.c		make the program's socket one of another kind
 *	 exchange.c	put another socket under a process's descriptors
 *	 survey.c	where a process keeps a socket
 *	 kept.c		socket options that a vsock socket hasn't got
 *	 ports.c	the vsock ports that they have
 *	 room.c		how much they may hold that no program has read
 *	 diag.c		the kernel's list of them
 *	 sock.c		the vsock sockets and the label each carries
 *	seccomp/
 *	 later.c	calls that are made anew when the host has answered
 *	 blocked.c	calls that block until there is something at a socket
 *	 answer.c	what a program reads when its call returns
 *	 give.c		new descriptors, for programs that take their time
 *	 stop.c		threads of the target that stand still for a moment
 *	 state.c	what outlives an agent
 *	 notify.c	notifications: receive, look into the target, reply
 *	 filter.c	which system calls are trapped
 */
#ifndef TSI_H
#define TSI_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <linux/vm_sockets_diag.h>

#include "agent/label.h"
#include "include/wire.h"
#include "lib/lib.h"

/* Exit statuses of the agent itself; the rest are the command's */
#define EXIT_AGENT	    125
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND	    127

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
bool reply_value(uint64_t id, int64_t value);
int reply_fd(uint64_t id, int fd, bool cloexec);
int replace_fd(uint64_t id, int fd, int num, bool cloexec);
int target_read(const struct call *call, uint64_t addr, void *ret_buf,
		size_t len);
int target_write(const struct call *call, uint64_t addr, const void *buf,
		 size_t len);
int target_write_pair(const struct call *call, uint64_t first, uint64_t second,
		      const struct iovec ours[2]);
int target_fd(const struct call *call, int fd);
int target_pidfd(const struct call *call);
pid_t target_tgid(pid_t tid);

/* ---- answer.c ---- */

int answer_name(const struct call *call, int room, bool v6,
		const struct destination *name);
int answer_option(const struct call *call, const void *value, size_t len);

/* ---- state.c ---- */

#define MAX_WINDOW    8192 /* destinations that have a token */
#define MAX_PUBLISHED 4096 /* listeners */
#define MAX_PEERS     4096 /* of datagrams */

struct route;
struct published;
struct datagrams;

int state_create(void);
int state_map(int fd);
void state_begin(const struct call *call);
void state_end(void);
int state_wait(const struct call *call);
void state_answered(int number);
struct tsi_welcome *state_welcome(void);
struct route *state_routes(void);
struct published *state_published(void);
struct caller *state_callers(void);
struct datagrams *state_datagrams(void);
void state_take_over(void (*resume)(const struct call *call));

/* ---- sock.c ---- */

#define NO_PORT UINT32_MAX /* VMADDR_PORT_ANY: not bound, not connected */

#define SOCK_BUFFER_BYTES (1 << 20)  /* most that a socket queues unasked */
#define LEAST_BYTES	  (16 << 10) /* least */

int sock_create(int family, bool nonblock);
bool sock_label(int fd, uint64_t *ret_label);
void sock_set_label(int fd, uint64_t label);
void sock_change_label(int fd, uint64_t set, uint64_t clear);
int sock_connect(int fd, uint32_t cid, uint32_t port);
int sock_settle(int fd);
uint32_t sock_local_port(int fd);
bool sock_peer(int fd, struct sockaddr_vm *ret_addr);
uint32_t sock_peer_port(int fd);
bool sock_half_closed_peer(int fd, struct sockaddr_vm *ret_addr);
bool sock_is_listening(int fd);
bool sock_is_nonblocking(int fd);
void sock_set_nonblocking(int fd, bool on);
void sock_set_connect_timeout(uint32_t timeout_ms);

/* ---- room.c ---- */

void room_share(int fd);
void room_accepted(int fd);
void room_listener(int fd);
void room_for(int fd, uint64_t len);

/* ---- diag.c ---- */

typedef void (*diag_each)(const struct vsock_diag_msg *msg, void *context);

bool diag_list(diag_each each, void *context);

/* ---- ports.c ---- */

int ports_bind(int fd, uint32_t port);
int ports_bind_any(int fd);
void ports_bind_low(int fd, uint16_t port);

/* ---- hello.c ---- */

#define HELLO_MS 5000 /* for the host to accept a stream and to greet us */

/**
 * enum phase - How far a stream is
 * @CLOSED:	There is none
 * @CONNECTING:	The host has yet to accept it
 * @GREETING:	It has been greeted
 * @OPEN:	It greets us
 */
enum phase { CLOSED, CONNECTING, GREETING, OPEN };

int hello_start(uint32_t port, int send_s);
int hello_say(int fd);

/* ---- control.c ---- */

#define MAX_ERRNO 4095 /* that the host may name */

/**
 * struct hearer - Who is told what happens on the stream
 * @opened:	There is one; what the host granted
 * @failed:	Why a connection failed
 * @listening:	Where clients reach a listener: its vsock port, and a TCP port;
 *		0: nowhere, and the errno that listen() fails with, or 0
 */
struct hearer {
	void (*opened)(const struct tsi_welcome *welcome);
	void (*failed)(const struct tsi_failed *failed);
	void (*listening)(uint32_t listener, uint16_t port, int error);
};

void control_hear(const struct hearer *hearer);
int control_start(void);
bool control_route(const struct tsi_route *route);
bool control_listen(const struct tsi_listen *listen);
void control_unlisten(uint32_t listener);
struct in6_addr control_pod_address(bool v4);
bool control_has_family(bool v4);
void control_keep(void);
void control_reopen(const char *why);
bool control_is_open(void);
bool control_is_opening(void);
void control_tick(void);
int control_timeout_ms(void);

/* ---- failures.c ---- */

void failures_note(const struct tsi_failed *failed);
int failures_take(uint32_t guest_port);
void failures_keep(uint32_t guest_port, int error);
int failures_owed(uint32_t guest_port);

/* ---- routes.c ---- */

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

void routes_begin(const struct tsi_welcome *welcome);
void routes_adopt(void);
void routes_forget(uint32_t token);
bool routes_know(const struct destination *dst);
int routes_token(const struct destination *dst, uint32_t *ret_token);
bool routes_destination(uint32_t token, struct destination *ret_dst);

/* ---- interface.c ---- */

void interface_init(void);

/* ---- blocked.c ---- */

/**
 * struct blocked - A trapped call that waits for something at its socket
 * @source:	In the event loop, for the socket
 * @exit:	Same, for the process: our descriptor would keep open what it
 *		had
 * @link:	In its list
 * @call:	The call; its args are a copy
 * @args:	That copy
 * @fd:		The socket
 * @pidfd:	The process, or -1
 * @deadline_ms: When to give up
 * @number:	state_wait()'s
 */
struct blocked {
	struct source source;
	struct source exit;
	LIST_ENTRY(blocked) link;
	struct call call;
	uint64_t args[6];
	int fd;
	int pidfd;
	int64_t deadline_ms;
	int number;
};

/**
 * struct blocked_list - Calls that are answered in the same way; zeros: none
 * @head:	Them
 * @next_look_ms: When to look at all of them; meaningful while there are any
 */
struct blocked_list {
	LIST_HEAD(, blocked) head;
	int64_t next_look_ms;
};

struct blocked *blocked_add(struct blocked_list *list, const struct call *call,
			    int fd, uint32_t events,
			    void (*ready)(struct source *, uint32_t));
void blocked_free(struct blocked *blocked);
void blocked_until_exit(struct blocked *blocked);
void blocked_drop_stale(struct blocked_list *list);
void blocked_tick(struct blocked_list *list);
int blocked_timeout_ms(const struct blocked_list *list);

/* ---- give.c ---- */

void give_start(void (*lost)(uint32_t port, int fd));
void give_alone(void);
void give(const struct call *call, int fd, bool cloexec, uint32_t port);
void give_before(const struct call *call);

/* ---- later.c ---- */

#define STREAM_KEY 0 /* a stream to the host is there, or isn't to be had */

void later_start(void (*dispatch)(const struct call *call));
bool later_is_again(const struct call *call);
bool later_keep(const struct call *call, uint32_t key, int limit_ms);
bool later_retry(const struct call *call, int error);
void later_go_on(const struct call *call, int error);
void later_wake(uint32_t key);
void later_wake_all(void);
void later_tick(void);
int later_timeout_ms(void);

/* ---- exchange.c ---- */

int exchange(const struct call *call, int num, int old_fd, int new_fd,
	     bool keep);

/* ---- kept.c ---- */

void kept_apply(int inet_fd, uint64_t label);
uint64_t kept_of(int inet_fd);

/* ---- swap.c ---- */

int swap_to_inet(const struct call *call, int num, int fd, uint64_t label);
int swap_to_vsock(const struct call *call, int num, uint32_t upper, int *fd);
int swap_to_fresh(const struct call *call, int num, int fd, uint64_t label);
int swap_exchange(const struct call *call, int num, int from, int to);
bool swap_is_tcp(int fd);
bool swap_is_local(pid_t tid, const struct destination *dst);
int swap_to_our_netns(const struct call *call, int num, int *fd);

/* ---- wait.c ---- */

bool tell_error(const struct call *call, int error);
bool tell_owed(const struct call *call, int fd);
void tell_failure(const struct call *call, int fd, int error);
void wait_for_outcome(const struct call *call, int fd, uint64_t label,
		      bool resumed);
void wait_failure_arrived(uint32_t guest_port);
void wait_was_pending(const struct call *call);
void wait_drop_stale(void);
int wait_timeout_ms(void);
void wait_tick(void);

/* ---- connect.c ---- */

void connect_trapped(const struct call *call);
void connect_error_wanted(const struct call *call, int fd, uint64_t label);

/* ---- options.c ---- */

void setsockopt_trapped(const struct call *call);
void getsockopt_trapped(const struct call *call);

/* ---- listeners.c ---- */

#define MAX_STASH 8

/**
 * struct published - A published listener, for as long as it lives
 * @port:	Its vsock port; 0: there is none
 * @backlog:	As given to listen()
 * @label:	What it is labelled
 * @name:	What it is bound to
 */
struct published {
	uint32_t port;
	int backlog;
	uint64_t label;
	struct destination name;
};

/**
 * struct listener - A published listener
 * @is:		What outlives us, in state.c's memory; NULL: there is none
 * @inet:	The TCP socket that keeps its TCP port, -1 if it can't be had
 * @watch:	inotify watch, -1 if there is none
 * @tgid:	The process that it was made for; 0: the agent before us did
 * @num:	Its descriptor there
 * @n_stash:	Used of @stash
 * @stash:	Accepted for calls that then were gone, or had no descriptors
 */
struct listener {
	struct published *is;
	int inet;
	int watch;
	pid_t tgid;
	int num;
	unsigned n_stash;
	int stash[MAX_STASH];
};

struct listener *listeners_next(struct listener *listener);
bool listeners_any(void);
struct listener *listeners_find(uint32_t port);
int listeners_made_of(int inet);
struct listener *listeners_at(size_t slot);
struct listener *listeners_new(void);
void listeners_free(struct listener *listener);
void listeners_end(struct listener *listener);
bool listeners_announce(const struct listener *listener);
void listeners_announce_all(void);
int listeners_names(int fd, uint64_t label, struct destination *ret_local,
		    struct destination *ret_peer);
void listeners_stash(uint32_t port, int conn);
int listeners_unstash(int fd);

/* ---- closings.c ---- */

void closings_expect(const struct listener *listener);
void closings_watch(struct listener *listener, int fd);
void closings_forget(const struct listener *listener);
void closings_end(struct listener *listener);
void closings_look(void);
void closings_reap(void);
void closings_tick(void);
int closings_timeout_ms(void);

/* ---- local.c ---- */

bool local_listener(const struct destination *dst, uint32_t *ret_port);
uint32_t local_upper(uint32_t port, bool v4);
void local_bind(int fd, uint32_t port, bool v4);

/* ---- publish.c ---- */

bool publish(const struct call *call, int inet);
void publish_reserve(int inet);
void publish_answered(uint32_t listener, uint16_t port, int error);
void publish_tick(void);
int publish_timeout_ms(void);

/* ---- listen.c ---- */

void listen_trapped(const struct call *call);
void shutdown_trapped(const struct call *call);
void listen_adopt(void);
bool listen_is_listener(int fd, uint64_t label);
int listen_give_back(const struct call *call, int fd);

/* ---- callers.c ---- */

/**
 * struct caller - A range of ports, and whose connections come from it
 * @addr:	What accept() gives, the port 0: struct sockaddr_in6 or
 *		sockaddr_in
 * @size:	Bytes of it; 0: nobody has the range
 */
struct caller {
	struct sockaddr_in6 addr;
	uint32_t size;
};

void callers_init(void);
bool callers_set(uint32_t port, bool v6, const struct in6_addr *address);
void callers_name(const struct sockaddr_vm *end, struct destination *ret_name);

/* ---- accept.c ---- */

void accept_trapped(const struct call *call);
void accept_end_waiting(const struct call *call, uint32_t port);
void accept_tick(void);
int accept_timeout_ms(void);

/* ---- calls.c ---- */

void call_dispatch(const struct call *call);
void call_resume(const struct call *call);

#endif /* TSI_H */
