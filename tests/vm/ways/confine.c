// SPDX-License-Identifier: Apache-2.0
/*
 * confine.c - what confines a program sees the inet address, once a call
 *
 * Each check has a cgroup of its own with a program of BPF that counts its runs
 * in a map, and may give the call another address.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <linux/bpf.h>
#include <linux/landlock.h>

#include "ways.h"

#define STAND_IN                                                               \
	"198.18.0.77" /* what connect() is given another address for           \
		       */
#define PLACE "/run/ways"

#define R(code, dst, src, off, imm)                                            \
	(struct bpf_insn)                                                      \
	{                                                                      \
		code, dst, src, off, imm                                       \
	}
#define MOV(dst, src) R(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0)
#define SET(dst, imm) R(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, imm)
#define MAP(dst, fd)                                                           \
	R(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_FD, 0, fd),           \
	    R(0, 0, 0, 0, 0)
#define IP4  offsetof(struct bpf_sock_addr, user_ip4)
#define PORT offsetof(struct bpf_sock_addr, user_port)

static int bpf(int what, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, what, attr, sizeof(*attr));
}

/* Put this process into a cgroup of its own; return it */
static int own_cgroup(void)
{
	char path[64], text[16];
	int group, procs;

	mkdir(PLACE, 0755);
	if (mount("cgroup2", PLACE, "cgroup2", 0, NULL) && errno != EBUSY)
		_exit(0); /* no cgroups, or no right to them */
	snprintf(path, sizeof(path), PLACE "/%d", getpid());
	if (mkdir(path, 0755))
		_exit(0);
	group = open(path, O_RDONLY | O_DIRECTORY);
	procs = openat(group, "cgroup.procs", O_WRONLY);
	snprintf(text, sizeof(text), "%d", getpid());
	want(write(procs, text, strlen(text)) > 0);
	return group;
}

static int make_map(void)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY,
			       .key_size = 4,
			       .value_size = 8,
			       .max_entries = 1};
	int fd = bpf(BPF_MAP_CREATE, &attr);

	if (fd < 0 && errno == EPERM)
		_exit(0);
	want(fd >= 0);
	return fd;
}

static uint64_t count(int map)
{
	uint32_t key = 0;
	uint64_t value = 0;
	union bpf_attr attr = {.map_fd = (uint32_t)map,
			       .key = (uintptr_t)&key,
			       .value = (uintptr_t)&value};

	want(bpf(BPF_MAP_LOOKUP_ELEM, &attr) == 0);
	return value;
}

/*
 * Have a program run that counts, and gives calls with address @from the
 * address and port @to; @verdict: 0: it denies the call
 */
static int hook(int group, uint32_t type, const char *from,
		const struct sockaddr_in *to, int verdict)
{
	uint32_t address = inet_addr(from ?: "255.255.255.255");
	int map = make_map(), fd;
	struct bpf_insn code[] = {
	    MOV(6, 1), /* the context */
	    SET(0, 0),
	    R(BPF_STX | BPF_W | BPF_MEM, 10, 0, -4, 0),
	    MOV(2, 10),
	    R(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -4),
	    MAP(1, map),
	    R(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem),
	    R(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2, 0),
	    SET(1, 1),
	    R(BPF_STX | BPF_DW | BPF_ATOMIC, 0, 1, 0, BPF_ADD),
	    R(BPF_LDX | BPF_W | BPF_MEM, 1, 6, IP4, 0),
	    R(BPF_JMP32 | BPF_JNE | BPF_K, 1, 0, 4, (int32_t)address),
	    SET(2, to ? (int32_t)to->sin_addr.s_addr : 0),
	    R(BPF_STX | BPF_W | BPF_MEM, 6, 2, IP4, 0),
	    SET(2, to ? to->sin_port : 0),
	    R(BPF_STX | BPF_W | BPF_MEM, 6, 2, PORT, 0),
	    SET(0, verdict),
	    R(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
	};
	union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
			       .expected_attach_type = type,
			       .insns = (uintptr_t)code,
			       .insn_cnt = sizeof(code) / sizeof(*code),
			       .license = (uintptr_t) "GPL"};
	union bpf_attr attach = {.attach_type = type};

	fd = bpf(BPF_PROG_LOAD, &attr);
	want(fd >= 0);
	attach.target_fd = (uint32_t)group;
	attach.attach_bpf_fd = (uint32_t)fd;
	want(bpf(BPF_PROG_ATTACH, &attach) == 0);
	return map;
}

