/* SPDX-License-Identifier: Apache-2.0 */
/*
 * target.h - give a connection its far side
 */
#ifndef TARGET_H
#define TARGET_H

#include "conn/conn.h"

bool target_valid(const struct vu_target *target);
void target_reach(struct vu_conn *c, const struct vu_target *target);
void target_retry(struct vu_conn *c, const struct vu_target *target);
int target_socket(struct vu_conn *c, int fd);
void target_event(struct vu_conn *c, uint32_t events);

#endif /* TARGET_H */
