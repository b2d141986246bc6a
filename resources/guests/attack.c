/* Attacks the VMM without end, by the kind in `attack=`:
   discard     writes to the first drive, and discards of the complete drive in 16 segments
   flush       writes to the first drive, and flushes
   reset       the requests of both, and a reset of the drive while they are in flight
   ports       accesses to the ports of the PC's devices and to unclaimed ones, on x86_64
   mmio        accesses to registers of the first drive, of the interrupt controller and of no device
   interrupts  the fastest timers, with interrupts by the serial port and by the guest itself
   Prints `begin` first. */
#include "attack.h"
#include "virtio.h"

#define FLUSHES (1ul << 9)
#define DISCARDS (1ul << 13)

/* Types of requests, section 5.2.6. */
enum { OUT = 1, FLUSH = 4, DISCARD = 11 };
enum { SECTOR = 512, SEGMENTS = 16, LENGTH = 64 * 1024 };
/* Descriptors of a request: header, data and status. */
enum { DESCRIPTORS = 3, SLOTS = QUEUE_SIZE / DESCRIPTORS };

static struct queue queue;
static struct slot {
    struct {
        u32 type, reserved;
        u64 sector;
    } header;
    struct {
        u64 sector;
        u32 sectors, flags;
    } segments[SEGMENTS];
    u8 status;
} slots[SLOTS];
static u8 data[LENGTH];
static u64 capacity;
static u32 random = 1;

static u32 next_random(void)
{
    random = random * 1664525 + 1013904223;
    return random >> 8;
}

static void send(u16 index, u32 type)
{
    struct slot *slot = &slots[index];
    u16 first = (u16)(index * DESCRIPTORS);
    volatile struct descriptor *table = queue.table + first;
    slot->header.type = type;
    slot->header.sector = 0;
    descriptor_set(&table[0], &slot->header, sizeof slot->header, NEXT, type == FLUSH ? first + 2 : first + 1);
    if (type == OUT) {
        /* Far apart, so that discards and flushes find many extents. */
        u64 place = next_random() % (u32)(capacity * SECTOR / LENGTH);
        slot->header.sector = place * (LENGTH / SECTOR);
        descriptor_set(&table[1], data, LENGTH / 2, NEXT, first + 2);
    } else if (type == DISCARD) {
        for (unsigned i = 0; i < SEGMENTS; i++) {
            slot->segments[i].sector = capacity / SEGMENTS * i;
            slot->segments[i].sectors = (u32)(capacity / SEGMENTS);
        }
        descriptor_set(&table[1], slot->segments, sizeof slot->segments, NEXT, first + 2);
    }
    descriptor_set(&table[2], &slot->status, 1, WRITE, 0);
    queue_make_available(&queue, first);
}

static void find(struct device *device)
{
    unsigned nth = 0;
    do
        require("there is a disk", device_find(nth++, device));
    while (device->kind != BLOCK);
}

static void start(struct device *device)
{
    device_start(device, FLUSHES | DISCARDS);
    require("the queue is taken", queue_start(&queue, device, 0));
    set(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    capacity = get(device, CONFIG) | (u64)get(device, CONFIG + 4) << 32;
}

/* Keeps the queue full. One request of 16 is of the kind `slow`, the others write. */
static _Noreturn void storm_drive(u32 slow)
{
    struct device device;
    u32 length;
    find(&device);
    start(&device);
    for (u16 index = 0; index < SLOTS; index++)
        send(index, OUT);
    for (unsigned count = 0;; count++)
        send(queue_pop_used(&queue, &length) / DESCRIPTORS, count % 16 ? OUT : slow);
}

static _Noreturn void storm_resets(void)
{
    static const u32 kinds[SLOTS] = {OUT, DISCARD, OUT, FLUSH, OUT};
    struct device device;
    find(&device);
    for (;;) {
        start(&device);
        for (u16 index = 0; index < SLOTS; index++)
            send(index, kinds[index]);
    }
}

static _Noreturn void storm_mmio(void)
{
    struct device device;
    find(&device);
    start(&device);
    for (u32 count = 0;; count++) {
        set(&device, QUEUE_NOTIFY, 0);
        get(&device, CONFIG + count % 64);
        set(&device, INTERRUPT_ACK, 3);
        touch_controller(count);
        write32(unclaimed_address + count % PAGE * 4, count);
        read32(unclaimed_address + count % PAGE * 4);
    }
}

void guest(void)
{
    print("begin\n");
    if (argument("attack=discard", 0))
        storm_drive(DISCARD);
    if (argument("attack=flush", 0))
        storm_drive(FLUSH);
    if (argument("attack=reset", 0))
        storm_resets();
    if (argument("attack=ports", 0))
        storm_ports();
    if (argument("attack=mmio", 0))
        storm_mmio();
    if (argument("attack=interrupts", 0))
        storm_interrupts();
    require("the attack is known", 0);
}
