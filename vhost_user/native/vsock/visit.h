/* SPDX-License-Identifier: Apache-2.0 */
/*
 * visit.h - CONNECTs that are a guest's
 */
#ifndef VISIT_H
#define VISIT_H

#include "side/decision.h"
#include "vsock/dev.h"

void visit_decide(struct decision *what, struct vu_dev *d, uint32_t guest_port,
		  uint32_t first_port);
void visit_end(struct vu_dev *d);

#endif /* VISIT_H */
