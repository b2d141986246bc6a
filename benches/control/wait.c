// Floor of a waiting process: it creates VM and vCPU, waits for one request on a unix socket, and then makes the calls that the
// configuration decides.
//
//   wait SOCKET MEMORY_MIB slot|no-slot
//
// With `slot`, the process has its memory before the request, as after PUT /machine-config. The vCPU has a thread of its own, which
// sets its registers and enters the guest after an eventfd. It prints a byte to stdout once it waits.
#define main floor_main
#include "../floor/floor.c"
#undef main
#include "socket.h"

#include <pthread.h>
#include <sys/eventfd.h>

static int kvm, vm, vcpu, wake;
static struct kvm_run *run;

static void wait_for(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof count) != sizeof count) err(1, "eventfd");
}

static void signal_to(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) != sizeof one) err(1, "eventfd");
}

static void *run_vcpu(void *ready) {
    set_cpuid(kvm, vcpu);
    signal_to(*(int *)ready);
    wait_for(wake);
    run_guest(vcpu, run);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4) errx(2, "usage: wait SOCKET MEMORY_MIB slot|no-slot");
    uint64_t size = strtoull(argv[2], NULL, 10) << 20;
    int listener = listen_at(argv[1]);

    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(1, "/dev/kvm");
    vm = create_vm(kvm);
    vcpu = create_vcpu(kvm, vm, &run);
    wake = eventfd(0, EFD_CLOEXEC);
    int ready = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_vcpu, &ready)) errx(1, "pthread_create");
    wait_for(ready);
    uint8_t *memory = strcmp(argv[3], "slot") ? NULL : map_memory(vm, size);

    int client = accept(listener, NULL, NULL);
    char request[1024];
    if (client < 0) err(1, "accept");
    if (write(1, ".", 1) != 1) err(1, "stdout");
    if (read(client, request, sizeof request) < 1) err(1, "request");
    if (!memory) memory = map_memory(vm, size);
    write_guest(memory);
    signal_to(wake);
    pthread_join(thread, NULL);
}
