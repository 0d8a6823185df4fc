// SPDX-License-Identifier: Apache-2.0
/*
 * ends.c - checks: the end of listeners and connections
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "listener.h"

static void close_refuses(void)
{
	int fd = listener("0.0.0.0", 0);

	close(fd);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void dup_keeps_it_open(void)
{
	int fd = listener("0.0.0.0", 0), other = dup(fd), there;
	union name name;

	close(fd);
	there = client("127.0.0.1");
	want_connected(take(other, &name), there, &name);
	close(other);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void child_keeps_it_open(void)
{
	int fd = listener("0.0.0.0", 0), there, status;
	union name name;
	char byte;

	if (fork() == 0) {
		int conn = take(fd, &name);

		want(conn >= 0 && recv(conn, &byte, 1, 0) == 1);
		_exit(0);
	}
	close(fd);
	there = client("127.0.0.1");
	want(send(there, "x", 1, 0) == 1);
	want(wait(&status) > 0 && status == 0);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void port_is_in_use(void)
{
	int fd = tcp("0.0.0.0", 0), other = tcp("0.0.0.0", 0);

	set(other, SOL_SOCKET, SO_REUSEADDR, 1);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	want(!bind_to(fd, "0.0.0.0", port) && !listen(fd, BACKLOG));
	want_errno(bind_to(other, "0.0.0.0", port), EADDRINUSE);
	close(fd);
	want(!bind_to(other, "0.0.0.0", port));
	want(!listen(other, BACKLOG));
	client("127.0.0.1");
}

static void listens_again(void)
{
	int fd = listener("0.0.0.0", 0), there;
	union name name;

	want(!listen(fd, 2 * BACKLOG));
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

static void reuseport_shares_a_port(void)
{
	int one = tcp("0.0.0.0", 0), two = tcp("0.0.0.0", 0), there;
	union name name;

	set(one, SOL_SOCKET, SO_REUSEPORT, 1);
	set(two, SOL_SOCKET, SO_REUSEPORT, 1);
	want(!bind_to(one, "0.0.0.0", port) && !listen(one, BACKLOG));
	want(!bind_to(two, "0.0.0.0", port) && !listen(two, BACKLOG));
	want(get(one, SOL_SOCKET, SO_REUSEPORT) == 1);
	close(one);
	there = client("127.0.0.1");
	want_connected(take(two, &name), there, &name);
}

static volatile pid_t accepter;

static void *accept_in_thread(void *arg)
{
	union name name;
	long error;

	accepter = gettid();
	error = take(*(int *)arg, &name) < 0 ? errno : 0;
	return (void *)error;
}

static void shutdown_wakes_accept(void)
{
	int fd = listener("0.0.0.0", 0);
	pthread_t thread;
	union name name;
	void *error;

	want(!pthread_create(&thread, NULL, accept_in_thread, &fd));
	while (!accepter)
		usleep(1000);
	await_call(accepter, SYS_accept);
	want(!shutdown(fd, SHUT_RDWR));
	want(!pthread_join(thread, &error) && (long)error == EINVAL);
	want_errno(take(fd, &name), EINVAL);
	want(refused("127.0.0.1") == ECONNREFUSED);
}

static void shutdown_then_listen(void)
{
	int fd = listener("0.0.0.0", 0), there;
	union name name;

	want(!shutdown(fd, SHUT_RD));
	want(refused("127.0.0.1") == ECONNREFUSED);
	want(!listen(fd, BACKLOG));
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

static void connections_outlive_the_listener(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1");
	union name name;
	int conn = take(fd, &name);

	close(fd);
	want(refused("127.0.0.1") == ECONNREFUSED);
	want_connected(conn, there, &name);
}

static void half_close(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1");
	union name name;
	int conn = take(fd, &name);
	char byte;

	want(!shutdown(there, SHUT_WR));
	want(recv(conn, &byte, 1, 0) == 0);
	want(send(conn, "x", 1, 0) == 1 && recv(there, &byte, 1, 0) == 1);
	want(!shutdown(conn, SHUT_RDWR));
	want(recv(there, &byte, 1, 0) == 0);
}

static void half_closed_ends_have_names(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1");
	union name name, own, client_name;
	int conn = take(fd, &name);

	own = local(conn);
	want(!shutdown(conn, SHUT_WR));
	client_name = local(there);
	name = peer(conn);
	want(same_name(&name, &client_name));
	name = local(conn);
	want(same_name(&name, &own));
	name = peer(there);
	want(same_name(&name, &own));
}

static void client_that_bound_first(void)
{
	static const char *const hosts[] = {"127.0.0.1", "::1"};
	int fd = listener("::", 0);

	for (int i = 0; i < 2; i++) {
		union name to = address(hosts[i], port), name, bound;
		int there = tcp(hosts[i], 0), conn;

		want(!bind_to(there, hosts[i], 0));
		bound = local(there);
		want(!connect(there, &to.sa, size_of(&to)));
		name = local(there);
		want(same_name(&name, &bound));
		conn = take(fd, &name);
		want(ntohs(name.in6.sin6_port) == ntohs(bound.in.sin_port));
		name = peer(there);
		want(same_name(&name, &to));
		close(conn);
		close(there);
	}
}

static void nonblocking_client(void)
{
	int fd = listener("0.0.0.0", 0);
	int there = tcp("127.0.0.1", SOCK_NONBLOCK);
	union name to = address("127.0.0.1", port), name;

	want_errno(connect(there, &to.sa, size_of(&to)), EINPROGRESS);
	want(wait_for(there, POLLOUT, 5000) == POLLOUT);
	want(get(there, SOL_SOCKET, SO_ERROR) == 0);
	want(!connect(there, &to.sa, size_of(&to)));
	want_errno(connect(there, &to.sa, size_of(&to)), EISCONN);
	want(!fcntl(there, F_SETFL, 0));
	want_connected(take(fd, &name), there, &name);
}

static void unspec_stops_listening(void)
{
	int fd = listener("0.0.0.0", 0), there;
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};
	union name name;

	want(!connect(fd, &nobody, sizeof(nobody)));
	want(refused("127.0.0.1") == ECONNREFUSED);
	want_errno(take(fd, &name), EINVAL);
	want(!listen(fd, BACKLOG));
	there = client("127.0.0.1");
	want_connected(take(fd, &name), there, &name);
}

static void tcp_info_tells_the_state(void)
{
	int fd = listener("0.0.0.0", 0), there = client("127.0.0.1"), conn;
	struct tcp_info info;
	socklen_t len = sizeof(info);
	union name name;
	int bytes;

	want(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_LISTEN);
	want_errno(ioctl(fd, FIONREAD, &bytes), EINVAL);
	conn = take(fd, &name);
	len = sizeof(info);
	want(!getsockopt(conn, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_ESTABLISHED);
	want(!getsockopt(there, IPPROTO_TCP, TCP_INFO, &info, &len));
	want(info.tcpi_state == TCP_ESTABLISHED);
}

static void prefork(int flags)
{
	int fd = listener("0.0.0.0", flags), there[3];
	int *taken = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status, ended = 0;

	for (int i = 0; i < 3; i++) {
		if (fork() != 0)
			continue;
		for (;;) {
			union name name;
			int conn = take(fd, &name);
			char byte;

			if (conn < 0 && errno == EAGAIN) {
				wait_for(fd, POLLIN, 5000);
				continue;
			}
			want(conn >= 0);
			want(recv(conn, &byte, 1, 0) == 1);
			__atomic_add_fetch(taken, 1, __ATOMIC_SEQ_CST);
			_exit(0); /* each takes one */
		}
	}
	for (int i = 0; i < 3; i++)
		there[i] = client("127.0.0.1");
	for (int i = 0; i < 3; i++)
		want(send(there[i], "x", 1, 0) == 1);
	while (wait(&status) > 0) {
		want(status == 0);
		ended++;
	}
	want(ended == 3 && *taken == 3);
}

