//! Completions of fish.

use std::fmt::Write as _;

use crate::options::{Command, Kind, Opt, Program};

/// Returns the completions of `program`.
pub fn completion(program: &Program) -> String {
    let name = program.name;
    let mut script = format!(
        "# Completions of {name} for fish. Generated from its help texts. Do not edit.\n\ncomplete -c {name} -f\n"
    );
    let condition = if program.commands.is_empty() {
        ""
    } else {
        " -n __fish_use_subcommand"
    };
    add_options(&mut script, name, condition, &program.options);
    for command in &program.commands {
        add_command(&mut script, name, " -n __fish_use_subcommand", command);
        let condition = format!(" -n '__fish_seen_subcommand_from {}'", command.name);
        add_options(&mut script, name, &condition, &command.options);
        add_argument(&mut script, name, &condition, &command.argument);
        let inner_names: Vec<&str> = command.commands.iter().map(|inner| inner.name.as_str()).collect();
        for inner in &command.commands {
            let absent = format!(
                " -n '__fish_seen_subcommand_from {}; and not __fish_seen_subcommand_from {}'",
                command.name,
                inner_names.join(" ")
            );
            add_command(&mut script, name, &absent, inner);
            let present = format!(
                " -n '__fish_seen_subcommand_from {}; and __fish_seen_subcommand_from {}'",
                command.name, inner.name
            );
            add_options(&mut script, name, &present, &inner.options);
        }
    }
    script
}

fn add_command(script: &mut String, program: &str, condition: &str, command: &Command) {
    let _ = writeln!(
        script,
        "complete -c {program}{condition} -a {} -d {}",
        command.name,
        quote(&command.summary)
    );
}

fn add_argument(script: &mut String, program: &str, condition: &str, kind: &Kind) {
    let argument = match kind {
        Kind::Other => return,
        Kind::File => "-F".to_owned(),
        Kind::Directory => "-a '(__fish_complete_directories)'".to_owned(),
        Kind::Words(words) => format!("-a {}", quote(&words.join(" "))),
    };
    let _ = writeln!(script, "complete -c {program}{condition} {argument}");
}

fn add_options(script: &mut String, program: &str, condition: &str, options: &[Opt]) {
    for option in options {
        let mut line = format!("complete -c {program}{condition}");
        for name in &option.names {
            match name.strip_prefix("--") {
                Some(long) => line.push_str(&format!(" -l {long}")),
                None => line.push_str(&format!(" -s {}", name.trim_start_matches('-'))),
            }
        }
        if option.value.is_some() {
            line.push_str(match option.kind() {
                Kind::File => " -r -F",
                Kind::Directory => " -x -a '(__fish_complete_directories)'",
                Kind::Other | Kind::Words(_) => " -x",
            });
            if let Kind::Words(words) = option.kind() {
                line.push_str(&format!(" -a {}", quote(&words.join(" "))));
            }
        }
        let _ = writeln!(script, "{line} -d {}", quote(&option.summary));
    }
}

/// Quotes `text` for fish.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
