#include "virtio.h"
#include "trap.h"

volatile unsigned interrupts;
static const struct device *notifying;
static int is_spurious_allowed;

static u64 parse(const char **text, unsigned base)
{
    u64 value = 0;
    for (;; (*text)++) {
        unsigned digit = (unsigned)(**text - '0');
        if (digit > 9)
            digit = (unsigned)(**text - 'a') + 10;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

/* Finds the first two devices of Firecracker at their constant addresses, without the command line. */
static int find_fixed(unsigned nth, struct device *device)
{
    device->base = 0xc0001000 + nth * 0x1000;
    device->irq = 5 + nth;
    if (nth >= 2 || get(device, MAGIC_VALUE) != 0x74726976)
        return 0;
    device->kind = get(device, DEVICE_ID);
    return 1;
}

/* Format of an argument: 4K@0xc0001000:5 */
int device_find(unsigned nth, struct device *device)
{
    if (option("fixed=", 0))
        return find_fixed(nth, device);
    const char *at = argument("virtio_mmio.device=4K@0x", nth);
    if (!at)
        return 0;
    device->base = parse(&at, 16);
    at++;
    device->irq = (unsigned)parse(&at, 10);
    device->kind = get(device, DEVICE_ID);
    expect("magic", get(device, MAGIC_VALUE), 0x74726976);
    expect("version", get(device, VERSION), 2);
    return 1;
}

void device_reset(const struct device *device)
{
    set(device, STATUS, 0);
    while (get(device, STATUS))
        ;
}

/* Section 3.1.1, steps 1 to 6. */
void device_start(struct device *device, u64 wanted)
{
    device_reset(device);
    set(device, STATUS, ACKNOWLEDGE);
    set(device, STATUS, ACKNOWLEDGE | DRIVER);
    u64 offered = 0;
    for (u32 half = 0; half < 2; half++) {
        set(device, DEVICE_FEATURES_SEL, half);
        offered |= (u64)get(device, DEVICE_FEATURES) << (32 * half);
    }
    require("VERSION_1 is offered", (offered & VERSION_1) != 0);
    device->features = offered & (wanted | (option("unversioned=", 0) ? 0 : VERSION_1));
    for (u32 half = 0; half < 2; half++) {
        set(device, DRIVER_FEATURES_SEL, half);
        set(device, DRIVER_FEATURES, (u32)(device->features >> (32 * half)));
    }
    set(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    expect("status with features", get(device, STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

static INTERRUPT used(struct frame *frame)
{
    (void)frame;
    u32 status = get(notifying, INTERRUPT_STATUS);
    /* The acknowledgement of the last interrupt may cover a notification that raised this one. */
    require("an interrupt has a reason", status != 0 || is_spurious_allowed);
    is_spurious_allowed = status != 0;
    set(notifying, INTERRUPT_ACK, status);
    interrupts++;
    pic_done(notifying->irq);
}

void device_enable_interrupts(const struct device *device)
{
    notifying = device;
    interrupts = 0;
    is_spurious_allowed = 0;
    gate((u8)(0x20 + device->irq), used);
    pic_unmask(device->irq);
}

static void set_address(const struct device *device, u64 offset, volatile void *area)
{
    set(device, offset, (u32)(u64)area);
    set(device, offset + 4, (u32)((u64)area >> 32));
}

int queue_start(struct queue *queue, const struct device *device, u16 number)
{
    for (u64 i = 0; i < sizeof *queue / sizeof(u16); i++)
        ((volatile u16 *)queue)[i] = 0;
    queue->device = device;
    queue->number = number;
    set(device, QUEUE_SEL, number);
    require("a queue is large enough", get(device, QUEUE_NUM_MAX) >= QUEUE_SIZE);
    expect("a queue before it is set up", get(device, QUEUE_READY), 0);
    set(device, QUEUE_NUM, QUEUE_SIZE);
    set_address(device, QUEUE_DESC, queue->table);
    set_address(device, QUEUE_DRIVER, &queue->available);
    set_address(device, QUEUE_DEVICE, &queue->used);
    set(device, QUEUE_READY, 1);
    return get(device, QUEUE_READY) == 1;
}

void descriptor_set(volatile struct descriptor *at, const void *buffer, u32 length, u16 flags, u16 next)
{
    at->address = (u64)buffer;
    at->length = length;
    at->flags = flags;
    at->next = next;
}

/* The CPU does not reorder stores, and the notification is an exit: volatile is sufficient ordering. */
void queue_make_available(struct queue *queue, u16 head)
{
    queue->available.ring[queue->available.index % QUEUE_SIZE] = head;
    __asm__ volatile("" ::: "memory");
    queue->available.index++;
    set(queue->device, QUEUE_NOTIFY, queue->number);
}

int queue_has_used(const struct queue *queue) { return queue->used.index != queue->seen; }

u16 queue_pop_used(struct queue *queue, u32 *length)
{
    int has_interrupts = notifying == queue->device;
    if (has_interrupts) /* accept a pending interrupt */
        __asm__ volatile("sti; nop; nop; cli" ::: "memory");
    /* Interrupts are enabled in the halt only, so that none is missed between the check and the halt. */
    while (!queue_has_used(queue))
        if (has_interrupts)
            __asm__ volatile("sti; hlt; cli" ::: "memory");
    __asm__ volatile("" ::: "memory");
    unsigned slot = queue->seen++ % QUEUE_SIZE;
    *length = queue->used.ring[slot].length;
    return (u16)queue->used.ring[slot].id;
}
