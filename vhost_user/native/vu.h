/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vu.h - the C hot path of a vhost-user backend: guest memory, virtqueues,
 * virtio-vsock connections and the engine thread that relays them
 *
 * This header and those that it includes are the manual: each function lists
 * the errors it returns, and outputs are untouched on failure. Nothing here
 * logs or exits; it counts, and Python reads the counters.
 *
 * Threads. vu_engine_run() is called on one thread, the engine thread, and
 * stays there until vu_engine_stop(). Every other vu_engine_, vu_dev_,
 * vu_conn_, vu_listener_, vu_netns_, vu_handoff_, vu_peer_, vu_tls_,
 * vu_headers_, vu_pool_ and vu_hbone_ function may be called on any other
 * thread, never on that one: see struct vu_engine. vu_maker_run() is another
 * process's.
 *
 * Ownership. Python owns memory maps and ring eventfds; C borrows them until
 * vu_dev_set_mem(NULL), vu_dev_stop_ring() or vu_dev_del(). A connection owns
 * the file descriptor it relays to; so does a listener its own.
 */
#ifndef VU_H
#define VU_H

#include "vu_conn.h"
#include "vu_decide.h"
#include "vu_dev.h"
#include "vu_engine.h"
#include "vu_err.h"
#include "vu_handoff.h"
#include "vu_hbone.h"
#include "vu_mem.h"
#include "vu_netns.h"
#include "vu_peer.h"
#include "vu_reason.h"
#include "vu_request.h"
#include "vu_ring.h"

#endif /* VU_H */
