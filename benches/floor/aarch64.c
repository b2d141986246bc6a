// Floor of aarch64: the KVM calls that are necessary between the first instruction of a process and the first output of a guest.
//
//   floor [MEMORY_MIB [GIC_VERSION]]
//
// One vCPU with PSCI and fresh anonymous memory, a GIC, and a guest of a few instructions. The guest prints a line to a serial port
// and ends by PSCI. The program makes each call as a raw ioctl, in the cheapest order, in one thread. Any further call of a VMM is
// its own cost.
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DISTRIBUTOR = 0x08000000, CPU_INTERFACE = 0x08010000, REDISTRIBUTORS = 0x080a0000 };
#define MEMORY 0x80000000 // The place of its serial port, 0x40002000, is in the code.

// PC in struct kvm_regs: KVM API, 4.68.
#define PC (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(regs.pc))

static const uint32_t code[] = {
    0x52840001, 0x72a80001, // mov w1, SERIAL & 0xffff; movk w1, SERIAL >> 16, lsl 16
    0x10000102,             // adr x2, text
    0x38401440,             // again: ldrb w0, [x2], 1
    0x34000060,             // cbz w0, done
    0x39000020,             // strb w0, [x1]
    0x17fffffd,             // b again
    0x52800100, 0x72b08000, // done: mov w0, 8; movk w0, 0x8400, lsl 16: SYSTEM_OFF of PSCI
    0xd4000002,             // hvc 0
};
static const char text[] = "hello from mayfly\n";

static int checked_ioctl(int fd, unsigned long request, const void *argument, const char *name) {
    int result = ioctl(fd, request, argument);
    if (result < 0) err(1, "%s", name);
    return result;
}

// Creates the GIC, and maps its registers. KVM has an interface of it for each vCPU that exists.
static void create_gic(int vm, int version) {
    struct kvm_create_device device = {.type = version == 2 ? KVM_DEV_TYPE_ARM_VGIC_V2 : KVM_DEV_TYPE_ARM_VGIC_V3};
    checked_ioctl(vm, KVM_CREATE_DEVICE, &device, "KVM_CREATE_DEVICE");
    const uint64_t addresses[] = {DISTRIBUTOR, version == 2 ? CPU_INTERFACE : REDISTRIBUTORS};
    const uint64_t kinds[] = {
        version == 2 ? KVM_VGIC_V2_ADDR_TYPE_DIST : KVM_VGIC_V3_ADDR_TYPE_DIST,
        version == 2 ? KVM_VGIC_V2_ADDR_TYPE_CPU : KVM_VGIC_V3_ADDR_TYPE_REDIST,
    };
    for (int i = 0; i < 2; i++) {
        struct kvm_device_attr address = {
            .group = KVM_DEV_ARM_VGIC_GRP_ADDR, .attr = kinds[i], .addr = (uintptr_t)&addresses[i]};
        checked_ioctl((int)device.fd, KVM_SET_DEVICE_ATTR, &address, "KVM_DEV_ARM_VGIC_GRP_ADDR");
    }
    struct kvm_device_attr init = {.group = KVM_DEV_ARM_VGIC_GRP_CTRL, .attr = KVM_DEV_ARM_VGIC_CTRL_INIT};
    checked_ioctl((int)device.fd, KVM_SET_DEVICE_ATTR, &init, "KVM_DEV_ARM_VGIC_CTRL_INIT");
}

int main(int argc, char **argv) {
    uint64_t size = (argc > 1 ? strtoull(argv[1], NULL, 10) : 128) << 20;
    int gic = argc > 2 ? atoi(argv[2]) : 3;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(1, "/dev/kvm");
    int vm = checked_ioctl(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
    struct kvm_userspace_memory_region slot = {
        .guest_phys_addr = MEMORY, .memory_size = size, .userspace_addr = (uintptr_t)memory};
    checked_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    struct kvm_vcpu_init target;
    checked_ioctl(vm, KVM_ARM_PREFERRED_TARGET, &target, "KVM_ARM_PREFERRED_TARGET");
    target.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    int vcpu = checked_ioctl(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    size_t run_size = (size_t)checked_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) err(1, "mmap of kvm_run");
    checked_ioctl(vcpu, KVM_ARM_VCPU_INIT, &target, "KVM_ARM_VCPU_INIT");
    create_gic(vm, gic);
    memcpy(memory, code, sizeof code);
    memcpy(memory + sizeof code, text, sizeof text);
    uint64_t entry = MEMORY;
    struct kvm_one_reg pc = {.id = PC, .addr = (uintptr_t)&entry};
    checked_ioctl(vcpu, KVM_SET_ONE_REG, &pc, "KVM_SET_ONE_REG");
    for (;;) {
        checked_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        if (run->exit_reason == KVM_EXIT_SYSTEM_EVENT) _exit(0);
        if (run->exit_reason != KVM_EXIT_MMIO) errx(1, "exit %u", run->exit_reason);
        if (write(1, run->mmio.data, 1) != 1) err(1, "stdout");
    }
}
