// SPDX-License-Identifier: Apache-2.0
/*
 * bytes.c - steps: bytes, by the program and by its peer
 *
 * What is sent and what is received are a connection's pattern(), so that a
 * byte that is lost, doubled or another's shows at once.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

#include "random.h"

#define MOST	 (48 << 10) /* bytes that may wait for whoever reads */
#define LARGEST	 8192	    /* of a call */
#define PIECES	 5	    /* of a vector at most */
#define MANY	 3	    /* messages of a call at most */
#define QUIET_MS 20	    /* for a pipe that nothing comes from */

static const unsigned lengths[] = {0, 1, 1, 2, 5, 33, 100, 1000, 4096, LARGEST};
static char bytes[LARGEST * MANY];

/* Divide memory into pieces, some of no bytes; return how many */
static int divide(struct step *step, struct iovec *pieces, char *from,
		  size_t len)
{
	int count = (int)below(step, PIECES + 1);

	for (int i = 0; i < count; i++) {
		size_t some = i == count - 1 ? len : len ? draw(step) % len : 0;

		pieces[i] = (struct iovec){from, some};
		from += some;
		len -= some;
	}
	return count;
}

/* ---- sending ---- */

static int send_flags(struct step *step)
{
	static const int flags[] = {0,
				    0,
				    MSG_DONTWAIT,
				    MSG_DONTWAIT,
				    MSG_NOSIGNAL,
				    MSG_NOSIGNAL,
				    MSG_DONTWAIT | MSG_NOSIGNAL,
				    MSG_EOR,
				    MSG_DONTROUTE,
				    MSG_CONFIRM,
				    MSG_ZEROCOPY,
				    0x800000};

	return once_in(step, 60) ? MSG_OOB : PICK(step, flags);
}

/* Send @len bytes of the pattern in one of the ways */
static long send_so(struct step *step, size_t len, int flags)
{
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = 9};
	struct iovec pieces[PIECES];
	struct msghdr msg = {.msg_iov = pieces};
	struct mmsghdr messages[MANY] = {0};
	unsigned way = below(step, 7), count;

	inet_pton(AF_INET, host4, &name.sin_addr);
	switch (way) {
	case 0:
		call(step, "write, %zu", len);
		return write(step->fd, bytes, len);
	case 1:
	case 2:
		call(step, "send, %zu 0x%x", len, flags);
		return send(step->fd, bytes, len, flags);
	case 3:
		call(step, "sendto, %zu 0x%x", len, flags);
		return sendto(step->fd, bytes, len, flags,
			      (struct sockaddr *)&name, sizeof(name));
	case 4:
		msg.msg_iovlen = (size_t)divide(step, pieces, bytes, len);
		call(step, "sendmsg, %zu in %zu 0x%x", len, msg.msg_iovlen,
		     flags);
		return sendmsg(step->fd, &msg, flags);
	case 5:
		count = (unsigned)divide(step, pieces, bytes, len);
		call(step, "writev, %zu in %u", len, count);
		return writev(step->fd, pieces, (int)count);
	default:
		count = 1 + below(step, MANY);
		for (unsigned i = 0; i < count; i++) {
			pieces[i] = (struct iovec){bytes + i * len, len};
			messages[i].msg_hdr.msg_iov = &pieces[i];
			messages[i].msg_hdr.msg_iovlen = 1;
		}
		call(step, "sendmmsg, %u of %zu 0x%x", count, len, flags);
		int done = sendmmsg(step->fd, messages, count, flags);
		long all = done < 0 ? -1 : 0;

		for (int i = 0; i < done; i++)
			all += messages[i].msg_len;
		return all;
	}
}

/* Account for bytes that were sent, and trace how many */
static void sent(struct step *step, long count)
{
	gave(step, count);
	if (count > 0) {
		step->slot->sent += count;
		step->slot->waits += count;
	}
	calm(step);
}

static void do_send(struct step *step)
{
	unsigned len = PICK(step, lengths);
	int flags = send_flags(step);
	long ret;

	if (step->slot->waits + (long)len * MANY > MOST)
		return;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = pattern(step->slot->sent + (long)i);
	guard();
	ret = send_so(step, len, flags);
	alarm_off();
	sent(step, ret);
}

