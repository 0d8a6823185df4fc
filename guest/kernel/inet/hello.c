// SPDX-License-Identifier: GPL-2.0-only
/*
 * hello.c - how a stream to the host begins
 *
 * Theory of operation
 * ===================
 *
 * docs/tsi-protocol.md is the specification. A stream comes from a port that
 * needs CAP_NET_BIND_SERVICE, which our threads have, and shows the key that
 * init has written to our parameter: that is how the host tells it from one
 * that a program has opened.
 */

#include <linux/in6.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/random.h>
#include <net/af_vsock.h>

#include "inet.h"

#define ANSWER	   (5 * HZ) /* for the host to accept and greet us */
#define FIRST_PORT 512U
#define PORTS	   512U

static char key[2 * TSI_KEY_BYTES + 1];
module_param_string(key, key, sizeof(key), 0200);
MODULE_PARM_DESC(key, "what the host asks for, in hex digits; empty: nothing");

/**
 * get() - Read bytes
 * @sock:	Stream
 * @bytes:	Where to
 * @len:	How many
 *
 * Returns: 0, or a negated errno if they aren't there in time
 */
static int get(struct socket *sock, void *bytes, size_t len)
{
	struct msghdr msg = {};
	struct kvec vec = {.iov_base = bytes, .iov_len = len};
	int got = kernel_recvmsg(sock, &msg, &vec, 1, len, MSG_WAITALL);

	if (got == (int)len)
		return 0;
	return got < 0 ? got : -EPROTO;
}

/**
 * say() - Send HELLO
 * @sock:	Stream
 *
 * Returns: 0, or a negated errno
 */
static int say(struct socket *sock)
{
	struct {
		struct tsi_header header;
		struct tsi_hello hello;
	} __packed hello = {
	    .header = {.type = TSI_HELLO, .len = sizeof(hello.hello)},
	    .hello = {.magic = TSI_MAGIC,
		      .version_min = TSI_VERSION,
		      .version_max = TSI_VERSION},
	};
	struct msghdr msg = {.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL};
	struct kvec vec = {.iov_base = &hello, .iov_len = sizeof(hello)};
	int sent;

	if (key[0] && hex2bin(hello.hello.key, key, TSI_KEY_BYTES))
		return -EINVAL;
	sent = kernel_sendmsg(sock, &msg, &vec, 1, sizeof(hello));
	if (sent == sizeof(hello))
		return 0;
	return sent < 0 ? sent : -EPIPE;
}

/**
 * greet() - Exchange HELLO and what answers it
 * @sock:	Stream
 * @type:	Of the answer
 * @ret_answer:	Set to its payload
 * @len:	Bytes of that
 *
 * Returns: 0, or a negated errno; -EKEYREJECTED: the host wants another key
 */
static int greet(struct socket *sock, enum tsi_type type, void *ret_answer,
		 size_t len)
{
	struct {
		u32 code;
		char text[TSI_MAX_TEXT + 1];
	} refused = {};
	struct tsi_header header;
	int error = say(sock);

	if (!error)
		error = get(sock, &header, sizeof(header));
	if (error)
		return error;
	if (header.type == TSI_REFUSED && header.len > sizeof(refused.code) &&
	    header.len < sizeof(refused) && !get(sock, &refused, header.len)) {
		pr_err("tsi: the host refuses: %s\n", refused.text);
		return refused.code == TSI_NOT_THE_KEY ? -EKEYREJECTED
						       : -ECONNREFUSED;
	}
	if (header.type != type || header.len != len)
		return -EPROTO;
	return get(sock, ret_answer, len);
}

/**
 * bind_low() - Take a port that not everybody may
 * @sock:	Socket
 *
 * Returns: 0, or a negated errno
 */
static int bind_low(struct socket *sock)
{
	struct sockaddr_vm at = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_ANY,
	};
	u32 first = get_random_u32(), i;
	int error = -EADDRINUSE;

	for (i = 0; i < PORTS && error == -EADDRINUSE; i++) {
		at.svm_port = FIRST_PORT + (first + i) % PORTS;
		error = sock->ops->bind(sock, (any_sockaddr *)&at, sizeof(at));
	}
	return error;
}

/**
 * hello_open() - Open a stream; a thread's, as it may take a while
 * @port:	The host's
 * @type:	Of what answers HELLO
 * @ret_answer:	Set to its payload
 * @len:	Bytes of that
 * @ret_sock:	Set to the stream
 *
 * Returns: 0, or a negated errno
 */
int hello_open(u32 port, enum tsi_type type, void *ret_answer, size_t len,
	       struct socket **ret_sock)
{
	struct sockaddr_vm to = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_HOST,
	    .svm_port = port,
	};
	struct socket *sock;
	int error;

	error = sock_create_kern(&init_net, AF_VSOCK, SOCK_STREAM, 0, &sock);
	if (error)
		return error;
	vsock_sk(sock->sk)->connect_timeout = ANSWER;
	sock->sk->sk_rcvtimeo = ANSWER;
	error = bind_low(sock);
	if (!error)
		error = sock->ops->connect(sock, (any_sockaddr *)&to,
					   sizeof(to), 0);
	if (!error)
		error = greet(sock, type, ret_answer, len);
	if (error) {
		sock_release(sock);
		return error;
	}
	sock->sk->sk_rcvtimeo = MAX_SCHEDULE_TIMEOUT;
	*ret_sock = sock;
	return 0;
}
