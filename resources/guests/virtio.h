/* A driver of virtio-mmio devices: split queues, polled or by the 8259. Section numbers are those of virtio 1.2. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "boot.h"

/* Registers, section 4.2.2. */
enum {
    MAGIC_VALUE = 0x00,
    VERSION = 0x04,
    DEVICE_ID = 0x08,
    DEVICE_FEATURES = 0x10,
    DEVICE_FEATURES_SEL = 0x14,
    DRIVER_FEATURES = 0x20,
    DRIVER_FEATURES_SEL = 0x24,
    QUEUE_SEL = 0x30,
    QUEUE_NUM_MAX = 0x34,
    QUEUE_NUM = 0x38,
    QUEUE_READY = 0x44,
    QUEUE_NOTIFY = 0x50,
    INTERRUPT_STATUS = 0x60,
    INTERRUPT_ACK = 0x64,
    STATUS = 0x70,
    QUEUE_DESC = 0x80,
    QUEUE_DRIVER = 0x90,
    QUEUE_DEVICE = 0xa0,
    CONFIG = 0x100,
};

/* Bits of STATUS. */
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 0x40 };

/* Values of DEVICE_ID. */
enum { NET = 1, BLOCK = 2 };

/* Feature bits of every device. */
#define INDIRECT_DESC (1ul << 28)
#define VERSION_1 (1ul << 32)

/* Bits of a descriptor's flags. */
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

enum { QUEUE_SIZE = 16 };

struct device {
    u64 base;     /* of its window */
    u32 kind;     /* DEVICE_ID */
    unsigned irq;
    u64 features; /* agreed on */
};

struct descriptor {
    u64 address;
    u32 length;
    u16 flags, next;
};

/* One queue, as section 2.7 lays it out, and what the driver remembers of it. */
struct queue {
    _Alignas(16) volatile struct descriptor table[QUEUE_SIZE];
    volatile struct {
        u16 flags, index, ring[QUEUE_SIZE], used_event;
    } available;
    _Alignas(4) volatile struct {
        u16 flags, index;
        struct {
            u32 id, length;
        } ring[QUEUE_SIZE];
        u16 available_event;
    } used;
    const struct device *device;
    u16 number, seen;
};

static inline u32 get(const struct device *device, u64 offset) { return AT(u32, device->base + offset); }
static inline void set(const struct device *device, u64 offset, u32 value) { AT(u32, device->base + offset) = value; }

/* Fills in the `nth` device of the command line, from 0; 0 when there are fewer. */
int device_find(unsigned nth, struct device *device);
/* Resets it and agrees on VERSION_1 and those of `wanted` that are offered. */
void device_start(struct device *device, u64 wanted);
void device_reset(const struct device *device);
/* Has its used buffers waited for by interrupts through the 8259; traps() was called, pic_start(0x20) too. */
void device_listen(const struct device *device);
/* Interrupts that came since. */
extern volatile unsigned interrupts;

/* Empties `queue` and makes it the device's queue `number`; gives whether the device takes it. */
int queue_start(struct queue *queue, const struct device *device, u16 number);
void descriptor_set(volatile struct descriptor *at, const void *buffer, u32 length, u16 flags, u16 next);
/* Gives the chain that begins at descriptor `head` to the device, and kicks. */
void queue_offer(struct queue *queue, u16 head);
/* Whether the device has used a chain that was not taken yet. */
int queue_has(const struct queue *queue);
/* Waits for such a chain and takes it: gives its head, and its length in `*length`. */
u16 queue_take(struct queue *queue, u32 *length);

#endif
