//! Program of an image: kernel, command line, initrd and block image, by the conventions of urunc and Kraft.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use vmm::arch::{Native, Platform};

use super::error::{Error, FileError};
use super::path;
use super::role::{ImageFile, Places, Role, Use};
use super::root::{Content, RootFs};
use super::select::{Selected, URUNC};

/// Annotations of Kraft's layers, with the path of their file.
const KRAFT_KERNEL: &str = "org.unikraft.kernel.image";
const KRAFT_INITRD: &str = "org.unikraft.kernel.initrd";
/// Media types of Kraft's layers.
const KRAFT_KERNEL_TYPE: &str = "application/vnd.unikraft.kernel.v1";
const KRAFT_INITRD_TYPE: &str = "application/vnd.unikraft.initrd.v1";
/// Paths of Kraft's kernel and initrd.
const KRAFT_KERNEL_PATH: &str = "/unikraft/bin/kernel";
const KRAFT_INITRD_PATH: &str = "/unikraft/bin/initrd";
/// Path of urunc's metadata.
const METADATA_PATH: &str = "/urunc.json";
/// Paths of kernel and initrd without metadata, and the source.
const CONVENTIONS: [(&str, &str, &str); 2] = [
    (KRAFT_KERNEL_PATH, KRAFT_INITRD_PATH, "convention of Kraft"),
    ("/.boot/kernel", "/.boot/rootfs", "convention of bunny"),
];

/// Monitors whose guests use hypercalls of their own.
const FOREIGN_MONITORS: [&str; 4] = ["hvt", "spt", "hyperlight", "xen"];

/// Value with its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<T> {
    /// Value.
    pub value: T,
    /// Place in the image that states it, for messages.
    pub source: String,
}

/// Program of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Kernel.
    pub kernel: Decision<ImageFile>,
    /// Command line.
    pub command_line: Option<Decision<String>>,
    /// Initrd.
    pub initrd: Option<Decision<ImageFile>>,
    /// Image of a disk.
    pub block: Option<Decision<ImageFile>>,
    /// Reason why the guest mounts the root file system of the image, if it does.
    pub mounts_root: Option<&'static str>,
}

/// Values of urunc with their sources.
#[derive(Debug, Default)]
struct UruncValues(HashMap<String, (String, String)>);

impl UruncValues {
    /// Collects annotations and labels of the image. The manifest precedes the index, and both precede the labels.
    fn of_image(selected: &Selected) -> Self {
        let mut values = Self::default();
        let config = selected.config.config().as_ref();
        let manifest = selected.manifest.annotations().iter();
        let sources = manifest
            .map(|annotations| ("annotation", "manifest", annotations))
            .chain(
                selected
                    .annotations
                    .iter()
                    .map(|annotations| ("annotation", "index", &**annotations)),
            )
            .chain(
                config
                    .and_then(|config| config.labels().as_ref())
                    .map(|labels| ("label", "configuration", labels)),
            );
        for (kind, place, annotations) in sources {
            for (key, value) in annotations {
                values.add(key, value.clone(), format!("{kind} {key} of the {place}"));
            }
        }
        values
    }

    /// Parses `urunc.json`, whose values are in base64.
    fn of_metadata(bytes: &[u8]) -> Result<Self, Error> {
        let object: HashMap<String, serde_json::Value> =
            serde_json::from_slice(bytes).map_err(Error::Metadata)?;
        let mut values = Self::default();
        for (key, value) in object {
            if let Some(value) = value.as_str() {
                values.add(&key, decode(value), format!("{key} of {METADATA_PATH}"));
            }
        }
        Ok(values)
    }

    /// Adds a value, unless an earlier source has the key.
    fn add(&mut self, key: &str, value: String, source: String) {
        if let Some(name) = key.strip_prefix(URUNC)
            && !value.is_empty()
        {
            self.0.entry(name.to_owned()).or_insert((value, source));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(value, _)| value.as_str())
    }

    fn decision(&self, name: &str) -> Option<Decision<String>> {
        self.0.get(name).map(|(value, source)| Decision {
            value: value.clone(),
            source: source.clone(),
        })
    }

    fn file(&self, name: &str, role: &'static str) -> Result<Option<Decision<ImageFile>>, Error> {
        let Some(Decision { value, source }) = self.decision(name) else {
            return Ok(None);
        };
        file(role, &value, None).map(|value| Some(Decision { value, source }))
    }
}

