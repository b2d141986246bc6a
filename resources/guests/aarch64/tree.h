/* Flattened device tree (Devicetree Specification 0.4, chapter 5). */
#ifndef TREE_H
#define TREE_H

#include "guest.h"

/* First ID of an interrupt that CPUs share. */
enum { SHARED_BASE = 32 };

/* A node: its name with the unit address, and the first token after it. */
struct node {
    const char *name;
    const u8 *tokens;
};

/* Address of the tree: x0 at the entry, or the start of RAM on the memory map of QEMU's virt. */
u64 tree_address(void);
/* Size of the tree in bytes. */
u32 tree_size(void);
/* Finds the `nth` node, from 0, whose property `key` has the string `value` among its strings. Returns 0 if there are fewer. */
int tree_find(const char *key, const char *value, unsigned nth, struct node *node);
/* Finds the node with this name, without its unit address, below the root. */
int tree_child(const char *name, struct node *node);
/* Returns the value of a property and its length in bytes, or NULL. */
const u8 *tree_property(const struct node *node, const char *key, u32 *length);
/* Returns the `nth` 32-bit or 64-bit cell of a property. A missing one fails the guest. */
u32 tree_cell(const struct node *node, const char *key, unsigned nth);
u64 tree_pair(const struct node *node, const char *key, unsigned nth);
/* Returns the interrupt ID of the `nth` interrupt of a node, and in `*is_edge` whether it is edge-triggered. */
unsigned tree_interrupt(const struct node *node, unsigned nth, int *is_edge);

#endif
