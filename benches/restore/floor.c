// Floor of snapshots: the KVM calls that are necessary to load a snapshot, from the first instruction of a
// process to the guest's next output, and to create a diff.
//
//     floor make DIR MEMORY_MIB    writes DIR/memory and DIR/state of a guest that prints dots endlessly
//     floor restore DIR            restores and resumes that guest
//     floor diff DIR NEW           restores it, writes to 256 pages, and prints a byte; creates a diff in NEW
//                                  after an input byte, and prints another byte
//     floor wait DIR SOCKET        creates a VM and a vCPU, waits for a request on SOCKET, and then restores and
//                                  resumes that guest, its vCPU on a thread
//     floor shell DIR SOCKET       as wait, but has memory slots of the size in DIR, and receives the files: maps the memory under the
//                                  live slot
//
// One vCPU, otherwise one thread, the split interrupt controller, memory mapped privately from its file. `restore` and `diff` restore the
// minimum that KVM requires: no model-specific registers, and the saved CPUID instead of a new one from KVM. `wait` and `shell` restore
// all state of the vCPU, and the clock. A diff contains the full vCPU state, which a restore requires.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "../control/socket.h"
#include "state.h"

enum { CODE = 0x100000, WRITTEN = 0x1000000, PAGE = 4096, PAGES = 256 };

// mov dx, 0x3f8; mov al, '.'; again: out dx, al; jmp again
static const uint8_t code[] = {0x66, 0xba, 0xf8, 0x03, 0xb0, '.', 0xee, 0xeb, 0xfd};

// From linux/fs.h since Linux 6.7.
struct pm_scan_arg_ {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, wanted;
};
struct page_region_ {
    uint64_t start, end, categories;
};
#define SCAN _IOWR('f', 16, struct pm_scan_arg_)
enum { IS_FILE = 1 << 2, IS_PRESENT = 1 << 3 };

// Rest of the state of a guest.
static struct extra_state {
    struct kvm_mp_state mp_state;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debug_registers;
    struct kvm_clock_data clock;
    struct kvm_msrs msrs;
    struct kvm_msr_entry entries[512];
} extra;

static void save_extra(void) {
    static struct {
        struct kvm_msr_list list;
        uint32_t indices[512];
    } known = {.list.nmsrs = 512};
    checked_ioctl(vcpu, KVM_GET_MP_STATE, &extra.mp_state, "KVM_GET_MP_STATE");
    checked_ioctl(vcpu, KVM_GET_XCRS, &extra.xcrs, "KVM_GET_XCRS");
    checked_ioctl(vcpu, KVM_GET_DEBUGREGS, &extra.debug_registers, "KVM_GET_DEBUGREGS");
    checked_ioctl(vm, KVM_GET_CLOCK, &extra.clock, "KVM_GET_CLOCK");
    checked_ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &known, "KVM_GET_MSR_INDEX_LIST");
    for (uint32_t i = 0; i < known.list.nmsrs; i++) extra.entries[i].index = known.indices[i];
    extra.msrs.nmsrs = known.list.nmsrs;
    checked_ioctl(vcpu, KVM_GET_MSRS, &extra.msrs, "KVM_GET_MSRS");
}

// Drops the registers that KVM does not accept.
static void drop_unwritable(void) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < extra.msrs.nmsrs; i++) {
        struct {
            struct kvm_msrs msrs;
            struct kvm_msr_entry entry;
        } one = {.msrs.nmsrs = 1, .entry = extra.entries[i]};
        if (ioctl(vcpu, KVM_SET_MSRS, &one) == 1) extra.entries[kept++] = extra.entries[i];
    }
    extra.msrs.nmsrs = kept;
}

static void restore_extra(void) {
    checked_ioctl(vcpu, KVM_SET_XCRS, &extra.xcrs, "KVM_SET_XCRS");
    checked_ioctl(vcpu, KVM_SET_DEBUGREGS, &extra.debug_registers, "KVM_SET_DEBUGREGS");
    checked_ioctl(vcpu, KVM_SET_MSRS, &extra.msrs, "KVM_SET_MSRS");
    checked_ioctl(vcpu, KVM_SET_MP_STATE, &extra.mp_state, "KVM_SET_MP_STATE");
    struct kvm_clock_data clock = {.clock = extra.clock.clock};
    checked_ioctl(vm, KVM_SET_CLOCK, &clock, "KVM_SET_CLOCK");
}

static void make(const char *directory, uint64_t mib) {
    build_new(directory, mib);
    memcpy(memory + CODE, code, sizeof code);
    enter_long_mode(CODE);
    save();
    int to = open_file(directory, "state", O_WRONLY | O_CREAT | O_TRUNC);
    save_extra();
    drop_unwritable();
    if (write(to, &state, sizeof state) != sizeof state || write(to, &extra, sizeof extra) != sizeof extra) err(1, "state");
}

static void read_state_from(int file) {
    if (read(file, &state, sizeof state) != sizeof state) err(1, "state");
}

static void read_extra_from(int file) {
    if (read(file, &extra, sizeof extra) != sizeof extra) err(1, "state");
}

static int read_state(const char *directory) {
    int from = open_file(directory, "state", O_RDONLY);
    read_state_from(from);
    return from;
}

