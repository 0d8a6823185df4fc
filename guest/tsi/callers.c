// SPDX-License-Identifier: Apache-2.0
/*
 * callers.c - clients' addresses, and accept() that shows them by itself
 *
 * Theory of operation
 * ===================
 *
 * The upper half of the vsock port that a client's connection comes from says
 * who the client is: an index into a table that the host fills by CALLER. The
 * table holds sockaddrs as the program is to see them, all but the port.
 *
 * The kernel's accept() would show the vsock address. To trap it costs several
 * times what it does (docs/measurements.md). So where the kernel lets us, two
 * BPF programs sit at both ends of its move_addr_to_user(), which copies the
 * address of accept() to the program:
 *
 * - at its start, a vsock address whose port the table knows is remembered for
 *   the thread, as a sockaddr, with the room that the program has for it: the
 *   kernel overwrites that;
 * - at its end, the sockaddr is written over what the kernel wrote.
 *
 * accept() is then not trapped at all. The table is an array map that is mapped
 * into our memory: an address is known from the moment that it is written, and
 * the host, which waits for our answer to CALLER, lets no connection come
 * before.
 *
 * Programs and table are one for the whole guest, and stay: they are pinned in
 * the BPF file system by the agent that comes first. That serves every agent,
 * as the ranges of ports are the device's, not an agent's. Whatever the kernel
 * refuses of this - it has no BPF or no BTF, inlined the function, the agent
 * isn't root - leaves a table of the agent's (state.c), and accept() is trapped
 * (accept.c).
 *
 * What move_addr_to_user() is also called for doesn't matter: names of our
 * sockets are trapped calls, and a range that wasn't introduced stays as it is.
 * Agents, which want vsock addresses, say so by the room for them (ROOM_AS_IS).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/bpf.h>
#include <linux/btf.h>

#include "tsi.h"

#define MAX_CALLS 1024 /* threads that are in the function at a time */
#define MAX_CODE  96
#define MAX_BTF	  (64U << 20)

#define HOOKED	   "move_addr_to_user"
#define KERNEL_BTF "/sys/kernel/btf/vmlinux"
#define PINS	   "/sys/fs/bpf"
#define PIN_TABLE  PINS "/tsi-callers"
#define PIN_START  PINS "/tsi-accept-start"
#define PIN_END	   PINS "/tsi-accept-end" /* last: all is in place */

/**
 * struct pending - What the program at the end is told
 * @caller:	The range's, with the port
 * @addr:	Where the address goes
 * @room:	How much room there is
 * @unused:	0
 */
struct pending {
	struct caller caller;
	uint64_t addr;
	int32_t room;
	uint32_t unused;
};

static struct caller *table;

/* ---- the table ---- */

/**
 * entry_of() - The table's entry for a port
 * @port:	vsock port of the end that connected
 *
 * Returns: entry, NULL if the port names nobody
 */
static struct caller *entry_of(uint32_t port)
{
	uint32_t index = (port >> 16) - FIRST_CALLER;

	return index < CALLERS ? &table[index] : NULL;
}

/**
 * callers_set() - Say whose a range of ports is
 * @port:	One of its vsock ports
 * @v6:		For AF_INET6 sockets
 * @address:	Client's
 *
 * Returns: false if there is no such range
 */
bool callers_set(uint32_t port, bool v6, const struct in6_addr *address)
{
	struct sockaddr_in *v4;
	struct caller entry = {.size = sizeof(entry.addr)};
	struct caller *place = entry_of(port);

	if (!place)
		return false;
	entry.addr.sin6_family = AF_INET6;
	entry.addr.sin6_addr = *address;
	if (!v6) {
		entry = (struct caller){.size = sizeof(*v4)};
		v4 = (struct sockaddr_in *)(void *)&entry.addr;
		v4->sin_family = AF_INET;
		v4->sin_addr.s_addr = address->s6_addr32[3];
	}
	*place = entry;
	return true;
}

/**
 * callers_name() - The client that a port stands for
 * @port:	vsock port of the end that connected
 * @ret_name:	Its address and port; 0.0.0.0 if it isn't known
 */
