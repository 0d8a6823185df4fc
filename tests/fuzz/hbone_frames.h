/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hbone_frames.h - frames of each kind that RFC 9113 has a rule for
 *
 * So that the fuzzer has to find their order and their streams, not lengths.
 */
#ifndef HBONE_FRAMES_H
#define HBONE_FRAMES_H

#include <stddef.h>
#include <stdint.h>

enum {
	DATA,
	HEADERS,
	PRIORITY,
	RST,
	SETTINGS,
	PUSH,
	PING,
	GOAWAY,
	WINDOW,
	CONT
};

#define END_STREAM  0x1
#define END_HEADERS 0x4
#define PADDED	    0x8
#define PRIO	    0x20

/**
 * struct said - A frame
 * @type:	Its type
 * @flags:	Its flags
 * @len:	Bytes of @payload
 * @payload:	What it says
 */
struct said {
	uint8_t type;
	uint8_t flags;
	uint8_t len;
	uint8_t payload[16];
};

static const struct said frames[] = {
    {DATA, 0, 4, "data"},
    {DATA, END_STREAM, 4, "last"},
    {DATA, END_STREAM, 0, ""},
    {DATA, 0, 0, ""},
    {DATA, PADDED, 4, "\3\0\0\0"},
    {DATA, PADDED, 5, "\3x\0\0\0"},
    {DATA, PADDED | END_STREAM, 5, "\3x\0\0\0"},
    {DATA, PADDED, 2, "\377x"},
    {DATA, PADDED, 1, "\0"},
    /* ":status: 103", trailers, what is cut, and an indexed field */
    {HEADERS, END_HEADERS, 5, "\10\3103"},
    {HEADERS, END_HEADERS | END_STREAM, 5, "\0\1x\1y"},
    {HEADERS, END_HEADERS, 5, "\0\1x\1y"},
    {HEADERS, END_HEADERS, 5, "\0\1X\1y"},
    {HEADERS, 0, 9, "\2\7CONNECT"},
    {HEADERS, END_HEADERS, 6, "\100\1x\1y\276"},
    {HEADERS, END_HEADERS, 1, "\276"},
    {HEADERS, END_HEADERS, 1, "\200"},
    {HEADERS, END_HEADERS | PRIO, 14, "\0\0\0\3\20\2\7CONNECT"},
    {HEADERS, END_HEADERS | PADDED, 3, "\1\210"},
    {CONT, END_HEADERS, 5, "\1\3a:1"},
    {CONT, 0, 0, ""},
    {PRIORITY, 0, 5, "\0\0\0\1\20"},
    {PRIORITY, 0, 4, "\0\0\0\1"},
    {RST, 0, 4, "\0\0\0\10"},
    {RST, 0, 4, "\0\0\0\0"},
    {RST, 0, 4, "\0\0\0\7"},
    {SETTINGS, 0, 6, "\0\4\0\0\0\0"},
    {SETTINGS, 0, 6, "\0\4\177\377\377\377"},
    {SETTINGS, 0, 6, "\0\1\0\0\0\0"},
    {SETTINGS, 0, 6, "\0\3\0\0\0\1"},
    {SETTINGS, 0, 6, "\0\5\0\377\377\377"},
    {PING, 0, 8, "12345678"},
    {PING, 1, 8, "12345678"},
    {GOAWAY, 0, 8, "\0\0\0\0\0\0\0\0"},
    {GOAWAY, 0, 8, "\177\377\377\377\0\0\0\0"},
    {GOAWAY, 0, 8, "\0\0\0\1\0\0\0\2"},
    {WINDOW, 0, 4, "\0\0\0\0"},
    {WINDOW, 0, 4, "\0\0\0\1"},
    {WINDOW, 0, 4, "\177\377\377\377"},
    {WINDOW, 0, 4, "\200\0\377\377"},
    {PUSH, END_HEADERS, 5, "\0\0\0\2\210"},
};

#define FRAMES (sizeof(frames) / sizeof(*frames))

#endif /* HBONE_FRAMES_H */