/// Decodes a value of `urunc.json` as urunc does: base64 with or without the prefix `b64:`, otherwise the text itself.
fn decode(text: &str) -> String {
    let encoded = text.strip_prefix("b64:").unwrap_or(text);
    let decoded = STANDARD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.unwrap_or_else(|| text.to_owned())
}

/// Returns the file at the path `text`.
fn file(role: &'static str, text: &str, layer: Option<usize>) -> Result<ImageFile, Error> {
    let source = match path::normalize(text.as_bytes()) {
        // Descriptions and messages have lines of their own.
        _ if text.contains(char::is_control) => FileError::Control,
        Ok(path) if !path.is_empty() => return Ok(ImageFile { path, layer }),
        _ => FileError::OutsideRoot(text.to_owned()),
    };
    Err(Error::File {
        role,
        path: text.to_owned(),
        source,
    })
}

/// Selects the program of the image, without the parts that the user replaces. Reads layers only if neither annotations nor labels name the kernel.
///
/// # Errors
/// [`Error`] if the image names no kernel, is built for another monitor, or its metadata cannot be used.
pub fn find_program(
    selected: &Selected,
    root: &mut RootFs<'_>,
    places: &Places<'_>,
) -> Result<Program, Error> {
    let values = UruncValues::of_image(selected);
    check_monitor(selected, &values)?;
    if let Some(program) = urunc_program(selected, &values, places)? {
        return Ok(program);
    }
    if let Some(program) = kraft_program(selected, places)? {
        return Ok(program);
    }
    let metadata = places.wanted(Role::Metadata, &file("metadata", METADATA_PATH, None)?);
    root.want(metadata.clone());
    for (kernel, initrd, _) in CONVENTIONS {
        root.want(places.wanted(Role::Kernel, &file("kernel", kernel, None)?));
        if places.initrd == Use::Content {
            root.want(places.wanted(Role::Initrd, &file("initrd", initrd, None)?));
        }
    }
    if let Some(content) = root.find_optional(&metadata)? {
        let values = UruncValues::of_metadata(&read(&content)?)?;
        check_monitor(selected, &values)?;
        if let Some(program) = urunc_program(selected, &values, places)? {
            return Ok(program);
        }
    }
    for (kernel, initrd, source) in CONVENTIONS {
        let kernel = file("kernel", kernel, None)?;
        let initrd = file("initrd", initrd, None)?;
        if root.has(&places.wanted(Role::Kernel, &kernel))? {
            let has_initrd =
                places.initrd != Use::Nothing && root.has(&places.wanted(Role::Initrd, &initrd))?;
            let initrd = has_initrd.then_some(initrd);
            return conventional_program(selected, kernel, initrd, (places, source));
        }
    }
    Err(Error::NoKernel {
        key: "com.urunc.unikernel.binary or org.unikraft.kernel.image",
        paths: [METADATA_PATH, CONVENTIONS[0].0, CONVENTIONS[1].0].join(", "),
    })
}

fn read(content: &Content) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; usize::try_from(content.size).unwrap_or(0)];
    let read = content.file.read_exact_at(&mut bytes, 0);
    read.map_err(|error| Error::Copy("urunc.json", error))?;
    Ok(bytes)
}

/// Checks that mayfly can run guests for the monitor of the image.
fn check_monitor(selected: &Selected, values: &UruncValues) -> Result<(), Error> {
    let os = selected.platform.split('/').next().unwrap_or_default();
    let monitors = [values.get("hypervisor"), Some(os)];
    match monitors
        .into_iter()
        .flatten()
        .find(|name| FOREIGN_MONITORS.contains(name))
    {
        Some(name) => Err(Error::Hypervisor(name.to_owned())),
        None => Ok(()),
    }
}

/// Returns the program by the values of urunc, if they name a kernel.
fn urunc_program(
    selected: &Selected,
    values: &UruncValues,
    places: &Places<'_>,
) -> Result<Option<Program>, Error> {
    let Some(kernel) = values.file("binary", "kernel")? else {
        return Ok(None);
    };
    let mounts_root = ["mountRootfs", "useDMBlock"].into_iter().find(|name| {
        let value = values.get(name).unwrap_or_default();
        value.eq_ignore_ascii_case("true")
    });
    let has_files = values.get("initrd").or(values.get("block")).is_some();
    let find = |role: Role, name| match places.usage(role) {
        Use::Nothing => Ok(None),
        Use::Content | Use::Size => values.file(name, role.name()),
    };
    let (initrd, block) = (find(Role::Initrd, "initrd")?, find(Role::Block, "block")?);
    let command_line = match values.decision("cmdline") {
        Some(decision) => Some(decision),
        None => arguments(selected, &kernel.value),
    };
    Ok(Some(Program {
        mounts_root: mounts_root.filter(|_| !has_files),
        kernel,
        command_line: check(command_line, places)?,
        initrd,
        block,
    }))
}