void callers_name(uint32_t port, struct destination *ret_name)
{
	const struct caller *entry = entry_of(port);
	struct sockaddr_storage sa = {.ss_family = AF_INET};

	if (entry && entry->size)
		memcpy(&sa, &entry->addr, entry->size);
	address_decode(&sa, sizeof(entry->addr), ret_name);
	ret_name->port = (uint16_t)port;
}

/* ---- BPF ---- */

/* Instructions, by the names that the kernel's own tables have */
#define INSN(op, d, s, o, i)                                                   \
	((struct bpf_insn){.code = (op),                                       \
			   .dst_reg = (d),                                     \
			   .src_reg = (s),                                     \
			   .off = (int16_t)(o),                                \
			   .imm = (int32_t)(i)})
#define MOV(d, s)	      INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define MOV_IMM(d, i)	      INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ALU_IMM(op, d, i)     INSN(BPF_ALU64 | (op) | BPF_K, d, 0, 0, i)
#define BIG_ENDIAN_16(d)      INSN(BPF_ALU | BPF_END | BPF_TO_BE, d, 0, 0, 16)
#define LOAD(w, d, s, o)      INSN(BPF_LDX | BPF_MEM | (w), d, s, o, 0)
#define STORE(w, d, o, s)     INSN(BPF_STX | BPF_MEM | (w), d, s, o, 0)
#define STORE_IMM(w, d, o, i) INSN(BPF_ST | BPF_MEM | (w), d, 0, o, i)
#define CALL(f)		      INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define EXIT()		      INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define LOAD_MAP(d, fd)                                                        \
	INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd),          \
	    INSN(0, 0, 0, 0, 0)
/* The condition under which a program ends; finish() fills in the way there */
#define TO_END		     0x7fff
#define END_IF(op, d, i)     INSN(BPF_JMP | (op) | BPF_K, d, 0, TO_END, i)
#define END_IF_REG(op, d, s) INSN(BPF_JMP | (op) | BPF_X, d, s, TO_END, 0)

/* Arguments of the function, as its programs get them, and its result */
#define KADDR  0
#define UADDR  16
#define ULEN   24
#define RESULT 32

/* The stack of both programs */
#define PENDING	      (-(int)sizeof(struct pending))
#define IN_PENDING(f) (PENDING + (int)offsetof(struct pending, f))
#define THREAD	      (PENDING - 8)
#define INDEX	      (PENDING - 16)
#define VM	      (PENDING - 32)
#define IN_VM(f)      (VM + (int)offsetof(struct sockaddr_vm, f))

/* The caller that r0 points to, to the start of PENDING */
#define COPY_EIGHT(at)                                                         \
	LOAD(BPF_DW, BPF_REG_1, BPF_REG_0, at),                                \
	    STORE(BPF_DW, BPF_REG_10, PENDING + (at), BPF_REG_1)
#define COPY_CALLER()                                                          \
	COPY_EIGHT(0), COPY_EIGHT(8), COPY_EIGHT(16), COPY_EIGHT(24)

static_assert(sizeof(struct sockaddr_vm) == 16, "fits its place on the stack");
static_assert(sizeof(struct caller) == 32, "copied by fours of eight bytes");
static_assert(offsetof(struct pending, caller) == 0, "COPY_CALLER()");

/**
 * bpf() - bpf(2)
 * @cmd:	Command
 * @attr:	Its arguments
 *
 * Returns: a descriptor, close-on-exec, or 0; -1 with errno set otherwise
 */
