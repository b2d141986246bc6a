# Guests of x86_64: NAME.elf of a C guest has the Linux entry, NAME-pvh.elf the PVH entry too.
C_GUESTS := $(COMMON) apic-timer breakpoint cmos cpuid echo-ioapic end-acpi end-code end-keyboard generation ioapic keyboard \
	kvmclock paging pit-calibrate pit-pic sse tables
# Guests of one assembly file.
ALONE := end-sleep end-triple end-vector hello
AS_PVH := cmdline demo initrd memory tables
NAMES := $(C_GUESTS) $(ALONE) $(AS_PVH:%=%-pvh) cmdline-high memory-low multiboot multiboot-64 pvh segments

MULTIBOOT := $(OBJ)/multiboot.o $(OBJ)/start.o $(OBJ)/long.o $(OBJ)/identity.o $(LIBRARY) link.ld
PVH_START := $(OBJ)/start.o $(OBJ)/start-pvh.o $(OBJ)/long.o $(OBJ)/identity.o
SHARED := $(LIBRARY_COMMON) firmware clock trap apic

CFLAGS += -m64 -march=x86-64 -mno-red-zone -fcf-protection=none

all: $(NAMES:%=$(OUT)/%.elf) $(OUT)/multiboot-flat.bin $(OUT)/bzimage.bin
big: $(OUT)/big.elf $(OUT)/big-100k.elf
	@:
pvh: $(C_GUESTS:%=$(OUT)/%-pvh.elf)
	@:

$(OBJ)/echo-ioapic.o: echo.c $(RULES) | $(OBJ)
	$(compile)
$(OBJ)/interrupts-ioapic.o: DEFINES = -DIOAPIC
$(OBJ)/interrupts-ioapic.o: x86_64/interrupts.c $(RULES) | $(OBJ)
	$(compile)
$(OBJ)/start-multiboot-flat.o: DEFINES = -DFLAT
$(OBJ)/start-multiboot-flat.o: x86_64/start-multiboot.S $(RULES) | $(OBJ)
	$(compile)

$(ALONE:%=$(OUT)/%.elf): $(OUT)/%.elf: $(OBJ)/%.o link.ld
	$(link)
$(C_GUESTS:%=$(OUT)/%.elf): $(OUT)/%.elf: $(OBJ)/start.o $(OBJ)/%.o $(LIBRARY) link.ld
	$(link)
$(C_GUESTS:%=$(OUT)/%-pvh.elf): $(OUT)/%-pvh.elf: $(PVH_START) $(OBJ)/%.o $(LIBRARY) link.ld
	$(link)
# Guests that access devices, or memory above 1 GiB, at the Linux entry. The demo is embedded in mayfly and stays small.
$(filter-out $(OUT)/demo.elf,$(C_GUESTS:%=$(OUT)/%.elf)): $(OBJ)/identity.o
$(OUT)/pvh.elf: $(PVH_START) $(OBJ)/pvh.o $(LIBRARY) link.ld
	$(link)
$(OUT)/smp.elf $(OUT)/smp-pvh.elf $(OUT)/profile.elf $(OUT)/profile-pvh.elf: $(OBJ)/trampoline.o
$(OUT)/echo-ioapic.elf $(OUT)/echo-ioapic-pvh.elf: $(OBJ)/interrupts-ioapic.o
$(OUT)/net.elf $(OUT)/net-pvh.elf: $(OBJ)/tcp.o $(OBJ)/udp.o
$(OUT)/attack.elf $(OUT)/attack-pvh.elf: $(OBJ)/storms.o

# Linked below 640 KiB, for VMs of 1 MiB.
$(OUT)/memory-low.elf: PLACE = -Wl,--defsym=BASE=0x30000
$(OUT)/memory-low.elf: $(OBJ)/start.o $(OBJ)/memory.o $(LIBRARY) link.ld
	$(link)

# Linked in the second GiB.
$(OUT)/cmdline-high.elf: PLACE = -Wl,--defsym=BASE=0x40200000
$(OUT)/cmdline-high.elf: $(OBJ)/start.o $(OBJ)/cmdline.o $(LIBRARY) link.ld
	$(link)

$(OBJ)/segments.linked: SCRIPT = segments.ld
$(OBJ)/segments.linked: PLACE = $(SEGMENTS_FLAGS)
$(OBJ)/segments.linked: $(SEGMENTS)
	$(link)
$(OUT)/segments.elf: $(OBJ)/segments.linked
	@$(OBJCOPY) -O binary $< $(NEW) $(PUT)
# Flat files with ELF headers as data too.
$(OBJ)/big.o: DEFINES = -DSIZE=$(BIG_SIZE)
$(OBJ)/big-100k.o: DEFINES = -DSIZE=$(SMALL_SIZE)
BIG_SIZE := 268435456
SMALL_SIZE := 102400
$(OBJ)/big-100k.o: x86_64/big.S $(RULES) | $(OBJ)
	$(compile)
$(OUT)/big.elf: SIZE = $(BIG_SIZE)
$(OUT)/big-100k.elf: SIZE = $(SMALL_SIZE)
$(OUT)/big.elf $(OUT)/big-100k.elf: $(OUT)/%.elf: $(OBJ)/%.o
	@$(CC) $(LDFLAGS) -Wl,-Ttext=0x100000,--oformat=binary -o $(NEW) $< \
		&& truncate -s $$((4096 + $(SIZE))) $(NEW) $(PUT)

# 64-bit code in an ELF32 container, the only ELF class of multiboot 1.
$(OBJ)/multiboot.elf $(OBJ)/multiboot-flat.elf: PLACE = -Wl,-e,multiboot_start
$(OBJ)/multiboot.elf: $(OBJ)/start-multiboot.o $(MULTIBOOT)
	$(link)
$(OBJ)/multiboot-flat.elf: $(OBJ)/start-multiboot-flat.o $(MULTIBOOT)
	$(link)
$(OUT)/multiboot.elf: $(OBJ)/multiboot.elf
	@$(OBJCOPY) -O elf32-i386 $< $(NEW) $(PUT)
# The mark of Solo5: an ELF64 with a multiboot header and no note.
$(OUT)/multiboot-64.elf: $(OBJ)/multiboot.elf
	@cp $< $(NEW) $(PUT)
$(OUT)/multiboot-flat.bin: $(OBJ)/multiboot-flat.elf
	@$(OBJCOPY) -O binary $< $(NEW) $(PUT)

# The setup sectors of a bzImage, 1 KiB, right below the code at 1 MiB.
$(OBJ)/bzimage.elf: PLACE = -Wl,--defsym=BASE=0xffc00
$(OBJ)/bzimage.elf: $(OBJ)/bzimage.o $(OBJ)/start.o $(OBJ)/identity.o $(OBJ)/initrd.o $(LIBRARY) link.ld
	$(link)
$(OUT)/bzimage.bin: $(OBJ)/bzimage.elf
	@$(OBJCOPY) -O binary $< $(NEW) $(PUT)
