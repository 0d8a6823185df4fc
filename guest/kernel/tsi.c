// SPDX-License-Identifier: GPL-2.0-only
/*
 * tsi.c - the part of TSI that is better done in the guest's kernel
 *
 * Theory of operation
 * ===================
 *
 * A seccomp filter sees the arguments of a system call, not what they point at
 * and not which socket it is; and each call that it traps costs two switches of
 * address space. This module sits between the filter and the call. The filter
 * (tsi/filter.c) lets the calls in hooks[] pass; ftrace leads them here; and
 * each is one of three:
 *
 * - the kernel's own: the call goes on as if nothing were;
 * - the agent's: the call is shown to the filter again with a mark in its sixth
 *   argument, which the filter traps, so that the agent gets it as it always
 *   did, may answer it or say "go on", and needs no second way to do either;
 * - ours: socket() makes the vsock socket that the agent would make, connect()
 *   connects it if it is as socket() left it and the destination has a token,
 *   accept() shows the client's address, and options and names that programs
 *   ask for at every connection have their answer.
 *
 * What is ours is the usual case only, in the agent's own words: the label in
 * the socket (tsi/sock.c) and the tables that the agent maps from /dev/tsi.
 * Whatever is unusual - another family, a destination without a token, one
 * inside the guest, a second connect(), a failure whose errno the host tells
 * the agent - is the agent's. Without this module everything is.
 *
 * Whose agent's a thread is, the filter knows best: it is inherited as it has
 * to be. So we ask it, by a call with TSI_WHOSE in the mark, that it fails with
 * the agent's instance for errno. An instance is an open /dev/tsi, which agents
 * hand on as they do the listener (tsi-agent.c), and outlives each of them.
 *
 * A blocking connect() is a non-blocking one that is waited for here, because
 * TCP's goes on when a signal interrupts it, and vsock's does not. It also lets
 * go of the timer that a non-blocking connect() of vsock leaves behind.
 */

#include <asm/syscall.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/idr.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/kprobes.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/seccomp.h>
#include <linux/socket.h>
#include <linux/tcp.h>
#include <linux/un.h>
#include <linux/vmalloc.h>
#include <net/af_vsock.h>
#include <net/ipv6.h>

#include "../tsi_kernel.h"

#ifndef CONFIG_X86_64
#error "tsi.ko: name this architecture's system calls here, then test"
#endif
#define SYMBOL_OF(call) "__x64_sys_" #call

#define MAX_INSTANCE   4095 /* an errno */
#define FUNCTION_ALIGN 16   /* no two functions begin so close together */

static DEFINE_IDR(instances); /* struct tsi_shared, by number */
static DEFINE_MUTEX(instances_lock);
static struct caller *callers;

/* ---- /dev/tsi: memory that an agent and we share ---- */

static int device_open(struct inode *inode, struct file *file)
{
	struct tsi_shared *shared = vmalloc_user(sizeof(*shared));
	int number;

	if (!shared)
		return -ENOMEM;
	mutex_lock(&instances_lock);
	number = idr_alloc_cyclic(&instances, shared, 1, MAX_INSTANCE + 1,
				  GFP_KERNEL);
	mutex_unlock(&instances_lock);
	if (number < 0) {
		vfree(shared);
		return number;
	}
	shared->instance = number;
	file->private_data = (void *)(uintptr_t)number;
	return 0;
}

static int device_release(struct inode *inode, struct file *file)
{
	struct tsi_shared *shared;

	mutex_lock(&instances_lock);
	shared = idr_remove(&instances, (uintptr_t)file->private_data);
	mutex_unlock(&instances_lock);
	synchronize_rcu();
	vfree(shared);
	return 0;
}

static void shared_unmapped(struct vm_area_struct *area)
{
	uintptr_t number = (uintptr_t)area->vm_file->private_data;
	struct tsi_shared *shared;
	int i;

	mutex_lock(&instances_lock);
	shared = idr_find(&instances, number);
	for (i = 0; i < TSI_KNOWN; i++)
		WRITE_ONCE(shared->known[i].token, 0);
	mutex_unlock(&instances_lock);
}

/* An agent's tokens go with it: what connects then waits for the next one */
static const struct vm_operations_struct shared_operations = {
    .close = shared_unmapped,
};