static int bpf(enum bpf_cmd cmd, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

/**
 * make_map() - Make a map
 * @type:	Of map
 * @key:	Bytes of a key
 * @value:	Bytes of a value
 * @entries:	How many
 * @flags:	BPF_F_*
 *
 * Returns: the map; -1 with errno set otherwise
 */
static int make_map(enum bpf_map_type type, size_t key, size_t value,
		    size_t entries, uint32_t flags)
{
	union bpf_attr attr = {
	    .map_type = type,
	    .key_size = (uint32_t)key,
	    .value_size = (uint32_t)value,
	    .max_entries = (uint32_t)entries,
	    .map_flags = flags,
	    .map_name = "tsi",
	};

	return bpf(BPF_MAP_CREATE, &attr);
}

/**
 * pin() - Give a BPF object a name
 * @path:	Name
 * @fd:		Object
 *
 * Returns: 0; -1 with errno set otherwise
 */
static int pin(const char *path, int fd)
{
	union bpf_attr attr = {.pathname = (uintptr_t)path,
			       .bpf_fd = (uint32_t)fd};

	return bpf(BPF_OBJ_PIN, &attr);
}

/**
 * pinned() - The BPF object of a name
 * @path:	Name
 *
 * Returns: the object; -1 with errno set otherwise
 */
static int pinned(const char *path)
{
	union bpf_attr attr = {.pathname = (uintptr_t)path};

	return bpf(BPF_OBJ_GET, &attr);
}

/**
 * attach() - Load a program, put it at an end of the function, and pin it there
 * @code:	Program
 * @len:	Instructions
 * @end:	BPF_TRACE_FENTRY or BPF_TRACE_FEXIT
 * @function:	The function's BTF type
 * @path:	Name of the link
 *
 * Returns: 0; -1 with errno set otherwise
 */
static int attach(struct bpf_insn *code, size_t len, enum bpf_attach_type end,
		  uint32_t function, const char *path)
{
	union bpf_attr load = {
	    .prog_type = BPF_PROG_TYPE_TRACING,
	    .expected_attach_type = end,
	    .attach_btf_id = function,
	    .insns = (uintptr_t)code,
	    .insn_cnt = (uint32_t)len,
	    .license = (uintptr_t) "GPL", /* the kernel's helpers want it */
	    .prog_name = "tsi_accept",
	};
	union bpf_attr link = {0};
	int prog, fd, error;

	for (size_t i = 0; i < len; i++)
		if (code[i].off == TO_END) /* the last two are the end */
			code[i].off = (int16_t)(len - 3 - i);
	prog = bpf(BPF_PROG_LOAD, &load);
	if (prog < 0)
		return -1;
	link.raw_tracepoint.prog_fd = (uint32_t)prog;
	fd = bpf(BPF_RAW_TRACEPOINT_OPEN, &link);
	error = fd < 0 ? -1 : pin(path, fd);
	if (fd >= 0)
		close(fd);
	close(prog);
	return error;
}

/**
 * attach_start() - Put the program at the start of the function
 * @callers:	Map: the table
 * @calls:	Map: pid and thread to struct pending
 * @function:	The function's BTF type
 *
 * Returns: 0; -1 with errno set otherwise
 */
static int attach_start(int callers, int calls, uint32_t function)
{
	struct bpf_insn code[] = {
	    MOV(BPF_REG_6, BPF_REG_1),

	    /* Is it a vsock address, of a port that the table could know? */
	    MOV(BPF_REG_1, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_1, VM),
	    MOV_IMM(BPF_REG_2, sizeof(struct sockaddr_vm)),
	    LOAD(BPF_DW, BPF_REG_3, BPF_REG_6, KADDR),
	    CALL(BPF_FUNC_probe_read_kernel),
	    END_IF(BPF_JNE, BPF_REG_0, 0),
	    LOAD(BPF_H, BPF_REG_1, BPF_REG_10, IN_VM(svm_family)),
	    END_IF(BPF_JNE, BPF_REG_1, AF_VSOCK),
	    LOAD(BPF_W, BPF_REG_1, BPF_REG_10, IN_VM(svm_cid)),
	    END_IF(BPF_JGT, BPF_REG_1, VMADDR_CID_HOST),
	    LOAD(BPF_W, BPF_REG_7, BPF_REG_10, IN_VM(svm_port)),

	    /* r0 = the table's entry, copied to the stack */
	    MOV(BPF_REG_1, BPF_REG_7),
	    ALU_IMM(BPF_RSH, BPF_REG_1, 16),
	    ALU_IMM(BPF_SUB, BPF_REG_1, FIRST_CALLER),
	    STORE(BPF_W, BPF_REG_10, INDEX, BPF_REG_1),
	    LOAD_MAP(BPF_REG_1, callers),
	    MOV(BPF_REG_2, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_2, INDEX),
	    CALL(BPF_FUNC_map_lookup_elem),
	    END_IF(BPF_JEQ, BPF_REG_0, 0),
	    LOAD(BPF_W, BPF_REG_1, BPF_REG_0, offsetof(struct caller, size)),
	    END_IF(BPF_JEQ, BPF_REG_1, 0),
	    COPY_CALLER(),
	    BIG_ENDIAN_16(BPF_REG_7),
	    STORE(BPF_H, BPF_REG_10, IN_PENDING(caller.addr.sin6_port),
		  BPF_REG_7),

	    /* Where it goes, and how much room is there */
	    LOAD(BPF_DW, BPF_REG_1, BPF_REG_6, UADDR),
	    STORE(BPF_DW, BPF_REG_10, IN_PENDING(addr), BPF_REG_1),
	    STORE_IMM(BPF_DW, BPF_REG_10, IN_PENDING(room), 0),
	    MOV(BPF_REG_1, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_1, IN_PENDING(room)),
	    MOV_IMM(BPF_REG_2, sizeof(int32_t)),
	    LOAD(BPF_DW, BPF_REG_3, BPF_REG_6, ULEN),
	    CALL(BPF_FUNC_probe_read_user),
	    END_IF(BPF_JNE, BPF_REG_0, 0),
	    LOAD(BPF_W, BPF_REG_1, BPF_REG_10, IN_PENDING(room)),
	    END_IF(BPF_JEQ, BPF_REG_1, ROOM_AS_IS),

	    /* calls[thread] = that */
	    CALL(BPF_FUNC_get_current_pid_tgid),
	    STORE(BPF_DW, BPF_REG_10, THREAD, BPF_REG_0),
	    LOAD_MAP(BPF_REG_1, calls),
	    MOV(BPF_REG_2, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_2, THREAD),
	    MOV(BPF_REG_3, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_3, PENDING),
	    MOV_IMM(BPF_REG_4, BPF_ANY),
	    CALL(BPF_FUNC_map_update_elem),
	    MOV_IMM(BPF_REG_0, 0),
	    EXIT(),
	};

	return attach(code, sizeof(code) / sizeof(code[0]), BPF_TRACE_FENTRY,
		      function, PIN_START);
}

/**
 * attach_end() - Put the program at the end of the function
 * @calls:	Map: pid and thread to struct pending
 * @function:	The function's BTF type
 *
 * Returns: 0; -1 with errno set otherwise
 */
static int attach_end(int calls, uint32_t function)
{
	struct bpf_insn code[] = {
	    MOV(BPF_REG_6, BPF_REG_1),

	    /* calls[thread]: the caller to the stack, r7 = room, r8 = where;
	     * then it is forgotten */
	    CALL(BPF_FUNC_get_current_pid_tgid),
	    STORE(BPF_DW, BPF_REG_10, THREAD, BPF_REG_0),
	    LOAD_MAP(BPF_REG_1, calls),
	    MOV(BPF_REG_2, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_2, THREAD),
	    CALL(BPF_FUNC_map_lookup_elem),
	    END_IF(BPF_JEQ, BPF_REG_0, 0),
	    COPY_CALLER(),
	    LOAD(BPF_DW, BPF_REG_8, BPF_REG_0, offsetof(struct pending, addr)),
	    LOAD(BPF_W, BPF_REG_7, BPF_REG_0, offsetof(struct pending, room)),
	    LOAD_MAP(BPF_REG_1, calls),
	    MOV(BPF_REG_2, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_2, THREAD),
	    CALL(BPF_FUNC_map_delete_elem),

	    /* Only if the kernel wrote there, too */
	    LOAD(BPF_DW, BPF_REG_1, BPF_REG_6, RESULT),
	    INSN(BPF_JMP32 | BPF_JNE | BPF_K, BPF_REG_1, 0, TO_END, 0),
	    LOAD(BPF_DW, BPF_REG_1, BPF_REG_6, UADDR),
	    END_IF_REG(BPF_JNE, BPF_REG_1, BPF_REG_8),

	    /* The address, as much of it as fits */
	    LOAD(BPF_W, BPF_REG_9, BPF_REG_10, IN_PENDING(caller.size)),
	    INSN(BPF_JMP | BPF_JLE | BPF_X, BPF_REG_7, BPF_REG_9, 1, 0),
	    MOV(BPF_REG_7, BPF_REG_9),
	    INSN(BPF_JMP | BPF_JLT | BPF_K, BPF_REG_7, 0, 6, 1),
	    END_IF(BPF_JGT, BPF_REG_7, sizeof(struct sockaddr_in6)),
	    MOV(BPF_REG_1, BPF_REG_8),
	    MOV(BPF_REG_2, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_2, PENDING),
	    MOV(BPF_REG_3, BPF_REG_7),
	    CALL(BPF_FUNC_probe_write_user),

	    /* Its size, unless the kernel's is the same */
	    END_IF(BPF_JEQ, BPF_REG_9, sizeof(struct sockaddr_vm)),
	    LOAD(BPF_DW, BPF_REG_1, BPF_REG_6, ULEN),
	    MOV(BPF_REG_2, BPF_REG_10),
	    ALU_IMM(BPF_ADD, BPF_REG_2, IN_PENDING(caller.size)),
	    MOV_IMM(BPF_REG_3, sizeof(uint32_t)),
	    CALL(BPF_FUNC_probe_write_user),
	    MOV_IMM(BPF_REG_0, 0),
	    EXIT(),
	};

	return attach(code, sizeof(code) / sizeof(code[0]), BPF_TRACE_FEXIT,
		      function, PIN_END);
}

/* ---- where to attach ---- */

/**
 * read_all() - Read a file
 * @path:	Name
 * @ret_len:	Bytes
 *
 * Returns: what is in it, from malloc(); NULL if that can't be read
 */
static void *read_all(const char *path, size_t *ret_len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *buf = NULL;
	size_t len = 0;
	ssize_t got;

	if (fd < 0)
		return NULL;
	if (!fstat(fd, &st) && st.st_size > 0 && st.st_size <= MAX_BTF)
		buf = malloc((size_t)st.st_size);
	while (buf && len < (size_t)st.st_size &&
	       (got = read(fd, buf + len, (size_t)st.st_size - len)) > 0)
		len += (size_t)got;
	close(fd);
	*ret_len = len;
	return buf;
}

/**
 * tail_of() - What follows a BTF type
 * @type:	Type
 *
 * Returns: bytes (Documentation/bpf/btf.rst, "Type Encoding"); SIZE_MAX if its
 *	kind is one that is newer than this
 */
static size_t tail_of(const struct btf_type *type)
{
	size_t count = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_PTR:
	case BTF_KIND_FWD:
	case BTF_KIND_TYPEDEF:
	case BTF_KIND_VOLATILE:
	case BTF_KIND_CONST:
	case BTF_KIND_RESTRICT:
	case BTF_KIND_FUNC:
	case BTF_KIND_FLOAT:
	case BTF_KIND_TYPE_TAG:
		return 0;
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case BTF_KIND_DECL_TAG:
		return 4;
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		return count * sizeof(struct btf_member);
	case BTF_KIND_ENUM:
		return count * sizeof(struct btf_enum);
	case BTF_KIND_ENUM64:
		return count * 3 * sizeof(uint32_t);
	case BTF_KIND_FUNC_PROTO:
		return count * sizeof(struct btf_param);
	case BTF_KIND_DATASEC:
		return count * sizeof(struct btf_var_secinfo);
	default:
		return SIZE_MAX;
	}
}

