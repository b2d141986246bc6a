/* 16550 with interrupts. */
#ifndef UART_H
#define UART_H

#include "guest.h"

enum {
    UART_DATA = COM1,
    UART_ENABLE = COM1 + 1,
    UART_IDENTIFY = COM1 + 2,
    UART_MODEM = COM1 + 4,
    UART_LINE = COM1 + 5,
    UART_IRQ = 4,
};

/* Enables interrupts of these kinds (1 received, 2 transmitter empty) and the OUT2 gate. */
static inline void uart_interrupts(u8 kinds)
{
    outb(UART_MODEM, 0x0b);
    outb(UART_ENABLE, kinds);
}

#endif
