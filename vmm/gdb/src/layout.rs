//! Core registers of gdb as bytes, by the crate gdbstub_arch.

use gdbstub::arch::Registers;
use gdbstub_arch::aarch64::reg::AArch64CoreRegs;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

/// Registers with a layout in bytes.
pub trait Layout: Sized {
    /// Appends the registers to `bytes`.
    fn write(&self, bytes: &mut Vec<u8>);

    /// Reads the registers from the begin of `bytes`. `None` if they are too few.
    fn read(bytes: &[u8]) -> Option<Self>;
}

fn write(registers: &impl Registers, bytes: &mut Vec<u8>) {
    registers.gdb_serialize(|byte| bytes.push(byte.unwrap_or(0)));
}

fn read<R: Registers>(bytes: &[u8]) -> Option<R> {
    let mut registers = R::default();
    registers.gdb_deserialize(bytes).ok().map(|()| registers)
}

// Not generic: each is compiled here, for size.
impl Layout for X86_64CoreRegs {
    #[inline(never)]
    fn write(&self, bytes: &mut Vec<u8>) {
        write(self, bytes);
    }

    #[inline(never)]
    fn read(bytes: &[u8]) -> Option<Self> {
        read(bytes)
    }
}

impl Layout for AArch64CoreRegs {
    #[inline(never)]
    fn write(&self, bytes: &mut Vec<u8>) {
        write(self, bytes);
    }

    #[inline(never)]
    fn read(bytes: &[u8]) -> Option<Self> {
        read(bytes)
    }
}
