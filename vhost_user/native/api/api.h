/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api.h - what Python calls; vu.h is its manual
 *
 * engine.c	an engine, from start to end
 * device.c	its devices
 * rings.c	their rings
 * route.c	which far side a device's ports have
 * listener.c	listening sockets
 * tls.c	certificates and headers for tunnels
 * hbone.c	pools and listeners of tunnels
 * request.c	CONNECTs of others
 * netns.c	network namespaces that far sides are dialled in
 * conn.c	connections
 *
 * Each call stops the engine between two turns, changes one thing and lets it
 * go on, so none of them meets a half-done batch. A call finds its device,
 * listener or connection by id and says -VU_ERR_GONE when it is no more: the
 * guest or a peer may have ended it while Python was thinking.
 */
#ifndef API_H
#define API_H

#include "engine/engine.h"

/* Ids are a slot and a number that no other device had */
#define DEVICE_SLOT(dev) ((dev) % VU_MAX_DEVICES)

/**
 * dev_fn - Something to do with a device
 * @e:		Engine, stopped
 * @d:		Device
 * @arg:	What the caller knows of it
 *
 * Returns: what the call returns
 */
typedef int64_t dev_fn(struct vu_engine *e, struct vu_dev *d, void *arg);

int64_t with_dev(struct vu_engine *e, uint32_t dev, dev_fn *fn, void *arg);
int64_t aside_dev(struct vu_engine *e, uint32_t dev, dev_fn *fn, void *arg);
void device_remove(struct vu_engine *e, uint32_t slot);
int listener_make(struct vu_engine *e, int fd, uint32_t want,
		  const struct vu_target *target, struct vu_listener **ret);
void listener_remove(struct vu_engine *e, uint32_t slot);

#endif /* API_H */
