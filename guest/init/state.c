// SPDX-License-Identifier: Apache-2.0
/*
 * state.c - what all of init knows: how it was started, and the one command
 */

#include "init/init.h"

bool booted, module_has_sockets;
struct command cmd = {.fds = {-1, -1, -1}};
