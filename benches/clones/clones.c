// Many VMs from one snapshot, alive at once, of two kinds.
//
//   clones N CHECK GOALS NAME COMMAND... -- NAME COMMAND...
//
// Starts N processes of each command in turn. Each guest must echo a byte before the next process starts. In a
// command, {n} stands for the number of the VM from 1, and {ip} for the address 10.64.B.A with n = 250 B + A. A
// separate spawner process starts them: the time of a spawn grows with the number of open descriptors. Here, the
// descriptors of all VMs would distort the time. Then runs the shell command CHECK, if it is not empty, and checks that
// all VMs are alive.
//
// Then starts N of one kind alone, and then N of the other: pages of the kernel are shared by neighbors. The memory per
// VM is that of the process, and what the kernel frees at its end, without the guest's own writes: the private pages of
// the mapping of its memory. It is measured twice. The counters of slab, vmalloc (with thread stacks) and page tables
// lack pages that KVM allocates alone, which are the same for VMs that are made alike. The free memory of the system has
// all, but on a busy host an error of 100 MiB for all VMs together: VMs of other programs have such pages too.
//
// Prints the median start time of each hundred VMs, and the memory per VM. With GOALS = goals, the second kind must
// need at most 1.3 times the time of the first for each hundred, and at most 150 KiB more memory by the counters. The
// exit status is 1 if a goal is missed, the check fails, or a VM is not alive.
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <limits.h>
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
enum { TIMEOUT_MS = 10000, SETTLE_S = 90, QUIET_S = 15, GROUP = 100, KINDS = 2, MAX_ARGUMENTS = 32, MAX_LENGTH = 4096, STACK_KIB = 16, FALL_KIB = 64 };
static const double TIME_GOAL = 1.3, MEMORY_GOAL = 150;

struct clone {
    pid_t pid;
    int console;
    double micros;
};

// Memory in KiB.
struct memory {
    double counted, freed, own, slab, guest;
};

static struct kind {
    const char *name;
    char **command;
    struct clone *clones;
    int started;
    struct memory memory;
} kinds[KINDS];

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

// Request to the spawner: start VM `number` of `kind`, or wait for the end of `number` VMs.
struct request {
    int number, kind, is_wait;
};

static void expand(const char *from, int number, char *to) {
    char *end = to + MAX_LENGTH - 16;
    while (*from && to < end) {
        if (!strncmp(from, "{n}", 3)) {
            to += sprintf(to, "%d", number);
            from += 3;
        } else if (!strncmp(from, "{ip}", 4)) {
            to += sprintf(to, "10.64.%d.%d", (number - 1) / 250, (number - 1) % 250 + 1);
            from += 4;
        } else {
            *to++ = *from++;
        }
    }
    *to = 0;
}

static void spawn(int socket, const struct request *request) {
    static char texts[MAX_ARGUMENTS][MAX_LENGTH];
    char *arguments[MAX_ARGUMENTS + 1] = {NULL}, **command = kinds[request->kind].command;
    for (int i = 0; i < MAX_ARGUMENTS && command[i]; i++) {
        expand(command[i], request->number, texts[i]);
        arguments[i] = texts[i];
    }
    int console[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0) err(1, "socketpair");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, console[1], 0);
    posix_spawn_file_actions_adddup2(&actions, console[1], 1);
    struct launch launch = {.begin = now()};
    errno = posix_spawn(&launch.pid, arguments[0], &actions, NULL, arguments, environ);
    if (errno) launch.pid = 0, warn("%s", arguments[0]);
    if (!send_launch(socket, &launch, console[0])) err(1, "sendmsg");
    posix_spawn_file_actions_destroy(&actions);
    for (int i = 0; i < 2; i++) close(console[i]);
}

// Holds only the descriptors of the VM that it starts.
static void run_spawner(int socket) {
    struct request request;
    while (read(socket, &request, sizeof request) == sizeof request) {
        if (!request.is_wait) {
            spawn(socket, &request);
            continue;
        }
        for (int i = 0; i < request.number; i++) wait(NULL);
        if (write(socket, "", 1) != 1) err(1, "write");
    }
}

