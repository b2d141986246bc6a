/* Responds to ARP, ping and UDP for `ip=` (10.0.0.2) and to `pages=N` (1) HTTP requests on port 80, then powers off. With
   `arp=N` it powers off after N ARP responses instead. `poll=1` selects polling instead of interrupts. With `echo=1` it echoes
   serial input. */
#include "interrupts.h"
#include "net.h"
#include "virtio.h"

#define HAS_MAC (1ul << 5)

/* Queues of the device, section 5.1.2, and bytes of the header before each frame, section 5.1.6. */
enum { RECEIVE = 0, TRANSMIT = 1, HEADER = 12 };
enum { BUFFERS = 4, BUFFER = 2048 };

static struct queue receive, transmit;
static u8 buffers[BUFFERS][BUFFER];
static u8 mac[6], address[4];
static unsigned arps;
unsigned pings;

static void read_address(void)
{
    const char *at = argument("ip=", 0);
    if (!at)
        at = "10.0.0.2";
    for (unsigned i = 0; i < 4; i++, at++)
        for (; *at >= '0' && *at <= '9'; at++)
            address[i] = (u8)(address[i] * 10 + *at - '0');
}

void send(u8 *frame, u32 length)
{
    u8 *packet = frame - HEADER;
    u32 used;
    for (unsigned i = 0; i < HEADER; i++)
        packet[i] = 0;
    descriptor_set(&transmit.table[0], packet, HEADER + length, 0, 0);
    queue_make_available(&transmit, 0);
    queue_pop_used(&transmit, &used);
    expect("length of a sent packet", used, 0);
}

u8 *reassemble(const u8 *frame, u32 *length)
{
    static u8 packet[HEADER + BUFFER];
    static u32 first;
    u8 *whole = packet + HEADER;
    u16 fragment = get16(frame + 20);
    if (fragment == 0x2000) {
        first = *length;
        copy(whole, frame, 34 + first);
        return 0;
    }
    if ((fragment & 0x2000) || fragment * 8u != first || !same(frame + 26, whole + 26, 8) || !same(frame + 18, whole + 18, 2) ||
        34 + first + *length > BUFFER)
        return 0;
    copy(whole + 34 + first, frame + 34, *length);
    put16(whole + 20, 0);
    *length += first;
    first = 0;
    return whole;
}

/* Sends an ARP response (RFC 826) in the frame of the request. */
static void arp(u8 *frame)
{
    if (get16(frame + 20) != 1 || !same(frame + 38, address, 4))
        return;
    put16(frame + 20, 2);
    copy(frame + 32, frame + 22, 10); /* the sender of the request becomes the target */
    copy(frame + 22, mac, 6);
    copy(frame + 28, address, 4);
    copy(frame, frame + 6, 6);
    copy(frame + 6, mac, 6);
    send(frame, 42);
    arps++;
}

void announce(void)
{
    static u8 packet[HEADER + 42] = {[HEADER + 12] = 8, 6, 0, 1, 8, 0, 6, 4, 0, 1};
    u8 *frame = packet + HEADER;
    for (unsigned i = 0; i < 6; i++)
        frame[i] = 0xff;
    copy(frame + 6, mac, 6);
    copy(frame + 22, mac, 6);
    copy(frame + 28, address, 4);
    copy(frame + 38, address, 4);
    send(frame, 42);
}

void send_ipv6(void)
{
    static u8 packet[HEADER + 54] = {[HEADER] = 0x33, 0x33, 0, 0, 0, 1, [HEADER + 12] = 0x86, 0xdd, 0x60, [HEADER + 20] = 59, 255};
    copy(packet + HEADER + 6, mac, 6);
    send(packet + HEADER, 54);
}

/* Sends an echo reply (RFC 792): the request with another type, which keeps data and identifiers. */
static void icmp(u8 *frame, u32 length)
{
    u8 *message = frame + 34;
    expect("checksum of a ping", ones_sum(0, message, length), 0xffff);
    if (message[0] == 3)
        udp_error(message, length, address);
    if (message[0] != 8)
        return;
    message[0] = 0;
    put16(message + 2, 0);
    put16(message + 2, (u16)~ones_sum(0, message, length));
    reply_ip(frame, length);
    pings++;
}

void reply_ip(u8 *frame, u32 length)
{
    u8 *ip = frame + 14;
    copy(frame, frame + 6, 6);
    copy(frame + 6, mac, 6);
    put16(ip + 2, (u16)(20 + length));
    ip[8] = 64;
    copy(ip + 16, ip + 12, 4);
    copy(ip + 12, address, 4);
    put16(ip + 10, 0);
    put16(ip + 10, (u16)~ones_sum(0, ip, 20));
    send(frame, 34 + length);
}

static void ip(u8 *frame, u32 room)
{
    u32 length = get16(frame + 16);
    if (frame[14] != 0x45 || length < 28 || length > room - 14 || !same(frame + 30, address, 4))
        return;
    expect("checksum of an IP header", ones_sum(0, frame + 14, 20), 0xffff);
    if (get16(frame + 20) & 0x3fff) {
        length -= 20;
        frame = reassemble(frame, &length);
        if (!frame)
            return;
        length += 20;
    }
    if (frame[23] == 1)
        icmp(frame, length - 20);
    else if (frame[23] == 6 && length >= 40)
        tcp(frame, length - 20);
    else if (frame[23] == 17)
        udp(frame, length - 20);
}

static void echo(u8 byte)
{
    put((char)byte);
}

static void serve(void)
{
    u32 length;
    u16 head = queue_pop_used(&receive, &length);
    u8 *frame = buffers[head] + HEADER;
    expect("buffers of a packet", AT(u16, buffers[head] + 10), 1);
    if (length >= HEADER + 42) {
        u16 type = get16(frame + 12);
        if (type == 0x806)
            arp(frame);
        else if (type == 0x800)
            ip(frame, length - HEADER);
    }
    queue_make_available(&receive, head);
}

void guest(void)
{
    struct device device;
    unsigned nth = 0;
    while (device_find(nth, &device) && device.kind != NET)
        nth++;
    expect("a network interface", device.kind, NET);
    interrupts_start();
    read_address();
    device_start(&device, HAS_MAC);
    require("the device has an address", (device.features & HAS_MAC) != 0);
    require("the queues are taken", queue_start(&receive, &device, RECEIVE) && queue_start(&transmit, &device, TRANSMIT));
    for (unsigned i = 0; i < 6; i++)
        mac[i] = read8(device.base + CONFIG + i);
    set(&device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    if (!option("poll=", 0))
        device_enable_interrupts(&device);
    if (option("echo=", 0))
        serial_start(echo);
    for (u16 i = 0; i < BUFFERS; i++) {
        descriptor_set(&receive.table[i], buffers[i], BUFFER, WRITE, 0);
        queue_make_available(&receive, i);
    }
    print("net %02x:%02x:%02x:%02x:%02x:%02x at %u.%u.%u.%u\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], address[0],
        address[1], address[2], address[3]);
    unsigned enough = (unsigned)option("arp=", ~0u), pages = (unsigned)option("pages=", 1);
    while (tcp_done < pages && arps < enough && !failures)
        serve();
    if (failures)
        return;
    print("ok net %u arps %u pings %u pages\n", arps, pings, tcp_done);
    power_off();
}
