//! Images of OCI layouts: `mayfly run oci:…` and `mayfly inspect oci:…`. Their content may be hostile.
//!
//! | module | contents |
//! |---|---|
//! | `reference` | container, tag and digest of an image |
//! | `store` | blobs of a layout |
//! | `select` | the manifest for this host |
//! | `layer` | entries of a layer, and its digests |
//! | `path` | paths in the root file system of an image |
//! | `root` | files in the layers of an image |
//! | `role` | limits of these files, and places for their content |
//! | `program` | kernel, command line, initrd and block image |
//! | `args` | arguments of `mayfly run`, as mayfly passes them |
//! | `limits`, `error`, `progress` | limits, errors, messages about the progress |

pub mod args;
mod error;
mod layer;
mod limits;
mod path;
mod program;
mod progress;
mod reference;
mod role;
mod root;
mod select;
mod store;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use vmm::memory::Bytes;

use crate::inspect::{self, InspectError};
use crate::printable::printable;
use crate::sibling;
use crate::sys;
use args::RunArgs;
use error::{Error, ImageError};
use layer::Layer;
use program::{Decision, Program, find_program};
use progress::Progress;
use reference::Reference;
use role::{ImageFile, Places, Role};
use root::{Content, RootFs};
use select::{Selected, select};
use store::Store;

/// Failure of a command with an image.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(ImageError),
    /// The kernel of the image cannot be used.
    #[error(transparent)]
    Kernel(InspectError),
    /// mayfly cannot be executed.
    #[error(transparent)]
    Execute(sibling::Error),
}

/// Files and program of an image.
struct Opened {
    selected: Selected,
    program: Program,
    kernel: Content,
    initrd: Option<Content>,
    block: Option<Content>,
}

/// Becomes `mayfly run` with the program of the image. Returns only if that fails.
pub fn run(args: &RunArgs) -> CommandError {
    let name = args.image.to_string_lossy();
    let places = Places {
        image: &name,
        has_initrd: !args.has_initrd,
        has_block: !args.has_disk,
    };
    let execute = || {
        // The files stay open until the exec.
        let opened = open(&args.image, &places)?;
        let arguments = arguments(args, &opened)?;
        Ok(sibling::execute("mayfly", &arguments))
    };
    execute().map_or_else(
        |source| {
            let image = name.clone().into_owned();
            CommandError::Image(ImageError { image, source })
        },
        CommandError::Execute,
    )
}

/// Returns the arguments of mayfly: those of the user, with the files of the image as descriptors that stay open across the exec.
fn arguments(args: &RunArgs, opened: &Opened) -> Result<Vec<OsString>, Error> {
    if let Some(reason) = opened.program.mounts_root
        && !args.has_initrd
        && !args.has_disk
    {
        return Err(Error::RootFileSystem(reason));
    }
    let mut arguments: Vec<OsString> = vec!["run".into()];
    if let Some(file) = opened.initrd.as_ref().and_then(|content| content.file.as_ref()) {
        arguments.extend(["--initrd".into(), pass(file)?.into()]);
    }
    if let Some(file) = opened.block.as_ref().and_then(|content| content.file.as_ref()) {
        let mut drive = pass(file)?.into_os_string();
        drive.push(",ro,id=image");
        arguments.extend(["--disk".into(), drive]);
    }
    let kernel = opened
        .kernel
        .file
        .as_ref()
        .map(pass)
        .transpose()?
        .unwrap_or_default();
    for (index, argument) in args.arguments.iter().enumerate() {
        match index == args.position {
            true => arguments.push(kernel.clone().into()),
            false => arguments.push(argument.clone()),
        }
    }
    if let Some(command_line) = opened
        .program
        .command_line
        .as_ref()
        .filter(|_| !args.has_guest_arguments)
    {
        arguments.extend(["--".into(), command_line.value.clone().into()]);
    }
    Ok(arguments)
}

/// Keeps `file` open across the exec, and returns its path in the new program.
fn pass(file: &File) -> Result<PathBuf, Error> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let checked = path.symlink_metadata().and_then(|_| sys::keep_across_exec(file));
    match checked {
        Ok(()) => Ok(path),
        Err(source) => Err(Error::Open { path, source }),
    }
}

