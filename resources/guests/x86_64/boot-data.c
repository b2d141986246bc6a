#include "boot.h"
#include "record.h"

/* Offsets from Documentation/arch/x86/boot.rst and zero-page.rst. */
static void from_linux(struct boot *boot, u64 params)
{
    boot->protocol = "linux";
    expect("boot_params.boot_flag", AT(u16, params + 0x1fe), 0xaa55);
    expect("boot_params.header", AT(u32, params + 0x202), 0x53726448);
    boot->rsdp = AT(u64, params + 0x70);
    boot_set_cmdline(boot, AT(u32, params + 0x228));
    boot->cmdline_size = AT(u32, params + 0x238) - 1u;
    boot->initrd = AT(u32, params + 0x218) | (u64)AT(u32, params + 0xc0) << 32;
    boot->initrd_size = AT(u32, params + 0x21c) | (u64)AT(u32, params + 0xc4) << 32;
    boot->modules = boot->initrd_size != 0;
    u64 entry = params + 0x2d0;
    for (unsigned i = AT(u8, params + 0x1e8); i; i--, entry += 20)
        boot_add_region(boot, AT(u64, entry), AT(u64, entry + 8), AT(u32, entry + 16));
}

/* struct hvm_start_info of xen/include/public/arch-x86/hvm/start_info.h */
static void from_pvh(struct boot *boot, u64 info)
{
    boot->protocol = "pvh";
    expect("hvm_start_info.magic", AT(u32, info), 0x336ec578);
    require("hvm_start_info.version at least 1", AT(u32, info + 4) >= 1);
    boot->modules = AT(u32, info + 12);
    if (boot->modules) {
        u64 module = AT(u64, info + 16);
        boot->initrd = AT(u64, module);
        boot->initrd_size = AT(u64, module + 8);
    }
    boot_set_cmdline(boot, AT(u64, info + 24));
    boot->rsdp = AT(u64, info + 32);
    u64 entry = AT(u64, info + 40);
    for (unsigned i = AT(u32, info + 48); i; i--, entry += 24)
        boot_add_region(boot, AT(u64, entry), AT(u64, entry + 8), AT(u32, entry + 16));
}

/* Multiboot specification 0.6.96, section 3.3. */
static void from_multiboot(struct boot *boot, u64 info)
{
    u32 flags = AT(u32, info);
    boot->protocol = "multiboot";
    expect("multiboot magic", boot_magic, 0x2badb002);
    boot_set_cmdline(boot, flags & 4 ? AT(u32, info + 16) : 0);
    boot->modules = flags & 8 ? AT(u32, info + 20) : 0;
    if (boot->modules) {
        u64 module = AT(u32, info + 24);
        boot->initrd = AT(u32, module);
        boot->initrd_size = AT(u32, module + 4) - boot->initrd;
    }
    require("multiboot memory map", flags & 0x40);
    if (!(flags & 0x40))
        return;
    u64 entry = AT(u32, info + 48), end = entry + AT(u32, info + 44);
    for (; entry < end; entry += AT(u32, entry) + 4)
        boot_add_region(boot, AT(u64, entry + 4), AT(u64, entry + 12), AT(u32, entry + 20));
}

void boot_parse(struct boot *boot)
{
    if (boot_protocol == LINUX)
        from_linux(boot, boot_argument);
    else if (boot_protocol == PVH)
        from_pvh(boot, boot_argument);
    else
        from_multiboot(boot, boot_argument);
}

/* A constant, with any boot protocol. */
u64 record_address(void) { return 0xff000; }
