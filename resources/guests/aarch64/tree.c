#include "tree.h"

enum { MAGIC = 0xd00dfeed, BEGIN_NODE = 1, END_NODE = 2, PROPERTY = 3, NOP = 4 };
/* Offsets of the header. */
enum { TOTAL_SIZE = 4, STRUCTURE = 8, STRINGS = 12 };

static u32 big32(const u8 *at) { return (u32)at[0] << 24 | (u32)at[1] << 16 | (u32)at[2] << 8 | at[3]; }

static int equal(const char *one, const char *other)
{
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}

static u32 length_of(const char *text)
{
    u32 count = 0;
    while (text[count])
        count++;
    return count;
}

u64 tree_address(void)
{
    static u64 address;
    if (!address) {
        address = boot_registers[0] ? boot_registers[0] : RAM_BASE;
        if (big32((const u8 *)address) != MAGIC) {
            print("FAIL no device tree at %lx\n", address);
            finish(1);
        }
    }
    return address;
}

static const u8 *header(unsigned offset) { return (const u8 *)tree_address() + offset; }

u32 tree_size(void) { return big32(header(TOTAL_SIZE)); }

/* A property: its name, value and length. */
struct property {
    const char *key;
    const u8 *value;
    u32 length;
};

/* Takes the token at `*at`, with the name of a node or the property that follows. */
static u32 take(const u8 **at, struct property *property)
{
    u32 token = big32(*at);
    *at += 4;
    if (token == BEGIN_NODE) {
        property->key = (const char *)*at;
        *at += (length_of(property->key) + 4) & ~3u;
    } else if (token == PROPERTY) {
        property->length = big32(*at);
        property->key = (const char *)header(big32(header(STRINGS))) + big32(*at + 4);
        property->value = *at + 8;
        *at += 8 + ((property->length + 3) & ~3u);
    }
    return token;
}

const u8 *tree_property(const struct node *node, const char *key, u32 *length)
{
    const u8 *at = node->tokens;
    struct property property = {0};
    for (;;) {
        u32 token = take(&at, &property);
        if (token == PROPERTY && equal(property.key, key)) {
            *length = property.length;
            return property.value;
        }
        if (token != PROPERTY && token != NOP)
            return NULL;
    }
}

/* Finds the next node from `*at` on, and its depth, from 0 for the root. */
static int next(const u8 **at, unsigned *depth, struct node *node)
{
    struct property property = {0};
    for (;;) {
        u32 token = take(at, &property);
        if (token == BEGIN_NODE) {
            *node = (struct node){property.key, *at};
            (*depth)++;
            return 1;
        }
        if (token == END_NODE)
            (*depth)--;
        else if (token != PROPERTY && token != NOP)
            return 0;
    }
}

static int has_string(const struct node *node, const char *key, const char *value)
{
    u32 length, i = 0;
    const u8 *strings = tree_property(node, key, &length);
    while (strings && i < length) {
        if (equal((const char *)strings + i, value))
            return 1;
        i += length_of((const char *)strings + i) + 1;
    }
    return 0;
}

int tree_find(const char *key, const char *value, unsigned nth, struct node *node)
{
    const u8 *at = header(big32(header(STRUCTURE)));
    unsigned depth = 0;
    while (next(&at, &depth, node))
        if (has_string(node, key, value) && !nth--)
            return 1;
    return 0;
}

int tree_child(const char *name, struct node *node)
{
    const u8 *at = header(big32(header(STRUCTURE)));
    unsigned depth = 0;
    u32 length = length_of(name);
    while (next(&at, &depth, node)) {
        u32 i = 0;
        while (i < length && node->name[i] == name[i])
            i++;
        if (depth == 2 && i == length && (!node->name[i] || node->name[i] == '@'))
            return 1;
    }
    return 0;
}

u32 tree_cell(const struct node *node, const char *key, unsigned nth)
{
    u32 length;
    const u8 *value = tree_property(node, key, &length);
    if (!value || nth * 4 + 4 > length) {
        print("FAIL %s of %s has no cell %u\n", key, node->name, nth);
        finish(1);
    }
    return big32(value + nth * 4);
}

u64 tree_pair(const struct node *node, const char *key, unsigned nth)
{
    return (u64)tree_cell(node, key, nth * 2) << 32 | tree_cell(node, key, nth * 2 + 1);
}

unsigned tree_interrupt(const struct node *node, unsigned nth, int *is_edge)
{
    enum { PRIVATE_BASE = 16, EDGES = 3 };
    u32 kind = tree_cell(node, "interrupts", nth * 3), number = tree_cell(node, "interrupts", nth * 3 + 1);
    *is_edge = (tree_cell(node, "interrupts", nth * 3 + 2) & EDGES) != 0;
    return kind ? PRIVATE_BASE + number : SHARED_BASE + number;
}
