// SPDX-License-Identifier: Apache-2.0
/*
 * boot.c - what a VM needs before its first command
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h> /* some want <sys/socket.h> before it */

#include "init/init.h"

/**
 * mount_all() - Mount what programs expect to find
 *
 * /tmp and /run are left alone: all of the root is memory, and the host may
 * have put files there.
 */
static void mount_all(void)
{
	static const struct {
		const char *type, *path, *options;
		unsigned long flags;
	} mounts[] = {
	    {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
	    {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
	    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
	    {"devpts", "/dev/pts", "mode=0620,ptmxmode=0666", MS_NOSUID},
	    {"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV},
	};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].path, 0755);
		if (mount(mounts[i].type, mounts[i].path, mounts[i].type,
			  mounts[i].flags, mounts[i].options))
			say("mount %s: %s", mounts[i].path, strerror(errno));
	}
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
}

/**
 * insmod() - Load one module with busybox, which knows compressed ones
 * @path:	Module
 *
 * Returns: 0, or an errno
 */
static int insmod(const char *path)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		execl("/bin/busybox", "busybox", "insmod", path, (char *)NULL);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0
		   ? 0
		   : ENOEXEC;
}

/**
 * load() - Load one module
 * @path:	Module, compressed or not
 *
 * Returns: 0, or an errno
 */
static int load(const char *path)
{
	size_t len = strlen(path);
	int fd = open(path, O_RDONLY | O_CLOEXEC), error = 0;

	if (fd < 0)
		error = errno;
	else if (len > 3 && strcmp(path + len - 3, ".ko"))
		error = insmod(path);
	else if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
		error = errno;
	if (fd >= 0)
		close(fd);
	return error;
}

/**
 * load_modules() - Load the image's modules in the order that it lists
 *
 * /lib/modules/RELEASE/order has a path a line, relative to its directory. A
 * kernel that the image was not made for finds no list, and needs none if it
 * has the drivers built in.
 */
static void load_modules(void)
{
	char path[PATH_MAX], line[512];
	struct utsname uts;
	FILE *list;
	int error;

	uname(&uts);
	snprintf(path, sizeof(path), "/lib/modules/%.65s/order", uts.release);
	list = fopen(path, "re");
	if (!list) {
		say("%s: %s", path, strerror(errno));
		return;
	}
	while (fgets(line, sizeof(line), list)) {
		line[strcspn(line, "\n")] = '\0';
		if (!sockets_wants(line))
			continue;
		snprintf(path, sizeof(path), "/lib/modules/%.65s/%s",
			 uts.release, line);
		error = load(path);
		if (error && !sockets_failed(line, error))
			say("%s: %s", path, strerror(error));
	}
	fclose(list);
}

/**
 * lo_up() - Bring the loopback interface up; the kernel adds its addresses
 */
static void lo_up(void)
{
	struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (s < 0 || ioctl(s, SIOCSIFFLAGS, &ifr))
		say("lo: %s", strerror(errno));
	if (s >= 0)
		close(s);
}

/**
 * set_sysctls() - Settings of the kernel that programs are to find
 *
 * TCP fast open: TSI hasn't got it, and programs fall back where it is off.
 */
static void set_sysctls(void)
{
	static const struct {
		const char *path, *value;
	} settings[] = {{"/proc/sys/net/ipv4/tcp_fastopen", "0"}};

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		int fd = open(settings[i].path, O_WRONLY | O_CLOEXEC);

		if (fd < 0 || write(fd, settings[i].value, 1) != 1)
			say("%s: %s", settings[i].path, strerror(errno));
		close(fd);
	}
}

/**
 * call_host() - Connect to the host
 *
 * Returns: the stream
 */
static int call_host(void)
{
	struct sockaddr_vm addr = {
	    .svm_family = AF_VSOCK,
	    .svm_cid = VMADDR_CID_HOST,
	    .svm_port = INIT_PORT,
	};
	const struct timespec pause = {.tv_nsec = 100 * 1000 * 1000};

	for (int tries = 0; tries < 50; tries++) {
		int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (s >= 0 &&
		    !connect(s, (struct sockaddr *)&addr, sizeof(addr)))
			return s;
		if (s < 0)
			break;
		close(s);
		nanosleep(&pause, NULL);
	}
	say("vsock, host port %d: %s", INIT_PORT, strerror(errno));
	finish("no way to the host");
}

static volatile sig_atomic_t rang;

static void ring(int signo)
{
	(void)signo;
	rang = 1;
}

/**
 * timer_runs() - Does the kernel have a timer?
 *
 * It measures its local APIC's against the tsc at boot. If this VM got no CPU
 * for 4 s meanwhile, the count has wrapped, it holds the timer for too slow and
 * does without; and a microvm has no other. Then nobody wakes from a sleep.
 *
 * Returns: true if it has; at once, mostly
 */
static bool timer_runs(void)
{
	const struct itimerval soon = {.it_value.tv_usec = 1000};
	struct timespec now;
	time_t end;

	signal(SIGALRM, ring);
	clock_gettime(CLOCK_MONOTONIC, &now);
	end = now.tv_sec + 3;
	setitimer(ITIMER_REAL, &soon, NULL);
	/* both, as this VM may get no CPU now, either */
	for (unsigned i = 0; !rang && (i < 100000 || now.tv_sec < end); i++)
		clock_gettime(CLOCK_MONOTONIC, &now);
	signal(SIGALRM, SIG_DFL);
	return rang;
}

/**
 * boot() - Prepare the VM and connect to the host
 *
 * The kernel has opened /dev/console as stdin, stdout and stderr. The first
 * line on it tells a probe of the accelerator that the kernel came up; see
 * fastpath/vm/accel.py.
 *
 * Returns: the stream to the host
 */
int boot(void)
{
	booted = true;
	say("alive");
	if (!timer_runs())
		finish(
		    "no timer: its clock was measured while the host was busy");
	umask(022);
	mount_all();
	setenv("PATH",
	       "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:"
	       "/sbin:/bin",
	       1);
	setenv("HOME", "/root", 1);
	setenv("TERM", "linux", 1);
	set_sysctls();
	sockets_choose();
	load_modules();
	sockets_settle();
	lo_up();
	names_resolver();
	names_own();
	sessions_listen();
	return call_host();
}
