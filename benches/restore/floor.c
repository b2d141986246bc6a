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
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../control/socket.h"

enum { GDT = 0x500, STACK = 0x8ff0, PML4 = 0x9000, PDPT = 0xa000, DIRECTORY = 0xb000, CODE = 0x100000, WRITTEN = 0x1000000 };
enum { PRESENT_WRITABLE = 3, LARGE = 0x83, PAGE = 4096, PAGES = 256 };

// mov dx, 0x3f8; mov al, '.'; again: out dx, al; jmp again
static const uint8_t code[] = {0x66, 0xba, 0xf8, 0x03, 0xb0, '.', 0xee, 0xeb, 0xfd};

static struct state {
    uint64_t size;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    struct kvm_xsave xsave;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_cpuid2 cpuid;
    struct kvm_cpuid_entry2 entries[256];
} state;

// From linux/fs.h since Linux 6.7.
struct pm_scan_arg_ {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, wanted;
};
struct page_region_ {
    uint64_t start, end, categories;
};
#define SCAN _IOWR('f', 16, struct pm_scan_arg_)
enum { IS_FILE = 1 << 2, IS_PRESENT = 1 << 3 };

static int kvm, vm, vcpu;
static uint8_t *memory;
static struct kvm_run *run;

static int checked_ioctl(int fd, unsigned long request, const void *argument, const char *name) {
    int result = ioctl(fd, request, argument);
    if (result < 0) err(1, "%s", name);
    return result;
}

static int open_file(const char *directory, const char *name, int flags) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0) err(1, "%s", path);
    return fd;
}

static void create_vm(void) {
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(1, "/dev/kvm");
    vm = checked_ioctl(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
}

static void map_file(int fd, int flags) {
    memory = mmap(memory, state.size, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
}

static void set_slot(void) {
    struct kvm_userspace_memory_region slot = {.memory_size = state.size, .userspace_addr = (uintptr_t)memory};
    checked_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) err(1, "KVM_SET_TSS_ADDR");
}

static void map_memory(int fd, int shared) {
    map_file(fd, shared ? MAP_SHARED : MAP_PRIVATE);
    set_slot();
}

static void create_vcpu(void) {
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    checked_ioctl(vm, KVM_ENABLE_CAP, &split, "KVM_CAP_SPLIT_IRQCHIP");
    vcpu = checked_ioctl(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    size_t run_size = (size_t)checked_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) err(1, "mmap of kvm_run");
}

static void build(int fd, int shared) {
    create_vm();
    map_memory(fd, shared);
    create_vcpu();
}

static void save(void) {
    checked_ioctl(vcpu, KVM_GET_SREGS, &state.sregs, "KVM_GET_SREGS");
    checked_ioctl(vcpu, KVM_GET_REGS, &state.regs, "KVM_GET_REGS");
    checked_ioctl(vcpu, KVM_GET_XSAVE, &state.xsave, "KVM_GET_XSAVE");
    checked_ioctl(vcpu, KVM_GET_LAPIC, &state.lapic, "KVM_GET_LAPIC");
    checked_ioctl(vcpu, KVM_GET_VCPU_EVENTS, &state.events, "KVM_GET_VCPU_EVENTS");
}

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

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, uint8_t wide) {
    return (struct kvm_segment){.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .l = wide, .db = !wide};
}

static void make(const char *directory, uint64_t mib) {
    state.size = mib << 20;
    int fd = open_file(directory, "memory", O_RDWR | O_CREAT);
    if (ftruncate(fd, (off_t)state.size) < 0) err(1, "memory");
    build(fd, 1);
    memcpy(memory + CODE, code, sizeof code);
    const uint64_t gdt[] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    memcpy(memory + GDT, gdt, sizeof gdt);
    *(uint64_t *)(memory + PML4) = PDPT | PRESENT_WRITABLE;
    *(uint64_t *)(memory + PDPT) = DIRECTORY | PRESENT_WRITABLE;
    uint64_t *page_directory = (uint64_t *)(memory + DIRECTORY);
    for (uint64_t i = 0; i < 512; i++) page_directory[i] = i << 21 | LARGE;
    state.cpuid.nent = 256;
    checked_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &state.cpuid, "KVM_GET_SUPPORTED_CPUID");
    checked_ioctl(vcpu, KVM_SET_CPUID2, &state.cpuid, "KVM_SET_CPUID2");
    save();
    state.sregs.cs = flat_segment(0x10, 11, 1);
    state.sregs.ds = state.sregs.es = state.sregs.fs = state.sregs.gs = state.sregs.ss = flat_segment(0x18, 3, 0);
    state.sregs.gdt = (struct kvm_dtable){.base = GDT, .limit = 31};
    state.sregs.cr0 = 0x80050033;
    state.sregs.cr3 = PML4;
    state.sregs.cr4 = 0x20;
    state.sregs.efer = 0x500;
    state.regs = (struct kvm_regs){.rip = CODE, .rsp = STACK, .rflags = 2};
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

static void restore_vcpu(void) {
    checked_ioctl(vcpu, KVM_SET_CPUID2, &state.cpuid, "KVM_SET_CPUID2");
    checked_ioctl(vcpu, KVM_SET_SREGS, &state.sregs, "KVM_SET_SREGS");
    checked_ioctl(vcpu, KVM_SET_REGS, &state.regs, "KVM_SET_REGS");
    checked_ioctl(vcpu, KVM_SET_XSAVE, &state.xsave, "KVM_SET_XSAVE");
    checked_ioctl(vcpu, KVM_SET_LAPIC, &state.lapic, "KVM_SET_LAPIC");
    checked_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state.events, "KVM_SET_VCPU_EVENTS");
}

static void restore(const char *directory) {
    read_state(directory);
    build(open_file(directory, "memory", O_RDONLY), 0);
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
    map_memory(open_file(directory, "memory", O_RDONLY), 0);
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
    map_file(-1, MAP_PRIVATE | MAP_ANONYMOUS);
    set_slot();
    pthread_t thread = start_vcpu();
    int client = accept(listen_at(path), NULL, NULL);
    if (client < 0) err(1, "accept");
    int files[DESCRIPTORS];
    receive_files(client, files);
    read_state_from(files[STATE]);
    read_extra_from(files[STATE]);
    if (dup2(files[STDOUT], 1) < 0) err(1, "dup2");
    map_file(files[MEMORY], MAP_PRIVATE | MAP_FIXED);
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