/* The same by sendfile(), or by splice() from a pipe */
static void do_send_file(struct step *step)
{
	unsigned len = PICK(step, lengths);
	int file, ends[2];
	long ret;

	if (step->slot->waits + len > MOST || pipe(ends))
		return;
	for (size_t i = 0; i < len; i++)
		bytes[i] = pattern(step->slot->sent + (long)i);
	guard();
	if (once_in(step, 2)) {
		off_t at = 0;

		file = memfd_create("bytes", MFD_CLOEXEC);
		if (write(file, bytes, len) != (ssize_t)len)
			abort();
		call(step, "sendfile, %u", len);
		ret = sendfile(step->fd, file, &at, len);
		close(file);
	} else {
		if (write(ends[1], bytes, len) != (ssize_t)len)
			abort();
		call(step, "splice, %u to a socket", len);
		close(ends[1]);
		ends[1] = -1;
		ret = splice(ends[0], NULL, step->fd, NULL, len,
			     once_in(step, 2) ? SPLICE_F_NONBLOCK : 0);
	}
	alarm_off();
	sent(step, ret);
	close(ends[0]);
	if (ends[1] >= 0)
		close(ends[1]);
}

/* ---- receiving ---- */

static int receive_flags(struct step *step)
{
	static const int flags[] = {MSG_DONTWAIT,
				    MSG_DONTWAIT,
				    MSG_DONTWAIT,
				    MSG_DONTWAIT | MSG_PEEK,
				    MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC,
				    MSG_DONTWAIT | MSG_TRUNC,
				    MSG_DONTWAIT | MSG_WAITALL,
				    MSG_DONTWAIT | MSG_CMSG_CLOEXEC,
				    MSG_DONTWAIT | MSG_ERRQUEUE,
				    MSG_DONTWAIT | MSG_PEEK | MSG_WAITALL,
				    0,
				    MSG_PEEK,
				    MSG_TRUNC,
				    MSG_WAITALL,
				    MSG_WAITALL | MSG_TRUNC};

	return once_in(step, 60) ? MSG_DONTWAIT | MSG_OOB : PICK(step, flags);
}

/* Trace what was received, and whether it is as it should be */
static void received(struct step *step, long ret, int flags, const char *more)
{
	struct slot *slot = step->slot;
	long wrong = 0;

	if (flags & MSG_TRUNC || flags & MSG_ERRQUEUE || flags & MSG_OOB)
		wrong = 0;
	else
		for (long i = 0; i < ret; i++)
			wrong += bytes[i] != pattern(slot->got + i);
	gave_more(step, ret, "%s%s", wrong ? " of others" : "", more);
	if (ret > 0 && !(flags & MSG_PEEK))
		slot->got += ret;
}

