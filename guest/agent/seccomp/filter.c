// SPDX-License-Identifier: Apache-2.0
/*
 * filter.c - which system calls are trapped
 *
 * Theory of operation
 * ===================
 *
 * The table below is the filter: a system call matches a rule if every test of
 * the rule holds, the first rule that matches gives the action, and no rule
 * means that the call runs untouched. filter_install() translates the table to
 * BPF.
 *
 * What is not in the table matters most: read, write, send, recv, poll, epoll,
 * close, dup, fork and half-closes work on a vsock socket as they do on a TCP
 * socket. (glibc and musl make send() and recv() of sendto() and recvfrom()
 * without an address.) sendmsg() and recvmsg() keep the address in memory, so
 * they are trapped whatever the socket is; the agent looks whether there is
 * one, which costs each such call a trap. For a system call whose rules don't
 * look at arguments, or that has none, the kernel caches the verdict in a
 * bitmap (since 5.11), so that an untrapped call costs a bit test and not a run
 * of the filter. read() and write() are such calls; recv() runs a few
 * instructions of it.
 *
 * The filter sees argument values, never memory behind them. Where a rule
 * can't tell a TCP socket from another, the handler looks and says "go on".
 * Arguments are ints to these system calls, so their low halves are all that
 * counts, for the kernel as for us.
 *
 * Calls of another ABI (i386 under x86_64) aren't trapped: their numbers mean
 * other things. Such a program gets plain sockets.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/filter.h>

#include "agent/tsi.h"

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#else
#error "tsi-agent: name this architecture's AUDIT_ARCH_ value here, then test"
#endif

#define MAX_VALUES 4
#define MAX_TESTS  3
#define MAX_BPF	   512
#define HIGH_HALF  0x80U /* of an argument that is a pointer */

/* sys/socket.h gives SO_SNDTIMEO for our time_t only; programs use both */
#define SNDTIMEO_OLD 21
#define SNDTIMEO_NEW 67

/**
 * enum relation - How an argument has to relate to a test's values
 * @END:	No more tests
 * @ANY_OF:	It is one of them, after masking
 * @NONE_OF:	It isn't
 * @AT_LEAST:	It is at least the first, unsigned
 */
enum relation { END = 0, ANY_OF, NONE_OF, AT_LEAST };

/**
 * struct test - A condition on one argument
 * @relation:	See enum relation
 * @arg:	Which argument, from 0; with HIGH_HALF, the upper 32 bits of it
 * @mask:	Bits that count; 0: all
 * @count:	Values used
 * @values:	See enum relation
 */
struct test {
	enum relation relation;
	unsigned arg;
	uint32_t mask;
	unsigned count;
	uint32_t values[MAX_VALUES];
};

/**
 * struct rule - A trapped system call
 * @nr:		System call
 * @action:	What the filter returns; 0: notify the agent
 * @tests:	All have to hold
 */
struct rule {
	uint32_t nr;
	uint32_t action;
	struct test tests[MAX_TESTS];
};

#define SOCK_FLAGS ((uint32_t)(SOCK_CLOEXEC | SOCK_NONBLOCK))

