//! Selection of the manifest: by tag or digest, by the architecture of this host, and by the monitor for which an image is built.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use vmm::arch::{Architecture, Native, Platform};

use super::error::{BlobError, Error};
use super::limits::{MAX_DEPTH, MAX_LAYERS, MAX_MANIFESTS};
use super::reference::Reference;
use super::store::Store;

/// Annotations with the tag of an entry of an index: that of the specification, and the complete name by containerd.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Names of Firecracker as operating system of a platform, as Kraft writes it.
const FIRECRACKER: [&str; 2] = ["fc", "firecracker"];

/// Maximum number of images that a message names.
const MAX_NAMED: usize = 20;

/// Annotations by their keys.
pub type Annotations = HashMap<String, String>;

/// Selected image.
#[derive(Debug)]
pub struct Selected {
    /// Descriptor of the manifest.
    pub descriptor: Descriptor,
    /// Manifest.
    pub manifest: ImageManifest,
    /// Configuration.
    pub config: ImageConfiguration,
    /// Annotations of the entries and indexes that lead to the manifest, the nearest first.
    pub annotations: Vec<Annotations>,
    /// Operating system and architecture, such as `fc/x86_64`.
    pub platform: String,
}

/// Manifest that an index names.
#[derive(Clone, Debug)]
struct Candidate {
    descriptor: Descriptor,
    tag: Option<String>,
    annotations: Vec<Annotations>,
    /// Digests of the indexes that lead to it.
    indexes: Vec<String>,
}

/// Selects the image of `reference` in `store`.
///
/// # Errors
/// [`Error`] if none or several images match, or one cannot be read.
pub fn select(store: &Store, reference: &Reference) -> Result<Selected, Error> {
    let all = candidates(store)?;
    let named: Vec<_> = all
        .iter()
        .filter(|candidate| is_named(candidate, reference))
        .collect();
    if named.is_empty() {
        let tag = reference.tag.as_ref().map(|tag| format!("tag {tag:?}"));
        let digest = reference.digest.as_ref().map(|digest| format!("digest {digest}"));
        let parts: Vec<_> = tag.into_iter().chain(digest).collect();
        return Err(Error::Unknown {
            selector: if parts.is_empty() {
                "layout".into()
            } else {
                parts.join(" and the ")
            },
            available: list(all.iter().map(|candidate| (candidate, platform(candidate)))),
        });
    }
    let mut matching = Vec::new();
    let mut platforms = Vec::new();
    for candidate in &named {
        // Without a platform in the index, that of the configuration counts.
        let platform = match platform(candidate) {
            Some(platform) => Some(platform),
            None => match load(store, &candidate.descriptor) {
                Ok((_, config)) => Some((config.os().to_string(), config.architecture().to_string())),
                Err(Error::MediaType { .. }) if named.len() > 1 => None,
                Err(error) => return Err(error),
            },
        };
        if let Some((os, architecture)) = &platform
            && is_native(architecture)
        {
            matching.push((*candidate, (os.clone(), architecture.clone())));
        }
        platforms.push((*candidate, platform));
    }
    if matching.is_empty() {
        return Err(Error::Architecture {
            architecture: Native::ARCHITECTURE.to_string(),
            available: list(platforms.into_iter()),
        });
    }
    let (candidate, (os, architecture)) = preferred(matching)?;
    let (manifest, config) = load(store, &candidate.descriptor)?;
    Ok(Selected {
        descriptor: candidate.descriptor.clone(),
        manifest,
        config,
        annotations: candidate.annotations.clone(),
        platform: format!("{os}/{architecture}"),
    })
}

type Matching<'a> = (&'a Candidate, (String, String));