/**
 * find_function() - The BTF type of a function
 * @name:	Function
 *
 * Returns: its number; 0 if the kernel doesn't tell, or has no such function
 */
static uint32_t find_function(const char *name)
{
	size_t len, at, end;
	uint8_t *btf = read_all(KERNEL_BTF, &len);
	const struct btf_header *header = (const void *)btf;
	const char *names;
	uint32_t id = 0;

	if (!btf || len < sizeof(*header) || header->magic != BTF_MAGIC ||
	    header->hdr_len + header->str_off + header->str_len != len ||
	    header->str_len == 0 || btf[len - 1] != '\0') {
		free(btf);
		return 0;
	}
	names = (const char *)btf + header->hdr_len + header->str_off;
	at = header->hdr_len + header->type_off;
	end = at + header->type_len;
	for (uint32_t number = 1; at + sizeof(struct btf_type) <= end;
	     number++) {
		const struct btf_type *type = (const void *)(btf + at);
		size_t tail = tail_of(type);

		if (BTF_INFO_KIND(type->info) == BTF_KIND_FUNC &&
		    type->name_off < header->str_len &&
		    !strcmp(names + type->name_off, name))
			id = number;
		if (id || tail == SIZE_MAX)
			break;
		at += sizeof(*type) + tail;
	}
	free(btf);
	return id;
}

