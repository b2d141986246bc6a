//! Settings in a snapshot that the build of a machine requires besides the configuration.

use serde::{Deserialize, Serialize};
use snapshot::section::Error;
use snapshot::{ArchiveReader, Schema};

use crate::config::{CpuFeatures, GicVersion, VectorLengths, VmConfig};

/// Section of the settings.
pub const SECTION: &str = "settings";

/// Settings of a machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    gic: Gic,
    sve: bool,
    pauth: bool,
    vector_lengths: Option<[u64; 8]>,
}

impl Schema for Settings {
    const NAME: &'static str = "aarch64-settings";
    const VERSION: u32 = 2;
}

/// Version of the GIC: the settings of version 1.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Gic {
    V2,
    V3,
}

impl Schema for Gic {
    const NAME: &'static str = Settings::NAME;
    const VERSION: u32 = 1;
}

impl Settings {
    /// Returns the settings of a machine with `gic` and `features`.
    pub fn new(gic: GicVersion, features: CpuFeatures) -> Self {
        Self {
            gic: match gic {
                GicVersion::V2 => Gic::V2,
                GicVersion::V3 => Gic::V3,
            },
            sve: features.sve,
            pauth: features.pauth,
            vector_lengths: features.vector_lengths.map(|lengths| lengths.0),
        }
    }

    /// Reads the settings, in this version or version 1, whose vCPUs have no optional feature.
    ///
    /// # Errors
    /// As [`ArchiveReader::read`].
    pub fn read(archive: &mut ArchiveReader<'_>) -> Result<Self, Error> {
        match archive.version(SECTION) {
            Some(Gic::VERSION) => Ok(Self {
                gic: archive.read(SECTION)?,
                sve: false,
                pauth: false,
                vector_lengths: None,
            }),
            _ => archive.read(SECTION),
        }
    }

    /// Adds the settings to `config`.
    pub fn apply(&self, config: &mut VmConfig) {
        config.gic = Some(match self.gic {
            Gic::V2 => GicVersion::V2,
            Gic::V3 => GicVersion::V3,
        });
        config.cpu_features = CpuFeatures {
            sve: self.sve,
            pauth: self.pauth,
            vector_lengths: self.vector_lengths.map(VectorLengths),
            ..CpuFeatures::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use snapshot::{ArchiveReader, ArchiveWriter};

    use super::{Gic, SECTION, Settings};
    use crate::config::{CpuFeatures, GicVersion, VectorLengths, VmConfig};

    fn read(archive: ArchiveWriter) -> VmConfig {
        let bytes = archive.into_bytes();
        let settings = Settings::read(&mut ArchiveReader::parse(&bytes).unwrap()).unwrap();
        let mut config = VmConfig::new(PathBuf::new());
        settings.apply(&mut config);
        config
    }

    #[test]
    fn settings_keep_gic_and_features() {
        let lengths = VectorLengths([0x8b, 0, 0, 0, 0, 0, 0, 1]);
        for (sve, pauth, vector_lengths) in [
            (false, false, None),
            (false, true, None),
            (true, false, Some(lengths)),
        ] {
            for gic in [GicVersion::V2, GicVersion::V3] {
                let features = CpuFeatures {
                    sve,
                    pauth,
                    vector_lengths,
                    ..CpuFeatures::default()
                };
                let mut archive = ArchiveWriter::new();
                archive.write(SECTION, &Settings::new(gic, features)).unwrap();
                let config = read(archive);
                assert_eq!((config.gic, config.cpu_features), (Some(gic), features));
            }
        }
    }

    #[test]
    fn settings_of_version_1_have_no_features() {
        for (gic, expected) in [(Gic::V2, GicVersion::V2), (Gic::V3, GicVersion::V3)] {
            let mut archive = ArchiveWriter::new();
            archive.write(SECTION, &gic).unwrap();
            let config = read(archive);
            assert_eq!(config.gic, Some(expected));
            assert_eq!(config.cpu_features, CpuFeatures::default());
        }
    }
}
