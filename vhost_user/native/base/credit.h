/* SPDX-License-Identifier: Apache-2.0 */
/*
 * credit.h - how much each side of a guest's connection may send
 */
#ifndef CREDIT_H
#define CREDIT_H

#include <stdbool.h>
#include <stdint.h>

#define CREDIT_WINDOW_MAX (1U << 30) /* keeps the arithmetic in 32 bits */
#define CREDIT_PACKET	  768U	     /* of a receive buffer, see credit.c */

/**
 * struct credit_run - Packets that were sent one behind the other
 * @end:	Where they end, in tx_cnt
 * @count:	How many
 */
struct credit_run {
	uint32_t end;
	uint32_t count;
};

#define CREDIT_RUNS 4

/**
 * struct credit - Counters of VIRTIO 1.2 section 5.10.6.3, both directions
 * @rx_cnt:	Bytes received from the guest
 * @fwd_cnt:	Of them, bytes that left us, as the guest may be told
 * @fwd_sent:	@fwd_cnt as the guest last saw it
 * @edge:	How far @rx_cnt may go, as the guest was told; never goes back
 * @buf_alloc:	Receive window that we offer
 * @tx_cnt:	Bytes sent to the guest
 * @peer_fwd_cnt: Of them, bytes that its program has taken
 * @peer_buf_alloc: Its receive buffer
 * @runs:	Packets in flight, oldest first
 * @n_runs:	Entries of @runs
 */
struct credit {
	uint32_t rx_cnt;
	uint32_t fwd_cnt;
	uint32_t fwd_sent;
	uint32_t edge;
	uint32_t buf_alloc;
	uint32_t tx_cnt;
	uint32_t peer_fwd_cnt;
	uint32_t peer_buf_alloc;
	struct credit_run runs[CREDIT_RUNS];
	uint32_t n_runs;
};

/**
 * enum credit_note - What a packet said of its sender's receive buffer
 * @CREDIT_SAME:	Nothing new, or something that is older than the last
 * @CREDIT_NEWS:	More, or less, may be sent now
 * @CREDIT_LIE:		It has taken more than it was sent
 */
enum credit_note { CREDIT_SAME, CREDIT_NEWS, CREDIT_LIE };

/* from the guest; @far: the credit of a sibling's end of it, NULL: the host's
 */
bool credit_take(struct credit *c, const struct credit *far, uint32_t len);
uint32_t credit_tell(struct credit *c, const struct credit *far);
bool credit_due(const struct credit *c, const struct credit *far);
bool credit_due_message(const struct credit *c);
bool credit_half_used(const struct credit *c, const struct credit *far);

/* to the guest */
enum credit_note credit_note(struct credit *c, uint32_t fwd_cnt,
			     uint32_t buf_alloc);
uint32_t credit_bytes(const struct credit *c);
uint32_t credit_packets(const struct credit *c);
bool credit_few_packets(const struct credit *c);
void credit_sent(struct credit *c, uint32_t n);

#endif /* CREDIT_H */
