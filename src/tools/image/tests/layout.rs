//! Builder of layouts.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use scratch::Directory;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::image::role::{Places, Use};
use crate::image::root::Content;
use crate::image::store::hex;
use crate::image::{Opened, open};
use crate::output::chain;

/// Annotation with the path of a kernel.
pub const BINARY: &str = "com.urunc.unikernel.binary";

/// Layout in a directory.
pub struct Layout {
    pub directory: Directory,
    entries: Vec<Value>,
}

/// Blob of a layer, with the digest of its content before the compression.
#[derive(Clone)]
pub struct LayerBlob {
    pub media_type: String,
    pub bytes: Vec<u8>,
    pub diff_id: String,
    pub annotations: Value,
}

impl LayerBlob {
    /// Returns a layer of the tar archive `tar`.
    pub fn plain(tar: &[u8]) -> Self {
        Self {
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            bytes: tar.to_vec(),
            diff_id: digest(tar),
            annotations: json!({}),
        }
    }

    pub fn gzip(tar: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(tar).unwrap();
        Self {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            bytes: encoder.finish().unwrap(),
            ..Self::plain(tar)
        }
    }

    pub fn zstd(tar: &[u8]) -> Self {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        Self {
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into(),
            bytes: ruzstd::encoding::compress_to_vec(tar, level),
            ..Self::plain(tar)
        }
    }

    pub fn annotated(self, annotations: Value) -> Self {
        Self { annotations, ..self }
    }
}

/// Image of a layout.
pub struct Image {
    pub layers: Vec<LayerBlob>,
    pub annotations: Value,
    pub config: Value,
    pub os: &'static str,
    pub architecture: &'static str,
}

impl Image {
    /// Returns an image for this host.
    pub fn new(layers: Vec<LayerBlob>) -> Self {
        Self {
            layers,
            annotations: json!({}),
            config: json!({}),
            os: "linux",
            architecture: native(),
        }
    }

    /// Returns an image for this host whose annotation names the kernel `/kernel`.
    pub fn with_kernel(layers: Vec<LayerBlob>) -> Self {
        Self {
            annotations: json!({BINARY: "/kernel"}),
            ..Self::new(layers)
        }
    }
}

pub fn native() -> &'static str {
    match crate::image::select::is_native("amd64") {
        true => "amd64",
        false => "arm64",
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

impl Layout {
    pub fn new() -> Self {
        let directory = Directory::new();
        fs::create_dir_all(directory.path("blobs/sha256")).unwrap();
        directory.write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        let layout = Self {
            directory,
            entries: Vec::new(),
        };
        layout.write_index();
        layout
    }

    /// Returns a layout with `image` alone.
    pub fn of(image: &Image) -> Self {
        let mut layout = Self::new();
        let descriptor = layout.add(image);
        layout.name(descriptor, None);
        layout
    }

    pub fn blob_path(&self, digest: &str) -> String {
        self.directory
            .text(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")))
    }

    /// Adds a blob. Returns its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Adds the blobs of an image. Returns the descriptor of the manifest.
    pub fn add(&self, image: &Image) -> Value {
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| {
                let mut descriptor = self.blob(&layer.media_type, &layer.bytes);
                descriptor["annotations"] = layer.annotations.clone();
                descriptor
            })
            .collect();
        let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config = json!({
            "architecture": image.architecture,
            "os": image.os,
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "config": config,
            "layers": layers,
            "annotations": image.annotations,
        });
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    /// Adds an entry of the index.
    pub fn name(&mut self, mut descriptor: Value, tag: Option<&str>) {
        if let Some(tag) = tag {
            descriptor["annotations"]["org.opencontainers.image.ref.name"] = tag.into();
        }
        self.entries.push(descriptor);
        self.write_index();
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "manifests": self.entries});
        self.directory.write("index.json", index.to_string());
    }

    /// Returns the name of the image with `suffix`, such as a tag.
    pub fn image(&self, suffix: &str) -> String {
        format!("oci:{}{suffix}", self.directory.text("").trim_end_matches('/'))
    }

    /// Opens the image with `suffix`.
    pub fn open(&self, suffix: &str) -> Result<Files, String> {
        open_named(&self.image(suffix))
    }

    pub fn error(&self, suffix: &str) -> String {
        match self.open(suffix) {
            Ok(_) => panic!("the image is accepted"),
            Err(error) => error,
        }
    }

    /// Returns the files of the layout as a tar archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(".", self.directory.root()).unwrap();
        builder.into_inner().unwrap()
    }
}

/// Content of an image.
pub struct Files {
    pub opened: Opened<Content>,
    pub kernel: Vec<u8>,
    pub initrd: Option<Vec<u8>>,
    pub block: Option<Vec<u8>>,
    pub command_line: Option<String>,
}

pub fn open_named(name: &str) -> Result<Files, String> {
    let places = Places {
        image: name,
        initrd: Use::Content,
        block: Use::Content,
        has_command_line: true,
    };
    let opened =
        open(name.as_ref(), &places, |root, wanted| root.find(wanted)).map_err(|error| chain(&error))?;
    let read = |content: &Content| {
        let mut bytes = Vec::new();
        let mut file = &content.file;
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, content.size);
        bytes
    };
    Ok(Files {
        kernel: read(&opened.kernel),
        initrd: opened.initrd.as_ref().map(read),
        block: opened.block.as_ref().map(read),
        command_line: opened
            .program
            .command_line
            .as_ref()
            .map(|decision| decision.value.clone()),
        opened,
    })
}

/// Builder of a tar archive.
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds an entry whose header has `name`, `link` and the size of `content`, unchecked.
    pub fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_ref())
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    /// Returns the archive with its end.
    pub fn build(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
