//! FPU and vector registers, in the layout of the XSAVE instruction, Intel SDM volume 1, section 13.4.

use std::fmt;

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use snapshot::persist::Error;

use super::{invalid, refused};

/// Bytes that KVM has always moved.
const BASE: usize = size_of::<kvm_xsave>();
/// Bytes of one element of what is beyond.
const WORD: usize = size_of::<u32>();

/// The registers that XSAVE knows.
#[derive(Serialize, Deserialize)]
pub struct ExtendedState {
    base: Box<kvm_xsave>,
    /// What does not fit the first 4096 bytes: the tiles of AMX. Empty where guests have none.
    rest: Vec<u32>,
}

impl fmt::Debug for ExtendedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = BASE + self.rest.len() * WORD;
        f.debug_struct("ExtendedState").field("bytes", &bytes).finish()
    }
}

impl ExtendedState {
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vcpu: &VcpuFd, kvm: &Kvm) -> Result<Self, Error> {
        let words = words_beyond_base(kvm);
        if words == 0 {
            let base = vcpu.get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
            return Ok(Self {
                base: Box::new(base),
                rest: Vec::new(),
            });
        }
        let mut xsave = buffer(words)?;
        // SAFETY: the buffer has the size that KVM has just said it writes; nothing enables features in between.
        unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(refused("KVM_GET_XSAVE2"))?;
        let region = xsave.as_fam_struct_ref().xsave.region;
        Ok(Self {
            base: Box::new(kvm_xsave {
                region,
                ..Default::default()
            }),
            rest: xsave.as_slice().to_vec(),
        })
    }

    /// # Errors
    /// [`Error::Invalid`] when this host gives guests less state, [`Error::Kernel`] when KVM refuses the values.
    pub fn restore(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), Error> {
        let words = words_beyond_base(kvm);
        self.check(words)?;
        if words == 0 {
            // SAFETY: KVM has just said that it reads no more than the structure.
            return unsafe { vcpu.set_xsave(&self.base) }.map_err(refused("KVM_SET_XSAVE"));
        }
        let mut xsave = buffer(words)?;
        // What is beyond a shorter state stays zero: its header does not say that anything is there.
        xsave.as_mut_slice()[..self.rest.len()].copy_from_slice(&self.rest);
        // SAFETY: the length of the structure stays what it is.
        let target = unsafe { xsave.as_mut_fam_struct() };
        target.xsave.region = self.base.region;
        // SAFETY: the buffer has the size that KVM has just said it reads; nothing enables features in between.
        unsafe { vcpu.set_xsave2(&xsave) }.map_err(refused("KVM_SET_XSAVE"))
    }

    /// KVM reads as many bytes as this host's guests have, so that more would be cut off without a word.
    pub(super) fn check(&self, words: usize) -> Result<(), Error> {
        if self.rest.len() <= words {
            return Ok(());
        }
        Err(invalid(format!(
            "{} bytes of FPU and vector registers, where guests of this host have {}",
            BASE + self.rest.len() * WORD,
            BASE + words * WORD
        )))
    }

    #[cfg(test)]
    pub(super) fn with_rest(rest: Vec<u32>) -> Self {
        Self {
            base: Box::default(),
            rest,
        }
    }
}

/// How much more than [`BASE`] KVM moves, in words; it is zero for kernels before Linux 5.17, which do not know the question.
fn words_beyond_base(kvm: &Kvm) -> usize {
    let size = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    size.saturating_sub(BASE).div_ceil(WORD)
}

fn buffer(words: usize) -> Result<Xsave, Error> {
    Xsave::new(words).map_err(|_| invalid(format!("KVM wants {} bytes of registers", BASE + words * WORD)))
}
