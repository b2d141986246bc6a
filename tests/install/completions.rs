//! Completions in real shells.

use std::process::Command;

use crate::{expect_success, has_program, pages};

/// Seconds after which a shell that does not complete ends.
const TIMEOUT: &str = "60";

/// Words of a command line, the last of which is completed, and some of its completions.
const CASES: [(&str, &[&str]); 9] = [
    ("mayfly re", &["restore"]),
    ("mayfly --config", &["--config-file"]),
    ("mayfly run --cp", &["--cpus", "--cpu-features"]),
    ("mayfly restore --seccomp", &["--seccomp-filter"]),
    ("mayfly ctl flu", &["flush-metrics"]),
    ("mayfly ctl drive --b", &["--bandwidth"]),
    ("mayfly help d", &["demo", "doctor"]),
    ("mayfly standby --state", &["--state-dir"]),
    ("mayfly doctor --j", &["--json"]),
];

#[test]
fn bash_completes() {
    let Some(pages) = pages() else { return };
    let directory = pages.join("bash-completion/completions");
    let complete = |line: &str| {
        // compopt works only in a completion of the line editor.
        let script = "compopt() { :; }; source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                      $(complete -p \"$1\" | sed -E 's/.*-F ([^ ]+) .*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\"";
        let program = line.split(' ').next().unwrap();
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-euc", script, "bash"])
            .arg(directory.join(program));
        bash.args(line.split(' ')).current_dir(&directory);
        expect_success(&mut bash)
    };
    for (line, expected) in CASES {
        let completions = complete(line);
        for word in expected {
            assert!(
                completions.lines().any(|known| known == *word),
                "{line}: {completions}"
            );
        }
    }
    assert_eq!(complete("mayfly-jailer --chr"), "--chroot-base-dir\n");
    assert_eq!(complete("mayfly-jailer --cgroup-version "), "1\n2\n");
    assert_eq!(complete("mayfly run --initrd mayfly-"), "mayfly-jailer\n");
    assert_eq!(complete("mayfly run --initrd = mayfly-"), "mayfly-jailer\n");
    // Firecracker's flags take no value after a sign.
    assert_eq!(complete("mayfly --config-file mayfly-"), "mayfly-jailer\n");
    assert_eq!(complete("mayfly --config-file = mayfly-"), "\n");
    assert_eq!(complete("mayfly snapshot-info --"), "--help\n");
    assert_eq!(complete("mayfly snapshot --d"), "--diff\n");
    // Guest arguments follow.
    assert_eq!(complete("mayfly run k -- --c"), "\n");
}

#[test]
fn fish_completes() {
    let Some(pages) = pages() else { return };
    if !has_program("fish", "fish") {
        return;
    }
    let directory = pages.join("fish/vendor_completions.d");
    let complete = |line: &str| {
        let program = line.split(' ').next().unwrap();
        let file = directory.join(format!("{program}.fish"));
        let script = format!("source {}; complete -C '{line}'", file.display());
        let home = scratch::Directory::new();
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", &script]).env("HOME", home.root());
        expect_success(&mut fish)
    };
    for (line, expected) in CASES.iter().chain(&[
        ("mayfly-jailer --chr", &["--chroot-base-dir"][..]),
        ("mayfly-jailer --cgroup-version ", &["1", "2"]),
        ("mayfly run -", &["-m", "--memory"]),
    ]) {
        let completions = complete(line);
        for word in *expected {
            let mut words = completions.lines().filter_map(|line| line.split('\t').next());
            assert!(words.any(|known| known == *word), "{line}: {completions}");
        }
    }
    // Commands of the first level do not follow a command.
    assert!(!complete("mayfly ctl ").contains("restore"));
}

/// Types a line and a tab in an interactive zsh, and waits for each completion on its screen.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty z "TERM=dumb zsh -f -i"
zpty -w z "PS1='%%%% '; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D; unsetopt list_ambiguous; echo LOADED-\$_comps[$2]"
zpty -r z screen "*LOADED-_$2*"
zpty -n -w z $'\x15'"$3"$'\t'
for word in "$@[4,-1]"; do
    zpty -r z screen "*$word*" || exit 1
done
zpty -d z
"#;

#[test]
fn zsh_completes() {
    let Some(pages) = pages() else { return };
    if !has_program("zsh", "zsh") {
        return;
    }
    let complete = |line: &str, expected: &str| {
        let program = line.split(' ').next().unwrap();
        let mut zsh = Command::new("timeout");
        zsh.args([TIMEOUT, "zsh", "-f", "-c", ZSH, "zsh"])
            .arg(pages.join("zsh/site-functions"))
            .args([program, line, expected]);
        expect_success(&mut zsh);
    };
    for (line, expected) in CASES {
        // The screen shows the completed line, or the list if there are several.
        let [word] = expected else {
            complete(line, expected.last().unwrap());
            continue;
        };
        let start = line.rsplit(' ').next().unwrap();
        let typed = line.strip_suffix(start).unwrap();
        complete(line, &format!("{typed}{word}"));
    }
    complete("mayfly-jailer --chr", "mayfly-jailer --chroot-base-dir=");
    // Firecracker's flags take no value after a sign: a blank follows.
    complete("mayfly --config", "mayfly --config-file ");
}
