// Many VMs from one snapshot, alive at once.
//
//   clones N MAYFLY SNAPSHOT
//
// Starts N processes `MAYFLY restore SNAPSHOT` one after the other. Each guest must echo a byte before the
// next process starts. A separate spawner process starts them: the time of a spawn grows with the number of
// open descriptors. Here, the descriptors of all VMs would distort mayfly's time.
//
// Prints the start time of the first and last hundred VMs, and the memory of the system per VM, with the
// kernel's share. It excludes the guest's own writes: the private pages of the mapping of its memory. At the
// end it checks that all VMs are alive and kills them. The goals are 1 MiB per VM, and a ratio of 1.3 of the
// last hundred to the first. The exit status is 1 if a goal is missed.
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

extern char **environ;
enum { TIMEOUT_MS = 10000, SETTLE_S = 90, QUIET_S = 4, GROUP = 100 };

struct clone {
    pid_t pid;
    int console;
    double micros;
};

static struct clone *clones;
static int started;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

// Returns KiB from a file in /proc: the sum of all lines that start with `name`, after a line that contains
// `within`, if given.
static long kib(const char *path, const char *name, const char *within) {
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    char line[512];
    long sum = 0, inside = !within;
    while (fgets(line, sizeof line, file)) {
        if (within && strchr(line, '-') && strchr(line, '-') < strchr(line, ' ')) inside = strstr(line, within) != NULL;
        if (inside && !strncmp(line, name, strlen(name))) sum += strtol(strchr(line, ':') + 1, NULL, 10);
    }
    fclose(file);
    return sum;
}

// Returns the available memory in KiB once it has stopped growing for some seconds. The kernel frees the
// memory of started and exited processes late: for a thousand VMs it needs most of a minute.
static long available(void) {
    long maximum = 0;
    for (int i = 0, quiet = 0; i < SETTLE_S && quiet < QUIET_S; i++) {
        long now = kib("/proc/meminfo", "MemAvailable", NULL);
        quiet = now > maximum + 1024 ? 0 : quiet + 1;
        if (now > maximum) maximum = now;
        sleep(1);
    }
    return kib("/proc/meminfo", "MemAvailable", NULL);
}

static void kill_all(int spawner) {
    for (int i = 0; i < started; i++) kill(clones[i].pid, SIGKILL);
    close(spawner);
    while (wait(NULL) > 0) {}
}

// Returns 1 if the guest echoes a byte. A restored guest does not repeat earlier output.
static int echoes(struct clone *clone) {
    struct pollfd poll_fd = {.fd = clone->console, .events = POLLIN};
    char byte = 'x';
    if (write(clone->console, &byte, 1) != 1 || poll(&poll_fd, 1, TIMEOUT_MS) != 1) return 0;
    return read(clone->console, &byte, 1) == 1 && byte == 'x';
}

// Message about a started VM: pid 0 if the spawn failed. The descriptor of its console is attached.
struct launch {
    pid_t pid;
    double begin;
};

union rights {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};

static int send_launch(int socket, struct launch *launch, int console) {
    union rights rights = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))}};
    memcpy(CMSG_DATA(&rights.header), &console, sizeof console);
    struct iovec data = {launch, sizeof *launch};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
    return sendmsg(socket, &message, 0) == sizeof *launch;
}

static int receive_launch(int socket, struct launch *launch, int *console) {
    union rights rights;
    struct iovec data = {launch, sizeof *launch};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != sizeof *launch || !CMSG_FIRSTHDR(&message)) return 0;
    memcpy(console, CMSG_DATA(&rights.header), sizeof *console);
    return launch->pid > 0;
}

// Starts a VM for each byte received. Holds only the descriptors of the VM that it starts.
static void run_spawner(int socket, char *program, char *snapshot) {
    char *arguments[] = {program, "restore", snapshot, NULL}, byte;
    while (read(socket, &byte, 1) == 1) {
        int console[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0) err(1, "socketpair");
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, console[1], 0);
        posix_spawn_file_actions_adddup2(&actions, console[1], 1);
        struct launch launch = {.begin = now()};
        errno = posix_spawn(&launch.pid, program, &actions, NULL, arguments, environ);
        if (errno) launch.pid = 0, warn("%s", program);
        if (!send_launch(socket, &launch, console[0])) err(1, "sendmsg");
        posix_spawn_file_actions_destroy(&actions);
        for (int i = 0; i < 2; i++) close(console[i]);
    }
    while (wait(NULL) > 0) {}
}

static int start(int spawner, struct clone *clone) {
    struct launch launch;
    int console;
    if (write(spawner, "", 1) != 1 || !receive_launch(spawner, &launch, &console)) return 0;
    *clone = (struct clone){.pid = launch.pid, .console = console};
    started++;
    int is_alive = echoes(clone);
    clone->micros = now() - launch.begin;
    return is_alive;
}

static int by_time(const void *a, const void *b) {
    double x = ((const struct clone *)a)->micros, y = ((const struct clone *)b)->micros;
    return (x > y) - (x < y);
}

static double median(const struct clone *from, int count) {
    struct clone *copy = malloc(sizeof *copy * (size_t)count);
    if (!copy) err(1, "median");
    memcpy(copy, from, sizeof *copy * (size_t)count);
    qsort(copy, (size_t)count, sizeof *copy, by_time);
    double middle = copy[count / 2].micros;
    free(copy);
    return middle;
}

int main(int argc, char **argv) {
    int count = argc == 4 ? atoi(argv[1]) : 0;
    if (count < 1) errx(2, "usage: clones N MAYFLY SNAPSHOT");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    clones = calloc((size_t)count, sizeof *clones);
    if (!clones) err(1, "clones");
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) err(1, "socketpair");
    pid_t child = fork();
    if (child < 0) err(1, "fork");
    close(pair[child ? 1 : 0]);
    if (!child) {
        run_spawner(pair[1], argv[2], argv[3]);
        return 0;
    }
    long before = available(), slab = kib("/proc/meminfo", "SUnreclaim", NULL);
    while (started < count && start(pair[0], &clones[started])) {}
    int alive = 0, failed = started < count;
    if (failed) warnx("cannot start VM %d: its guest does not echo", started);
    long after = available(), guest = 0, own = 0;
    slab = kib("/proc/meminfo", "SUnreclaim", NULL) - slab;
    for (int i = 0; i < started; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/smaps", clones[i].pid);
        long private = kib(path, "Private_Dirty", "/memory");
        guest += private;
        own += kib(path, "Private_", NULL) - private;
    }
    for (int i = 0; i < started; i++) alive += echoes(&clones[i]);
    int group = started < 2 * GROUP ? (started + 1) / 2 : GROUP;
    double first = started ? median(clones, group) : 0, last = started ? median(clones + started - group, group) : 0;
    kill_all(pair[0]);
    double each = started ? (double)(before - after - guest) / started : 0;
    printf("%d VMs of %d started, %d alive at the end\n", started, count, alive);
    if (!started) return 1;
    printf("memory per VM without guest pages: %.0f KiB (goal: 1024), of that private %.0f KiB, unreclaimable slab %.0f KiB\n",
           each, (double)own / started, (double)slab / started);
    printf("guest pages per VM: %.0f KiB\n", (double)guest / started);
    printf("median from spawn to echo: first %d VMs %.0f us, last %d VMs %.0f us, ratio %.2f (goal: 1.3)\n", group, first, group, last, last / first);
    return failed || alive < count || each > 1024 || last > 1.3 * first;
}
