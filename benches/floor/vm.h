// The VM of the floors: one vCPU, the split interrupt controller, one memory slot, and long mode on flat page tables.
#pragma once
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GDT = 0x500, STACK = 0x8ff0, PML4 = 0x9000, PDPT = 0xa000, DIRECTORY = 0xb000 };

static int kvm, vm, vcpu;
static uint8_t *memory;
static struct kvm_run *run;

static int checked_ioctl(int fd, unsigned long request, const void *argument, const char *name) {
    int result = ioctl(fd, request, argument);
    if (result < 0) err(1, "%s", name);
    return result;
}

static void create_vm(void) {
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(1, "/dev/kvm");
    vm = checked_ioctl(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
}

// Maps `size` bytes of the file `fd`, with the flags of mmap, at the address of the memory if it has one.
static void map_file(int fd, int flags, uint64_t size) {
    memory = mmap(memory, size, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
}

static void set_slot(uint64_t size) {
    struct kvm_userspace_memory_region slot = {.memory_size = size, .userspace_addr = (uintptr_t)memory};
    checked_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) err(1, "KVM_SET_TSS_ADDR");
}

// Creates the interrupt controller and the vCPU, and maps the latter's kvm_run.
static void create_vcpu(void) {
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    checked_ioctl(vm, KVM_ENABLE_CAP, &split, "KVM_CAP_SPLIT_IRQCHIP");
    vcpu = checked_ioctl(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    size_t run_size = (size_t)checked_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) err(1, "mmap of kvm_run");
}

static void set_cpuid(struct kvm_cpuid2 *cpuid) {
    checked_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
    checked_ioctl(vcpu, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, uint8_t wide) {
    return (struct kvm_segment){.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .l = wide, .db = !wide};
}

// Writes the descriptors and the page tables of the first GiB.
static void write_tables(void) {
    enum { PRESENT_WRITABLE = 3, LARGE = 0x83 };
    const uint64_t gdt[] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    memcpy(memory + GDT, gdt, sizeof gdt);
    *(uint64_t *)(memory + PML4) = PDPT | PRESENT_WRITABLE;
    *(uint64_t *)(memory + PDPT) = DIRECTORY | PRESENT_WRITABLE;
    uint64_t *directory = (uint64_t *)(memory + DIRECTORY);
    for (uint64_t i = 0; i < 512; i++) directory[i] = i << 21 | LARGE;
}

static void enter_long_mode(uint64_t entry) {
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
    struct kvm_regs regs = {.rip = entry, .rsp = STACK, .rflags = 2};
    checked_ioctl(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}