static int device_mmap(struct file *file, struct vm_area_struct *area)
{
	unsigned long at = area->vm_pgoff << PAGE_SHIFT;
	void *memory;

	mutex_lock(&instances_lock);
	memory = idr_find(&instances, (uintptr_t)file->private_data);
	mutex_unlock(&instances_lock);
	if (at == TSI_SHARED_AT)
		area->vm_ops = &shared_operations;
	else if (at == TSI_CALLERS_AT)
		memory = callers;
	else
		return -EINVAL;
	return remap_vmalloc_range(area, memory, 0);
}

/* ---- the filter ---- */

static typeof(__secure_computing) *show_filter;

struct call;

/**
 * enum whose - Who handles a call
 * @KERNEL:	The kernel, as ever
 * @AGENT:	The agent
 * @AGENT_RESET: Same; it is a connect() whose attempt was reset
 * @OURS:	Nobody any more: it has its answer
 */
enum whose { KERNEL, AGENT, AGENT_RESET, OURS };

/**
 * struct hook - A system call that is led here
 * @symbol:	The kernel's function for it
 * @nr:		Its number
 * @kinds:	Sockets that it may be the agent's for; 0: it has none yet
 * @handle:	Says whose it is; NULL: the agent's
 * @ours:	What is called in place of the kernel's function
 * @kernels:	The kernel's function
 */
struct hook {
	const char *symbol;
	int nr;
	unsigned int kinds;
	enum whose (*handle)(struct call *, struct socket *, long *);
	asmlinkage long (*ours)(const struct pt_regs *regs);
	asmlinkage long (*kernels)(const struct pt_regs *regs);
};

/**
 * struct call - A system call that was led here
 * @hook:	How
 * @regs:	Its registers
 * @args:	Its arguments; connect()'s fourth is the token that it went to
 */
struct call {
	const struct hook *hook;
	const struct pt_regs *regs;
	unsigned long args[6];
};

/**
 * ask_filter() - Show a call to the filter, with a mark
 * @call:	Call
 * @wish:	TSI_WHOSE, TSI_TRAP or TSI_RESET
 * @ret_answer:	What the call is to return, if it isn't to go on
 *
 * Returns: true if it is to go on
 */
static bool ask_filter(const struct call *call, u32 wish, long *ret_answer)
{
	struct seccomp_data data = {
	    .nr = call->hook->nr,
	    .arch = syscall_get_arch(current),
	    .instruction_pointer = call->regs->ip,
	};
	int i;

	for (i = 0; i < 5; i++)
		data.args[i] = call->args[i];
	data.args[5] = (u64)TSI_MARK << 32 | wish;
	if (show_filter(&data) == 0)
		return true;
	*ret_answer = syscall_get_return_value(current, current_pt_regs());
	return false;
}

/**
 * instance_of() - Whose agent's the current thread is
 * @call:	The call that it makes; one that tsi/filter.c has an answer for
 *
 * Returns: the instance; 0: it is no agent's, or of one that knows no module
 */
static int instance_of(const struct call *call)
{
	long answer;

	if (ask_filter(call, TSI_WHOSE, &answer))
		return 0;
	return answer < 0 && answer >= -MAX_INSTANCE ? -answer : 0;
}

/* ---- whose call it is ---- */

/* What kinds of sockets a system call may be the agent's for */
#define LABELLED 1U /* our vsock sockets */
#define DATAGRAM 2U /* UDP */
#define OTHER	 4U /* what else is of AF_INET or AF_INET6: the guest's TCP */

/**
 * kind_of() - What kind a socket is
 * @sock:	Any socket
 *
 * Returns: LABELLED, DATAGRAM, OTHER, or 0
 */
static unsigned int kind_of(const struct socket *sock)
{
	const struct sock *sk = sock->sk;
	u64 label;

	if (sk->sk_family == AF_VSOCK) {
		if (sock->type != SOCK_STREAM)
			return 0;
		label = READ_ONCE(((struct vsock_sock *)sk)->buffer_max_size);
		return (label & LABEL_MARK_MASK) == LABEL_MARK ? LABELLED : 0;
	}
	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return 0;
	return sock->type == SOCK_DGRAM ? DATAGRAM : OTHER;
}

/* ---- /dev/tsi, once more: what an agent asks for ---- */

