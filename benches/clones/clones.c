// Many machines from one snapshot, alive at once.
//
//   clones N MAYFLY SNAPSHOT
//
// Starts N processes `MAYFLY restore SNAPSHOT`, one after the other; each is sent a byte, which its guest must echo, before the
// next one starts. A process of its own starts them: a parent with the descriptors of them all takes longer to start one the
// more there are, which says nothing of mayfly.
//
// Prints how long that took for the first and the last hundred, and how much less memory the system has for it, per machine: the
// kernel's share is in it. What each guest wrote is taken off: the private pages of the mapping of its memory. All are asked
// again at the end whether they live, and then killed. Ends with 1 when a goal is missed: 1 MiB a machine, and the last hundred
// within 1.3 times the first.
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
enum { PATIENCE_MS = 10000, SETTLE_S = 90, QUIET_S = 4, GROUP = 100 };

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

// A number of KiB in a file of /proc: the sum of all lines that begin with `name`, after one that contains `within`, if any.
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

// Memory that is there, in KiB, once it has not become more for some seconds: what processes leave behind when they start and end
// takes the kernel long to free, a thousand machines' most of a minute.
static long available(void) {
    long most = 0;
    for (int i = 0, quiet = 0; i < SETTLE_S && quiet < QUIET_S; i++) {
        long now = kib("/proc/meminfo", "MemAvailable", NULL);
        quiet = now > most + 1024 ? 0 : quiet + 1;
        if (now > most) most = now;
        sleep(1);
    }
    return kib("/proc/meminfo", "MemAvailable", NULL);
}

static void end_all(int nursery) {
    for (int i = 0; i < started; i++) kill(clones[i].pid, SIGKILL);
    close(nursery);
    while (wait(NULL) > 0) {}
}

// Whether the guest answers. What was printed before the snapshot is not printed again.
static int echoes(struct clone *clone) {
    struct pollfd answer = {.fd = clone->console, .events = POLLIN};
    char byte = 'x';
    if (write(clone->console, &byte, 1) != 1 || poll(&answer, 1, PATIENCE_MS) != 1) return 0;
    return read(clone->console, &byte, 1) == 1 && byte == 'x';
}

// What is told of a machine that was started: 0 for its process when it could not be. Its console comes along.
struct birth {
    pid_t pid;
    double begin;
};

union rights {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};

static int hand_over(int socket, struct birth *birth, int console) {
    union rights rights = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))}};
    memcpy(CMSG_DATA(&rights.header), &console, sizeof console);
    struct iovec data = {birth, sizeof *birth};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
    return sendmsg(socket, &message, 0) == sizeof *birth;
}

static int take_over(int socket, struct birth *birth, int *console) {
    union rights rights;
    struct iovec data = {birth, sizeof *birth};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != sizeof *birth || !CMSG_FIRSTHDR(&message)) return 0;
    memcpy(console, CMSG_DATA(&rights.header), sizeof *console);
    return birth->pid > 0;
}

// Starts a machine for each byte that it is sent. Has no descriptors but those of the machine that it starts.
static void serve(int socket, char *program, char *snapshot) {
    char *arguments[] = {program, "restore", snapshot, NULL}, wish;
    while (read(socket, &wish, 1) == 1) {
        int console[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0) err(1, "socketpair");
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, console[1], 0);
        posix_spawn_file_actions_adddup2(&actions, console[1], 1);
        struct birth birth = {.begin = now()};
        errno = posix_spawn(&birth.pid, program, &actions, NULL, arguments, environ);
        if (errno) birth.pid = 0, warn("%s", program);
        if (!hand_over(socket, &birth, console[0])) err(1, "sendmsg");
        posix_spawn_file_actions_destroy(&actions);
        for (int i = 0; i < 2; i++) close(console[i]);
    }
    while (wait(NULL) > 0) {}
}

static int start(int nursery, struct clone *clone) {
    struct birth birth;
    int console;
    if (write(nursery, "", 1) != 1 || !take_over(nursery, &birth, &console)) return 0;
    *clone = (struct clone){.pid = birth.pid, .console = console};
    started++;
    int lives = echoes(clone);
    clone->micros = now() - birth.begin;
    return lives;
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
    if (count < 1) errx(2, "N MAYFLY SNAPSHOT");
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
        serve(pair[1], argv[2], argv[3]);
        return 0;
    }
    long before = available(), slab = kib("/proc/meminfo", "SUnreclaim", NULL);
    while (started < count && start(pair[0], &clones[started])) {}
    int alive = 0, refused = started < count;
    if (refused) warnx("machine %d does not come up", started);
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
    end_all(pair[0]);
    double each = started ? (double)(before - after - guest) / started : 0;
    printf("%d machines, %d alive at the end, of %d\n", started, alive, count);
    if (!started) return 1;
    printf("memory each, without the guest's pages: %.0f KiB (goal: 1024); of it private to the process %.0f, unreclaimable slab %.0f\n",
           each, (double)own / started, (double)slab / started);
    printf("the guest's own pages: %.0f KiB each\n", (double)guest / started);
    printf("spawn to the guest's echo, median: first %d %.0f us, last %d %.0f us, ratio %.2f (goal: 1.3)\n", group, first, group, last, last / first);
    return refused || alive < count || each > 1024 || last > 1.3 * first;
}