// Starts the next VM of a kind. Returns 0 if its guest does not echo.
static int start(int spawner, struct kind *kind) {
    struct request request = {.number = kind->started + 1, .kind = (int)(kind - kinds)};
    struct launch launch;
    int console;
    if (write(spawner, &request, sizeof request) != sizeof request || !receive_launch(spawner, &launch, &console)) return 0;
    struct clone *clone = &kind->clones[kind->started++];
    *clone = (struct clone){.pid = launch.pid, .console = console};
    int is_alive = echoes(clone);
    clone->micros = now() - launch.begin;
    if (!is_alive) warnx("VM %d %s does not echo", kind->started, kind->name);
    return is_alive;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Returns the median of `count` numbers that are `stride` bytes apart.
static double median(const void *from, size_t stride, int count) {
    double *copy = malloc(sizeof *copy * (size_t)count);
    if (!copy) err(1, "median");
    for (int i = 0; i < count; i++) memcpy(&copy[i], (const char *)from + stride * (size_t)i, sizeof *copy);
    qsort(copy, (size_t)count, sizeof *copy, by_value);
    double middle = copy[count / 2];
    free(copy);
    return middle;
}

// Returns the sum of counters of /proc/meminfo in KiB.
static long sum_counters(const char *const *names, size_t count) {
    long sum = 0;
    for (size_t i = 0; i < count; i++) sum += kib("/proc/meminfo", names[i], NULL);
    return sum;
}

static long counted_memory(void) {
    static const char *const counters[] = {"SUnreclaim", "VmallocUsed", "SecPageTables", "Percpu"};
    return sum_counters(counters, sizeof counters / sizeof *counters);
}

// Returns the memory in KiB that is neither available nor counted for a process or a file: memory of other programs does
// not change it. Waits until the slab has stopped falling for some seconds. The kernel frees the memory of exited
// processes late: for a thousand VMs it needs most of a minute.
static double kernel_memory(void) {
    static const char *const known[] = {"MemAvailable", "AnonPages", "Shmem:", "PageTables", "KernelStack"};
    long minimum = LONG_MAX;
    double last[QUIET_S];
    for (int i = 0, quiet = 0; i < SETTLE_S && quiet < QUIET_S; i++) {
        sleep(1);
        long slab = kib("/proc/meminfo", "SUnreclaim", NULL);
        quiet = slab > minimum - FALL_KIB ? quiet + 1 : 0;
        if (slab < minimum) minimum = slab;
        last[i % QUIET_S] = (double)(kib("/proc/meminfo", "MemTotal", NULL) - sum_counters(known, sizeof known / sizeof *known));
    }
    return median(last, sizeof *last, QUIET_S);
}

// Kills all VMs of a kind, and waits for their end.
static void kill_kind(int spawner, struct kind *kind) {
    for (int i = 0; i < kind->started; i++) {
        kill(kind->clones[i].pid, SIGKILL);
        close(kind->clones[i].console);
    }
    struct request request = {.number = kind->started, .is_wait = 1};
    char byte;
    if (write(spawner, &request, sizeof request) != sizeof request || read(spawner, &byte, 1) != 1) err(1, "spawner");
    kind->started = 0;
}

// Starts `count` VMs of a kind, kills them, and records the memory per VM. Returns 0 if one does not start.
static int measure_kind(int spawner, struct kind *kind, int count) {
    while (kind->started < count)
        if (!start(spawner, kind)) return 0;
    double before = kernel_memory();
    long guest = 0, own = 0, tables = 0, threads = 0, counted = counted_memory(), slab = kib("/proc/meminfo", "SUnreclaim", NULL);
    for (int i = 0; i < count; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/smaps", kind->clones[i].pid);
        long private = kib(path, "Private_Dirty", "/memory");
        guest += private;
        own += kib(path, "Private_", NULL) - private;
        snprintf(path, sizeof path, "/proc/%d/status", kind->clones[i].pid);
        tables += kib(path, "VmPTE", NULL);
        threads += kib(path, "Threads", NULL);
    }
    kill_kind(spawner, kind);
    double after = kernel_memory();
    counted -= counted_memory();
    slab -= kib("/proc/meminfo", "SUnreclaim", NULL);
    kind->memory = (struct memory){
        .counted = (double)(own + tables + counted) / count,
        .freed = (before - after + (double)(own + tables + threads * STACK_KIB)) / count,
        .own = (double)own / count,
        .slab = (double)slab / count,
        .guest = (double)guest / count,
    };
    return 1;
}

static const char *verdict(int is_missed) {
    return is_missed ? "missed" : "met";
}

// Prints the table of times. Returns the number of missed goals.
static int print_times(int count, int has_goals) {
    int missed = 0;
    printf("median from spawn to echo\n%-16s %18s %18s %7s%s\n", "VMs", kinds[0].name, kinds[1].name, "ratio", has_goals ? "  goal 1.3" : "");
    for (int first = 0; first < count; first += GROUP) {
        int group = count - first < GROUP ? count - first : GROUP;
        double times[KINDS];
        for (int i = 0; i < KINDS; i++) times[i] = median(&kinds[i].clones[first].micros, sizeof(struct clone), group);
        int is_missed = times[1] > TIME_GOAL * times[0];
        missed += is_missed;
        printf("%6d to %6d %15.0f us %15.0f us %7.2f%s%s\n", first + 1, first + group, times[0], times[1], times[1] / times[0],
               has_goals ? "  " : "", has_goals ? verdict(is_missed) : "");
    }
    return missed;
}

// Prints the memory. Returns 1 if the goal is missed.
static int print_memory(int has_goals) {
    const struct memory *first = &kinds[0].memory, *second = &kinds[1].memory;
    double more = second->counted - first->counted;
    int is_missed = more > MEMORY_GOAL;
    printf("memory per VM without guest pages\n%-16s %18s %18s\n", "", kinds[0].name, kinds[1].name);
    printf("%-16s %14.0f KiB %14.0f KiB, %.0f KiB more", "by counters", first->counted, second->counted, more);
    printf("%s%s\n", has_goals ? ", goal 150: " : "", has_goals ? verdict(is_missed) : "");
    printf("%-16s %14.0f KiB %14.0f KiB\n", "private", first->own, second->own);
    printf("%-16s %14.0f KiB %14.0f KiB\n", "slab", first->slab, second->slab);
    printf("%-16s %14.0f KiB %14.0f KiB\n", "by free memory", first->freed, second->freed);
    printf("%-16s %14.0f KiB %14.0f KiB\n", "guest pages", first->guest, second->guest);
    return is_missed;
}

static int count_alive(void) {
    int alive = 0;
    for (int i = 0; i < KINDS; i++)
        for (int j = 0; j < kinds[i].started; j++) alive += echoes(&kinds[i].clones[j]);
    return alive;
}

// Starts `count` VMs of each kind in turn. Returns 0 if one does not start.
static int start_all(int spawner, int count) {
    for (int i = 0; i < count; i++)
        for (int j = 0; j < KINDS; j++)
            if (!start(spawner, &kinds[(i + j) % KINDS])) return 0;
    return 1;
}

static void raise_limits(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
}

// Returns the socket of a new spawner.
static int start_spawner(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) err(1, "socketpair");
    pid_t child = fork();
    if (child < 0) err(1, "fork");
    close(pair[child ? 1 : 0]);
    if (child) return pair[0];
    run_spawner(pair[1]);
    exit(0);
}

