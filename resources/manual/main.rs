//! Generates man pages and shell completions from the help texts of the programs, which are the only table of options.
//!
//! `make` runs `cargo run --package manual -- DIRECTORY DATE`. It writes below DIRECTORY, in the layout of /usr/share.
//!
//! | module | contents |
//! |---|---|
//! | `topics` | the help texts |
//! | `parse` | structure of a help text |
//! | `options` | options and commands of a help text |
//! | `man` | man pages |
//! | `bash`, `zsh`, `fish` | completions |

mod bash;
mod fish;
mod man;
mod options;
mod parse;
mod topics;
mod zsh;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), Some(date), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: manual DIRECTORY DATE".into());
    };
    for (path, text) in files(&date.to_string_lossy()) {
        write(&Path::new(&directory).join(path), &text)?;
    }
    Ok(())
}

/// Returns the paths of all files, relative to /usr/share, with their contents.
fn files(date: &str) -> Vec<(PathBuf, String)> {
    let topics = topics::topics();
    let pages = topics.iter().map(|topic| {
        let path = Path::new("man/man1").join(format!("{}.1", topic.page));
        (path, man::page(topic, &topics, date))
    });
    let mut files: Vec<_> = pages.collect();
    let programs = options::programs(&topics);
    for program in &programs {
        let name = program.name;
        files.extend([
            (
                format!("bash-completion/completions/{name}").into(),
                bash::completion(program),
            ),
            (
                format!("zsh/site-functions/_{name}").into(),
                zsh::completion(program),
            ),
            (
                format!("fish/vendor_completions.d/{name}.fish").into(),
                fish::completion(program),
            ),
        ]);
    }
    files
}

fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let failed = |error| format!("cannot write {}: {error}; check its directory", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::files;

    #[test]
    fn files_have_distinct_paths_and_content() {
        let files = files("2026-12-01");
        for (index, (path, text)) in files.iter().enumerate() {
            assert!(!text.is_empty() && text.ends_with('\n'), "{}", path.display());
            assert!(
                files[..index].iter().all(|(other, _)| other != path),
                "{}",
                path.display()
            );
        }
        for page in ["mayfly", "mayfly-ctl", "mayfly-jailer", "mayfly-standby"] {
            let path = format!("man/man1/{page}.1");
            assert!(
                files.iter().any(|(known, _)| known.to_str() == Some(&path)),
                "{path}"
            );
        }
    }
}
