//! FPU and vector registers, in the layout of the XSAVE area: Intel SDM volume 1, section 13.4.

use std::fmt;

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use snapshot::persist::Error;

use super::error::{invalid, kernel_error};

/// Bytes of `KVM_GET_XSAVE` and `KVM_SET_XSAVE` in every kernel.
const BASE: usize = size_of::<kvm_xsave>();
/// Bytes of one element beyond [`BASE`].
const WORD: usize = size_of::<u32>();

/// State of the XSAVE-managed registers.
#[derive(Serialize, Deserialize)]
pub struct XsaveState {
    base: Box<kvm_xsave>,
    /// Rest of an area larger than 4096 bytes: the tiles of AMX. Empty without AMX.
    rest: Vec<u32>,
}

impl Clone for XsaveState {
    fn clone(&self) -> Self {
        Self {
            base: Box::new(kvm_xsave {
                region: self.base.region,
                ..Default::default()
            }),
            rest: self.rest.clone(),
        }
    }
}

impl fmt::Debug for XsaveState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = BASE + self.rest.len() * WORD;
        f.debug_struct("XsaveState").field("bytes", &bytes).finish()
    }
}

impl XsaveState {
    /// Reads the registers of `vcpu`.
    ///
    /// # Errors
    /// [`Error::Kernel`]
    pub fn save(vcpu: &VcpuFd, kvm: &Kvm) -> Result<Self, Error> {
        let words = words_beyond_base(kvm);
        if words == 0 {
            let base = vcpu.get_xsave().map_err(kernel_error("KVM_GET_XSAVE"))?;
            return Ok(Self {
                base: Box::new(base),
                rest: Vec::new(),
            });
        }
        let mut xsave = allocate(words)?;
        // SAFETY: the buffer has the size that KVM reported for its write; no feature is enabled in between.
        unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(kernel_error("KVM_GET_XSAVE2"))?;
        let region = xsave.as_fam_struct_ref().xsave.region;
        Ok(Self {
            base: Box::new(kvm_xsave {
                region,
                ..Default::default()
            }),
            rest: xsave.as_slice().to_vec(),
        })
    }

    /// Returns the first `count` words, at most those of the FXSAVE area.
    pub fn legacy_words(&self, count: usize) -> &[u32] {
        &self.base.region[..count]
    }

    /// Restores the registers of `vcpu`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the area is smaller on this host, [`Error::Kernel`] if KVM rejects the values.
    pub fn restore(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), Error> {
        let words = words_beyond_base(kvm);
        self.check(words)?;
        if words == 0 {
            // SAFETY: KVM reported that it reads no more than the structure.
            return unsafe { vcpu.set_xsave(&self.base) }.map_err(kernel_error("KVM_SET_XSAVE"));
        }
        let mut xsave = allocate(words)?;
        // The bytes after a shorter state stay zero: XSTATE_BV in its header declares no component there.
        xsave.as_mut_slice()[..self.rest.len()].copy_from_slice(&self.rest);
        // SAFETY: the length of the structure does not change.
        let target = unsafe { xsave.as_mut_fam_struct() };
        target.xsave.region = self.base.region;
        // SAFETY: the buffer has the size that KVM reported for its read; no feature is enabled in between.
        unsafe { vcpu.set_xsave2(&xsave) }.map_err(kernel_error("KVM_SET_XSAVE"))
    }

    /// Checks the length against the `words` beyond [`BASE`] on this host. KVM ignores longer areas without an error.
    pub(super) fn check(&self, words: usize) -> Result<(), Error> {
        if self.rest.len() <= words {
            return Ok(());
        }
        Err(invalid(format!(
            "{} bytes of FPU and vector registers exceed {} bytes on this host",
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

/// Returns the size of the area beyond [`BASE`] in words; 0 before Linux 5.17, which lacks `KVM_CAP_XSAVE2`.
fn words_beyond_base(kvm: &Kvm) -> usize {
    let size = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    size.saturating_sub(BASE).div_ceil(WORD)
}

fn allocate(words: usize) -> Result<Xsave, Error> {
    Xsave::new(words).map_err(|_| {
        invalid(format!(
            "cannot allocate {} bytes of registers",
            BASE + words * WORD
        ))
    })
}
