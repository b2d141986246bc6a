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

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

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
    checked_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid, "KVM_GET_SUPPORTED_CPUID");
    checked_ioctl(vcpu, KVM_SET_CPUID2, &cpuid, "KVM_SET_CPUID2");
    signal_to(*(int *)ready);
    wait_for(wake);
    enter_long_mode(vcpu);
    for (;;) {
        checked_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO) errx(1, "exit %u", run->exit_reason);
        if (run->io.port == KEYBOARD) _exit(0);
        if (write(1, (char *)run + run->io.data_offset, 1) != 1) err(1, "stdout");
    }
}

static uint8_t *map_memory(uint64_t size) {
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
    struct kvm_userspace_memory_region slot = {.memory_size = size, .userspace_addr = (uintptr_t)memory};
    checked_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) err(1, "KVM_SET_TSS_ADDR");
    return memory;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 4 || strlen(argv[1]) >= sizeof address.sun_path) errx(2, "usage: wait SOCKET MEMORY_MIB slot|no-slot");
    strcpy(address.sun_path, argv[1]);
    uint64_t size = strtoull(argv[2], NULL, 10) << 20;
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 128) < 0) err(1, "%s", argv[1]);

    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(1, "/dev/kvm");
    vm = checked_ioctl(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    checked_ioctl(vm, KVM_ENABLE_CAP, &split, "KVM_CAP_SPLIT_IRQCHIP");
    vcpu = checked_ioctl(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    size_t run_size = (size_t)checked_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) err(1, "mmap of kvm_run");
    wake = eventfd(0, EFD_CLOEXEC);
    int ready = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_vcpu, &ready)) errx(1, "pthread_create");
    wait_for(ready);
    uint8_t *memory = strcmp(argv[3], "slot") ? NULL : map_memory(size);

    int client = accept(listener, NULL, NULL);
    char request[1024];
    if (client < 0) err(1, "accept");
    if (write(1, ".", 1) != 1) err(1, "stdout");
    if (read(client, request, sizeof request) < 1) err(1, "request");
    if (!memory) memory = map_memory(size);
    write_guest(memory);
    signal_to(wake);
    pthread_join(thread, NULL);
}
