/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dial.h - connect a far side's socket
 */
#ifndef DIAL_H
#define DIAL_H

#include "conn/conn.h"

void dial_here(struct vu_conn *c, const struct sockaddr *addr, socklen_t len);
void dial_start(struct vu_conn *c, const struct sockaddr *addr, socklen_t len);
void dial_connected(struct vu_conn *c);

#endif /* DIAL_H */
