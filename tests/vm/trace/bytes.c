// SPDX-License-Identifier: Apache-2.0
/*
 * bytes.c - cases: bytes, ends and errors of a connection
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "trace.h"

#define BULK	   (3L << 20) /* more than a vsock window */
#define IDLE_TRIES 50	      /* of 20 ms each */

static char bulk[BULK];

/* A file of @len bytes */
static int file_of(size_t len)
{
	int fd = memfd_create("bytes", 0);

	if (ftruncate(fd, (off_t)len))
		abort();
	return fd;
}

static void half_close(void)
{
	int fd = connected();

	TRACE("write", write(fd, "12345", 5));
	TRACE("shutdown", shutdown(fd, SHUT_WR));
	trace_peer("readall");
	trace_events("own end closed", fd, 0);
	trace_peer("write 3");
	TRACE("recv", recv(fd, bulk, 3, MSG_WAITALL));
	TRACE("write", send(fd, "x", 1, MSG_NOSIGNAL));
	trace_peer("close");
	trace_events("both closed", fd, POLLRDHUP);
	TRACE("read", read(fd, bulk, 1));
	TRACE("close", close(fd));
}

static void peer_half_closes(void)
{
	int fd = connected();

	trace_peer("write 3");
	trace_peer("shut");
	trace_events("end of the peer", fd, POLLRDHUP | POLLIN);
	TRACE("recv", recv(fd, bulk, 10, MSG_WAITALL));
	TRACE("read", read(fd, bulk, 1));
	trace_events("read to the end", fd, 0);
	TRACE("write", write(fd, "12345", 5));
	TRACE("shutdown", shutdown(fd, SHUT_WR));
	trace_peer("readall");
	trace_events("both closed", fd, POLLHUP);
}

static void shutdown_both(void)
{
	int fd = connected();

	TRACE("shutdown", shutdown(fd, SHUT_RDWR));
	trace_peer("readall");
	TRACE("read", read(fd, bulk, 1));
	TRACE("write", send(fd, "x", 1, MSG_NOSIGNAL));
	trace_events("shut", fd, POLLIN);
}

static void shutdown_read(void)
{
	int fd = connected();

	TRACE("shutdown", shutdown(fd, SHUT_RD));
	TRACE("read", read(fd, bulk, 1));
	TRACE("write", write(fd, "12345", 5));
	trace_peer("read 5");
}

static void unconnected(void)
{
	int fd = tcp(0);

	trace_events("new", fd, 0);
	TRACE("read", read(fd, bulk, 1));
	TRACE("write", send(fd, "x", 1, MSG_NOSIGNAL));
	TRACE("shutdown", shutdown(fd, SHUT_WR));
	trace_so_error(fd);
}

static void sigpipe(void)
{
	int fd = connected();

	TRACE("shutdown", shutdown(fd, SHUT_WR));
	TRACE("write", write(fd, "x", 1));
	trace_text("signals", "%d", sigpipes);
	TRACE("send, MSG_NOSIGNAL", send(fd, "x", 1, MSG_NOSIGNAL));
	trace_text("signals", "%d", sigpipes);
}

static void write_to_closed(void)
{
	int fd = connected();

	trace_peer("close");
	trace_events("end of the peer", fd, POLLRDHUP);
	TRACE("write", send(fd, "x", 1, MSG_NOSIGNAL));
	settle();
	TRACE("write again", send(fd, "x", 1, MSG_NOSIGNAL));
	TRACE("read", read(fd, bulk, 1));
}

static void peer_resets(void)
{
	int fd = connected();

	trace_peer("reset");
	trace_events("reset", fd, POLLRDHUP);
	TRACE("read", read(fd, bulk, 1));
	TRACE("read again", read(fd, bulk, 1));
	TRACE("write", send(fd, "x", 1, MSG_NOSIGNAL));
}

static void peer_resets_so_error(void)
{
	int fd = connected();

	trace_peer("reset");
	trace_events("reset", fd, POLLRDHUP);
	trace_so_error(fd);
	trace_so_error(fd);
}

static void peer_resets_write(void)
{
	int fd = connected();

	trace_peer("reset");
	trace_events("reset", fd, POLLRDHUP);
	TRACE("write", send(fd, "x", 1, MSG_NOSIGNAL));
	TRACE("write again", send(fd, "x", 1, MSG_NOSIGNAL));
}

static void close_while_peer_writes(void)
{
	int fd = connected();

	TRACE("write", write(fd, "x", 1));
	trace_peer("read 1");
	TRACE("close", close(fd));
	trace_peer("flood");
}

