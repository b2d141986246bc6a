//! Selection of the manifest: by tag or digest, by the architecture of this host, and by the monitor for which an image is built.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::de::DeserializeOwned;
use vmm::arch::{Architecture, Native, Platform};

use super::error::Error;
use super::limits::{MAX_DEPTH, MAX_LAYERS, MAX_MANIFESTS};
use super::reference::Reference;
use super::store::{Store, Type};

/// Annotations with the tag of an entry of an index: that of the specification, and the complete name by containerd.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Names of Firecracker as operating system of a platform, as Kraft writes it.
const FIRECRACKER: [&str; 2] = ["fc", "firecracker"];

/// Prefix of urunc's annotations.
pub const URUNC: &str = "com.urunc.unikernel.";
/// Names of urunc's annotations behind the prefix. Others are not kept in memory.
const URUNC_NAMES: [&str; 7] = [
    "binary",
    "block",
    "cmdline",
    "hypervisor",
    "initrd",
    "mountRootfs",
    "useDMBlock",
];

/// Maximum number of images that a message names, and maximum length of a tag, a platform or a digest there.
const MAX_NAMED: usize = 20;
const MAX_TEXT: usize = 128;

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
    /// Annotations of urunc of the entries and indexes that lead to the manifest, the nearest first. With a digest in the reference,
    /// these are only the annotations that the digest covers.
    pub annotations: Vec<Rc<Annotations>>,
    /// Operating system and architecture, such as `fc/x86_64`.
    pub platform: String,
}

/// Entry of an index: a manifest or a further index.
#[derive(Clone, Debug)]
struct Candidate {
    /// Type, digest and size.
    descriptor: Descriptor,
    /// Operating system and architecture in the index.
    platform: Option<(String, String)>,
    /// Tag of the entry, or else of the nearest index above.
    tag: Option<Rc<str>>,
    /// Complete names by containerd, of the entry and the indexes above.
    names: Vec<Rc<str>>,
    annotations: Vec<Rc<Annotations>>,
    /// Digests of the indexes that lead to it, and its own.
    digests: Vec<Rc<str>>,
}