static long device_ioctl(struct file *file, unsigned int request,
			 unsigned long argument)
{
	struct tsi_change change;
	struct vsock_sock *vsk;
	struct socket *sock;
	int error;

	if (request != TSI_CHANGE_LABEL)
		return -ENOTTY;
	if (copy_from_user(&change, (void __user *)argument, sizeof(change)))
		return -EFAULT;
	sock = sockfd_lookup(change.fd, &error);
	if (!sock)
		return error;
	if (kind_of(sock) == LABELLED) {
		vsk = vsock_sk(sock->sk);
		error = 0;
		lock_sock(sock->sk);
		vsk->buffer_max_size &= ~change.clear | LABEL_MARK_MASK;
		vsk->buffer_max_size |= change.set & ~LABEL_MARK_MASK;
		release_sock(sock->sk);
	} else {
		error = -EINVAL;
	}
	sockfd_put(sock);
	return error;
}

static const struct file_operations device_operations = {
    .owner = THIS_MODULE,
    .open = device_open,
    .release = device_release,
    .mmap = device_mmap,
    .unlocked_ioctl = device_ioctl,
};

static struct miscdevice device = {
    .minor = MISC_DYNAMIC_MINOR,
    .name = "tsi",
    .mode = 0600,
    .fops = &device_operations,
};

/* ---- calls that are ours ---- */

/**
 * make_socket() - socket(): make what the agent would make
 * @call:	The call
 * @unused:	There is no socket yet
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
static enum whose make_socket(struct call *call, struct socket *unused,
			      long *ret_answer)
{
	int family = call->args[0], type = call->args[1];
	int protocol = call->args[2];
	int flags = type & (SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct tsi_shared *shared;
	struct vsock_sock *vsk;
	struct socket *sock;
	struct file *file;
	u32 timeout_s = 0;
	int fd;

	if ((family != AF_INET && family != AF_INET6) ||
	    (type ^ flags) != SOCK_STREAM ||
	    (protocol && protocol != IPPROTO_TCP))
		return KERNEL;
	fd = instance_of(call);
	if (!fd)
		return KERNEL;
	rcu_read_lock();
	shared = idr_find(&instances, fd);
	if (shared)
		timeout_s = READ_ONCE(shared->connect_timeout_s);
	rcu_read_unlock();
	if (!timeout_s)
		return AGENT;

	if (__sock_create(&init_net, AF_VSOCK, SOCK_STREAM, 0, &sock, 0))
		return AGENT;
	vsk = vsock_sk(sock->sk);
	vsk->connect_timeout = min_t(u64, (u64)timeout_s * HZ, INT_MAX);
	vsk->buffer_max_size = LABEL_MARK | (family == AF_INET6 ? LABEL_V6 : 0);
	vsk->buffer_size = SOCK_BUFFER_BYTES;

	*ret_answer = fd = get_unused_fd_flags(flags & SOCK_CLOEXEC);
	if (fd < 0) {
		sock_release(sock);
		return OURS;
	}
	file = sock_alloc_file(sock, flags & SOCK_NONBLOCK, NULL);
	if (IS_ERR(file)) { /* the socket is released */
		put_unused_fd(fd);
		*ret_answer = PTR_ERR(file);
		return OURS;
	}
	fd_install(fd, file);
	return OURS;
}

/**
 * address_of() - Read the address of a connect()
 * @call:	The call
 * @v6:		Its socket is of AF_INET6
 * @ret_dst:	Set to the address, without a token
 *
 * Returns: false if it isn't an address outside of the guest that TCP would
 *	take on this socket
 */
static bool address_of(const struct call *call, bool v6,
		       struct tsi_known *ret_dst)
{
	struct sockaddr_in6 in6 = {};
	const struct sockaddr_in *in = (void *)&in6;
	size_t len = min_t(u32, call->args[2], sizeof(in6));
	struct in6_addr *address = (void *)ret_dst->address;

	if (copy_from_user(&in6, (void __user *)call->args[1], len))
		return false;
	if (v6) {
		if (in6.sin6_family != AF_INET6 ||
		    len < offsetof(struct sockaddr_in6, sin6_scope_id) ||
		    ipv6_addr_v4mapped(&in6.sin6_addr) ||
		    ipv6_addr_loopback(&in6.sin6_addr) ||
		    ipv6_addr_any(&in6.sin6_addr))
			return false;
		*address = in6.sin6_addr;
		ret_dst->port = ntohs(in6.sin6_port);
		return true;
	}
	if (in->sin_family != AF_INET || len < sizeof(*in) ||
	    ipv4_is_loopback(in->sin_addr.s_addr) ||
	    ipv4_is_zeronet(in->sin_addr.s_addr))
		return false;
	ipv6_addr_set_v4mapped(in->sin_addr.s_addr, address);
	ret_dst->port = ntohs(in->sin_port);
	return true;
}