static const struct rule rules[] = {
    /* First, for they are called most: MSG_WAITALL of more than a socket may
     * hold fails with ENOMEM. */
    {SYS_recvfrom,
     0,
     {{ANY_OF, 3, MSG_WAITALL, 1, {MSG_WAITALL}},
      {AT_LEAST, 2, 0, 1, {LEAST_BYTES}}}},
    /* TCP sockets are made as vsock sockets. MPTCP and SCTP are not TCP. */
    {SYS_socket,
     0,
     {{ANY_OF, 0, 0, 2, {AF_INET, AF_INET6}},
      {ANY_OF, 1, ~SOCK_FLAGS, 1, {SOCK_STREAM}},
      {ANY_OF, 2, 0, 2, {0, IPPROTO_TCP}}}},
    /* 110 is sizeof(struct sockaddr_un): what nearly every AF_UNIX connect()
     * passes. AF_UNSPEC, which disconnects, may have 2 bytes. */
    {SYS_connect, 0, {{NONE_OF, 2, 0, 1, {110}}}},
    /* What binds is a TCP socket of the guest; so is a listener that isn't
     * published. */
    {SYS_bind, 0, {{0}}},
    {SYS_listen, 0, {{0}}},
    /* An AF_VSOCK address would come out, if one is asked for. */
    {SYS_accept, 0, {{NONE_OF, 1, 0, 1, {0}}}},
    {SYS_accept, 0, {{NONE_OF, 1 | HIGH_HALF, 0, 1, {0}}}},
    {SYS_accept4, 0, {{NONE_OF, 1, 0, 1, {0}}}},
    {SYS_accept4, 0, {{NONE_OF, 1 | HIGH_HALF, 0, 1, {0}}}},
    /* vsock listeners can't be shut down: that is of the reading side. */
    {SYS_shutdown, 0, {{ANY_OF, 1, 0, 2, {SHUT_RD, SHUT_RDWR}}}},
    /* AF_VSOCK addresses would come out. */
    {SYS_getsockname, 0, {{0}}},
    {SYS_getpeername, 0, {{0}}},
    /* Levels that a vsock socket hasn't got; SO_REUSEPORT it refuses;
     * SO_SNDTIMEO bounds connect(), which the agent waits for; SO_RCVLOWAT is
     * as MSG_WAITALL. */
    {SYS_setsockopt,
     0,
     {{ANY_OF, 1, 0, 3, {IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6}}}},
    {SYS_setsockopt,
     0,
     {{ANY_OF, 1, 0, 1, {SOL_SOCKET}},
      {ANY_OF,
       2,
       0,
       4,
       {SO_REUSEPORT, SO_RCVLOWAT, SNDTIMEO_OLD, SNDTIMEO_NEW}}}},
    {SYS_getsockopt,
     0,
     {{ANY_OF, 1, 0, 3, {IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6}}}},
    /* SO_ERROR would say ECONNRESET for every failure. */
    {SYS_getsockopt,
     0,
     {{ANY_OF, 1, 0, 1, {SOL_SOCKET}},
      {ANY_OF, 2, 0, 4, {SO_ERROR, SO_DOMAIN, SO_PROTOCOL, SO_REUSEPORT}}}},
    /* vsock sockets answer FIONREAD since 6.16 only. 0x89xx: SIOCATMARK and
     * SIOCOUTQNSD, and what is asked of interfaces. */
    {SYS_ioctl, 0, {{ANY_OF, 1, 0, 2, {FIONREAD, TIOCOUTQ}}}},
    {SYS_ioctl, 0, {{ANY_OF, 1, ~0xffU, 1, {0x8900}}}},
    /* Datagrams with an address, of AF_INET's or AF_INET6's size or unknown.
     * Without one they go where connect() pointed them. */
    {SYS_sendto, 0, {{AT_LEAST, 5, 0, 1, {16}}, {NONE_OF, 5, 0, 1, {110}}}},
    {SYS_recvfrom, 0, {{NONE_OF, 5, 0, 1, {0}}}},
    {SYS_sendmsg, 0, {{0}}},
    {SYS_recvmsg, 0, {{0}}},
    {SYS_sendmmsg, 0, {{0}}},
    {SYS_recvmmsg, 0, {{0}}},
    /* Who has an epoll instance may have a socket in it (survey.c). */
    {SYS_epoll_create1, 0, {{0}}},
#ifdef SYS_epoll_create
    {SYS_epoll_create, 0, {{0}}},
#endif
    /* A ring's connect() and socket() can't be trapped: programs fall back. */
    {SYS_io_uring_setup, SECCOMP_RET_ERRNO | ENOSYS, {{0}}},
};

/**
 * struct program - BPF under construction
 * @len:	Instructions so far
 * @code:	The instructions
 */
struct program {
	unsigned short len;
	struct sock_filter code[MAX_BPF];
};

