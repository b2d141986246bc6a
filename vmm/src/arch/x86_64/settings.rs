//! Settings in a snapshot that the build of a machine requires besides the configuration.

use serde::{Deserialize, Serialize};
use snapshot::section::Error;
use snapshot::{ArchiveReader, ArchiveWriter, Schema};

use crate::config::{CpuFeatures, CpuidGroup};

/// Section of the settings. A machine without requested features has none.
const SECTION: &str = "settings";

/// Requested groups of processor features.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    groups: Vec<CpuidGroup>,
}

impl Schema for Settings {
    const NAME: &'static str = "x86_64-settings";
    const VERSION: u32 = 1;
}

/// Adds the settings of a machine with `features` to `archive`.
///
/// # Errors
/// As [`ArchiveWriter::write`].
pub fn save(features: CpuFeatures, archive: &mut ArchiveWriter) -> Result<(), Error> {
    let groups: Vec<_> = features.cpuid_groups.iter().collect();
    match groups.is_empty() {
        true => Ok(()),
        false => archive.write(SECTION, &Settings { groups }),
    }
}

/// Reads the features of the machine.
///
/// # Errors
/// As [`ArchiveReader::read_optional`].
pub fn restore(archive: &mut ArchiveReader<'_>) -> Result<CpuFeatures, Error> {
    let settings = archive.read_optional(SECTION)?;
    Ok(CpuFeatures {
        cpuid_groups: settings
            .into_iter()
            .flat_map(|settings: Settings| settings.groups)
            .collect(),
        ..CpuFeatures::default()
    })
}

#[cfg(test)]
mod tests {
    use snapshot::{ArchiveReader, ArchiveWriter};

    use super::{restore, save};
    use crate::config::CpuFeatures;

    #[test]
    fn settings_keep_features() {
        for names in [
            "virtualization",
            "tsx",
            "pmu,sgx",
            "virtualization,pmu,trace,sgx,resource-control,tsx",
        ] {
            let features: CpuFeatures = names.parse().unwrap();
            let mut archive = ArchiveWriter::new();
            save(features, &mut archive).unwrap();
            let bytes = archive.into_bytes();
            let mut reader = ArchiveReader::parse(&bytes).unwrap();
            assert_eq!(restore(&mut reader).unwrap(), features);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn machine_without_features_has_no_section() {
        let mut archive = ArchiveWriter::new();
        save(CpuFeatures::default(), &mut archive).unwrap();
        let bytes = archive.into_bytes();
        assert!(bytes.is_empty());
        let restored = restore(&mut ArchiveReader::parse(&bytes).unwrap());
        assert_eq!(restored.unwrap(), CpuFeatures::default());
    }
}
