// SPDX-License-Identifier: Apache-2.0
/*
 * dev.c - a device and its rings, from start to end
 *
 * Theory of operation
 * ===================
 *
 * Rings come and go: the front-end starts and stops them, and a driver that
 * breaks a rule stops its own. Connections stay meanwhile. They end when the
 * front-end goes, when the device does, and when the guest's memory is gone:
 * what was read of that since is worth nothing, so nothing of it is delivered.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/epoll.h>

#include "vsock/dev.h"

#define REAP 32 /* closes at once */

/**
 * dev_new() - Make a device
 * @core:	What all connections share
 * @id:		Its id
 * @cfg:	Configuration, copied
 *
 * Returns: the device, without rings; NULL if out of memory
 */
struct vu_dev *dev_new(struct core *core, uint32_t id,
		       const struct vu_dev_config *cfg)
{
	struct vu_dev *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	*d = (struct vu_dev){
	    .core = core,
	    .cfg = *cfg,
	    .id = id,
	    .next_port = 1U << 30,
	    .doing = WORK_RUN,
	    .outbox = outbox_open(id, false),
	};
	if (!d->outbox) {
		free(d);
		return NULL;
	}
	list_init(&d->active);
	list_init(&d->starved);
	list_init(&d->waiting);
	list_init(&d->owing);
	list_init(&d->parting);
	list_init(&d->retries);
	list_init(&d->retrying);
	list_init(&d->doors);
	list_init(&d->decisions);
	for (unsigned q = 0; q < QUEUES; q++)
		d->kick_fds[q] = -1;
	return d;
}

/**
 * dev_free() - Let go of a device
 * @d:		Device, its rings stopped, its connections gone
 */
void dev_free(struct vu_dev *d)
{
	list_del(&d->active);
	list_del(&d->retrying);
	route_free(&d->routes);
	outbox_unref(&d->core->outbox, d->outbox);
	free(d->groups);
	free(d->ranges);
	free(d->lost);
	free(d->rsts);
	free(d);
}

/**
 * dev_start_ring() - Start a ring
 * @d:		Device
 * @queue:	Which
 * @cfg:	Where it is
 * @tag:	What epoll reports a kick as
 *
 * Returns: as vu_dev_start_ring()
 */
int dev_start_ring(struct vu_dev *d, uint32_t queue,
		   const struct vu_ring_config *cfg, uint64_t tag)
{
	struct epoll_event ev = {
	    .events = EPOLLIN | EPOLLET,
	    .data.u64 = tag,
	};
	struct vu_ring *ring;
	int err = 0, kick = -1;

	if (d->rings[queue] || !d->mem)
		return -VU_ERR_STATE;
	if (!d->rsts)
		d->rsts = calloc(RST_QUEUE, sizeof(*d->rsts));
	if (!d->rsts)
		return -VU_ERR_NOMEM;
	dev_stop_ring(d, queue); /* a broken one left its kick eventfd */
	ring = vu_ring_new(d->mem, cfg, &err);
	if (!ring)
		return err;
	if (cfg->kick_fd >= 0) {
		/* ours, so that Python may close its own at any time */
		kick = fcntl(cfg->kick_fd, F_DUPFD_CLOEXEC, 0);
		if (kick < 0 ||
		    epoll_ctl(d->core->epoll_fd, EPOLL_CTL_ADD, kick, &ev)) {
			if (kick >= 0)
				close(kick);
			vu_ring_free(ring);
			return -VU_ERR_SYS;
		}
	}
	d->kick_fds[queue] = kick;
	d->rings[queue] = ring;
	d->features = cfg->features;
	return 0;
}

/**
 * dev_pause_ring() - Let go of a ring, all that was pushed shown
 * @d:		Device
 * @queue:	Its ring, running
 */
void dev_pause_ring(struct vu_dev *d, uint32_t queue)
{
	vu_ring_flush(d->rings[queue]);
	d->bases[queue] = vu_ring_base(d->rings[queue]);
	vu_ring_free(d->rings[queue]);
	d->rings[queue] = NULL;
}

