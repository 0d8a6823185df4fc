/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * inet.h - what the parts of tsi_inet share
 *
 *	main.c		which sockets are ours, and their operations
 *	connect.c	connect()
 *	listen.c	bind(), listen()
 *	accept.c	accept()
 *	bytes.c		what is sent and received
 *	poll.c		poll()
 *	name.c		names, options, ioctl()
 *	end.c		shutdown(), close()
 *	address.c	where a destination is, whose an address
 *	control.c	what the host says, and the thread that hears it
 *	datagrams.c	UDP, and its thread
 *	interface.c	the network interface, its addresses and routes
 *	packet.c	datagrams as IP packets
 *	peers.c		UDP endpoints outside, and their numbers
 *	publish.c	what the host is told of listeners
 *	stock.c		one that is made before it is needed
 *	phase.c		how far the vsock sockets beneath are
 *	inner.c		their life
 *	listeners.c	all that listen
 *	held.c		what they hold
 *	credit.c	what they may hold
 *	routes.c	destinations and their tokens
 *	callers.c	clients and their ranges of ports
 *	users.c		what one user may take
 *	stream.c	the control stream to the host
 *	hello.c		how streams begin
 *
 * A part calls those below it.
 */
#ifndef INET_H
#define INET_H

#include <linux/fs.h>
#include <linux/in6.h>
#include <linux/net.h>
#include <linux/refcount.h>
#include <linux/timer.h>
#include <net/sock.h>

#include "../../include/wire.h"
#include "compat.h"

/**
 * struct endpoint - An address and a port
 * @address:	IPv6, or IPv4 in its v4-mapped form
 * @port:	In network order
 */
struct endpoint {
	struct in6_addr address;
	__be16 port;
};

/**
 * struct container - A struct socket that no file will ever be for
 * @socket:	It
 * @inode:	Where the kernel looks for its inode's number; all 0
 */
struct container {
	struct socket socket;
	u8 inode[offsetof(struct socket_alloc, vfs_inode) +
		 offsetofend(struct inode, i_ino) - sizeof(struct socket)];
};

/**
 * enum phase - How far a vsock socket is
 * @CONNECTING:	The host was asked
 * @ESTABLISHED: It carries bytes
 * @CLOSED:	It failed, or was reset: the errno is the outer socket's
 * @LISTENING:	The host may connect to it
 */
enum phase { CONNECTING, ESTABLISHED, CLOSED, LISTENING };

/**
 * struct inner - A vsock socket beneath an inet one
 * @users:	Who holds it
 * @phase:	How far it is; inner_lock
 * @failed:	FAILED's errno, 0: hasn't come; same
 * @ended:	The peer has ended its direction, in order
 * @outer:	The inet socket
 * @sock:	The vsock socket; its wait queue is the inet socket's
 * @port:	Its vsock port, by which the host's messages name it
 * @token:	Where it is connected to; 0: it was accepted, or listens
 * @own:	What getsockname() shows of a connection
 * @peer:	What getpeername() does
 * @answered:	LISTENING has come; inner_lock, as are the two below
 * @published:	Port that it named, in host order
 * @refused:	Errno that it named
 * @credit:	Bytes that the host may send ahead of the program
 * @moved:	Bytes that the program has moved since that grew
 * @nospace:	Who was told that there is no room hears of some, once
 * @refused_from: What had come when both directions were ended
 * @armed:	@patience was scheduled, once or more
 * @patience:	For the host's answer, and for FAILED after a reset
 * @by_port:	In the table of all
 * @listening:	In the list of those that listen
 * @container:	@sock's memory
 */
struct inner {
	refcount_t users;
	enum phase phase;
	int failed;
	bool ended;
	struct sock *outer;
	struct socket *sock;
	u32 port;
	u32 token;
	struct endpoint own;
	struct endpoint peer;
	bool answered;
	u16 published;
	int refused;
	u32 credit;
	u32 moved;
	u32 refused_from;
	atomic_t nospace;
	bool armed;
	struct timer_list patience;
	struct hlist_node by_port;
	struct list_head listening;
	struct container container;
};

/* ---- main.c ---- */

const struct proto_ops *real_ops(const struct sock *sk);