/**
 * make_hook() - Make the table and put both programs in place
 *
 * Returns: 0; -1 with errno set otherwise
 */
static int make_hook(void)
{
	uint32_t function = find_function(HOOKED);
	int callers, calls, error = -1;

	if (!function) {
		errno = ENOENT;
		return -1;
	}
	unlink(PIN_TABLE); /* of an agent that was killed here */
	unlink(PIN_START);
	callers = make_map(BPF_MAP_TYPE_ARRAY, sizeof(uint32_t),
			   sizeof(struct caller), CALLERS, BPF_F_MMAPABLE);
	calls = make_map(BPF_MAP_TYPE_HASH, sizeof(uint64_t),
			 sizeof(struct pending), MAX_CALLS, 0);
	if (callers >= 0 && calls >= 0 && !pin(PIN_TABLE, callers) &&
	    !attach_start(callers, calls, function))
		error = attach_end(calls, function);
	if (callers >= 0)
		close(callers);
	if (calls >= 0)
		close(calls);
	return error;
}

/**
 * share_table() - Use the table that the programs use
 *
 * Returns: 0; -1 with errno set otherwise
 */
static int share_table(void)
{
	int fd = pinned(PIN_TABLE);
	void *at;

	if (fd < 0)
		return -1;
	at = mmap(NULL, sizeof(*table) * CALLERS, PROT_READ | PROT_WRITE,
		  MAP_SHARED, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		return -1;
	table = at;
	return 0;
}

/**
 * set_known() - Fill in the ranges that the host doesn't name
 */
static void set_known(void)
{
	struct in6_addr nobody = {.s6_addr16[5] = 0xffff}, v4 = nobody;

	v4.s6_addr32[3] = htonl(INADDR_LOOPBACK);
	callers_set(VSOCK_PORT(LOCAL_V4, 0), false, &v4);
	callers_set(VSOCK_PORT(LOCAL_MAPPED, 0), true, &v4);
	callers_set(VSOCK_PORT(LOCAL_V6, 0), true, &in6addr_loopback);
	callers_set(TSI_UNNAMED_PORT, false, &nobody);
	callers_set(TSI_UNNAMED_V6_PORT, true, &nobody);
}

/**
 * callers_init() - Have the kernel show clients' addresses, if it can
 *
 * Returns: true if it does; accept() is to be trapped otherwise
 */
bool callers_init(void)
{
	int dir = open(PINS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int end, error;

	table = state_callers();
	if (dir < 0 || flock(dir, LOCK_EX)) { /* agents come one by one */
		error = -1;
	} else {
		end = pinned(PIN_END);
		error = end < 0 ? make_hook() : 0;
		if (end >= 0)
			close(end);
	}
	if (!error)
		error = share_table();
	set_known();
	debug("accept() is %s", error ? "trapped" : "the kernel's");
	if (dir >= 0)
		close(dir);
	return !error;
}