static int try(const char *host, int port, int flags)
{
	struct sockaddr_in to = address_of(host, port);
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	if (!connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return fd;
	close(fd);
	return -1;
}

static void a_cgroup_sees_each_connect_once(void)
{
	int group = own_cgroup(), port, fd = listener(&port);
	int map = hook(group, BPF_CGROUP_INET4_CONNECT, NULL, NULL, 1);

	exchange(try(HOST, ECHO, 0));
	want(count(map) == 1);
	want(try("127.0.0.1", port, 0) >= 0);
	want(count(map) == 2);
	want(accept(fd, NULL, NULL) >= 0);
	want_errno(try("127.0.0.1", port, SOCK_NONBLOCK), EINPROGRESS);
	want(count(map) == 3);
	want_errno(try("127.0.0.1", 1, 0), ECONNREFUSED);
	want(count(map) == 4);
	want_errno(try(HOST, 1, 0), ECONNREFUSED);
	want(count(map) == 5);
}

static void a_cgroup_denies_connect(void)
{
	int group = own_cgroup();
	int map = hook(group, BPF_CGROUP_INET4_CONNECT, NULL, NULL, 0);

	want_errno(try(HOST, ECHO, 0), EPERM);
	want_errno(try("127.0.0.1", 1, 0), EPERM);
	want(count(map) == 2);
}

static void a_cgroup_gives_connect_another_address(void)
{
	struct sockaddr_in to = address_of(HOST, ECHO);

	hook(own_cgroup(), BPF_CGROUP_INET4_CONNECT, STAND_IN, &to, 1);
	exchange(try(STAND_IN, 1, 0));
}

static void a_cgroup_keeps_connect_inside(void)
{
	int port, fd = listener(&port), group = own_cgroup(), map;
	struct sockaddr_in to = address_of("127.0.0.1", port);

	map = hook(group, BPF_CGROUP_INET4_CONNECT, STAND_IN, &to, 1);
	want(try(STAND_IN, 1, 0) >= 0);
	want(accept(fd, NULL, NULL) >= 0);
	want(count(map) == 1);
}

static void a_cgroup_names_the_peer(void)
{
	struct sockaddr_in to = address_of(STAND_IN, 4), name;
	int group = own_cgroup(), fd = try(HOST, ECHO, 0);
	int map = hook(group, BPF_CGROUP_INET4_GETPEERNAME, HOST, &to, 1);
	socklen_t len = sizeof(name);

	want(getpeername(fd, (struct sockaddr *)&name, &len) == 0);
	want(name.sin_addr.s_addr == to.sin_addr.s_addr);
	want(name.sin_port == to.sin_port);
	want(count(map) == 1);
}

static void a_cgroup_sees_each_bind_once(void)
{
	int group = own_cgroup(), port;
	int map = hook(group, BPF_CGROUP_INET4_BIND, NULL, NULL, 1);

	want(bound(&port) >= 0);
	want(count(map) == (uint64_t)(port - 7230 + 1));
}

/* ---- Landlock ---- */

#define ACCESS_NET     4 /* its ABI; headers may be older */
#define BIND_TCP       1ULL
#define CONNECT_TCP    2ULL
#define RULE_NET_PORT  2
#define CREATE_VERSION 1U

static void landlock_allows_one_port(void)
{
	struct {
		uint64_t fs, net;
	} rules = {.net = BIND_TCP | CONNECT_TCP};
	struct {
		uint64_t allowed, port;
	} __attribute__((packed)) rule = {CONNECT_TCP, ECHO};
	int fd;

	if (syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_VERSION) <
	    ACCESS_NET)
		return;
	fd =
	    (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0);
	want(fd >= 0);
	want(syscall(SYS_landlock_add_rule, fd, RULE_NET_PORT, &rule, 0) == 0);
	want(syscall(SYS_landlock_restrict_self, fd, 0) == 0);
	exchange(try(HOST, ECHO, 0));
	want_errno(try(HOST, BACK, 0), EACCES);
	want_errno(try("127.0.0.1", 1, 0), EACCES);
}

const struct check confine[] = {
    SANDBOX(a_cgroup_sees_each_connect_once),
    SANDBOX(a_cgroup_denies_connect),
    SANDBOX(a_cgroup_gives_connect_another_address),
    SANDBOX(a_cgroup_keeps_connect_inside),
    SANDBOX(a_cgroup_names_the_peer),
    SANDBOX(a_cgroup_sees_each_bind_once),
    CHECK(landlock_allows_one_port),
    {0},
};