/// Describes the image `name`, and its kernel.
///
/// # Errors
/// [`CommandError`] if the image or its kernel cannot be used.
pub fn inspect(name: &OsStr) -> Result<String, CommandError> {
    let text = name.to_string_lossy();
    let places = Places {
        image: &text,
        has_initrd: false,
        has_block: false,
    };
    let mut opened = open(name, &places).map_err(|source| {
        let image = text.clone().into_owned();
        CommandError::Image(ImageError { image, source })
    })?;
    let mut description = describe(&text, &opened);
    let path = format!("{text}{}", path::display(&opened.program.kernel.value.path));
    let file = opened.kernel.file.take();
    let kernel = file.map(|file| inspect::inspect_file(Path::new(&path), file));
    description.push('\n');
    description.push_str(
        &kernel
            .transpose()
            .map_err(CommandError::Kernel)?
            .unwrap_or_default(),
    );
    Ok(description)
}

/// Opens the image `name`: selects the manifest, finds out the program, and reads its files.
fn open(name: &OsStr, places: &Places<'_>) -> Result<Opened, Error> {
    let reference = Reference::parse(name)?;
    let store = Store::open(&reference)?;
    let selected = select(&store, &reference)?;
    let layers = selected
        .manifest
        .layers()
        .iter()
        .zip(selected.config.rootfs().diff_ids());
    let layers = layers.map(|(descriptor, diff_id)| Layer {
        descriptor: descriptor.clone(),
        diff_id: diff_id.clone(),
    });
    let mut root = RootFs::new(&store, layers.collect(), Progress::start(places.image));
    let program = find_program(&selected, &mut root, places)?;
    // All before the first search: a layer is read once.
    let files = [
        (Role::Kernel, Some(&program.kernel)),
        (Role::Initrd, program.initrd.as_ref()),
        (Role::Block, program.block.as_ref()),
    ];
    for (role, file) in files {
        file.iter()
            .for_each(|file| root.want(places.wanted(role, &file.value)));
    }
    let mut find = |role, file: Option<&Decision<ImageFile>>| {
        let wanted = file.map(|file| places.wanted(role, &file.value));
        wanted.map(|wanted| root.find(&wanted)).transpose()
    };
    let kernel = find(Role::Kernel, Some(&program.kernel))?;
    let initrd = find(Role::Initrd, program.initrd.as_ref())?;
    let block = find(Role::Block, program.block.as_ref())?;
    Ok(Opened {
        kernel: kernel.unwrap_or(Content { file: None, size: 0 }),
        initrd,
        block,
        selected,
        program,
    })
}

/// Describes the decisions about the image `name`.
fn describe(name: &str, opened: &Opened) -> String {
    let Opened {
        selected, program, ..
    } = opened;
    let layers = selected.manifest.layers();
    let size: u64 = layers
        .iter()
        .map(|layer| layer.size())
        .fold(0, u64::saturating_add);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{name}: OCI image for {}, {} layers of {}",
        printable(&selected.platform),
        layers.len(),
        Bytes(size)
    );
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "  {label:<12} {value}");
    };
    line("manifest", selected.descriptor.digest().to_string());
    let file = |file: &Decision<ImageFile>, size| {
        let path = path::display(&file.value.path);
        format!("{path}, {}, by the {}", Bytes(size), file.source)
    };
    line("kernel", file(&program.kernel, opened.kernel.size));
    let command_line = program.command_line.as_ref();
    let command_line =
        command_line.map(|decision| format!("{:?}, by the {}", decision.value, decision.source));
    line("command line", command_line.unwrap_or("none".into()));
    for (label, decision, content) in [
        ("initrd", &program.initrd, &opened.initrd),
        ("disk", &program.block, &opened.block),
    ] {
        let size = content.as_ref().map_or(0, |content| content.size);
        line(
            label,
            decision
                .as_ref()
                .map_or("none".into(), |decision| file(decision, size)),
        );
    }
    if let Some(reason) = program.mounts_root {
        let error = Error::RootFileSystem(reason);
        let _ = writeln!(text, "mayfly run fails without --initrd or --disk: {error}");
    }
    text
}