/* ---- the operations ---- */

int tsi_connect(struct socket *sock, any_sockaddr *address, int len, int flags);
int tsi_bind(struct socket *sock, any_sockaddr *address, int len);
int tsi_listen(struct socket *sock, int backlog);
int tsi_accept(struct socket *sock, struct socket *newsock, ACCEPT_ARGS);
int tsi_sendmsg(struct socket *sock, struct msghdr *msg, size_t len);
int tsi_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags);
ssize_t tsi_splice_read(struct socket *sock, loff_t *ppos,
			struct pipe_inode_info *pipe, size_t len,
			unsigned int flags);
__poll_t tsi_poll(struct file *file, struct socket *sock,
		  struct poll_table_struct *wait);
int tsi_getname(struct socket *sock, struct sockaddr *address, int peer);
int tsi_getsockopt(struct socket *sock, int level, int name, char __user *value,
		   int __user *len);
int tsi_setsockopt(struct socket *sock, int level, int name, sockptr_t value,
		   unsigned int len);
int tsi_ioctl(struct socket *sock, unsigned int request, unsigned long arg);
#ifdef CONFIG_COMPAT
int tsi_compat_ioctl(struct socket *sock, unsigned int request,
		     unsigned long arg);
#endif
int tsi_shutdown(struct socket *sock, int how);
int tsi_release(struct socket *sock);

/* ---- end.c ---- */

void end_inner(struct socket *sock, struct inner *inner);

/* ---- address.c ---- */

bool address_leaves(const struct sock *sk, const struct sockaddr *address,
		    int len, struct endpoint *ret_to);
void address_pods(bool v4, struct in6_addr *ret_address);
bool address_is_pods(const struct in6_addr *address);
bool address_can_reach(const struct in6_addr *address);
void address_bound(const struct sock *sk, struct endpoint *ret_bound);
void address_own(const struct sock *sk, const struct in6_addr *peer, u32 port,
		 struct endpoint *ret_own);
int address_show(const struct sock *sk, const struct endpoint *from,
		 struct sockaddr *ret_address);

/* ---- publish.c ---- */

int publish(struct inner *listener);
void publish_all(void);
void publish_end(struct inner *listener);

/* ---- stock.c ---- */

int stock_take(const struct sock *sk, struct inner **ret_inner);
void stock_fill(void);

/* ---- phase.c ---- */

void inner_adopt(struct inner *inner, struct socket *outer,
		 struct sock *outer_sk);
int inner_connect(struct inner *inner, u32 token);
int inner_listen(struct inner *inner, int backlog);
void inner_arm(struct inner *inner, unsigned long timeout);
void inner_expire(struct inner *inner);
void inner_refuse(struct inner *inner);
bool inner_has_room(struct inner *inner);
void inner_failed(const struct tsi_failed *failed);

/* ---- inner.c ---- */

extern spinlock_t inner_lock;
extern struct socket *inner_pattern;

int inner_prepare(void);
struct inner *inner_new(void);
void inner_own(struct inner *inner, struct sock *sk);
int inner_make(struct inner **ret_inner);
int inner_bind(struct inner *inner, u16 low);
int inner_aim(struct inner *inner);
struct inner *inner_find(u32 port);
void inner_set(struct sock *sk, struct inner *inner);
void inner_end(struct inner *inner);
void inner_listening(const struct tsi_listening *listening);

/**
 * inner_put() - Let go of one
 * @inner:	It, or NULL
 */
static inline void inner_put(struct inner *inner)
{
	if (inner && refcount_dec_and_test(&inner->users))
		inner_end(inner);
}

/**
 * inner_get() - The inner socket of an inet one
 * @sk:		The inet socket, its file held
 *
 * sk_user_data may be somebody else's, by whose flags it is told from ours.
 *
 * Returns: it, to be put; NULL if there is none
 */
