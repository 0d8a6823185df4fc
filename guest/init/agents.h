/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agents.h - tsi-agent processes, one for each filter that has users
 */
#ifndef INIT_AGENTS_H
#define INIT_AGENTS_H

#include <stdbool.h>
#include <sys/types.h>

#ifndef AGENT /* a test has its own */
#define AGENT "/bin/tsi-agent"
#endif

/**
 * enum agents_end - What the end of a process means
 * @AGENTS_NOT:	It was no agent
 * @AGENTS_OVER: It was one, and nothing needs another
 * @AGENTS_NEXT: Another one has taken over
 * @AGENTS_LOST: Another one is needed and can't be had
 */
enum agents_end { AGENTS_NOT, AGENTS_OVER, AGENTS_NEXT, AGENTS_LOST };

int agents_prepare(int *ret_theirs);
bool agents_add(pid_t pid, int sock);
pid_t agents_command(pid_t pid);
int agents_timeout_ms(void);
void agents_disown(void);
void agents_look(void);
enum agents_end agents_ended(pid_t pid, pid_t *ret_command);

#endif /* INIT_AGENTS_H */
