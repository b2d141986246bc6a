//! OCI layouts that tests write, of plain layers.

use std::fs;
use std::path::Path;

use scratch::Directory;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vmm::arch::{Architecture, Native, Platform};

/// Returns the name of the architecture in images.
pub fn architecture() -> &'static str {
    match Native::ARCHITECTURE {
        Architecture::X86_64 => "amd64",
        Architecture::Aarch64 => "arm64",
    }
}

/// Writes a blob to the layout at `layout`. Returns its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(layout.join("blobs/sha256").join(&digest), bytes).unwrap();
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}

/// Writes a layout `app` with one image, whose layers each hold one file: its path in the image, its content, and the annotations of the
/// layer.
pub fn write_layout(
    directory: &Directory,
    files: &[(&str, &[u8], Value)],
    annotations: &Value,
    config: &Value,
) {
    let layout = directory.path("app");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let layers: Vec<Value> = files
        .iter()
        .map(|(path, content, annotations)| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            let mut builder = tar::Builder::new(Vec::new());
            builder.append_data(&mut header, path, *content).unwrap();
            let tar = builder.into_inner().unwrap();
            let mut layer = blob(&layout, "application/vnd.oci.image.layer.v1.tar", &tar);
            layer["annotations"] = annotations.clone();
            layer
        })
        .collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": architecture(),
        "os": "fc",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(
        &layout,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest =
        json!({"schemaVersion": 2, "config": config, "layers": layers, "annotations": annotations});
    let manifest = blob(
        &layout,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

/// Writes a layout `app` by the conventions of Kraft.
pub fn write_kraft(directory: &Directory, kernel: &[u8], initrd: &[u8], command_line: &[&str]) {
    let (kernel_path, initrd_path) = ("/unikraft/bin/kernel", "/unikraft/bin/initrd");
    let layers = [
        (
            &kernel_path[1..],
            kernel,
            json!({"org.unikraft.kernel.image": kernel_path}),
        ),
        (
            &initrd_path[1..],
            initrd,
            json!({"org.unikraft.kernel.initrd": initrd_path}),
        ),
    ];
    write_layout(directory, &layers, &json!({}), &json!({"Cmd": command_line}));
}