/**
 * read_slot() - Read a slot that the agent may be writing
 * @slot:	Slot
 * @ret_known:	Set to what it says
 *
 * The token is cleared first and written last, so that it is the same before
 * and after if nothing was written.
 *
 * Returns: its token; 0: it says nothing
 */
static u32 read_slot(const struct tsi_known *slot, struct tsi_known *ret_known)
{
	u32 token = smp_load_acquire(&slot->token);

	ret_known->port = READ_ONCE(slot->port);
	ret_known->address[0] = READ_ONCE(slot->address[0]);
	ret_known->address[1] = READ_ONCE(slot->address[1]);
	smp_rmb();
	return READ_ONCE(slot->token) == token ? token : 0;
}

/**
 * token_of() - The token that an agent has for a destination
 * @instance:	The agent's
 * @dst:	Destination
 *
 * Returns: the token; 0: it has none
 */
static u32 token_of(int instance, const struct tsi_known *dst)
{
	u32 slot = tsi_hash(dst->address, dst->port) % TSI_KNOWN;
	const struct tsi_shared *shared;
	struct tsi_known known = {};
	u32 token = 0;

	rcu_read_lock();
	shared = idr_find(&instances, instance);
	if (shared)
		token = read_slot(&shared->known[slot], &known);
	rcu_read_unlock();
	if (known.port != dst->port || known.address[0] != dst->address[0] ||
	    known.address[1] != dst->address[1])
		return 0; /* another destination's slot */
	return token;
}

/**
 * timer_limit() - How long the timer of a connect() may run
 * @most:	The host's wish, jiffies
 *
 * Returns: jiffies; less than @most at a rate of connects that would let timers
 *	hold more than HELD_SOCKETS sockets
 */
static long timer_limit(long most)
{
	static DEFINE_SPINLOCK(lock);
	static unsigned long second;
	static u32 made, made_before;
	unsigned long now = jiffies / HZ;
	u32 rate;

	spin_lock(&lock);
	if (now != second) {
		made_before = now == second + 1 ? made : 0;
		made = 0;
		second = now;
	}
	made++;
	rate = max(made, made_before);
	spin_unlock(&lock);
	return min(most, max_t(long, HELD_SOCKETS / rate, MIN_TIMEOUT_S) * HZ);
}

/**
 * start() - Begin to connect a socket that is as socket() left it
 * @sock:	Socket, LABELLED
 * @token:	Where to
 * @nonblock:	The program won't wait
 *
 * Returns: -EINPROGRESS, or why it can't be begun; 1: it isn't as it was left
 */
static int start(struct socket *sock, u32 token, bool nonblock)
{
	struct vsock_sock *vsk = vsock_sk(sock->sk);
	struct sockaddr_vm to = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_HOST,
	    .svm_port = token,
	};
	bool fresh;
	int error;

	lock_sock(sock->sk);
	fresh =
	    sock->state == SS_UNCONNECTED && sock->sk->sk_state == TCP_CLOSE &&
	    !sock->sk->sk_err && vsk->remote_addr.svm_port == VMADDR_PORT_ANY &&
	    !(vsk->buffer_max_size &
	      (LABEL_UNREPORTED | LABEL_ABORTED | LABEL_LOCAL | LABEL_INBOUND));
	if (fresh && nonblock) {
		vsk->connect_timeout = timer_limit(vsk->connect_timeout);
		vsk->buffer_max_size |= LABEL_UNREPORTED;
	}
	release_sock(sock->sk);
	if (!fresh)
		return 1;
	error = kernel_connect(sock, (struct sockaddr *)&to, sizeof(to),
			       O_NONBLOCK);
	if (error == -EALREADY || error == -EISCONN)
		return 1; /* another thread was faster */
	if (error != -EINPROGRESS && nonblock) {
		lock_sock(sock->sk);
		vsk->buffer_max_size &= ~LABEL_UNREPORTED;
		release_sock(sock->sk);
	}
	return error == -ENODEV ? -ENETUNREACH : error;
}