/// Returns the only candidate, or the only one for Firecracker.
fn preferred(mut matching: Vec<Matching<'_>>) -> Result<Matching<'_>, Error> {
    let is_firecracker = |(_, (os, _)): &Matching<'_>| FIRECRACKER.contains(&os.as_str());
    if matching.len() > 1 && matching.iter().any(is_firecracker) {
        matching.retain(is_firecracker);
    }
    // Several tags of one image are no choice.
    let first = matching[0].0.descriptor.digest().clone();
    if matching
        .iter()
        .any(|(candidate, _)| *candidate.descriptor.digest() != first)
    {
        let named = matching
            .into_iter()
            .map(|(candidate, platform)| (candidate, Some(platform)));
        return Err(Error::Ambiguous(list(named)));
    }
    Ok(matching.swap_remove(0))
}

/// Returns the manifests that the index of the layout names, directly or by further indexes.
fn candidates(store: &Store) -> Result<Vec<Candidate>, Error> {
    let index = store.index()?;
    let index: ImageIndex = serde_json::from_slice(&index).map_err(|source| Error::Blob {
        object: "file",
        name: "index.json".into(),
        source: BlobError::Json(source),
    })?;
    let mut found = Vec::new();
    let mut count = 0;
    let root = Candidate {
        descriptor: Descriptor::new(MediaType::ImageIndex, 0, zero_digest()?),
        tag: None,
        annotations: Vec::new(),
        indexes: Vec::new(),
    };
    let mut pending = vec![(index, root, 0)];
    while let Some((index, parent, depth)) = pending.pop() {
        for descriptor in index.manifests() {
            count += 1;
            if count > MAX_MANIFESTS || depth >= MAX_DEPTH {
                return Err(Error::TooMany {
                    objects: "entries or levels of indexes",
                    limit: MAX_MANIFESTS,
                });
            }
            let candidate = child(&parent, &index, descriptor);
            if is_index(descriptor) {
                let nested = store.json(descriptor, "index", |bytes| serde_json::from_slice(bytes))?;
                pending.push((nested, candidate, depth + 1));
            } else {
                found.push(candidate);
            }
        }
    }
    Ok(found)
}

/// Returns the candidate of `descriptor` in `index`, which belongs to `parent`.
fn child(parent: &Candidate, index: &ImageIndex, descriptor: &Descriptor) -> Candidate {
    let own = [descriptor.annotations(), index.annotations()];
    let annotations = own
        .into_iter()
        .flatten()
        .chain(&parent.annotations)
        .cloned()
        .collect();
    let tag = descriptor.annotations().as_ref().and_then(|annotations| {
        let tag = annotations.get(REF_NAME).or(annotations.get(CONTAINERD_NAME));
        tag.cloned()
    });
    let mut indexes = parent.indexes.clone();
    indexes.push(descriptor.digest().to_string());
    Candidate {
        descriptor: descriptor.clone(),
        tag: tag.or_else(|| parent.tag.clone()),
        annotations,
        indexes,
    }
}

/// Returns a digest for the index of the layout, which has none.
fn zero_digest() -> Result<oci_spec::image::Digest, Error> {
    let digest = format!("sha256:{}", "0".repeat(64));
    digest
        .parse()
        .map_err(|_| Error::Reference("the digest is malformed"))
}

/// Returns true if the tag and digest of `reference` are those of the candidate.
fn is_named(candidate: &Candidate, reference: &Reference) -> bool {
    let has_tag = |tag: &String| {
        let names = candidate.annotations.iter();
        candidate.tag.as_ref() == Some(tag)
            || names
                .flat_map(|annotations| annotations.get(CONTAINERD_NAME))
                .any(|name| name == tag)
    };
    let has_digest =
        |digest: &oci_spec::image::Digest| candidate.indexes.iter().any(|each| each == digest.as_ref());
    reference.tag.as_ref().is_none_or(has_tag) && reference.digest.as_ref().is_none_or(has_digest)
}

fn is_index(descriptor: &Descriptor) -> bool {
    *descriptor.media_type() == MediaType::ImageIndex
        || descriptor.media_type().as_ref() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

/// Returns operating system and architecture in the index.
fn platform(candidate: &Candidate) -> Option<(String, String)> {
    let platform = candidate.descriptor.platform().as_ref()?;
    Some((platform.os().to_string(), platform.architecture().to_string()))
}

/// Returns true if this host runs guests of the architecture `name`.
pub(super) fn is_native(name: &str) -> bool {
    match Native::ARCHITECTURE {
        Architecture::X86_64 => matches!(name, "amd64" | "x86_64"),
        Architecture::Aarch64 => matches!(name, "arm64" | "aarch64"),
    }
}

/// Reads the manifest of `descriptor`, and its configuration.
fn load(store: &Store, descriptor: &Descriptor) -> Result<(ImageManifest, ImageConfiguration), Error> {
    let media_type = descriptor.media_type();
    let is_manifest = *media_type == MediaType::ImageManifest
        || media_type.as_ref() == "application/vnd.docker.distribution.manifest.v2+json";
    let unsupported = |object, media_type: &MediaType, way_out| Error::MediaType {
        object,
        found: media_type.to_string(),
        way_out,
    };
    if !is_manifest {
        return Err(unsupported(
            "entry of the index",
            media_type,
            "use an OCI image, or an image of Docker's schema 2",
        ));
    }
    let manifest: ImageManifest =
        store.json(descriptor, "manifest", |bytes| serde_json::from_slice(bytes))?;
    let media_type = manifest.config().media_type();
    let is_config = *media_type == MediaType::ImageConfig
        || media_type.as_ref() == "application/vnd.docker.container.image.v1+json";
    if !is_config {
        let way_out = "it is an artifact and no image; use an image";
        return Err(unsupported("configuration", media_type, way_out));
    }
    let layers = manifest.layers().len();
    if layers > MAX_LAYERS {
        return Err(Error::TooMany {
            objects: "layers",
            limit: MAX_LAYERS,
        });
    }
    let config: ImageConfiguration = store.json(manifest.config(), "configuration", |bytes| {
        serde_json::from_slice(bytes)
    })?;
    let found = config.rootfs().diff_ids().len();
    match found == layers {
        true => Ok((manifest, config)),
        false => Err(Error::DiffIds {
            expected: layers,
            found,
        }),
    }
}

/// Returns the images with tag, platform and digest, for a message.
fn list<'a>(images: impl Iterator<Item = (&'a Candidate, Option<(String, String)>)>) -> String {
    let mut lines = Vec::new();
    for (candidate, platform) in images {
        let tag = candidate
            .tag
            .as_ref()
            .map_or(String::new(), |tag| format!(":{tag} "));
        let platform = platform.map_or("no platform".into(), |(os, architecture)| {
            format!("{os}/{architecture}")
        });
        lines.push(format!("{tag}({platform}, @{})", candidate.descriptor.digest()));
    }
    let further = lines.len().saturating_sub(MAX_NAMED);
    lines.truncate(MAX_NAMED);
    if further > 0 {
        lines.push(format!("{further} more"));
    }
    match lines.is_empty() {
        true => "no images".into(),
        false => lines.join(", "),
    }
}
