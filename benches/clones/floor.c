// Floor of clones: the KVM calls that are necessary to load a snapshot of the guest echo.elf, and to pass it input.
//
//     floor make DIR MEMORY_MIB ELF    boots the guest until it waits for input; writes DIR/memory and DIR/state
//     floor restore DIR                restores and resumes that guest
//
// One vCPU, one thread, the split interrupt controller, memory mapped privately from its file. A signal reports input, and ends
// KVM_RUN. The serial port has the registers that the guest uses. All other ports ignore writes.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "../restore/state.h"

// Registers of the serial port, bits of its line status, and the vector of its interrupt in the guest.
enum { DATA = 0x3f8, IDENTIFY = 0x3fa, LINE = 0x3fd, RECEIVED = 1, EMPTY = 0x60, VECTOR = 0x24 };

static struct kvm_mp_state mp_state;
static uint8_t input;
static int has_input;

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

static void make(const char *directory, uint64_t mib, const char *guest) {
    build_new(directory, mib);
    enter_long_mode(load(guest));
    catch_signal(SIGALRM);
    if (!run_guest('\n')) errx(1, "the guest printed no line");
    // Ends KVM_RUN while the guest halts.
    alarm(1);
    if (run_guest(-1)) errx(1, "the guest printed more than a line");
    save();
    checked_ioctl(vcpu, KVM_GET_MP_STATE, &mp_state, "KVM_GET_MP_STATE");
    if (mp_state.mp_state != KVM_MP_STATE_HALTED) errx(1, "the guest does not halt");
    int to = open_file(directory, "state", O_WRONLY | O_CREAT | O_TRUNC);
    if (write(to, &state, sizeof state) != sizeof state || write(to, &mp_state, sizeof mp_state) != sizeof mp_state) err(1, "state");
}

static void restore(const char *directory) {
    int from = open_file(directory, "state", O_RDONLY);
    if (read(from, &state, sizeof state) != sizeof state || read(from, &mp_state, sizeof mp_state) != sizeof mp_state) err(1, "state");
    close(from);
    build_saved(directory);
    restore_vcpu();
    checked_ioctl(vcpu, KVM_SET_MP_STATE, &mp_state, "KVM_SET_MP_STATE");
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
