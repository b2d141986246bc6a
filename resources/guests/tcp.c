/* TCP (RFC 9293). Port 80 serves one client that requests one page: the generation ID of the VM for `GET /id`, else a greeting.
   Each response reuses the received segment, so that no state is kept but the peer and the length of the last page. Port 7 counts: it
   responds to each segment with data by a 32-bit number, one more than the last, on a connection that stays open. */
#include "net.h"
#include "record.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum { COUNT = 7, HTTP = 80, FIRST = 1000 /* initial sequence number */, HEADER = 20 };

static const char page[] = "HTTP/1.0 200 OK\r\nContent-Length: 18\r\nConnection: close\r\n\r\nhello from mayfly\n";
static char id_page[] = "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n0123456789abcdef0123456789abcdef\n";
enum { ID_START = sizeof id_page - 2 - 2 * ID_LENGTH };

unsigned tcp_done;
static u16 peer;
static u32 page_length;

/* Returns the sum over a segment and its pseudo-header: addresses, protocol, length. */
static u16 segment_sum(const u8 *frame, u32 length)
{
    return ones_sum(ones_sum(6 + length, frame + 26, 8), frame + 34, length);
}

static void respond(u8 *frame, u8 flags, u32 sequence, u32 acknowledged, const char *data, u32 length)
{
    u8 *segment = frame + 34;
    u16 port = get16(segment + 2);
    put16(segment + 2, get16(segment));
    put16(segment, port);
    put32(segment + 4, sequence);
    put32(segment + 8, acknowledged);
    segment[12] = HEADER / 4 << 4;
    segment[13] = flags;
    put16(segment + 14, 1024); /* window */
    put32(segment + 16, 0);
    copy(segment + HEADER, (const u8 *)data, length);
    /* The sum does not depend on the order of the addresses. */
    put16(segment + 16, (u16)~segment_sum(frame, HEADER + length));
    reply_ip(frame, HEADER + length);
}

/* Responds to a request of `length` bytes. */
static void serve(u8 *frame, const u8 *request, u32 length, u32 acknowledged)
{
    const char *response = page;
    page_length = sizeof page - 1;
    if (length >= 7 && same(request, (const u8 *)"GET /id", 7)) {
        for (unsigned i = 0; i < 2 * ID_LENGTH; i++)
            id_page[ID_START + i] = "0123456789abcdef"[AT(u8, record_address() + RECORD_ID + i / 2) >> (i % 2 ? 0 : 4) & 0xf];
        response = id_page;
        page_length = sizeof id_page - 1;
    }
    respond(frame, ACK | PSH | FIN, FIRST + 1, acknowledged, response, page_length);
}

/* Processes a segment of the connection that counts: SYN, `length` bytes at `sequence`, or FIN. */
static void count(u8 *frame, u8 flags, u32 sequence, u32 length)
{
    static u16 client;
    static u32 expected, sent, number;
    u16 port = get16(frame + 34);
    u8 bytes[4];
    if (flags & SYN) {
        client = port;
        expected = sequence + 1;
        sent = FIRST + 1;
        respond(frame, SYN | ACK, FIRST, expected, "", 0);
        return;
    }
    if (port != client || (flags & RST))
        return;
    if (length && sequence == expected) {
        expected += length;
        sent += sizeof bytes;
        number++;
    } else if (length && sequence + length != expected) /* not the retransmission after a lost response */
        return;
    put32(bytes, number);
    if (length)
        respond(frame, ACK | PSH, sent - sizeof bytes, expected, (const char *)bytes, sizeof bytes);
    else if (flags & FIN)
        respond(frame, ACK | FIN, sent, sequence + 1, "", 0);
}

void tcp(u8 *frame, u32 length)
{
    u8 *segment = frame + 34, flags = segment[13];
    u32 header = (u32)segment[12] >> 4 << 2;
    u16 port = get16(segment + 2);
    if ((port != HTTP && port != COUNT) || header < HEADER || header > length)
        return;
    expect("checksum of a segment", segment_sum(frame, length), 0xffff);
    u32 sequence = get32(segment + 4), end = sequence + length - header, acknowledged = get32(segment + 8);
    if (port == COUNT) {
        count(frame, flags, sequence, length - header);
        return;
    }
    if (flags == SYN || flags == (SYN | 0xc0)) { /* 0xc0: offered ECN, not negotiated */
        peer = get16(segment);
        respond(frame, SYN | ACK, FIRST, sequence + 1, "", 0);
        return;
    }
    if (get16(segment) != peer || (flags & (SYN | RST)))
        return;
    if (end != sequence) /* the request in one segment, or its retransmission after a lost response */
        serve(frame, segment + header, end - sequence, end);
    else if (flags & FIN) {
        respond(frame, ACK, FIRST + 2 + page_length, end + 1, "", 0);
        tcp_done += acknowledged == FIRST + 2 + page_length;
    }
}