/* Receive at most @len bytes in one of the ways */
static void receive_so(struct step *step, size_t len, int flags)
{
	char control_data[128], more[64] = "";
	struct sockaddr_in6 name = {0};
	struct iovec pieces[PIECES];
	struct msghdr msg = {.msg_iov = pieces,
			     .msg_name = &name,
			     .msg_namelen = sizeof(name),
			     .msg_control = control_data,
			     .msg_controllen = sizeof(control_data)};
	struct mmsghdr messages[MANY] = {0};
	socklen_t name_len = sizeof(name);
	unsigned way = below(step, 6), count;
	long ret;

	switch (way) {
	case 0:
	case 1:
		call(step, "recv, %zu 0x%x", len, flags);
		ret = recv(step->fd, bytes, len, flags);
		break;
	case 2:
		call(step, "recvfrom, %zu 0x%x", len, flags);
		ret = recvfrom(step->fd, bytes, len, flags,
			       (struct sockaddr *)&name, &name_len);
		if (ret >= 0)
			snprintf(more, sizeof(more), " name of %u", name_len);
		break;
	case 3:
		msg.msg_iovlen = (size_t)divide(step, pieces, bytes, len);
		call(step, "recvmsg, %zu in %zu 0x%x", len, msg.msg_iovlen,
		     flags);
		ret = recvmsg(step->fd, &msg, flags);
		if (ret >= 0)
			snprintf(more, sizeof(more),
				 " name of %u control of %zu 0x%x",
				 msg.msg_namelen, msg.msg_controllen,
				 (unsigned)msg.msg_flags);
		break;
	case 4:
		flags = 0;
		count = (unsigned)divide(step, pieces, bytes, len);
		call(step, "readv, %zu in %u", len, count);
		ret = readv(step->fd, pieces, (int)count);
		break;
	default:
		count = 1 + below(step, MANY);
		flags &= ~MSG_PEEK;
		for (unsigned i = 0; i < count; i++) {
			pieces[i] = (struct iovec){bytes + i * len, len};
			messages[i].msg_hdr.msg_iov = &pieces[i];
			messages[i].msg_hdr.msg_iovlen = 1;
		}
		call(step, "recvmmsg, %u of %zu 0x%x", count, len, flags);
		int done = recvmmsg(step->fd, messages, count,
				    flags | MSG_WAITFORONE, NULL);

		ret = done < 0 ? -1 : 0;
		for (int i = 0; i < done; i++) {
			if (!(flags & (MSG_TRUNC | MSG_ERRQUEUE)))
				memmove(bytes + ret, bytes + (size_t)i * len,
					messages[i].msg_len);
			ret += messages[i].msg_len;
		}
		snprintf(more, sizeof(more), " in %d", done);
	}
	received(step, ret, flags, more);
}

static void do_receive(struct step *step)
{
	unsigned len = PICK(step, lengths);
	int flags = receive_flags(step);

	guard();
	receive_so(step, len, flags);
	alarm_off();
}

/* Receive by a pipe */
static void do_splice(struct step *step)
{
	unsigned len = PICK(step, lengths);
	int ends[2];
	long ret, got;

	if (pipe2(ends, O_NONBLOCK))
		return;
	call(step, "splice, %u from a socket", len);
	guard();
	ret = splice(step->fd, NULL, ends[1], NULL, len,
		     once_in(step, 4) ? 0 : SPLICE_F_NONBLOCK);
	alarm_off();
	got = read(ends[0], bytes, sizeof(bytes));
	errno = got == ret || ret <= 0 ? errno : EPROTO;
	received(step, ret, 0, "");
	close(ends[0]);
	close(ends[1]);
}

/* ---- the peer ---- */

static void do_peer_write(struct step *step)
{
	static const long counts[] = {1, 1, 5, 100, 1000, 5000, 20000};
	int waiting = 0;

	ioctl(step->fd, FIONREAD, &waiting);
	if (waiting < MOST)
		ask(step, "write %ld", PICK(step, counts));
}

static void do_peer_read(struct step *step)
{
	step->slot->waits = 0;
	ask(step, "drain");
}

static void do_peer_ends(struct step *step)
{
	static const char *const ways[] = {"shut", "shut", "shut", "close",
					   "reset"};

	ask(step, "%s", PICK(step, ways));
}

/* A call that waits until the peer writes */
static void do_wait(struct step *step)
{
	static const long counts[] = {1, 5, 100};
	long count = PICK(step, counts);
	int flags = once_in(step, 2) ? MSG_WAITALL : 0;
	struct pollfd state = {.fd = step->fd, .events = POLLIN};

	control = step->slot->control;
	peer("late %ld", count);
	if (once_in(step, 3)) {
		call(step, "poll, until the peer writes");
		guard();
		gave_more(step, poll(&state, 1, -1), " 0x%x",
			  (unsigned)state.revents);
	} else {
		call(step, "recv, %ld 0x%x when the peer writes", count, flags);
		guard();
		received(step, recv(step->fd, bytes, (size_t)count, flags),
			 flags, "");
	}
	alarm_off();
	calm(step);
}

const struct kind byte_kinds[] = {
    {do_send, 14, true},
    {do_send_file, 3, true},
    {do_receive, 16, true},
    {do_splice, 3, true},
    {do_peer_write, 12, false},
    {do_peer_read, 4, false},
    {do_peer_ends, 4, false},
    {do_wait, 2, false},
    {0},
};
