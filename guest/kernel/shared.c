// SPDX-License-Identifier: GPL-2.0-only
/*
 * shared.c - /dev/tsi: memory that an agent and we share
 *
 * Theory of operation
 * ===================
 *
 * An open file is an instance, with memory that its agent maps and fills: the
 * tokens of destinations, and what they stand for. Another piece of memory, the
 * clients' addresses, is one for all instances. Each slot is read as the agent
 * may be writing it. By ioctl() an agent changes the label of a socket.
 */

#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/vmalloc.h>
#include <net/af_vsock.h>

#include "tsi.h"

static DEFINE_IDR(instances); /* struct tsi_shared, by number */
static DEFINE_MUTEX(instances_lock);
static struct caller *callers;

/* ---- instances ---- */

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

/* ---- what an agent asks for ---- */

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

/**
 * shared_prepare() - Get the memory that all instances share
 *
 * Returns: 0, or a negated errno
 */
int __init shared_prepare(void)
{
	callers = vmalloc_user(CALLERS * sizeof(*callers));
	return callers ? 0 : -ENOMEM;
}

/**
 * shared_register() - Let agents open the device
 *
 * Returns: 0, or a negated errno
 */
int __init shared_register(void)
{
	return misc_register(&device);
}

/**
 * shared_unregister() - The opposite
 */
void __init shared_unregister(void)
{
	misc_deregister(&device);
}

/**
 * shared_discard() - Give the memory back
 */
void __init shared_discard(void)
{
	vfree(callers);
}

/* ---- what they have written ---- */

/**
 * shared_of() - The memory of an instance
 * @instance:	Its number
 *
 * Returns: the memory, until rcu_read_unlock(); NULL if there is none
 */
struct tsi_shared *shared_of(int instance)
{
	return idr_find(&instances, instance);
}

/**
 * shared_read_slot() - Read a slot that the agent may be writing
 * @slot:	Slot
 * @ret_known:	Set to what it says
 *
 * The token is cleared first and written last, so that it is the same before
 * and after if nothing was written.
 *
 * Returns: its token; 0: it says nothing
 */
u32 shared_read_slot(const struct tsi_known *slot, struct tsi_known *ret_known)
{
	u32 token = smp_load_acquire(&slot->token);

	ret_known->port = READ_ONCE(slot->port);
	ret_known->address[0] = READ_ONCE(slot->address[0]);
	ret_known->address[1] = READ_ONCE(slot->address[1]);
	smp_rmb();
	return READ_ONCE(slot->token) == token ? token : 0;
}

/**
 * shared_caller() - Who the connections from a port come from
 * @port:	vsock port of the end that connected
 *
 * Returns: NULL if it is nobody that the host has named
 */
const struct caller *shared_caller(u32 port)
{
	u32 range = (port >> 16) - FIRST_CALLER;

	return range < CALLERS && callers[range].size ? &callers[range] : NULL;
}