/**
 * finish() - Wait for the outcome of an attempt
 * @sock:	Socket that is connecting
 * @ret_answer:	What connect() returns, if it is ours
 *
 * A reset is left in the socket for the agent, which knows the errno, or for
 * the next connect(), should a signal keep this one from hearing of it.
 *
 * Returns: whose it is
 */
static enum whose finish(struct socket *sock, long *ret_answer)
{
	struct sock *sk = sock->sk;
	struct vsock_sock *vsk = vsock_sk(sk);
	enum whose whose = OURS;

	wait_event_interruptible(
	    *sk_sleep(sk), READ_ONCE(sk->sk_state) != TCP_SYN_SENT ||
			       READ_ONCE(sk->sk_shutdown) == SHUTDOWN_MASK);
	lock_sock(sk);
	if (sk->sk_state == TCP_SYN_SENT && sk->sk_shutdown != SHUTDOWN_MASK) {
		vsk->buffer_max_size |= LABEL_UNREPORTED;
		*ret_answer = -ERESTARTSYS;
	} else {
		if (cancel_delayed_work(&vsk->connect_work))
			sock_put(sk);
		if (sock->state == SS_CONNECTING) { /* still: it was reset */
			vsk->buffer_max_size |= LABEL_UNREPORTED;
			whose = AGENT_RESET;
		} else if (sk->sk_state == TCP_CLOSE ||
			   sk->sk_state == TCP_SYN_SENT) {
			*ret_answer = sock_error(sk) ?: -ECONNRESET;
		} else {
			*ret_answer = 0;
		}
	}
	release_sock(sk);
	return whose;
}

/**
 * connect_socket() - connect()
 * @call:	The call
 * @sock:	Its socket
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
static enum whose connect_socket(struct call *call, struct socket *sock,
				 long *ret_answer)
{
	bool nonblock = sock->file->f_flags & O_NONBLOCK;
	struct tsi_known dst;
	int instance, error;
	u64 label;
	u32 token;

	if ((u32)call->args[2] == sizeof(struct sockaddr_un))
		return KERNEL; /* as the filter has it */
	if (kind_of(sock) != LABELLED)
		return AGENT;
	label = READ_ONCE(vsock_sk(sock->sk)->buffer_max_size);
	if ((!nonblock && (label & LABEL_SNDTIMEO)) ||
	    !address_of(call, label & LABEL_V6, &dst))
		return AGENT;
	instance = instance_of(call);
	token = instance ? token_of(instance, &dst) : 0;
	if (!token)
		return AGENT;
	error = start(sock, token, nonblock);
	if (error > 0)
		return AGENT;
	call->args[3] = token; /* for the agent, should it be reset */
	*ret_answer = error;
	return error == -EINPROGRESS && !nonblock ? finish(sock, ret_answer)
						  : OURS;
}

/**
 * option_wanted() - getsockopt(): an SO_ERROR that is 0 is most of them
 * @call:	The call
 * @sock:	Its socket, LABELLED
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
static enum whose option_wanted(struct call *call, struct socket *sock,
				long *ret_answer)
{
	int __user *value = (void __user *)call->args[3];
	int __user *size = (void __user *)call->args[4];
	int room;

	if ((int)call->args[1] != SOL_SOCKET ||
	    (int)call->args[2] != SO_ERROR || READ_ONCE(sock->sk->sk_err))
		return AGENT;
	if (get_user(room, size) || room < (int)sizeof(*value))
		return AGENT;
	*ret_answer = 0;
	if (put_user(0, value) || put_user((int)sizeof(*value), size))
		*ret_answer = -EFAULT;
	return OURS;
}

/**
 * set_option() - setsockopt(): what TCP's clients and servers set is kept
 * @call:	The call
 * @sock:	Its socket, LABELLED
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
static enum whose set_option(struct call *call, struct socket *sock,
			     long *ret_answer)
{
	static const struct {
		int name, shift, bits, least;
	} options[] = {
#define ROW(name, shift, bits, usual, least) {name, shift, bits, least},
	    TSI_TCP_OPTIONS(ROW)
#undef ROW
	};
	struct vsock_sock *vsk = vsock_sk(sock->sk);
	int value, i;
	u64 mask;

	if ((int)call->args[1] != IPPROTO_TCP ||
	    (u32)call->args[4] < sizeof(value))
		return AGENT;
	for (i = 0; (int)call->args[2] != options[i].name; i++)
		if (i == ARRAY_SIZE(options) - 1)
			return AGENT;
	if (get_user(value, (int __user *)call->args[3]))
		return AGENT;
	if (options[i].bits == 1)
		value = !!value;
	else if (value < options[i].least || value >> options[i].bits)
		return AGENT; /* it knows the errno */
	mask = ((1ULL << options[i].bits) - 1) << options[i].shift;
	lock_sock(sock->sk);
	vsk->buffer_max_size &= ~mask;
	vsk->buffer_max_size |= (u64)value << options[i].shift;
	release_sock(sock->sk);
	*ret_answer = 0;
	return OURS;
}