static __always_inline struct inner *inner_get(const struct sock *sk)
{
	struct inner *inner = NULL;
	uintptr_t data;

	if (!READ_ONCE(sk->sk_user_data))
		return NULL;
	rcu_read_lock_sched(); /* RCU's as well, and no call where that is one
				*/
	data = (uintptr_t)READ_ONCE(sk->sk_user_data);
	if ((data & ~SK_USER_DATA_PTRMASK) == SK_USER_DATA_NOCOPY)
		inner = (struct inner *)(data & SK_USER_DATA_PTRMASK);
	if (inner && !refcount_inc_not_zero(&inner->users))
		inner = NULL;
	rcu_read_unlock_sched();
	if (inner && unlikely((uintptr_t)READ_ONCE(sk->sk_user_data) != data)) {
		inner_put(inner);
		inner = NULL;
	}
	return inner;
}

/* ---- listeners.c ---- */

int listeners_add(struct inner *inner);
void listeners_remove(struct inner *inner);
bool listeners_any(void);
struct inner *listeners_after(struct inner *inner);

/* ---- held.c ---- */

size_t held_bytes(const struct inner *inner, size_t enough);
int held_over(const struct inner *inner);

/* ---- credit.c ---- */

#define CREDIT_SMALL (16U << 10)
#define CREDIT_MOST  (256U << 10) /* as vsock has it */

void credit_connect(struct sock *sk, struct inner *inner);
void credit_accept(struct sock *sk, struct inner *inner,
		   struct inner *listener);
void credit_grow(struct inner *inner);

/**
 * credit_moved() - A program has moved bytes
 * @inner:	Connection
 * @bytes:	How many, or a negated errno
 */
static inline void credit_moved(struct inner *inner, int bytes)
{
	if (bytes <= 0 || READ_ONCE(inner->credit) >= CREDIT_MOST)
		return;
	inner->moved += bytes;
	if (inner->moved >= inner->credit)
		credit_grow(inner);
}

/* ---- datagrams.c ---- */

int datagrams_begin(void);

/* ---- interface.c ---- */

int interface_begin(const struct net_device_ops *ops,
		    struct net_device **ret_device);
void interface_show(void);
bool interface_serves(const struct sock *sk);

/* ---- packet.c ---- */

/**
 * struct datagram - What a packet is
 * @from:	Who sends
 * @to:		Whom it is for
 * @at:		Where its data are in the packet
 * @len:	Bytes of them
 */
struct datagram {
	struct endpoint from;
	struct endpoint to;
	unsigned int at;
	unsigned int len;
};

bool packet_parse(struct sk_buff *skb, struct datagram *ret);
struct sk_buff *packet_datagram(const struct endpoint *from,
				const struct endpoint *to, const void *data,
				size_t len);
struct sk_buff *packet_unreachable(const struct endpoint *from,
				   const struct endpoint *to, int error);

/* ---- peers.c ---- */

int peers_begin(u32 count);
u32 peers_number(const struct endpoint *to, bool *ret_new);
const struct endpoint *peers_find(u32 number);

/* ---- control.c ---- */

int control_begin(void);
int control_need(void);
int control_open(void);

/* ---- routes.c ---- */

u32 routes_find(const struct endpoint *to);
int routes_token(const struct endpoint *to, u32 *ret_token);
void routes_begin(void);
void routes_forget(u32 token);

/* ---- callers.c ---- */

int callers_begin(void);
bool callers_set(const struct tsi_caller *caller);
bool callers_find(u32 port, struct in6_addr *ret_address);

/* ---- users.c ---- */

int users_wait(void);
bool users_add(kuid_t uid);
void users_remove(kuid_t uid);

/* ---- stream.c ---- */

/**
 * struct message - What the host may send after WELCOME
 * @type:	enum tsi_type
 * @len:	Bytes of payload
 * @handle:	Called with the payload
 */
struct message {
	u16 type;
	u16 len;
	void (*handle)(const void *payload);
};

#define MAX_PAYLOAD 64 /* of a message from the host, after WELCOME */

int stream_begin(void);
void stream_ready(void);
void stream_close(void);
bool stream_is_open(void);
void stream_end(const char *why);
int stream_send(enum tsi_type type, const void *payload, size_t len);
int stream_read(const struct message *messages, size_t count);
void stream_welcome(struct tsi_welcome *ret_welcome);
long stream_connect_timeout(void);

/* ---- hello.c ---- */

int hello_open(u32 port, enum tsi_type type, void *ret_answer, size_t len,
	       struct socket **ret_sock);

#endif /* INET_H */
