// Floor of clones: the KVM calls that are necessary to load a snapshot of the guest echo.elf, and to pass it input.
//
//     floor make DIR MEMORY_MIB ELF    boots the guest until it waits for input; writes DIR/memory and DIR/state
//     floor restore DIR                restores and resumes that guest
//
// One vCPU, one thread, the split interrupt controller, memory mapped privately from its file. A signal reports input, and ends
// KVM_RUN. The serial port has the registers that the guest uses. All other ports ignore writes.
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GDT = 0x500, STACK = 0x8ff0, PML4 = 0x9000, PDPT = 0xa000, DIRECTORY = 0xb000 };
enum { PRESENT_WRITABLE = 3, LARGE = 0x83 };
// Registers of the serial port, bits of its line status, and the vector of its interrupt in the guest.
enum { DATA = 0x3f8, IDENTIFY = 0x3fa, LINE = 0x3fd, RECEIVED = 1, EMPTY = 0x60, VECTOR = 0x24 };

static struct state {
    uint64_t size;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    struct kvm_xsave xsave;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp_state;
    struct kvm_cpuid2 cpuid;
    struct kvm_cpuid_entry2 entries[256];
} state;

static int kvm, vm, vcpu;
static uint8_t *memory;
static struct kvm_run *run;
static uint8_t input;
static int has_input;

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

static void build(int fd, int sharing) {
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(1, "/dev/kvm");
    vm = checked_ioctl(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    memory = mmap(NULL, state.size, PROT_READ | PROT_WRITE, sharing | MAP_NORESERVE, fd, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
    close(fd);
    struct kvm_userspace_memory_region slot = {.memory_size = state.size, .userspace_addr = (uintptr_t)memory};
    checked_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) err(1, "KVM_SET_TSS_ADDR");
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    checked_ioctl(vm, KVM_ENABLE_CAP, &split, "KVM_CAP_SPLIT_IRQCHIP");
    vcpu = checked_ioctl(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    size_t run_size = (size_t)checked_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) err(1, "mmap of kvm_run");
}

// KVM_RUN returns at once if the signal arrives before it.
static void interrupt_run(int signal) {
    (void)signal;
    if (run) run->immediate_exit = 1;
}

static void catch_signal(int signal) {
    struct sigaction action = {.sa_handler = interrupt_run};
    if (sigaction(signal, &action, NULL) < 0) err(1, "sigaction");
}

// Reads a byte of input, if there is one, and raises the interrupt of the serial port.
static void receive(void) {
    run->immediate_exit = 0;
    ssize_t length = has_input ? -1 : read(0, &input, 1);
    if (length == 0) exit(0);
    if (length != 1) return;
    has_input = 1;
    struct kvm_interrupt interrupt = {.irq = VECTOR};
    checked_ioctl(vcpu, KVM_INTERRUPT, &interrupt, "KVM_INTERRUPT");
}

static uint8_t read_port(uint16_t port) {
    switch (port) {
    case DATA:
        has_input = 0;
        return input;
    case IDENTIFY:
        return has_input ? 4 : 1;
    case LINE:
        return EMPTY | (has_input ? RECEIVED : 0);
    default:
        return 0xff;
    }
}

// Runs the guest until a signal arrives, or until it prints `last`. Returns 1 after the print.
static int run_guest(int last) {
    for (;;) {
        if (ioctl(vcpu, KVM_RUN, NULL) < 0) {
            if (errno == EINTR) return 0;
            err(1, "KVM_RUN");
        }
        if (run->exit_reason != KVM_EXIT_IO) errx(1, "exit %u", run->exit_reason);
        uint8_t *data = (uint8_t *)run + run->io.data_offset;
        if (run->io.direction == KVM_EXIT_IO_IN) {
            *data = read_port(run->io.port);
        } else if (run->io.port == DATA) {
            if (write(1, data, 1) != 1) exit(0);
            if (*data == last) return 1;
        }
    }
}

static uint64_t load(const char *path) {
    static uint8_t file[1 << 20];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, file, sizeof file);
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    if (length < (ssize_t)sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG)) errx(1, "cannot read the ELF file %s", path);
    const Elf64_Phdr *segment = (const Elf64_Phdr *)(file + header->e_phoff);
    for (int i = 0; i < header->e_phnum; i++, segment++)
        if (segment->p_type == PT_LOAD) memcpy(memory + segment->p_paddr, file + segment->p_offset, segment->p_filesz);
    return header->e_entry;
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, uint8_t wide) {
    return (struct kvm_segment){.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .l = wide, .db = !wide};
}