/**
 * emit() - Append an instruction
 * @prog:	Program
 * @code:	BPF opcode
 * @k:		Operand
 * @yes:	Instructions to skip if a jump's condition holds
 * @no:		Same if it doesn't
 *
 * The table is ours and fixed, so an overflow is caught the first time the
 * agent runs: the kernel refuses a program of more than MAX_BPF as written.
 */
static void emit(struct program *prog, uint16_t code, uint32_t k, unsigned yes,
		 unsigned no)
{
	if (prog->len < MAX_BPF)
		prog->code[prog->len] = (struct sock_filter){
		    .code = code,
		    .jt = (uint8_t)yes,
		    .jf = (uint8_t)no,
		    .k = k,
		};
	prog->len++;
}

/**
 * test_size() - Instructions that emit_test() appends
 * @test:	Test
 *
 * Returns: how many
 */
static unsigned test_size(const struct test *test)
{
	return 1U + (test->mask ? 1U : 0U) + test->count;
}

/**
 * emit_test() - Append a test
 * @prog:	Program
 * @test:	Test
 * @after:	Instructions between the end of the test and the end of the
 *		rule, which a failure skips
 */
static void emit_test(struct program *prog, const struct test *test,
		      unsigned after)
{
	uint32_t offset = (uint32_t)offsetof(struct seccomp_data, args) +
			  (uint32_t)sizeof(uint64_t) * (test->arg & ~HIGH_HALF);
	bool high = test->arg & HIGH_HALF;

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	high = !high;
#endif
	if (high)
		offset += 4;
	emit(prog, BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
	if (test->mask)
		emit(prog, BPF_ALU | BPF_AND | BPF_K, test->mask, 0, 0);

	for (unsigned i = 0; i < test->count; i++) {
		unsigned left = test->count - 1 - i;
		uint32_t value = test->values[i];

		if (test->relation == AT_LEAST)
			emit(prog, BPF_JMP | BPF_JGE | BPF_K, value, left,
			     left + after);
		else if (test->relation == NONE_OF)
			emit(prog, BPF_JMP | BPF_JEQ | BPF_K, value,
			     left + after, 0);
		else
			emit(prog, BPF_JMP | BPF_JEQ | BPF_K, value, left,
			     left ? 0 : after);
	}
}

/**
 * emit_rule() - Append a rule: the number, each test, then the verdict
 * @prog:	Program
 * @rule:	Rule
 *
 * A test overwrites the accumulator, so each rule starts by loading the
 * number again.
 */
static void emit_rule(struct program *prog, const struct rule *rule)
{
	uint32_t action = rule->action ? rule->action : SECCOMP_RET_USER_NOTIF;
	unsigned after = 1;

	for (unsigned i = 0; i < MAX_TESTS && rule->tests[i].relation; i++)
		after += test_size(&rule->tests[i]);

	emit(prog, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr),
	     0, 0);
	emit(prog, BPF_JMP | BPF_JEQ | BPF_K, rule->nr, 0, after);
	for (unsigned i = 0; i < MAX_TESTS && rule->tests[i].relation; i++) {
		after -= test_size(&rule->tests[i]);
		emit_test(prog, &rule->tests[i], after);
	}
	emit(prog, BPF_RET | BPF_K, action, 0, 0);
}

/**
 * filter_install() - Trap the calling thread and all that it starts
 *
 * With CAP_SYS_ADMIN, no_new_privs stays off and setuid programs keep working.
 * NEW_LISTENER is the only flag: WAIT_KILLABLE_RECV would keep signals from
 * interrupting a connect().
 *
 * Returns: the listener, close-on-exec; -1 with errno set otherwise
 */
int filter_install(void)
{
	struct program prog = {0};
	struct sock_fprog fprog;

	emit(&prog, BPF_LD | BPF_W | BPF_ABS,
	     offsetof(struct seccomp_data, arch), 0, 0);
	emit(&prog, BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0);
	emit(&prog, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		emit_rule(&prog, &rules[i]);
	emit(&prog, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
	if (prog.len > MAX_BPF) {
		errno = E2BIG;
		return -1;
	}

	if (geteuid() != 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	fprog = (struct sock_fprog){.len = prog.len, .filter = prog.code};
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER, &fprog);
}