/**
 * caller_of() - Who the connections from a port come from
 * @port:	vsock port of the end that connected
 *
 * Returns: NULL if it is nobody that the host has named
 */
static const struct caller *caller_of(u32 port)
{
	u32 range = (port >> 16) - FIRST_CALLER;

	return range < CALLERS && callers[range].size ? &callers[range] : NULL;
}

/**
 * peer_of() - The other end of a connection between the host and a program
 * @shared:	The agent's memory
 * @vsk:	Socket, LABELLED and connected
 * @ret_peer:	Set to the other end
 *
 * Returns: false if the agent knows better
 */
static bool peer_of(const struct tsi_shared *shared,
		    const struct vsock_sock *vsk, struct tsi_known *ret_peer)
{
	u32 port = vsk->remote_addr.svm_port;
	const struct caller *caller = caller_of(port);
	const struct sockaddr_in *in;

	if (!(vsk->buffer_max_size & LABEL_INBOUND))
		return read_slot(&shared->named[port % TSI_NAMED], ret_peer) ==
		       port;
	if (!caller)
		return false;
	ret_peer->port = port & 0xffff;
	in = (const void *)&caller->addr;
	if (in->sin_family == AF_INET)
		ipv6_addr_set_v4mapped(in->sin_addr.s_addr,
				       (struct in6_addr *)ret_peer->address);
	else
		memcpy(ret_peer->address, &caller->addr.sin6_addr,
		       sizeof(ret_peer->address));
	return true;
}

/**
 * tell_name() - getsockname() and getpeername()
 * @call:	The call
 * @sock:	Its socket
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is: ours as long as the connection is whole
 */
static enum whose tell_name(struct call *call, struct socket *sock,
			    long *ret_answer)
{
	const struct vsock_sock *vsk = vsock_sk(sock->sk);
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
	struct sockaddr_in in = {.sin_family = AF_INET};
	const struct tsi_shared *shared;
	struct in6_addr *address;
	struct tsi_known name;
	int instance, room, size;
	bool known, v6;

	if (kind_of(sock) != LABELLED || sock->state != SS_CONNECTED ||
	    sock->sk->sk_state != TCP_ESTABLISHED ||
	    vsk->remote_addr.svm_cid != VMADDR_CID_HOST ||
	    get_user(room, (int __user *)call->args[2]) || room < 0)
		return AGENT;
	instance = instance_of(call);
	rcu_read_lock();
	shared = instance ? idr_find(&instances, instance) : NULL;
	known = shared && peer_of(shared, vsk, &name);
	address = (struct in6_addr *)name.address;
	if (known && call->hook->nr == __NR_getsockname) {
		name.port = vsk->local_addr.svm_port & 0xffff;
		memcpy(address, shared->pod[!ipv6_addr_v4mapped(address)],
		       sizeof(*address));
	}
	rcu_read_unlock();
	if (!known)
		return AGENT;

	v6 = vsk->buffer_max_size & LABEL_V6;
	in6.sin6_port = in.sin_port = htons(name.port);
	in6.sin6_addr = *address;
	in.sin_addr.s_addr = address->s6_addr32[3];
	size = v6 ? sizeof(in6) : sizeof(in);
	*ret_answer = 0;
	if (copy_to_user((void __user *)call->args[1],
			 v6 ? (void *)&in6 : (void *)&in, min(room, size)) ||
	    put_user(size, (int __user *)call->args[2]))
		*ret_answer = -EFAULT;
	return OURS;
}

/**
 * message() - sendmsg() and recvmsg(): the agent's if an address is to be there
 * @call:	The call
 * @sock:	Its socket
 * @ret_answer:	Unused: it is never ours
 *
 * Returns: whose it is
 */
