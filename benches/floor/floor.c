// Floor: the KVM calls that are necessary between the first instruction of a process and the first output of
// a guest.
//
//   floor [MEMORY_MIB]
//
// One vCPU in long mode with fresh anonymous memory, the split interrupt controller, the host's CPUID, and a
// guest of a few bytes. The guest prints a line to the serial port and ends with a keyboard-controller reset.
// The program makes each call as a raw ioctl, in the cheapest order, in one thread. Any further time of a
// VMM is its own cost.
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GDT = 0x500, STACK = 0x8ff0, PML4 = 0x9000, PDPT = 0xa000, DIRECTORY = 0xb000, CODE = 0x100000, TEXT = 0x101000 };
enum { SERIAL = 0x3f8, KEYBOARD = 0x64, PRESENT_WRITABLE = 3, LARGE = 0x83 };

// mov esi, TEXT; mov dx, SERIAL; again: lodsb; test al, al; jz done; out dx, al; jmp again; done: mov al, 0xfe; out KEYBOARD, al
static const uint8_t code[] = {0xbe, 0x00, 0x10, 0x10, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xac, 0x84,
                               0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, 0xb0, 0xfe, 0xe6, 0x64};
static const char text[] = "hello from the floor\n";

static struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
} cpuid = {.head = {.nent = 256}};

static int checked_ioctl(int fd, unsigned long request, const void *argument, const char *name) {
    int result = ioctl(fd, request, argument);
    if (result < 0) err(1, "%s", name);
    return result;
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, uint8_t wide) {
    return (struct kvm_segment){.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .l = wide, .db = !wide};
}

static void enter_long_mode(int vcpu) {
    struct kvm_sregs sregs = {0};
    checked_ioctl(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    sregs.cs = flat_segment(0x10, 11, 1);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(0x18, 3, 0);
    sregs.gdt = (struct kvm_dtable){.base = GDT, .limit = 31};
    sregs.cr0 = 0x80050033;
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    checked_ioctl(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = CODE, .rsp = STACK, .rflags = 2};
    checked_ioctl(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

static void write_guest(uint8_t *memory) {
    memcpy(memory + CODE, code, sizeof code);
    memcpy(memory + TEXT, text, sizeof text);
    uint64_t gdt[4] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    memcpy(memory + GDT, gdt, sizeof gdt);
    *(uint64_t *)(memory + PML4) = PDPT | PRESENT_WRITABLE;
    *(uint64_t *)(memory + PDPT) = DIRECTORY | PRESENT_WRITABLE;
    uint64_t *page_directory = (uint64_t *)(memory + DIRECTORY);
    for (uint64_t i = 0; i < 512; i++) page_directory[i] = i << 21 | LARGE;
}

static int create_vm(int kvm) {
    return checked_ioctl(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
}

// Maps SIZE bytes of memory and sets their slot.
static uint8_t *map_memory(int vm, uint64_t size) {
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
    struct kvm_userspace_memory_region slot = {.memory_size = size, .userspace_addr = (uintptr_t)memory};
    checked_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) err(1, "KVM_SET_TSS_ADDR");
    return memory;
}

// Creates the split interrupt controller and the vCPU. Maps its run page to *RUN.
static int create_vcpu(int kvm, int vm, struct kvm_run **run) {
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    checked_ioctl(vm, KVM_ENABLE_CAP, &split, "KVM_CAP_SPLIT_IRQCHIP");
    int vcpu = checked_ioctl(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    size_t run_size = (size_t)checked_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (*run == MAP_FAILED) err(1, "mmap of kvm_run");
    return vcpu;
}

static void set_cpuid(int kvm, int vcpu) {
    checked_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid, "KVM_GET_SUPPORTED_CPUID");
    checked_ioctl(vcpu, KVM_SET_CPUID2, &cpuid, "KVM_SET_CPUID2");
}

// Runs the guest until its reset, which ends the process.
static void run_guest(int vcpu, const struct kvm_run *run) {
    enter_long_mode(vcpu);
    for (;;) {
        checked_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO) errx(1, "exit %u", run->exit_reason);
        if (run->io.port == KEYBOARD) _exit(0);
        if (write(1, (char *)run + run->io.data_offset, 1) != 1) err(1, "stdout");
    }
}

int main(int argc, char **argv) {
    uint64_t size = (argc > 1 ? strtoull(argv[1], NULL, 10) : 128) << 20;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(1, "/dev/kvm");
    int vm = create_vm(kvm);
    uint8_t *memory = map_memory(vm, size);
    struct kvm_run *run;
    int vcpu = create_vcpu(kvm, vm, &run);
    set_cpuid(kvm, vcpu);
    write_guest(memory);
    run_guest(vcpu, run);
}
