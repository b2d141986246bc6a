//! Choice of the version of the interrupt controller.

use crate::config::GicVersion;
use crate::kvm::Error as KvmError;

/// Maximum number of vCPUs of a GICv2: its CPU masks have 8 bits.
const MAX_VCPUS_V2: u8 = 8;

/// Reason why the interrupt controller cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks the requested version.
    #[error(
        "cannot create a {requested}: this host supports only {supported}; use that, and an image that supports it"
    )]
    Unsupported {
        /// Requested version.
        requested: GicVersion,
        /// Version that the host supports.
        supported: GicVersion,
    },
    /// The host has no interrupt controller for guests.
    #[error(
        "cannot create an interrupt controller: KVM on this host supports neither GICv3 nor GICv2; use another host"
    )]
    None,
    /// There are too many vCPUs for the version.
    #[error("cannot create {0} vCPUs with a GICv2, which has at most {MAX_VCPUS_V2}; use fewer, or a GICv3")]
    Vcpus(u8),
    /// A call failed.
    #[error("cannot create the interrupt controller")]
    Kvm(#[source] KvmError),
}

/// Creates a controller of the `requested` version, or of the newest that the host supports, for `vcpus` vCPUs. `create` returns `None`
/// for a version that the host does not support.
///
/// # Errors
/// [`Error`]
pub fn choose<D>(
    requested: Option<GicVersion>,
    vcpus: u8,
    mut create: impl FnMut(GicVersion) -> Result<Option<D>, KvmError>,
) -> Result<(GicVersion, D), Error> {
    let other = match requested {
        Some(GicVersion::V2) => GicVersion::V3,
        Some(GicVersion::V3) | None => GicVersion::V2,
    };
    let first = requested.unwrap_or(GicVersion::V3);
    check_vcpus(first, vcpus)?;
    if let Some(device) = create(first).map_err(Error::Kvm)? {
        return Ok((first, device));
    }
    if requested.is_none() {
        check_vcpus(other, vcpus)?;
    }
    match (create(other).map_err(Error::Kvm)?, requested) {
        (Some(device), None) => Ok((other, device)),
        (Some(_), Some(requested)) => Err(Error::Unsupported {
            requested,
            supported: other,
        }),
        (None, _) => Err(Error::None),
    }
}

fn check_vcpus(version: GicVersion, vcpus: u8) -> Result<(), Error> {
    if version == GicVersion::V2 && vcpus > MAX_VCPUS_V2 {
        return Err(Error::Vcpus(vcpus));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Error, choose};
    use crate::config::GicVersion::{self, V2, V3};

    fn chosen(host: &[GicVersion], requested: Option<GicVersion>, vcpus: u8) -> Result<GicVersion, Error> {
        let create = |version| Ok(host.contains(&version).then_some(version));
        choose(requested, vcpus, create).map(|(version, device)| {
            assert_eq!(version, device);
            version
        })
    }

    fn error(host: &[GicVersion], requested: Option<GicVersion>, vcpus: u8) -> String {
        chosen(host, requested, vcpus).unwrap_err().to_string()
    }

    #[test]
    fn newest_version_is_the_default() {
        assert!(matches!(chosen(&[V2, V3], None, 32), Ok(V3)));
        assert!(matches!(chosen(&[V2], None, 8), Ok(V2)));
        assert!(matches!(chosen(&[V2, V3], Some(V2), 8), Ok(V2)));
        assert!(matches!(chosen(&[V2, V3], Some(V3), 9), Ok(V3)));
    }

    #[test]
    fn missing_version_error_names_the_other() {
        assert_eq!(
            error(&[V2], Some(V3), 1),
            "cannot create a GICv3: this host supports only GICv2; use that, and an image that supports it"
        );
        assert!(error(&[V3], Some(V2), 1).contains("supports only GICv3"));
        for requested in [None, Some(V2), Some(V3)] {
            assert!(error(&[], requested, 1).contains("neither GICv3 nor GICv2"));
        }
    }

    #[test]
    fn gic_v2_has_at_most_8_vcpus() {
        for (host, requested) in [(&[V2][..], None), (&[V2, V3], Some(V2)), (&[V3], Some(V2))] {
            assert_eq!(
                error(host, requested, 9),
                "cannot create 9 vCPUs with a GICv2, which has at most 8; use fewer, or a GICv3"
            );
        }
    }
}