static enum whose message(struct call *call, struct socket *sock,
			  long *ret_answer)
{
	struct user_msghdr header;
	bool all =
	    call->hook->nr == __NR_recvmsg && (call->args[2] & MSG_WAITALL);

	if (copy_from_user(&header, (void __user *)call->args[1],
			   sizeof(header)))
		return KERNEL;
	if (header.msg_name || (all && kind_of(sock) == LABELLED))
		return AGENT;
	return KERNEL;
}

/**
 * show_client() - Write the address of the client that was accepted
 * @num:	Descriptor of the connection
 * @address:	Where to; it has the vsock address now
 * @size:	Where its size goes
 * @room:	How much room there is for it
 *
 * Returns: 0, or -EFAULT
 */
static int show_client(int num, void __user *address, int __user *size,
		       int room)
{
	const struct caller *named;
	struct caller caller = {};
	struct vsock_sock *vsk;
	struct socket *sock;
	u32 port;
	bool ours, v6;
	int error;

	sock = sockfd_lookup(num, &error);
	if (!sock)
		return 0; /* another thread has closed it */
	ours = kind_of(sock) == LABELLED;
	if (ours) {
		vsk = vsock_sk(sock->sk);
		port = vsk->remote_addr.svm_port;
		v6 = vsk->buffer_max_size & LABEL_V6;
	}
	sockfd_put(sock);
	if (!ours)
		return 0;
	named = caller_of(port);
	if (named) {
		caller = *named;
	} else {
		caller.addr.sin6_family = v6 ? AF_INET6 : AF_INET;
		caller.size = v6 ? sizeof(struct sockaddr_in6)
				 : sizeof(struct sockaddr_in);
		if (v6)
			ipv6_addr_set_v4mapped(0, &caller.addr.sin6_addr);
	}
	caller.addr.sin6_port = htons(port & 0xffff);
	room = min_t(u32, room, min_t(u32, caller.size, sizeof(caller.addr)));
	if (copy_to_user(address, &caller.addr, room) ||
	    put_user((int)caller.size, size))
		return -EFAULT;
	return 0;
}

/**
 * accept_client() - accept() and accept4(): the kernel's, but for the address
 * @call:	The call
 * @sock:	Its socket, LABELLED
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
static enum whose accept_client(struct call *call, struct socket *sock,
				long *ret_answer)
{
	void __user *address = (void __user *)call->args[1];
	int __user *size = (void __user *)call->args[2];
	int room;

	if (!address || get_user(room, size) || room < 0)
		return KERNEL;
	*ret_answer = call->hook->kernels(call->regs);
	if (*ret_answer >= 0 && show_client(*ret_answer, address, size, room)) {
		close_fd(*ret_answer);
		*ret_answer = -EFAULT;
	}
	return OURS;
}

/* ---- being called ---- */

/**
 * decide() - Whose a call is, by its socket
 * @call:	The call
 * @ret_answer:	What it returns, if it is ours
 *
 * Returns: whose it is
 */
static enum whose decide(struct call *call, long *ret_answer)
{
	const struct hook *hook = call->hook;
	enum whose whose = KERNEL;
	struct socket *sock;
	int error;

	if (!hook->kinds)
		return hook->handle(call, NULL, ret_answer);
	sock = sockfd_lookup(call->args[0], &error);
	if (!sock)
		return KERNEL; /* it knows the errno */
	if (kind_of(sock) & hook->kinds)
		whose =
		    hook->handle ? hook->handle(call, sock, ret_answer) : AGENT;
	sockfd_put(sock);
	return whose;
}

/**
 * serve() - A system call
 * @hook:	Its hook
 * @regs:	Its registers
 *
 * Returns: what it returns
 */
static long serve(const struct hook *hook, const struct pt_regs *regs)
{
	struct call call = {.hook = hook, .regs = regs};
	enum whose whose;
	long answer;

	if (current->seccomp.mode != SECCOMP_MODE_FILTER)
		return hook->kernels(regs);
	syscall_get_arguments(current, (struct pt_regs *)regs, call.args);
	whose = decide(&call, &answer);
	if (whose == OURS)
		return answer;
	if (whose != KERNEL &&
	    !ask_filter(&call, whose == AGENT ? TSI_TRAP : TSI_RESET, &answer))
		return answer;
	return hook->kernels(regs);
}

