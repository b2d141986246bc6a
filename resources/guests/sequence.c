/* Sends numbered ticks and responses, so that the test can detect lost and duplicate ones.

   Starts at the first UDP datagram. Datagrams to the guest must be numbered from 0 in big-endian 32 bits; the guest
   responds to each. Each tick of the one-shot timer, `us=` (1000) microseconds apart, by a time of the counter with
   `deadline=1`, sends a datagram too. A sent datagram starts with two such numbers: 1 and the tick number from 0, or 2 and
   the number of the received datagram. Uses interrupts. */
#include "net.h"
#include "virtio.h"

/* Queues of the device, section 5.1.2, and bytes of the header before each frame, section 5.1.6. */
enum { RECEIVE = 0, TRANSMIT = 1, HEADER = 12 };
enum { BUFFER = 256, LENGTH = 42 + 8, PAYLOAD = HEADER + 42 };
enum { TICK = 1, ANSWER = 2 };

static struct queue receive, transmit;
static u8 inbound[QUEUE_SIZE][BUFFER], outbound[QUEUE_SIZE][BUFFER];
/* Header of sent datagrams: that of the first datagram with the addresses swapped. */
static u8 header_template[PAYLOAD];
static unsigned sent, answered, expected, started, armed;

static void arm(void)
{
    armed++;
    timer_start(option("deadline=", 0) ? DEADLINE : ONCE, (u32)option("us=", 1000) * 1000);
}

static void send_number(u32 kind, u32 number)
{
    u32 used;
    while (queue_has_used(&transmit) || sent - answered == QUEUE_SIZE) {
        expect("order of what was sent", queue_pop_used(&transmit, &used), answered % QUEUE_SIZE);
        expect("length of a sent packet", used, 0);
        answered++;
    }
    u16 slot = (u16)(sent++ % QUEUE_SIZE);
    copy(outbound[slot], header_template, PAYLOAD);
    put32(outbound[slot] + PAYLOAD, kind);
    put32(outbound[slot] + PAYLOAD + 4, number);
    descriptor_set(&transmit.table[slot], outbound[slot], HEADER + LENGTH, 0, 0);
    queue_make_available(&transmit, slot);
}

/* Swaps the addresses and ports (RFC 791, RFC 768); the UDP checksum is unused. */
static void reverse_header(const u8 *frame)
{
    u8 *out = header_template + HEADER, *ip = out + 14;
    copy(out, frame, 42);
    copy(out, frame + 6, 6);
    copy(out + 6, frame, 6);
    copy(ip + 12, frame + 30, 4);
    copy(ip + 16, frame + 26, 4);
    put16(ip + 2, LENGTH - 14);
    put16(ip + 10, 0);
    put16(ip + 10, (u16)~ones_sum(0, ip, 20));
    copy(out + 34, frame + 36, 2);
    copy(out + 36, frame + 34, 2);
    put16(out + 38, 16);
    put16(out + 40, 0);
}

static void take(void)
{
    u32 length;
    u16 head = queue_pop_used(&receive, &length);
    const u8 *frame = inbound[head] + HEADER;
    if (length >= PAYLOAD + 4 && get16(frame + 12) == 0x800 && frame[14] == 0x45 && frame[23] == 17) {
        expect("number of a packet", get32(frame + 42), expected);
        expected++;
        if (!started++) {
            reverse_header(frame);
            arm();
        }
        send_number(ANSWER, get32(frame + 42));
    }
    queue_make_available(&receive, head);
}

void guest(void)
{
    struct device device;
    expect("a device", (u64)device_find(0, &device), 1);
    expect("a network interface", device.kind, NET);
    interrupts_start();
    device_start(&device, 0);
    require("the queues are taken", queue_start(&receive, &device, RECEIVE) && queue_start(&transmit, &device, TRANSMIT));
    set(&device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    device_enable_interrupts(&device);
    for (u16 i = 0; i < QUEUE_SIZE; i++) {
        descriptor_set(&receive.table[i], inbound[i], BUFFER, WRITE, 0);
        queue_make_available(&receive, i);
    }
    print("ready\n");
    while (!failures) {
        if (queue_has_used(&receive)) {
            take();
        } else if (started && timer_ticks == armed) {
            send_number(TICK, timer_ticks - 1);
            arm();
        } else {
            require("ticks are those that were asked for", timer_ticks <= armed);
            interrupts_wait();
        }
    }
}
