// Floor: the KVM calls that are necessary between the first instruction of a process and the first output of
// a guest.
//
//   floor [MEMORY_MIB]
//
// One vCPU in long mode with fresh anonymous memory, the split interrupt controller, the host's CPUID, and a
// guest of a few bytes. The guest prints a line to the serial port and ends with a keyboard-controller reset.
// The program makes each call as a raw ioctl, in the cheapest order, in one thread. Any further time of a
// VMM is its own cost.
#include <stdlib.h>

#include "vm.h"

enum { CODE = 0x100000, TEXT = 0x101000, KEYBOARD = 0x64 };

// mov esi, TEXT; mov dx, SERIAL; again: lodsb; test al, al; jz done; out dx, al; jmp again; done: mov al, 0xfe; out KEYBOARD, al
static const uint8_t code[] = {0xbe, 0x00, 0x10, 0x10, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xac, 0x84,
                               0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, 0xb0, 0xfe, 0xe6, 0x64};
static const char text[] = "hello from the floor\n";

static struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
} cpuid = {.head = {.nent = 256}};

static void write_guest(void) {
    memcpy(memory + CODE, code, sizeof code);
    memcpy(memory + TEXT, text, sizeof text);
    write_tables();
}

// Runs the guest until its reset, which ends the process.
static void run_guest(void) {
    enter_long_mode(CODE);
    for (;;) {
        checked_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO) errx(1, "exit %u", run->exit_reason);
        if (run->io.port == KEYBOARD) _exit(0);
        if (write(1, (char *)run + run->io.data_offset, 1) != 1) err(1, "stdout");
    }
}

int main(int argc, char **argv) {
    uint64_t size = (argc > 1 ? strtoull(argv[1], NULL, 10) : 128) << 20;
    create_vm();
    map_file(-1, MAP_PRIVATE | MAP_ANONYMOUS, size);
    set_slot(size);
    create_vcpu();
    set_cpuid(&cpuid.head);
    write_guest();
    run_guest();
}