static void parse_kinds(int count, char **arguments) {
    for (int i = 0; i < KINDS; i++) {
        if (!arguments[0] || !arguments[1]) errx(2, "usage: clones N CHECK GOALS NAME COMMAND... -- NAME COMMAND...");
        kinds[i] = (struct kind){.name = arguments[0], .command = arguments + 1, .clones = calloc((size_t)count, sizeof(struct clone))};
        if (!kinds[i].clones) err(1, "clones");
        while (*arguments && strcmp(*arguments, "--")) arguments++;
        if (*arguments) *arguments++ = NULL;
    }
}

int main(int argc, char **argv) {
    int count = argc > 6 ? atoi(argv[1]) : 0;
    if (count < 1) errx(2, "usage: clones N CHECK GOALS NAME COMMAND... -- NAME COMMAND...");
    parse_kinds(count, argv + 4);
    raise_limits();
    int has_goals = !strcmp(argv[3], "goals"), spawner = start_spawner();
    int failed = !start_all(spawner, count);
    failed |= !failed && *argv[2] && system(argv[2]);
    int alive = count_alive();
    printf("%d VMs of each kind, %d of %d alive at the end\n", count, alive, KINDS * count);
    for (int i = 0; i < KINDS; i++) kill_kind(spawner, &kinds[i]);
    if (failed || alive < KINDS * count) return 1;
    int missed = print_times(count, has_goals);
    fflush(stdout);
    kernel_memory();
    for (int i = 0; i < KINDS; i++)
        if (!measure_kind(spawner, &kinds[i], count)) errx(1, "cannot measure the memory");
    missed += print_memory(has_goals);
    return has_goals && missed;
}
