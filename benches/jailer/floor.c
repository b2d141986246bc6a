// The floor of a jailer: its system calls, without checks, messages and undo.
//
//   floor BASE ID PROGRAM UID GID [CGROUP FILE VALUE MEMBERS]
//
// PROGRAM becomes /vmm in the jail BASE/vmm/ID/root. CGROUP is the directory of the hierarchy, MEMBERS its file of processes or tasks.
// With TIMES=1 in the environment, it prints the microseconds of each step on stderr.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static char text[1024];
static int is_timed;
static struct timespec last;

// Ends the program if a call has failed.
static long check(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return result;
}

// Notes the time since the last step.
static void step(const char *name)
{
	struct timespec now;
	size_t used = strlen(text);

	if (!is_timed)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	snprintf(text + used, sizeof text - used, "%s %.1f\n", name,
		 (now.tv_sec - last.tv_sec) * 1e6 + (now.tv_nsec - last.tv_nsec) / 1e3);
	clock_gettime(CLOCK_MONOTONIC, &last);
}

static int directory(int parent, const char *name, mode_t mode)
{
	if (mkdirat(parent, name, mode) != 0 && errno != EEXIST)
		check(-1, name);
	return check(openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), name);
}

static void put(int parent, const char *name, const char *value)
{
	int file = check(openat(parent, name, O_WRONLY | O_CLOEXEC), name);

	check(write(file, value, strlen(value)), name);
	close(file);
}

static void device(int parent, const char *name, int major, int minor, int uid, int gid)
{
	check(mknodat(parent, name, S_IFCHR | 0600, makedev(major, minor)), name);
	check(fchownat(parent, name, uid, gid, AT_SYMLINK_NOFOLLOW), name);
}

static void join_cgroup(char **arguments, const char *id)
{
	int top = check(open(arguments[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC), arguments[0]);
	int leaf = directory(directory(top, "vmm", 0755), id, 0755);

	step("create the cgroup");
	put(leaf, arguments[1], arguments[2]);
	put(leaf, arguments[3], "0");
	step("join the cgroup");
}

int main(int count, char **arguments)
{
	char path[512], pid[16], *const none[] = {NULL};
	const struct rlimit files = {2048, 2048};
	struct stat status;
	int uid, gid, id, root, source, target, dev, net, run, length;

	if (count < 6)
		return 1;
	is_timed = getenv("TIMES") != NULL;
	clock_gettime(CLOCK_MONOTONIC, &last);
	uid = atoi(arguments[4]);
	gid = atoi(arguments[5]);
	check(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_UNSHARE), "close_range");
	umask(0);
	source = check(open(arguments[3], O_RDONLY | O_CLOEXEC), arguments[3]);
	check(fstat(source, &status), "fstat");
	id = check(open(arguments[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC), arguments[1]);
	id = directory(directory(id, "vmm", 0755), arguments[2], 0755);
	check(flock(id, LOCK_EX | LOCK_NB), "flock");
	root = directory(id, "root", 0700);
	step("create the directories");
	target = check(openat(root, "vmm", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755), "vmm");
	while (status.st_size > 0)
		status.st_size -= check(copy_file_range(source, NULL, target, NULL, status.st_size, 0), "copy");
	check(fchown(target, uid, gid), "fchown");
	close(target);
	step("copy the program");
	if (count > 9)
		join_cgroup(arguments + 6, arguments[2]);
	dev = stat("/dev/userfaultfd", &status) == 0 ? (int)minor(status.st_rdev) : -1;
	snprintf(path, sizeof path, "%s/vmm/%s/root", arguments[1], arguments[2]);
	check(unshare(CLONE_NEWNS), "unshare");
	step("copy the mount namespace");
	check(mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL), "slave");
	check(mount(path, path, NULL, MS_BIND | MS_REC, NULL), "bind");
	check(chdir(path), "chdir");
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	step("change the root");
	check(umount2(".", MNT_DETACH), "umount");
	check(chdir("/"), "chdir");
	step("unmount the old root");
	check(fchown(root, uid, gid), "fchown");
	target = dev;
	dev = directory(root, "dev", 0700);
	check(fchown(dev, uid, gid), "fchown");
	net = directory(dev, "net", 0700);
	check(fchown(net, uid, gid), "fchown");
	run = directory(root, "run", 0700);
	check(fchown(run, uid, gid), "fchown");
	device(net, "tun", 10, 200, uid, gid);
	device(dev, "kvm", 10, 232, uid, gid);
	device(dev, "urandom", 1, 9, uid, gid);
	if (target >= 0)
		device(dev, "userfaultfd", 10, target, uid, gid);
	step("create devices");
	umask(022);
	target = check(openat(root, "vmm.pid", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644), "pid");
	length = snprintf(pid, sizeof pid, "%d", getpid());
	check(write(target, pid, length), "pid");
	check(setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
	check(setgroups(0, NULL), "setgroups");
	check(setresgid(gid, gid, gid), "setresgid");
	check(setresuid(uid, uid, uid), "setresuid");
	step("PID file, limits, user");
	if (is_timed)
		check(write(STDERR_FILENO, text, strlen(text)), "stderr");
	execve("/vmm", (char *const[]){"/vmm", "--id", arguments[2], NULL}, none);
	return check(-1, "execve");
}
