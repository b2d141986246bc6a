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
use error::{Error, ImageError, ProcError};
use layer::Layer;
use program::{Decision, Program, find_program};
use progress::Progress;
use reference::Reference;
use role::{ImageFile, Places, Role, Use};
use root::{Content, RootFs, Wanted};
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

impl CommandError {
    /// Returns true if the name of the image is malformed.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Image(error) if matches!(error.source, Error::Reference(_)))
    }
}

/// Program of an image with its kernel. `T` is the content of a further file, or its size.
struct Opened<T> {
    selected: Selected,
    program: Program,
    kernel: Content,
    initrd: Option<T>,
    block: Option<T>,
}

/// Becomes `mayfly run` with the program of the image. Returns only if that fails.
pub fn run(args: &RunArgs) -> CommandError {
    let name = args.image.to_string_lossy();
    let places = places(args, &name);
    let execute = || {
        // The files stay open until the exec.
        let opened = open(&args.image, &places, |root, wanted| root.find(wanted))?;
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

/// Returns the parts of the image that `args` do not replace.
fn places<'a>(args: &RunArgs, image: &'a str) -> Places<'a> {
    let usage = |is_replaced| if is_replaced { Use::Nothing } else { Use::Content };
    Places {
        image,
        initrd: usage(args.has_initrd),
        block: usage(args.has_disk),
        has_command_line: !args.has_guest_arguments,
    }
}

/// Returns the arguments of mayfly: those of the user, with the files of the image as descriptors that stay open across the exec.
fn arguments(args: &RunArgs, opened: &Opened<Content>) -> Result<Vec<OsString>, Error> {
    if let Some(reason) = opened.program.mounts_root
        && !args.has_initrd
        && !args.has_disk
    {
        return Err(Error::RootFileSystem(reason));
    }
    let mut arguments: Vec<OsString> = vec!["run".into()];
    if let Some(initrd) = &opened.initrd {
        arguments.extend(["--initrd".into(), pass(&initrd.file)?.into()]);
    }
    if let Some(block) = &opened.block {
        let mut drive = pass(&block.file)?.into_os_string();
        drive.push(",ro,id=image");
        arguments.extend(["--disk".into(), drive]);
    }
    let kernel = pass(&opened.kernel.file)?;
    for (index, argument) in args.arguments.iter().enumerate() {
        match index == args.position {
            true => arguments.push(kernel.clone().into()),
            false => arguments.push(argument.clone()),
        }
    }
    if let Some(command_line) = &opened.program.command_line {
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
        Err(source) => Err(Error::Proc(ProcError { path, source })),
    }
}

/// Describes the image `name`, and its kernel.
///
/// # Errors
/// [`CommandError`] if the image or its kernel cannot be used.
pub fn inspect(name: &OsStr) -> Result<String, CommandError> {
    let text = name.to_string_lossy();
    let (opened, mut description) = open_sizes(name, &text).map_err(|source| {
        let image = text.clone().into_owned();
        CommandError::Image(ImageError { image, source })
    })?;
    let path = format!("{text}{}", path::display(&opened.program.kernel.value.path));
    let kernel = inspect::inspect_file(Path::new(&path), opened.kernel.file);
    description.push('\n');
    description.push_str(&kernel.map_err(CommandError::Kernel)?);
    Ok(description)
}

/// Opens the image `name` for its description, which it returns too. Reads the sizes of initrd and block image only.
fn open_sizes(name: &OsStr, text: &str) -> Result<(Opened<u64>, String), Error> {
    let places = Places {
        image: text,
        initrd: Use::Size,
        block: Use::Size,
        has_command_line: true,
    };
    let opened = open(name, &places, |root, wanted| root.size(wanted))?;
    let description = describe(text, &opened);
    Ok((opened, description))
}

/// Opens the image `name`: selects the manifest and the program, and reads its files, initrd and block image by `find`.
fn open<T>(
    name: &OsStr,
    places: &Places<'_>,
    find: impl Fn(&mut RootFs<'_>, &Wanted) -> Result<T, Error>,
) -> Result<Opened<T>, Error> {
    let reference = Reference::parse(name)?;
    let store = Store::open(&reference)?;
    let selected = select(&store, &reference)?;
    let mut root = root_fs(&store, &selected, places.image);
    let program = find_program(&selected, &mut root, places)?;
    let kernel = places.wanted(Role::Kernel, &program.kernel.value);
    let further = |role, file: &Option<Decision<ImageFile>>| {
        file.as_ref().map(|file| (role, places.wanted(role, &file.value)))
    };
    let initrd = further(Role::Initrd, &program.initrd);
    let block = further(Role::Block, &program.block);
    // All before the first search: a layer is read once.
    root.want(kernel.clone());
    for (role, wanted) in initrd.iter().chain(&block) {
        if places.usage(*role) == Use::Content {
            root.want(wanted.clone());
        }
    }
    let kernel = root.find(&kernel)?;
    let mut find_further = |file: Option<(Role, Wanted)>| {
        let found = file.map(|(_, wanted)| find(&mut root, &wanted));
        found.transpose()
    };
    Ok(Opened {
        kernel,
        initrd: find_further(initrd)?,
        block: find_further(block)?,
        selected,
        program,
    })
}

/// Returns the root file system of the image `selected`, named `name` in messages.
fn root_fs<'a>(store: &'a Store, selected: &Selected, name: &str) -> RootFs<'a> {
    let layers = selected
        .manifest
        .layers()
        .iter()
        .zip(selected.config.rootfs().diff_ids());
    let layers = layers.map(|(descriptor, diff_id)| Layer {
        descriptor: descriptor.clone(),
        diff_id: diff_id.clone(),
    });
    RootFs::new(store, layers.collect(), Progress::start(name))
}

/// Describes the decisions about the image `name`.
fn describe(name: &str, opened: &Opened<u64>) -> String {
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
    for (label, decision, size) in [
        ("initrd", &program.initrd, opened.initrd),
        ("disk", &program.block, opened.block),
    ] {
        let decided = decision.as_ref().zip(size);
        line(
            label,
            decided.map_or("none".into(), |(decision, size)| file(decision, size)),
        );
    }
    if let Some(reason) = program.mounts_root {
        let error = Error::RootFileSystem(reason);
        let _ = writeln!(text, "mayfly run fails without --initrd or --disk: {error}");
    }
    text
}