/**
 * dev_stop_ring() - The same, and nothing wakes us for it any more
 * @d:		Device
 * @queue:	Its ring, running or not
 */
void dev_stop_ring(struct vu_dev *d, uint32_t queue)
{
	if (d->rings[queue])
		dev_pause_ring(d, queue);
	if (d->kick_fds[queue] >= 0) {
		epoll_ctl(d->core->epoll_fd, EPOLL_CTL_DEL, d->kick_fds[queue],
			  NULL);
		close(d->kick_fds[queue]);
	}
	d->kick_fds[queue] = -1;
}

/**
 * tell_broken() - Tell Python that a ring is stopped
 * @d:		Device
 * @queue:	Ring, or VU_QUEUE_ALL
 * @err:	Negated enum vu_err
 */
static void tell_broken(struct vu_dev *d, uint32_t queue, int err)
{
	struct vu_event event = {
	    .kind = VU_EV_BROKEN,
	    .port = queue,
	    .error = -err,
	};

	outbox_push(&d->core->outbox, d->outbox, &event, true);
}

/**
 * dev_broken() - Stop a ring whose driver broke the rules
 * @d:		Device
 * @queue:	Its ring
 * @err:	Negated enum vu_err
 */
void dev_broken(struct vu_dev *d, uint32_t queue, int err)
{
	dev_pause_ring(d, queue);
	if (!dev_failed(d)) /* else dev_end() is about to tell */
		tell_broken(d, queue, err);
}

/**
 * dev_flush() - Show the guest what was pushed to a ring
 * @d:		Device
 * @queue:	Its ring, running
 */
void dev_flush(struct vu_dev *d, uint32_t queue)
{
	int ret = vu_ring_flush(d->rings[queue]);

	d->held_us[queue] = 0;
	if (ret > 0)
		d->stats.calls++;
	else if (ret < 0)
		d->failure = (uint8_t)-ret;
}

/**
 * dev_end() - End a device that has failed
 * @d:		Device; no connection of it is in anyone's hands
 */
void dev_end(struct vu_dev *d)
{
	int err = d->failure ? d->failure : VU_ERR_FAULT;

	for (uint32_t q = 0; q < QUEUES; q++) {
		if (d->rings[q])
			dev_pause_ring(d, q);
	}
	dev_drop_conns(d);
	d->mem = NULL;
	d->failure = 0;
	tell_broken(d, VU_QUEUE_ALL, -err);
}

/**
 * lose() - Remember a connection that its guest doesn't know to be gone
 * @c:		Connection, about to be forsaken
 *
 * Out of memory, the guest has to find out by itself: its next packet gets a
 * RST.
 */
static void lose(const struct vu_conn *c)
{
	struct vu_dev *d = c->dev;
	unsigned cap = d->lost_cap ? 2 * d->lost_cap : 64;

	if (d->n_lost == d->lost_cap) {
		struct rst *lost;

		if (d->n_lost >= d->cfg.max_conns)
			return;
		lost = realloc(d->lost, cap * sizeof(*lost));
		if (!lost)
			return;
		d->lost = lost;
		d->lost_cap = cap;
	}
	d->lost[d->n_lost++] = (struct rst){
	    .src_cid = c->cid,
	    .src_port = c->port,
	    .dst_port = c->peer_port,
	    .type = c->type,
	};
}

/**
 * dev_drop_conns() - End a device's connections; its guest is gone
 * @d:		Device
 *
 * Its driver may be told of those that are hashed, see reset.c; an orphan's
 * guest has let go of it before.
 */
void dev_drop_conns(struct vu_dev *d)
{
	struct core *core = d->core;

	for (uint32_t b = 0; d->stats.conns && b < core->n_buckets; b++) {
		struct vu_conn *c = core->buckets[b], *next;

		for (; c; c = next) {
			next = c->hash_next;
			if (c->dev != d)
				continue;
			lose(c);
			conn_forsake(c, ECONNRESET);
		}
	}
	conn_reap(core, REAP);
	d->rst_count = 0;
}
