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

static int wake;

static void wait_for(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof count) != sizeof count) err(1, "eventfd");
}

static void signal_to(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) != sizeof one) err(1, "eventfd");
}

static void *run_vcpu(void *ready) {
    set_cpuid(&cpuid.head);
    signal_to(*(int *)ready);
    wait_for(wake);
    run_guest();
    return NULL;
}

static void add_memory(uint64_t size) {
    map_file(-1, MAP_PRIVATE | MAP_ANONYMOUS, size);
    set_slot(size);
}

int main(int argc, char **argv) {
    if (argc != 4) errx(2, "usage: wait SOCKET MEMORY_MIB slot|no-slot");
    uint64_t size = strtoull(argv[2], NULL, 10) << 20;
    int listener = listen_at(argv[1]);

    create_vm();
    create_vcpu();
    wake = eventfd(0, EFD_CLOEXEC);
    int ready = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_vcpu, &ready)) errx(1, "pthread_create");
    wait_for(ready);
    if (strcmp(argv[3], "slot") == 0) add_memory(size);

    int client = accept(listener, NULL, NULL);
    char request[1024];
    if (client < 0) err(1, "accept");
    if (write(1, ".", 1) != 1) err(1, "stdout");
    if (read(client, request, sizeof request) < 1) err(1, "request");
    if (!memory) add_memory(size);
    write_guest();
    signal_to(wake);
    pthread_join(thread, NULL);
}