/// Selects the image of `reference` in `store`.
///
/// # Errors
/// [`Error`] if none or several images match, or one cannot be read.
pub fn select(store: &Store, reference: &Reference) -> Result<Selected, Error> {
    let all = candidates(store, reference.digest.as_ref())?;
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
            available: list(
                all.iter()
                    .map(|candidate| (candidate, candidate.platform.clone())),
            ),
        });
    }
    let mut matching = Vec::new();
    let mut platforms = Vec::new();
    for candidate in &named {
        // Without a platform in the index, that of the configuration is used.
        let platform = match &candidate.platform {
            Some(platform) => Some(platform.clone()),
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

/// Returns the manifests that the index of the layout names, directly or by further indexes. `pinned` is the digest in the reference.
fn candidates(store: &Store, pinned: Option<&Digest>) -> Result<Vec<Candidate>, Error> {
    let mut found = Vec::new();
    let mut count = 0;
    // An index is read when its turn comes: one at a time is in memory.
    let mut pending: Vec<(Option<Candidate>, usize)> = vec![(None, 0)];
    while let Some((parent, depth)) = pending.pop() {
        let index: ImageIndex = match &parent {
            Some(parent) => store.json(&parent.descriptor, Type::Index, parse)?,
            None => store.index(parse)?,
        };
        let annotations = index.annotations().as_ref().map(kept);
        for descriptor in index.manifests() {
            count += 1;
            if count > MAX_MANIFESTS {
                return Err(Error::TooMany {
                    objects: "entries of indexes",
                    limit: MAX_MANIFESTS,
                });
            }
            if depth >= MAX_DEPTH {
                return Err(Error::TooMany {
                    objects: "levels of indexes",
                    limit: MAX_DEPTH,
                });
            }
            let mut candidate = child(parent.as_ref(), annotations.as_ref(), descriptor);
            if pinned == Some(descriptor.digest()) {
                // The digest covers neither the entry nor the indexes above.
                candidate.annotations.clear();
                candidate.platform = None;
            }
            match is_index(descriptor) {
                true => pending.push((Some(candidate), depth + 1)),
                false => found.push(candidate),
            }
        }
    }
    Ok(found)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(bytes)
}

/// Returns the annotations of urunc among `annotations`.
fn kept(annotations: &Annotations) -> Rc<Annotations> {
    let is_kept = |key: &str| {
        key.strip_prefix(URUNC)
            .is_some_and(|name| URUNC_NAMES.contains(&name))
    };
    let kept = annotations.iter().filter(|(key, _)| is_kept(key));
    Rc::new(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Returns the candidate of `descriptor` in the index `parent`, which has the annotations `index`.
fn child(parent: Option<&Candidate>, index: Option<&Rc<Annotations>>, descriptor: &Descriptor) -> Candidate {
    let own = descriptor.annotations().as_ref();
    let text = |key| {
        own.and_then(|all| all.get(key))
            .map(|text| Rc::<str>::from(text.as_str()))
    };
    let above = parent.map_or(&[][..], |parent| &parent.annotations);
    let name = text(CONTAINERD_NAME);
    let tag = text(REF_NAME).or(name.clone());
    let platform = descriptor.platform().as_ref();
    let (names, digests) = parent.map_or((&[][..], &[][..]), |parent| (&parent.names, &parent.digests));
    let digest = Rc::from(descriptor.digest().as_ref());
    Candidate {
        descriptor: Descriptor::new(
            descriptor.media_type().clone(),
            descriptor.size(),
            descriptor.digest().clone(),
        ),
        platform: platform.map(|platform| (platform.os().to_string(), platform.architecture().to_string())),
        tag: tag.or_else(|| parent.and_then(|parent| parent.tag.clone())),
        names: names.iter().cloned().chain(name).collect(),
        annotations: own.map(kept).iter().chain(index).chain(above).cloned().collect(),
        digests: digests.iter().cloned().chain([digest]).collect(),
    }
}

/// Returns true if the tag and digest of `reference` are those of the candidate.
fn is_named(candidate: &Candidate, reference: &Reference) -> bool {
    let has_tag = |tag: &String| {
        let mut names = candidate.tag.iter().chain(&candidate.names);
        names.any(|name| **name == **tag)
    };
    let has_digest = |digest: &Digest| candidate.digests.iter().any(|each| **each == *digest.as_ref());
    reference.tag.as_ref().is_none_or(has_tag) && reference.digest.as_ref().is_none_or(has_digest)
}

fn is_index(descriptor: &Descriptor) -> bool {
    *descriptor.media_type() == MediaType::ImageIndex
        || descriptor.media_type().as_ref() == "application/vnd.docker.distribution.manifest.list.v2+json"
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
    let manifest: ImageManifest = store.json(descriptor, Type::Manifest, parse)?;
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
    let config: ImageConfiguration = store.json(manifest.config(), Type::Configuration, parse)?;
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
    let mut further = 0_usize;
    for (candidate, platform) in images {
        if lines.len() == MAX_NAMED {
            further += 1;
            continue;
        }
        let tag = candidate.tag.as_ref();
        let tag = tag.map_or(String::new(), |tag| format!(":{} ", shorten(tag)));
        let platform = platform.map_or("no platform".into(), |(os, architecture)| {
            format!("{}/{}", shorten(&os), shorten(&architecture))
        });
        let digest = shorten(candidate.descriptor.digest().as_ref());
        lines.push(format!("{tag}({platform}, @{digest})"));
    }
    if further > 0 {
        lines.push(format!("{further} more"));
    }
    match lines.is_empty() {
        true => "no images".into(),
        false => lines.join(", "),
    }
}

/// Returns the beginning of a text of the image, which may be long.
fn shorten(text: &str) -> Cow<'_, str> {
    match text.len() <= MAX_TEXT {
        true => text.into(),
        false => format!("{}...", text.chars().take(MAX_TEXT).collect::<String>()).into(),
    }
}
