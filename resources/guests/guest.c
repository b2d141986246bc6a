#include <stdarg.h>

#include "guest.h"

unsigned failures;

static void number(u64 value, unsigned base, unsigned width)
{
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    for (; width > count; width--)
        put('0');
    while (count)
        put(digits[--count]);
}

void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        unsigned width = 0, is_long = 0;
        for (format++; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + (unsigned)(*format - '0');
        for (; *format == 'l'; format++)
            is_long = 1;
        if (*format == 's') {
            for (const char *text = va_arg(arguments, const char *); *text; text++)
                put(*text);
        } else if (*format == 'c') {
            put((char)va_arg(arguments, int));
        } else if (*format == '%') {
            put('%');
        } else {
            u64 value = is_long ? va_arg(arguments, u64) : va_arg(arguments, u32);
            number(value, *format == 'x' ? 16 : 10, width);
        }
    }
    va_end(arguments);
}

void expect(const char *what, u64 got, u64 want)
{
    if (got == want)
        return;
    failures++;
    print("FAIL %s: got %lx want %lx\n", what, got, want);
}

void require(const char *what, int holds)
{
    if (holds)
        return;
    failures++;
    print("FAIL %s\n", what);
}
