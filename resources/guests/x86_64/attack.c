/* Attacks the VMM without end, by the kind in `attack=`:
   discard     writes to the first drive, and discards of the complete drive in 16 segments
   flush       writes to the first drive, and flushes
   reset       the requests of both, and a reset of the drive while they are in flight
   ports       accesses to the ports of the PC's devices and to unclaimed ones
   mmio        accesses to registers of the first drive, of the IOAPIC and of no device
   interrupts  the fastest timers of the PIT and the local APIC, with interrupts by the serial port and by the guest itself
   Prints `begin` first. */
#include "apic.h"
#include "pit.h"
#include "uart.h"
#include "virtio.h"

#define FLUSHES (1ul << 9)
#define DISCARDS (1ul << 13)

/* Types of requests, section 5.2.6. */
enum { OUT = 1, FLUSH = 4, DISCARD = 11 };
enum { SECTOR = 512, SEGMENTS = 16, LENGTH = 64 * 1024 };
/* Descriptors of a request: header, data and status. */
enum { DESCRIPTORS = 3, SLOTS = QUEUE_SIZE / DESCRIPTORS };
/* Delivery mode fixed, destination this CPU. */
enum { SELF = 0x40000 };

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

static _Noreturn void storm_ports(void)
{
    /* 8259s, 8254, port B, CMOS, serial port, i8042 status, PCI, and ports of no device. No write here prints or ends the VM. */
    static const u16 ports[] = {0x20, 0x21, 0x40, 0x42, 0x43, 0x61, 0x70, 0x71, 0xa1, 0x3f9, 0x3fd, 0x64, 0xcf8, 0x1234, 0xffff};
    for (;;)
        for (unsigned i = 0; i < COUNT(ports); i++) {
            u8 value = inb(ports[i]);
            if (ports[i] != 0x64)
                outb(ports[i], value);
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
        ioapic_write(0x10 + count % 48, 0x10000 | (count & 0xff));
        AT(u32, 0xd8000000 + count % PAGE * 4) = count;
        (void)AT(u32, 0xd8000000 + count % PAGE * 4);
    }
}

static INTERRUPT edge(struct frame *frame)
{
    (void)frame;
    (void)inb(UART_IDENTIFY);
    pic_done(0);
}

static INTERRUPT own(struct frame *frame)
{
    (void)frame;
    apic_done();
}

static _Noreturn void storm_interrupts(void)
{
    traps();
    gate(0x20, edge);
    gate(0x20 + UART_IRQ, edge);
    gate(TIMER_VECTOR + 1, own);
    pic_start(0x20);
    outb(PIT_MODE, 0x34); /* channel 0, low then high, mode 2 */
    pit_load(PIT_CHANNEL0, 2);
    pic_unmask(0);
    pic_unmask(UART_IRQ);
    apic_timer(APIC_PERIODIC, 1000);
    for (;;) {
        uart_interrupts(0);
        uart_interrupts(2);
        APIC(APIC_ICR_LOW) = SELF | (TIMER_VECTOR + 1);
        __asm__ volatile("sti; nop; nop; cli" ::: "memory");
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