static void restore(const char *directory) {
    read_state(directory);
    build_saved(directory);
    restore_vcpu();
}

static void resume(void) {
    for (;;) {
        checked_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO) errx(1, "exit %u", run->exit_reason);
        if (write(1, (char *)run + run->io.data_offset, 1) != 1) _exit(0);
    }
}

static int wake;

static void *run_vcpu(void *unused) {
    uint64_t count;
    if (read(wake, &count, sizeof count) != sizeof count) err(1, "eventfd");
    restore_vcpu();
    restore_extra();
    resume();
    return unused;
}

static pthread_t start_vcpu(void) {
    create_vcpu();
    wake = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_vcpu, NULL)) errx(1, "pthread_create");
    return thread;
}

static void wake_vcpu(pthread_t thread) {
    uint64_t one = 1;
    if (write(wake, &one, sizeof one) != sizeof one) err(1, "eventfd");
    pthread_join(thread, NULL);
}

static void wait_for_request(const char *directory, const char *path) {
    int listener = listen_at(path);
    create_vm();
    pthread_t thread = start_vcpu();
    int client = accept(listener, NULL, NULL);
    char request[1024];
    if (client < 0 || read(client, request, sizeof request) < 1) err(1, "request");
    read_extra_from(read_state(directory));
    map_file(open_file(directory, "memory", O_RDONLY), MAP_PRIVATE, state.size);
    set_slot(state.size);
    wake_vcpu(thread);
}

// Order of the descriptors in a request to a shell.
enum { STDOUT = 1, STATE = 4, MEMORY = 5, DESCRIPTORS };

static void receive_files(int client, int files[DESCRIPTORS]) {
    char text[4096];
    union {
        char bytes[CMSG_SPACE(DESCRIPTORS * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {.iov_base = text, .iov_len = sizeof text};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    if (recvmsg(client, &message, MSG_CMSG_CLOEXEC) < 1) err(1, "recvmsg");
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_len != CMSG_LEN(DESCRIPTORS * sizeof(int))) errx(1, "the request has another number of descriptors");
    memcpy(files, CMSG_DATA(header), DESCRIPTORS * sizeof(int));
}

static void shell(const char *directory, const char *path) {
    read_state(directory);
    create_vm();
    map_file(-1, MAP_PRIVATE | MAP_ANONYMOUS, state.size);
    set_slot(state.size);
    pthread_t thread = start_vcpu();
    int client = accept(listen_at(path), NULL, NULL);
    if (client < 0) err(1, "accept");
    int files[DESCRIPTORS];
    receive_files(client, files);
    read_state_from(files[STATE]);
    read_extra_from(files[STATE]);
    if (dup2(files[STDOUT], 1) < 0) err(1, "dup2");
    map_file(files[MEMORY], MAP_PRIVATE | MAP_FIXED, state.size);
    wake_vcpu(thread);
}

static void print_byte(char byte) {
    if (write(1, &byte, 1) != 1) err(1, "standard output");
}

static void diff(const char *directory) {
    for (uint64_t page = 0; page < PAGES; page++) memory[WRITTEN + page * PAGE] = 1;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0) err(1, "pagemap");
    char byte = 'r';
    print_byte(byte);
    if (read(0, &byte, 1) != 1) err(1, "standard input");
    save();
    save_extra();
    static struct page_region_ found[PAGES + 1];
    struct pm_scan_arg_ scan = {.size = sizeof scan, .start = (uintptr_t)memory, .end = (uintptr_t)memory + state.size,
                                .vec = (uintptr_t)found, .vec_len = PAGES + 1, .inverted = IS_FILE, .mask = IS_FILE | IS_PRESENT, .wanted = IS_FILE};
    int regions = checked_ioctl(pagemap, SCAN, &scan, "PAGEMAP_SCAN");
    int to = open_file(directory, "memory", O_WRONLY | O_CREAT | O_TRUNC);
    if (ftruncate(to, (off_t)state.size) < 0) err(1, "memory");
    for (int i = 0; i < regions; i++) {
        uint8_t *at = (uint8_t *)found[i].start;
        size_t length = found[i].end - found[i].start;
        if (pwrite(to, at, length, at - memory) != (ssize_t)length) err(1, "pwrite");
    }
    to = open_file(directory, "state", O_WRONLY | O_CREAT | O_TRUNC);
    if (write(to, &state, sizeof state) != sizeof state || write(to, &extra, sizeof extra) != sizeof extra) err(1, "state");
    if (regions < 1) errx(1, "no page differs");
    print_byte(byte);
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "make")) {
        make(argv[2], strtoull(argv[3], NULL, 10));
    } else if (argc == 3 && !strcmp(argv[1], "restore")) {
        restore(argv[2]);
        resume();
    } else if (argc == 4 && !strcmp(argv[1], "diff")) {
        restore(argv[2]);
        diff(argv[3]);
    } else if (argc == 4 && !strcmp(argv[1], "wait")) {
        wait_for_request(argv[2], argv[3]);
    } else if (argc == 4 && !strcmp(argv[1], "shell")) {
        shell(argv[2], argv[3]);
    } else {
        errx(2, "usage: floor make DIR MEMORY_MIB | restore DIR | diff DIR NEW | wait DIR SOCKET | shell DIR SOCKET");
    }
    return 0;
}
