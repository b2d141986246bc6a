// The state of a vCPU that the floors of restores save and restore: the minimum that KVM requires.
#pragma once
#include "../floor/vm.h"
#include <stdio.h>

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

static int open_file(const char *directory, const char *name, int flags) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0) err(1, "%s", path);
    return fd;
}

// Creates a VM with `mib` MiB of shared memory in the file DIRECTORY/memory, and a vCPU with KVM's CPUID.
static void build_new(const char *directory, uint64_t mib) {
    state.size = mib << 20;
    int fd = open_file(directory, "memory", O_RDWR | O_CREAT | O_TRUNC);
    if (ftruncate(fd, (off_t)state.size) < 0) err(1, "memory");
    create_vm();
    map_file(fd, MAP_SHARED, state.size);
    set_slot(state.size);
    create_vcpu();
    state.cpuid.nent = 256;
    set_cpuid(&state.cpuid);
    write_tables();
}

// Creates the VM of the state, with the memory of DIRECTORY.
static void build_saved(const char *directory) {
    create_vm();
    map_file(open_file(directory, "memory", O_RDONLY), MAP_PRIVATE, state.size);
    set_slot(state.size);
    create_vcpu();
}

static void save(void) {
    checked_ioctl(vcpu, KVM_GET_SREGS, &state.sregs, "KVM_GET_SREGS");
    checked_ioctl(vcpu, KVM_GET_REGS, &state.regs, "KVM_GET_REGS");
    checked_ioctl(vcpu, KVM_GET_XSAVE, &state.xsave, "KVM_GET_XSAVE");
    checked_ioctl(vcpu, KVM_GET_LAPIC, &state.lapic, "KVM_GET_LAPIC");
    checked_ioctl(vcpu, KVM_GET_VCPU_EVENTS, &state.events, "KVM_GET_VCPU_EVENTS");
}

static void restore_vcpu(void) {
    checked_ioctl(vcpu, KVM_SET_CPUID2, &state.cpuid, "KVM_SET_CPUID2");
    checked_ioctl(vcpu, KVM_SET_SREGS, &state.sregs, "KVM_SET_SREGS");
    checked_ioctl(vcpu, KVM_SET_REGS, &state.regs, "KVM_SET_REGS");
    checked_ioctl(vcpu, KVM_SET_XSAVE, &state.xsave, "KVM_SET_XSAVE");
    checked_ioctl(vcpu, KVM_SET_LAPIC, &state.lapic, "KVM_SET_LAPIC");
    checked_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state.events, "KVM_SET_VCPU_EVENTS");
}
