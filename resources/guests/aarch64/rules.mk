# Guests of aarch64: fc/NAME.elf for the memory map of Firecracker, virt/NAME.elf for that of QEMU's virt. On virt, the device tree is
# below the image.
C_GUESTS := $(COMMON) breakpoint counters generation pauth rtc sgi sve timer
NAMES := $(C_GUESTS) hello segments
SHARED := $(LIBRARY_COMMON) extensions gic tree

CFLAGS += -mstrict-align -mno-outline-atomics

fc := BASE=0x80000000 ram_base=0x80000000 serial_base=0x40002000 is_pl011=0 second_gib=0x0060000040000405
virt := BASE=0x40200000 ram_base=0x40000000 serial_base=0x09000000 is_pl011=1 second_gib=0x40000701

all: $(foreach map,fc virt,$(NAMES:%=$(OUT)/$(map)/%.elf) $(OUT)/$(map)/image.bin)

# map_rules MAP: rules of OUT/MAP.
define map_rules
$(OUT)/$(1)/%.elf $(OBJ)/$(1)/%.elf: PLACE = $($(1):%=-Wl,--defsym=%)
$(OUT)/$(1) $(OBJ)/$(1):
	@mkdir -p $$@
$(OUT)/$(1)/hello.elf: $(OBJ)/hello.o link.ld | $(OUT)/$(1)
	$$(link)
$(C_GUESTS:%=$(OUT)/$(1)/%.elf): $(OUT)/$(1)/%.elf: $(OBJ)/start.o $(OBJ)/%.o $(LIBRARY) link.ld | $(OUT)/$(1)
	$$(link)
$(OUT)/$(1)/net.elf: $(OBJ)/tcp.o $(OBJ)/udp.o
$(OUT)/$(1)/attack.elf: $(OBJ)/storms.o
$(OBJ)/$(1)/segments.linked: SCRIPT = segments.ld
$(OBJ)/$(1)/segments.linked: PLACE = $(SEGMENTS_FLAGS) $($(1):%=-Wl,--defsym=%)
$(OBJ)/$(1)/segments.linked: $(SEGMENTS) | $(OBJ)/$(1)
	$$(link)
$(OUT)/$(1)/segments.elf: $(OBJ)/$(1)/segments.linked | $(OUT)/$(1)
	@$$(OBJCOPY) -O binary $$< $$(NEW) $$(PUT)
# The ramdisk guest as an `Image`.
$(OBJ)/$(1)/image.elf: $(OBJ)/image.o $(OBJ)/start.o $(OBJ)/initrd.o $(LIBRARY) link.ld | $(OBJ)/$(1)
	$$(link)
$(OUT)/$(1)/image.bin: $(OBJ)/$(1)/image.elf | $(OUT)/$(1)
	@$$(OBJCOPY) -O binary $$< $$(NEW) $$(PUT)
endef
$(foreach map,fc virt,$(eval $(call map_rules,$(map))))