static void prefork_that_blocks(void)
{
	prefork(0);
}

static void prefork_that_polls(void)
{
	prefork(SOCK_NONBLOCK);
}

/* Bound before fork(), each worker's own listen(): one queue for all */
static void a_worker_that_stands_still_keeps_no_client(void)
{
	int fd = tcp("0.0.0.0", 0), listens[2];
	union name name;
	char byte;
	pid_t pid;

	want(!bind_to(fd, "0.0.0.0", port) && !pipe(listens));
	pid = fork();
	if (pid == 0) {
		want(!listen(fd, BACKLOG));
		want(write(listens[1], "", 1) == 1);
		pause();
	}
	want(read(listens[0], &byte, 1) == 1);
	want(!kill(pid, SIGSTOP));
	want(!listen(fd, BACKLOG));
	for (int i = 0; i < 4; i++) {
		int there = client("127.0.0.1");

		want_connected(take(fd, &name), there, &name);
	}
	kill(pid, SIGKILL);
}

static void loopback_only(void)
{
	int fd = listener("127.0.0.1", 0), there = client("127.0.0.1");
	union name name;

	want_connected(take(fd, &name), there, &name);
}

const struct check end_checks[] = {
    CHECK(close_refuses),
    CHECK(dup_keeps_it_open),
    CHECK(child_keeps_it_open),
    CHECK(port_is_in_use),
    CHECK(listens_again),
    CHECK(reuseport_shares_a_port),
    CHECK(shutdown_wakes_accept),
    CHECK(shutdown_then_listen),
    CHECK(connections_outlive_the_listener),
    CHECK(half_close),
    CHECK(half_closed_ends_have_names),
    CHECK(client_that_bound_first),
    CHECK(nonblocking_client),
    CHECK(unspec_stops_listening),
    CHECK(tcp_info_tells_the_state),
    CHECK(prefork_that_blocks),
    CHECK(prefork_that_polls),
    CHECK(a_worker_that_stands_still_keeps_no_client),
    CHECK(loopback_only),
    {0},
};
