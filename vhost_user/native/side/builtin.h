/* SPDX-License-Identifier: Apache-2.0 */
/*
 * builtin.h - sides that the engine itself plays: echo, discard, chargen
 */
#ifndef BUILTIN_H
#define BUILTIN_H

#include "conn/conn.h"

extern const struct side_ops builtin_echo;
extern const struct side_ops builtin_discard;
extern const struct side_ops builtin_chargen;

#endif /* BUILTIN_H */