/// Returns the program by the annotations and types of Kraft's layers, if one holds a kernel.
fn kraft_program(selected: &Selected, places: &Places<'_>) -> Result<Option<Program>, Error> {
    let find = |role, annotation: &str, media_type: &str, path: &str| {
        for (index, layer) in selected.manifest.layers().iter().enumerate() {
            let named = layer.annotations().as_ref().and_then(|all| all.get(annotation));
            let has_type = layer.media_type().as_ref() == media_type;
            let source = match named {
                Some(_) => format!("annotation {annotation} of layer {}", index + 1),
                None if has_type => format!("media type {media_type} of layer {}", index + 1),
                None => continue,
            };
            let value = file(role, named.map_or(path, String::as_str), Some(index))?;
            return Ok(Some(Decision { value, source }));
        }
        Ok(None)
    };
    let Some(kernel) = find("kernel", KRAFT_KERNEL, KRAFT_KERNEL_TYPE, KRAFT_KERNEL_PATH)? else {
        return Ok(None);
    };
    Ok(Some(Program {
        command_line: check(arguments(selected, &kernel.value), places)?,
        kernel,
        initrd: match places.initrd {
            Use::Nothing => None,
            Use::Content | Use::Size => find("initrd", KRAFT_INITRD, KRAFT_INITRD_TYPE, KRAFT_INITRD_PATH)?,
        },
        block: None,
        mounts_root: None,
    }))
}

/// Returns the program with the files at conventional paths.
fn conventional_program(
    selected: &Selected,
    kernel: ImageFile,
    initrd: Option<ImageFile>,
    (places, source): (&Places<'_>, &str),
) -> Result<Program, Error> {
    let decide = |value| Decision {
        value,
        source: source.to_owned(),
    };
    Ok(Program {
        command_line: check(arguments(selected, &kernel), places)?,
        kernel: decide(kernel),
        initrd: initrd.map(decide),
        block: None,
        mounts_root: None,
    })
}

/// Returns the process arguments of the configuration as a command line. Images of Kraft may begin with the path of the kernel.
fn arguments(selected: &Selected, kernel: &ImageFile) -> Option<Decision<String>> {
    let config = selected.config.config().as_ref()?;
    let (entrypoint, cmd) = (config.entrypoint().as_deref(), config.cmd().as_deref());
    let mut words: Vec<&str> = [entrypoint, cmd]
        .into_iter()
        .flatten()
        .flatten()
        .map(String::as_str)
        .collect();
    if words
        .first()
        .is_some_and(|word| path::normalize(word.as_bytes()).as_ref() == Ok(&kernel.path))
    {
        words.remove(0);
    }
    let is_given = |words: Option<&[String]>| words.is_some_and(|words| !words.is_empty());
    let source = match (is_given(entrypoint), is_given(cmd)) {
        (true, true) => "Entrypoint and Cmd of the configuration",
        (true, false) => "Entrypoint of the configuration",
        (false, _) => "Cmd of the configuration",
    };
    (!words.is_empty()).then(|| Decision {
        value: words.join(" "),
        source: source.to_owned(),
    })
}

/// Checks that a command line is not too long, and has no control characters, which the guest would not get unchanged. Returns none if
/// the user replaces it.
fn check(
    command_line: Option<Decision<String>>,
    places: &Places<'_>,
) -> Result<Option<Decision<String>>, Error> {
    match command_line {
        _ if !places.has_command_line => Ok(None),
        Some(Decision { value, source }) if value.contains(char::is_control) => {
            Err(Error::CommandLine(source))
        }
        Some(Decision { value, source }) if value.len() > Native::COMMAND_LINE_CAPACITY => {
            Err(Error::LongCommandLine {
                place: source,
                length: value.len(),
                limit: Native::COMMAND_LINE_CAPACITY,
            })
        }
        checked => Ok(checked),
    }
}