static void close_with_unread(void)
{
	int fd = connected();

	trace_peer("write 1000");
	trace_events("to be read", fd, POLLIN);
	TRACE("close", close(fd));
	trace_peer("readall");
}

static void linger_zero(void)
{
	struct linger linger = {.l_onoff = 1};
	int fd = connected();

	TRACE("SO_LINGER",
	      setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	TRACE("close", close(fd));
	trace_peer("readall");
}

static void linger_some(void)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 5}, read_back = {0};
	socklen_t len = sizeof(read_back);
	int fd = connected();

	TRACE("SO_LINGER",
	      setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	TRACE("getsockopt",
	      getsockopt(fd, SOL_SOCKET, SO_LINGER, &read_back, &len));
	trace_text("linger", "%d %d", read_back.l_onoff, read_back.l_linger);
	TRACE("write", write(fd, bulk, 1000));
	TRACE("close", close(fd));
	trace_peer("readall");
}

static void peek(void)
{
	char buf[8];
	int fd = connected();

	trace_peer("write 5");
	TRACE("peek", recv(fd, buf, 3, MSG_PEEK));
	trace_events("peeked", fd, POLLIN);
	TRACE("peek", recv(fd, buf, 5, MSG_PEEK | MSG_WAITALL));
	TRACE("recv", recv(fd, buf, 8, 0));
	TRACE("peek", recv(fd, buf, 8, MSG_PEEK | MSG_DONTWAIT));
}

static void truncate_received(void)
{
	int fd = connected();

	trace_peer("write 5");
	trace_events("to be read", fd, POLLIN);
	TRACE("MSG_TRUNC", recv(fd, NULL, 3, MSG_TRUNC));
	TRACE("recv", recv(fd, bulk, 8, MSG_DONTWAIT));
}

static void *writer(void *arg)
{
	(void)arg;
	peer("write %ld", BULK);
	return NULL;
}

static void wait_all(void)
{
	int fd = connected();

	trace_peer("write 1000");
	TRACE("recv", recv(fd, bulk, 1000, MSG_WAITALL));
	trace_peer("write 10");
	trace_peer("shut");
	TRACE("recv to the end", recv(fd, bulk, 1000, MSG_WAITALL));
}

static void wait_all_large(void)
{
	int fd = connected();
	pthread_t id;

	pthread_create(&id, NULL, writer, NULL);
	TRACE("recv", recv(fd, bulk, BULK, MSG_WAITALL));
	pthread_join(id, NULL);
}

static void wait_all_recvmsg(void)
{
	struct iovec parts[] = {{bulk, BULK / 2}, {bulk + BULK / 2, BULK / 2}};
	struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
	int fd = connected();
	pthread_t id;

	pthread_create(&id, NULL, writer, NULL);
	TRACE("recvmsg", recvmsg(fd, &msg, MSG_WAITALL));
	pthread_join(id, NULL);
}

static void low_water(void)
{
	int fd = connected();

	TRACE("SO_RCVLOWAT", set_option(fd, SOL_SOCKET, SO_RCVLOWAT, 5));
	trace_peer("write 3");
	settle();
	trace_events("3 bytes", fd, 0);
	trace_peer("write 3");
	trace_events("6 bytes", fd, POLLIN);
	TRACE("recv", recv(fd, bulk, 10, 0));
}

