// Many machines from one snapshot, alive at once.
//
//   clones N MAYFLY SNAPSHOT
//
// Starts N processes `MAYFLY restore SNAPSHOT`, one after the other; each is sent a byte, which its guest must echo, before the
// next one starts. Prints how long that took for the first and the last hundred, and how much less memory the system has for it,
// per machine: the kernel's share is in it. What each guest wrote is taken off: the private pages of the mapping of its memory.
// All are asked again at the end whether they live, and then killed. Ends with 1 when a goal is missed: 1 MiB a machine, and
// the last hundred within 1.3 times the first.
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

extern char **environ;
enum { PATIENCE_MS = 10000, GROUP = 100 };

struct clone {
    pid_t pid;
    int in, out;
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

static void end_all(void) {
    for (int i = 0; i < started; i++) kill(clones[i].pid, SIGKILL);
    for (int i = 0; i < started; i++) waitpid(clones[i].pid, NULL, 0);
}

// Whether the guest answers. What was printed before the snapshot is not printed again.
static int echoes(struct clone *clone) {
    struct pollfd answer = {.fd = clone->out, .events = POLLIN};
    char byte = 'x';
    if (write(clone->in, &byte, 1) != 1 || poll(&answer, 1, PATIENCE_MS) != 1) return 0;
    return read(clone->out, &byte, 1) == 1 && byte == 'x';
}

static int start(struct clone *clone, char *program, char *snapshot) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0) return 0;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    char *arguments[] = {program, "restore", snapshot, NULL};
    double begin = now();
    errno = posix_spawn(&clone->pid, program, &actions, NULL, arguments, environ);
    if (errno) return 0;
    started++;
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    clone->in = in[1];
    clone->out = out[0];
    int lives = echoes(clone);
    clone->micros = now() - begin;
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
    long before = kib("/proc/meminfo", "MemAvailable", NULL), slab = kib("/proc/meminfo", "SUnreclaim", NULL);
    while (started < count && start(&clones[started], argv[2], argv[3])) {}
    int alive = 0, refused = started < count;
    if (refused) warn("machine %d does not come up", started);
    long available = kib("/proc/meminfo", "MemAvailable", NULL), guest = 0, own = 0;
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
    end_all();
    double each = started ? (double)(before - available - guest) / started : 0;
    printf("%d machines, %d alive at the end, of %d\n", started, alive, count);
    if (!started) return 1;
    printf("memory each, without the guest's pages: %.0f KiB (goal: 1024); of it private to the process %.0f, unreclaimable slab %.0f\n",
           each, (double)own / started, (double)slab / started);
    printf("the guest's own pages: %.0f KiB each\n", (double)guest / started);
    printf("spawn to the guest's echo, median: first %d %.0f us, last %d %.0f us, ratio %.2f (goal: 1.3)\n", group, first, group, last, last / first);
    return refused || alive < count || each > 1024 || last > 1.3 * first;
}
