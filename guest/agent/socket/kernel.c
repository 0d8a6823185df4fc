// SPDX-License-Identifier: Apache-2.0
/*
 * kernel.c - what the kernel module is told, if there is one
 *
 * Theory of operation
 * ===================
 *
 * guest/kernel has the module. It makes sockets and connects them itself,
 * to destinations in a table that both of us map from its device. The table is
 * a cache: a destination has one slot, another one of the same slot takes it
 * over, and what isn't there is asked of us.
 *
 * The open device outlives an agent, as the listener does. The tokens in it are
 * the stream's, so they go when the stream does (routes.c).
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "agent/tsi.h"

static struct tsi_shared *shared;
static struct caller *callers;
static int device; /* if there is @shared */

/**
 * kernel_open() - Open the device
 *
 * Returns: it; -1 if there is no module
 */
int kernel_open(void)
{
	return open(TSI_DEVICE, O_RDWR | O_CLOEXEC);
}

/**
 * kernel_map() - Use the device
 * @fd:		From kernel_open(), perhaps of the agent before this one
 *
 * Returns: the instance; 0 if there is none
 */
uint32_t kernel_map(int fd)
{
	struct tsi_shared *ours =
	    mmap(NULL, sizeof(*ours), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		 TSI_SHARED_AT);
	struct caller *table =
	    mmap(NULL, CALLERS * sizeof(*table), PROT_READ | PROT_WRITE,
		 MAP_SHARED, fd, TSI_CALLERS_AT);

	if (ours == MAP_FAILED || table == MAP_FAILED)
		return 0;
	shared = ours;
	callers = table;
	device = fd;
	return shared->instance;
}

/**
 * kernel_callers() - The guest's table of callers
 *
 * Returns: CALLERS of them; NULL if there is no module
 */
struct caller *kernel_callers(void)
{
	return callers;
}

/**
 * kernel_change_label() - Have the module change a socket's label
 * @fd:		One of our sockets
 * @set:	Bits to set
 * @clear:	Those to clear before
 *
 * Returns: false if there is no module
 */
bool kernel_change_label(int fd, uint64_t set, uint64_t clear)
{
	const struct tsi_change change = {.set = set, .clear = clear, .fd = fd};

	return shared && !ioctl(device, TSI_CHANGE_LABEL, &change);
}

/**
 * kernel_set_connect_timeout() - Say how long a connect() may take
 * @timeout_s:	For the host to answer a connection request
 */
void kernel_set_connect_timeout(uint32_t timeout_s)
{
	if (shared)
		shared->connect_timeout_s = timeout_s;
}

/**
 * kernel_set_pod_address() - Say what the pod's address is
 * @v4:		The IPv4 one
 * @address:	It, v4-mapped if IPv4; unspecified if it has none
 */
void kernel_set_pod_address(bool v4, const struct in6_addr *address)
{
	if (shared)
		memcpy(shared->pod[!v4], address, sizeof(shared->pod[0]));
}

/**
 * slot_of() - Where a destination is, if it is in the table
 * @dst:	Destination
 *
 * Returns: slot, NULL if there is no module
 */
static struct tsi_known *slot_of(const struct destination *dst)
{
	if (!shared)
		return NULL;
	return &shared->known[address_hash(dst) % TSI_KNOWN];
}

/**
 * fill() - Write a slot, which the module may be reading
 * @slot:	Slot
 * @dst:	Destination
 * @token:	Its token
 */
static void fill(struct tsi_known *slot, const struct destination *dst,
		 uint32_t token)
{
	__atomic_store_n(&slot->token, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&slot->port, dst->port, __ATOMIC_RELAXED);
	memcpy(slot->address, &dst->address, sizeof(slot->address));
	__atomic_store_n(&slot->token, token, __ATOMIC_RELEASE);
}

/**
 * kernel_know() - A destination can be connected to by its token
 * @dst:	Destination, outside of the guest
 * @token:	Token
 */
void kernel_know(const struct destination *dst, uint32_t token)
{
	struct tsi_known *slot = slot_of(dst);

	if (slot && slot->token != token)
		fill(slot, dst, token);
}

/**
 * kernel_name() - A token has a destination, for getpeername()
 * @dst:	Destination
 * @token:	Token
 */
void kernel_name(const struct destination *dst, uint32_t token)
{
	if (shared)
		fill(&shared->named[token % TSI_NAMED], dst, token);
}

/**
 * kernel_forget() - A destination's token can't be connected to any more
 * @dst:	Destination
 * @token:	Token
 */
void kernel_forget(const struct destination *dst, uint32_t token)
{
	struct tsi_known *known = slot_of(dst);

	if (known && known->token == token)
		__atomic_store_n(&known->token, 0, __ATOMIC_RELEASE);
}

/**
 * kernel_forget_all() - No destination has
 */
void kernel_forget_all(void)
{
	for (unsigned i = 0; shared && i < TSI_KNOWN; i++)
		__atomic_store_n(&shared->known[i].token, 0, __ATOMIC_RELEASE);
}