static void receive_timeout(void)
{
	struct timeval limit = {.tv_usec = 100000};
	int fd = connected();

	TRACE("SO_RCVTIMEO",
	      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	TRACE("recv", recv(fd, bulk, 1, 0));
	TRACE("recv, no bytes", recv(fd, bulk, 0, 0));
	trace_peer("write 3");
	TRACE("recv, MSG_WAITALL", recv(fd, bulk, 10, MSG_WAITALL));
}

static void receive_interrupted(void)
{
	int fd = connected();

	alarm_in(100, 0);
	TRACE("recv", recv(fd, bulk, 1, 0));
}

/* Write until there is no room, and none comes either */
static void fill(int fd)
{
	for (int idle = 0; idle < IDLE_TRIES; idle++) {
		if (send(fd, bulk, sizeof(bulk), MSG_DONTWAIT) > 0)
			idle = 0;
		pause_ms(20);
	}
}

static void no_room(void)
{
	struct timeval limit = {.tv_usec = 100000};
	int fd = connected();

	fill(fd);
	TRACE("send, MSG_DONTWAIT", send(fd, bulk, 1, MSG_DONTWAIT));
	trace_events("full", fd, 0);
	TRACE("SO_SNDTIMEO",
	      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
	TRACE("send", send(fd, bulk, 1, 0));
	TRACE("close", close(fd));
}

static void nothing_to_read(void)
{
	int fd = connected();

	TRACE("recv, MSG_DONTWAIT", recv(fd, bulk, 1, MSG_DONTWAIT));
	TRACE("recv, no bytes", recv(fd, bulk, 0, MSG_DONTWAIT));
	set_blocking(fd, false);
	TRACE("read", read(fd, bulk, 1));
	trace_events("nothing", fd, 0);
}

static void vectors(void)
{
	struct iovec out[] = {{"abc", 3}, {"de", 2}};
	struct iovec in[] = {{bulk, 2}, {bulk + 2, 3}};
	int fd = connected();

	TRACE("writev", writev(fd, out, 2));
	trace_peer("echo 5");
	trace_events("echoed", fd, POLLIN);
	TRACE("readv", readv(fd, in, 2));
	trace_text("bytes", "%.5s", bulk);
}

static void messages(void)
{
	struct iovec part = {"abc", 3}, room = {bulk, 10};
	struct mmsghdr out[] = {
	    {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}},
	    {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}}};
	struct sockaddr_in from;
	struct msghdr in = {.msg_iov = &room,
			    .msg_iovlen = 1,
			    .msg_name = &from,
			    .msg_namelen = sizeof(from)};
	int fd = connected();

	TRACE("sendmmsg", sendmmsg(fd, out, 2, 0));
	trace_peer("echo 6");
	trace_events("echoed", fd, POLLIN);
	settle();
	TRACE("recvmsg", recvmsg(fd, &in, 0));
	trace_text("name", "%d", (int)in.msg_namelen);
	trace_text("flags", "%x", in.msg_flags);
}

static void addresses(void)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(9)};
	socklen_t len = sizeof(sa);
	int fd = connected();

	trace_peer("write 3");
	TRACE("recvfrom",
	      recvfrom(fd, bulk, 3, 0, (struct sockaddr *)&sa, &len));
	trace_text("length", "%d", (int)len);
	TRACE("sendto, connected", sendto(fd, "x", 1, MSG_NOSIGNAL,
					  (struct sockaddr *)&sa, sizeof(sa)));
	TRACE("sendto, unconnected",
	      sendto(tcp(0), "x", 1, MSG_NOSIGNAL, (struct sockaddr *)&sa,
		     sizeof(sa)));
}

static void send_file(void)
{
	int fd = connected(), file = file_of(100000);
	off_t at = 1000;

	TRACE("sendfile", sendfile(fd, file, &at, 50000));
	trace_text("offset", "%ld", (long)at);
	trace_peer("read 50000");
}

static void splices(void)
{
	int fd = connected(), pipes[2], file = file_of(100000);
	loff_t at = 0;

	if (pipe(pipes))
		return;
	TRACE("splice, file", splice(file, &at, pipes[1], NULL, 10000, 0));
	TRACE("splice, out", splice(pipes[0], NULL, fd, NULL, 10000, 0));
	trace_peer("echo 10000");
	trace_events("echoed", fd, POLLIN);
	settle();
	TRACE("splice, in", splice(fd, NULL, pipes[1], NULL, 10000, 0));
}

static void out_of_band(void)
{
	int fd = connected();

	TRACE("send, MSG_OOB", send(fd, "!", 1, MSG_OOB));
	trace_peer("oob");
	settle();
	trace_events("urgent", fd, 0);
	TRACE("recv, MSG_OOB", recv(fd, bulk, 1, MSG_OOB));
}

const struct test_case byte_cases[] = {
    CASE(half_close),
    CASE(peer_half_closes),
    CASE(shutdown_both),
    CASE(shutdown_read),
    CASE(unconnected),
    CASE(sigpipe),
    CASE(write_to_closed),
    CASE(peer_resets),
    CASE(peer_resets_so_error),
    CASE(peer_resets_write),
    CASE(close_while_peer_writes),
    CASE(close_with_unread),
    CASE(linger_zero),
    CASE(linger_some),
    CASE(peek),
    CASE(truncate_received),
    CASE(wait_all),
    CASE(wait_all_large),
    CASE(wait_all_recvmsg),
    CASE(low_water),
    CASE(receive_timeout),
    CASE(receive_interrupted),
    CASE(no_room),
    CASE(nothing_to_read),
    CASE(vectors),
    CASE(messages),
    CASE(addresses),
    CASE(send_file),
    CASE(splices),
    CASE(out_of_band),
    {0},
};
