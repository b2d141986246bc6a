/* Ethernet frames and their contents; numbers are big-endian. */
#ifndef NET_H
#define NET_H

#include "guest.h"

static inline u16 get16(const u8 *at) { return (u16)(at[0] << 8 | at[1]); }
static inline u32 get32(const u8 *at) { return (u32)get16(at) << 16 | get16(at + 2); }

static inline void put16(u8 *at, u16 value)
{
    at[0] = (u8)(value >> 8);
    at[1] = (u8)value;
}

static inline void put32(u8 *at, u32 value)
{
    put16(at, (u16)(value >> 16));
    put16(at + 2, (u16)value);
}

static inline void copy(u8 *to, const u8 *from, u32 length)
{
    while (length--)
        *to++ = *from++;
}

static inline int same(const u8 *one, const u8 *other, u32 length)
{
    while (length && *one == *other)
        one++, other++, length--;
    return !length;
}

/* Returns the ones' complement sum of `start` and `length` bytes (RFC 1071): 0xffff over data with a valid checksum. */
u16 ones_sum(u32 start, const u8 *bytes, u32 length);

/* Sends `length` bytes of `frame`. The virtio header is written before `frame`. */
void send(u8 *frame, u32 length);
/* Sends `length` bytes after the Ethernet and IP headers of `frame` to the sender of the frame. */
void reply_ip(u8 *frame, u32 length);

/* Broadcasts an announcement of the address (RFC 5227). */
void announce(void);
/* Sends an IPv6 header without a payload to all nodes. */
void send_ipv6(void);

/* Adds a fragment, whose headers are in `frame`, to a packet of two in their order. Returns the frame of the complete packet and its
   length after the IP header, or 0. */
u8 *reassemble(const u8 *frame, u32 *length);

/* Processes a UDP datagram of `length` bytes after the headers of `frame`. */
void udp(u8 *frame, u32 length);
/* Checks an ICMP error of `length` bytes about a datagram from `address`. */
void udp_error(const u8 *message, u32 length, const u8 *address);
/* Processes a TCP segment of `length` bytes after the headers of `frame`. */
void tcp(u8 *frame, u32 length);
/* Number of served and closed connections. */
extern unsigned tcp_done;
/* Number of replies to pings, and of responses to datagrams. */
extern unsigned pings, datagrams;

#endif
