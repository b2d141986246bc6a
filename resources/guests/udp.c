/* UDP (RFC 768), and ICMP errors in both directions (RFC 792). Each response reuses the received datagram. */
#include "net.h"
#include "record.h"

enum {
    ECHO = 7,       /* echoes a datagram */
    SPLIT = 9,      /* echoes a datagram in two fragments */
    IDENTITY = 11,  /* echoes a datagram, with the generation ID of the VM at its end */
    ELSEWHERE = 13, /* sends a datagram to the port one above that of the sender */
    STATUS = 15,    /* echoes a datagram, with counter, ID and randomness of the VM, and numbers of pings, datagrams and pages */
    ANNOUNCE = 17,  /* announces the address, and echoes a datagram */
    IPV6 = 19,      /* sends IPv6, and echoes a datagram */
};
enum { HEADER = 8, UDP = 17, MORE_FRAGMENTS = 0x2000 };

/* Returns the sum over a datagram and its pseudo-header: addresses, protocol, length. */
static u16 datagram_sum(const u8 *frame, u32 length)
{
    return ones_sum(ones_sum(UDP + length, frame + 26, 8), frame + 34, length);
}

/* Responds with port unreachable, which quotes the IP header and 8 bytes. */
static void reject(u8 *frame)
{
    u8 *message = frame + 34;
    for (unsigned i = 28; i--;)
        message[8 + i] = frame[14 + i];
    put32(message, 0x03030000);
    put32(message + 4, 0);
    put16(message + 2, (u16)~ones_sum(0, message, 36));
    frame[23] = 1;
    reply_ip(frame, 36);
}

/* Sends `length` bytes as two fragments. */
static void split(u8 *frame, u32 length)
{
    u32 first = length / 2 & ~7u;
    put16(frame + 20, MORE_FRAGMENTS);
    reply_ip(frame, first);
    /* The next response is to the sender too. */
    copy(frame + 6, frame, 6);
    copy(frame + 26, frame + 30, 4);
    copy(frame + 34, frame + 34 + first, length - first);
    put16(frame + 20, (u16)(first / 8));
    reply_ip(frame, length - first);
}

unsigned datagrams;

static u32 append(u8 *frame, u32 length, const void *data, u32 count)
{
    copy(frame + 34 + length, data, count);
    return length + count;
}

static u32 append_number(u8 *frame, u32 length, u32 number)
{
    u8 bytes[4];
    put32(bytes, number);
    return append(frame, length, bytes, sizeof bytes);
}

/* Does what `port` stands for. Returns the length of the response, or 0 at a closed port. */
static u32 serve(u16 port, u8 *frame, u32 length)
{
    switch (port) {
    case ECHO:
    case SPLIT:
    case ELSEWHERE:
        return length;
    case IDENTITY:
        return append(frame, length, (const u8 *)record_address() + RECORD_ID, ID_LENGTH);
    case STATUS:
        length = append(frame, length, (const u8 *)record_address() + RECORD_COUNTER, RECORD_END - RECORD_COUNTER);
        length = append_number(frame, length, pings);
        length = append_number(frame, length, datagrams);
        return append_number(frame, length, tcp_done);
    case ANNOUNCE:
        announce();
        return length;
    case IPV6:
        send_ipv6();
        return length;
    default:
        return 0;
    }
}

void udp(u8 *frame, u32 length)
{
    u8 *datagram = frame + 34;
    u16 port = get16(datagram + 2), peer = get16(datagram);
    if (get16(frame + 20) & 0x3fff || get16(datagram + 4) != length)
        return;
    if (get16(datagram + 6))
        expect("checksum of a datagram", datagram_sum(frame, length), 0xffff);
    u32 response = serve(port, frame, length);
    if (!response) {
        reject(frame);
        return;
    }
    datagrams++;
    length = response;
    put16(datagram + 4, (u16)length);
    put16(datagram, port);
    put16(datagram + 2, (u16)(peer + (port == ELSEWHERE)));
    put16(datagram + 6, 0);
    u16 sum = (u16)~datagram_sum(frame, length);
    put16(datagram + 6, sum ? sum : 0xffff);
    if (port == SPLIT && length >= 2 * HEADER)
        split(frame, length);
    else
        reply_ip(frame, length);
}

void udp_error(const u8 *message, u32 length, const u8 *address)
{
    const u8 *quoted = message + 8;
    require("an error quotes a header and 8 bytes", length >= 36 && quoted[0] == 0x45);
    require("an error quotes the address of the guest", same(quoted + 12, address, 4));
    expect("checksum of a quoted header", ones_sum(0, quoted, 20), 0xffff);
    expect("protocol of a quoted header", quoted[9], UDP);
    u32 whole = get16(quoted + 24);
    if (length >= 28 + whole)
        expect("checksum of a quoted datagram", ones_sum(ones_sum(UDP + whole, quoted + 12, 8), quoted + 20, whole), 0xffff);
    print("error about port %u\n", get16(quoted + 22));
}