/* call, sockets, handler */
#define HOOKS(_)                                                               \
	_(socket, 0, make_socket)                                              \
	_(connect, LABELLED | DATAGRAM | OTHER, connect_socket)                \
	_(accept, LABELLED, accept_client)                                     \
	_(accept4, LABELLED, accept_client)                                    \
	_(bind, LABELLED | DATAGRAM | OTHER, NULL)                             \
	_(listen, LABELLED | OTHER, NULL)                                      \
	_(shutdown, LABELLED, NULL)                                            \
	_(getsockname, LABELLED | DATAGRAM, tell_name)                         \
	_(getpeername, LABELLED | DATAGRAM, tell_name)                         \
	_(setsockopt, LABELLED, set_option)                                    \
	_(getsockopt, LABELLED, option_wanted)                                 \
	_(sendmsg, DATAGRAM, message)                                          \
	_(recvmsg, LABELLED | DATAGRAM, message)                               \
	_(sendmmsg, DATAGRAM, NULL)                                            \
	_(recvmmsg, DATAGRAM, NULL)

#define NUMBER(call, ...) HOOK_##call,
enum { HOOKS(NUMBER) };
#undef NUMBER

static struct hook hooks[];

#define FUNCTION(call, ...)                                                    \
	static asmlinkage long tsi_##call(const struct pt_regs *regs)          \
	{                                                                      \
		return serve(&hooks[HOOK_##call], regs);                       \
	}
HOOKS(FUNCTION)
#undef FUNCTION

#define ROW(call, sockets, handler)                                            \
	[HOOK_##call] = {                                                      \
	    .symbol = SYMBOL_OF(call),                                         \
	    .nr = __NR_##call,                                                 \
	    .kinds = sockets,                                                  \
	    .handle = handler,                                                 \
	    .ours = tsi_##call,                                                \
	},
static struct hook hooks[] = {HOOKS(ROW)};
#undef ROW

/**
 * lead() - ftrace: a function of hooks[] was entered
 * @ip:		Its first instructions
 * @parent:	Who called it
 * @ops:	Unused: there is one
 * @fregs:	Registers
 */
static void notrace lead(unsigned long ip, unsigned long parent,
			 struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	const struct hook *hook = hooks;

	if (!regs || within_module(parent, THIS_MODULE))
		return;
	while (ip - (unsigned long)hook->kernels >= FUNCTION_ALIGN)
		if (++hook == hooks + ARRAY_SIZE(hooks))
			return;
	regs->ip = (unsigned long)hook->ours;
}

/* PERMANENT: kernel.ftrace_enabled = 0 would make programs' sockets native */
static struct ftrace_ops ftrace = {
    .func = lead,
    .flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY |
	     FTRACE_OPS_FL_PERMANENT,
};

/**
 * look_up() - Find the functions of the kernel that modules aren't given
 *
 * Returns: 0, or a negated errno
 */
static int __init look_up(void)
{
	struct kprobe probe = {.symbol_name = "kallsyms_lookup_name"};
	unsigned long (*find)(const char *symbol);
	unsigned int i;
	int error = register_kprobe(&probe);

	if (error)
		return error;
	unregister_kprobe(&probe);
	find = (void *)probe.addr;
	show_filter = (void *)find("__secure_computing");
	if (!show_filter)
		return -ENOENT;
	for (i = 0; !error && i < ARRAY_SIZE(hooks); i++) {
		unsigned long at = find(hooks[i].symbol);

		hooks[i].kernels = (void *)at;
		error = at ? ftrace_set_filter_ip(&ftrace, at, 0, 0) : -ENOENT;
	}
	return error;
}

static int __init tsi_init(void)
{
	int error = -ENOMEM;

	/* We call functions that aren't meant to be called by their address */
	if (cpu_feature_enabled(X86_FEATURE_IBT))
		return -ENODEV;
	callers = vmalloc_user(CALLERS * sizeof(*callers));
	if (callers)
		error = look_up();
	if (!error)
		error = misc_register(&device);
	if (error)
		goto no_device;
	error = register_ftrace_function(&ftrace); /* nobody is in our code */
	if (error)
		goto no_hooks;
	return 0;

no_hooks:
	misc_deregister(&device);
no_device:
	ftrace_free_filter(&ftrace);
	vfree(callers);
	return error;
}
module_init(tsi_init);

/* It stays: a thread may be in serve() at any time. */

MODULE_DESCRIPTION("TSI: sockets that are vsock's, made and connected here");
MODULE_LICENSE("GPL");
