/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pipe_fakes.h - a connection between two sides that do as a test says
 */
#ifndef PIPE_FAKES_H
#define PIPE_FAKES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_UP	  0
#define FAKE_DOWN 1
#define FAKE_END  1
#define FAKE_STOP 2

struct fake;

/**
 * struct fake_side - What a side does, and what it was told
 * @room:	Bytes that it still takes
 * @error:	errno that it says instead, or 0
 * @took:	Bytes that it has taken
 * @acked:	Near: bytes of it that were taken
 * @told:	FAKE_END, FAKE_STOP
 * @closed:	Far: it was closed, with @close_error
 * @over:	Near: errno, or -1 for an orderly end
 * @finished:	Near: all that is left is to let go
 * @reset:	Near: it is over
 * @misfit:	Near: a message can't be delivered
 */
struct fake_side {
	size_t room;
	int error;
	size_t took;
	size_t acked;
	int told;
	bool closed;
	int close_error;
	int over;
	bool finished;
	bool reset;
	bool misfit;
};

struct fake *fake_new(bool messages, uint32_t window);
void fake_free(struct fake *f);
void fake_put(struct fake *f, int pipe, const char *data, size_t len,
	      uint32_t flags);
void fake_end(struct fake *f, int pipe);
void fake_break(struct fake *f, int pipe, int error);
void fake_run(struct fake *f);
int fake_state(const struct fake *f);
int fake_pipe(struct fake *f, int pipe);
uint32_t fake_kept(struct fake *f, int pipe);
struct fake_side *fake_side(struct fake *f, int far);

#endif /* PIPE_FAKES_H */