static void enter_long_mode(uint64_t entry) {
    const uint64_t gdt[] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    memcpy(memory + GDT, gdt, sizeof gdt);
    *(uint64_t *)(memory + PML4) = PDPT | PRESENT_WRITABLE;
    *(uint64_t *)(memory + PDPT) = DIRECTORY | PRESENT_WRITABLE;
    uint64_t *directory = (uint64_t *)(memory + DIRECTORY);
    for (uint64_t i = 0; i < 512; i++) directory[i] = i << 21 | LARGE;
    struct kvm_sregs sregs;
    checked_ioctl(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    sregs.cs = flat_segment(0x10, 11, 1);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(0x18, 3, 0);
    sregs.gdt = (struct kvm_dtable){.base = GDT, .limit = sizeof gdt - 1};
    sregs.cr0 = 0x80050033;
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    checked_ioctl(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = entry, .rsp = STACK, .rflags = 2};
    checked_ioctl(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

static void make(const char *directory, uint64_t mib, const char *guest) {
    state.size = mib << 20;
    int fd = open_file(directory, "memory", O_RDWR | O_CREAT | O_TRUNC);
    if (ftruncate(fd, (off_t)state.size) < 0) err(1, "memory");
    build(fd, MAP_SHARED);
    state.cpuid.nent = 256;
    checked_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &state.cpuid, "KVM_GET_SUPPORTED_CPUID");
    checked_ioctl(vcpu, KVM_SET_CPUID2, &state.cpuid, "KVM_SET_CPUID2");
    enter_long_mode(load(guest));
    catch_signal(SIGALRM);
    if (!run_guest('\n')) errx(1, "the guest printed no line");
    // Ends KVM_RUN while the guest halts.
    alarm(1);
    if (run_guest(-1)) errx(1, "the guest printed more than a line");
    checked_ioctl(vcpu, KVM_GET_SREGS, &state.sregs, "KVM_GET_SREGS");
    checked_ioctl(vcpu, KVM_GET_REGS, &state.regs, "KVM_GET_REGS");
    checked_ioctl(vcpu, KVM_GET_XSAVE, &state.xsave, "KVM_GET_XSAVE");
    checked_ioctl(vcpu, KVM_GET_LAPIC, &state.lapic, "KVM_GET_LAPIC");
    checked_ioctl(vcpu, KVM_GET_VCPU_EVENTS, &state.events, "KVM_GET_VCPU_EVENTS");
    checked_ioctl(vcpu, KVM_GET_MP_STATE, &state.mp_state, "KVM_GET_MP_STATE");
    if (state.mp_state.mp_state != KVM_MP_STATE_HALTED) errx(1, "the guest does not halt");
    int to = open_file(directory, "state", O_WRONLY | O_CREAT | O_TRUNC);
    if (write(to, &state, sizeof state) != sizeof state) err(1, "state");
}

static void restore(const char *directory) {
    int from = open_file(directory, "state", O_RDONLY);
    if (read(from, &state, sizeof state) != sizeof state) err(1, "state");
    close(from);
    build(open_file(directory, "memory", O_RDONLY), MAP_PRIVATE);
    checked_ioctl(vcpu, KVM_SET_CPUID2, &state.cpuid, "KVM_SET_CPUID2");
    checked_ioctl(vcpu, KVM_SET_SREGS, &state.sregs, "KVM_SET_SREGS");
    checked_ioctl(vcpu, KVM_SET_REGS, &state.regs, "KVM_SET_REGS");
    checked_ioctl(vcpu, KVM_SET_XSAVE, &state.xsave, "KVM_SET_XSAVE");
    checked_ioctl(vcpu, KVM_SET_LAPIC, &state.lapic, "KVM_SET_LAPIC");
    checked_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state.events, "KVM_SET_VCPU_EVENTS");
    checked_ioctl(vcpu, KVM_SET_MP_STATE, &state.mp_state, "KVM_SET_MP_STATE");
    catch_signal(SIGIO);
    if (fcntl(0, F_SETOWN, getpid()) < 0 || fcntl(0, F_SETFL, O_RDWR | O_ASYNC | O_NONBLOCK) < 0) err(1, "standard input");
    for (;;) {
        receive();
        run_guest(-1);
    }
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[1], "make")) {
        make(argv[2], strtoull(argv[3], NULL, 10), argv[4]);
    } else if (argc == 3 && !strcmp(argv[1], "restore")) {
        restore(argv[2]);
    } else {
        errx(2, "usage: floor make DIR MEMORY_MIB ELF | restore DIR");
    }
    return 0;
}
